"""Give the committed runs the names of today's arms. Nothing but names may change, and that is proved here.

The rows of commit BASE were named by a hash of their whole configuration. Each old name is first computed again from
`arms.json` of that commit; only then its row gets the name of today's arm of that name and seed.
"""
import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from memlab.core.files import write_atomic
from memlab.core.identity import canonical, digest, full
from memlab.lab.arm import with_factors
from memlab.lab.records import RECORDS, RUNS, frame, read_table, run_id, write_table
from memlab.lab.study import find_study

BASE, PRESET = '574f97e0c5517e16321e67114b7f40069ce79279', 'cpu'
STUDIES = dict(infini_memory=270, mqar=392, residual_growth=213)  # rows of BASE
STAMPS = ('renewed_by', 'deviation')
ROOT = Path(__file__).resolve().parents[1]


def at_base(study: str, file: str) -> bytes:
    "A committed file as it was."
    path = f'{BASE}:data/results/{study}/{PRESET}/{file}'
    return subprocess.run(['git', 'show', path], cwd=ROOT, capture_output=True, check=True).stdout


def old_tables(study: str) -> tuple[pa.Table, pa.Table]:
    "Runs and records of BASE, each old name computed again."
    runs, records = (pq.read_table(io.BytesIO(at_base(study, f'{n}.parquet'))) for n in ('runs', 'records'))
    configs = json.loads(at_base(study, 'arms.json'))
    for r in runs.to_pylist():
        assert r['run_id'] == digest(canonical([study, configs[r['arm']], r['seed'], r['corpus']])), f"{study}: {r['arm']} seed {r['seed']}"
    assert len(runs) == STUDIES[study]
    return runs, records


def new_ids(study: str, runs: pa.Table, records: pa.Table) -> dict[str, str]:
    "From the names of BASE to today's; both stages of a plan are known from the old records."
    preset = find_study(study).presets[PRESET]()
    first = [arm for arm, _ in preset.plan]
    plan = preset.plan + (tuple(preset.then(with_factors(frame(runs), first), frame(records))) if preset.then else ())
    arms, rows = {arm.name: arm for arm, _ in plan}, runs.to_pylist()
    assert {(a.name, s) for a, seeds in plan for s in seeds} == {(r['arm'], r['seed']) for r in rows}
    return {r['run_id']: run_id(study, arms[r['arm']], r['seed'], r['corpus']) for r in rows}, arms


def renamed(table: pa.Table, ids: dict[str, str], schema: pa.Schema) -> pa.Table:
    "The same rows under other names; columns that BASE did not have are empty."
    columns = {n: table[n] if n in table.column_names else pa.nulls(len(table), schema.field(n).type) for n in schema.names}
    columns['run_id'] = pa.array([ids[i] for i in table['run_id'].to_pylist()])
    return pa.table(columns, schema=schema)


def stamped(runs: pa.Table, where: Path) -> pa.Table:
    "With the stamps that the table there already has."
    if 'renewed_by' not in pq.read_schema(where/'runs.parquet').names: return runs
    known = {(r['arm'], r['seed']): r for r in read_table(where/'runs.parquet', RUNS).to_pylist()}
    return pa.Table.from_pylist([r | {k: known[r['arm'], r['seed']][k] for k in STAMPS} for r in runs.to_pylist()], schema=RUNS)


def migrate(study: str) -> None:
    runs, records = old_tables(study)
    ids, arms = new_ids(study, runs, records)
    where = find_study(study).results(PRESET)
    write_table(renamed(records, ids, RECORDS), where/'records.parquet')
    write_table(stamped(renamed(runs, ids, RUNS), where), where/'runs.parquet')
    write_atomic(where/'arms.json', (json.dumps({name: full(arm) for name, arm in arms.items()}, indent=1, ensure_ascii=False) + '\n').encode())
    print(study, len(ids), 'runs')


if __name__ == '__main__':
    for name in sys.argv[1:] or STUDIES: migrate(name)
