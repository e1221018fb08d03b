"The committed rows have new names and their old values, to the bit: tools/migrate.py, proved again."
import subprocess
import sys
from pathlib import Path

import pyarrow.compute as pc
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/'tools'))
from migrate import BASE, PRESET, STAMPS, STUDIES, new_ids, old_tables, renamed  # noqa: E402

from memlab.lab.records import RECORDS, RUNS  # noqa: E402
from memlab.lab.study import find_study, read_tables  # noqa: E402

known = subprocess.run(['git', 'cat-file', '-e', f'{BASE}^{{commit}}'], cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.skipif(not known, reason='this clone does not hold the commit that the rows come from')
@pytest.mark.parametrize('study', STUDIES)
def test_rows_are_renamed_and_nothing_else(study):
    runs, records = old_tables(study)
    ids, _ = new_ids(study, runs, records)
    assert len(set(ids.values())) == STUDIES[study]
    order = [('run_id', 'ascending'), *((c, 'ascending') for c in ('metric', 'layer', 'position', 'item', 'step'))]
    for old, schema, new in zip((runs, records), (RUNS, RECORDS), read_tables(find_study(study).results(PRESET))):
        keep, order_ = [c for c in schema.names if c not in STAMPS], [o for o in order if o[0] in schema.names]
        a, b = (t.select(keep).sort_by(order_) for t in (renamed(old, ids, schema), new))
        assert len(a) == len(b)
        for c in keep: assert pc.all(pc.equal(a[c], b[c]).fill_null(True)).as_py() and a[c].null_count == b[c].null_count, c
        assert a.equals(b)
