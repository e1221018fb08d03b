"The Python in README.md runs as it stands there, each block by itself in a folder that holds nothing but Python's own text."
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from memlab.core.files import read_json
from memlab.lab.claims import read_claims
from memlab.lab.study import find_study, study_names

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
sys.path.insert(0, str(ROOT / "tools"))
from outputs import renew  # noqa: E402

SECTIONS = re.split(r"^## ", TEXT, flags=re.M)[1:]
BLOCKS = {section.splitlines()[0]: block for section in SECTIONS for block in re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)}


def test_the_three_examples_are_there():
    assert list(BLOCKS) == ["Use a layer in your own model", "Train a model, keep it, hand it on", "Add your own arm and claim"]
    assert TEXT.count("```python") == len(BLOCKS)


def test_it_fits_on_few_screens():
    assert len(TEXT.splitlines()) <= 190


def test_three_findings_are_said_as_the_evidence_has_them(monkeypatch):
    monkeypatch.setenv("MEMLAB_HOME", str(ROOT))   # another file of tests may have gone elsewhere
    shown = re.findall(r"^\*\*(.+)\*\* (.+) \(\[(\w+)\]\(nbs/studies/(\w+)\.ipynb\): (.+), (\d+) seeds\)\n\n!\[(.+)\]\((\S+)\)$", TEXT, re.M)
    assert len(shown) == 3
    for says, so_what, id, study, scale, seeds, alt, figure in shown:
        (row,) = [r for r in read_claims(find_study(study).results("cpu") / "claims.json") if r["id"] == id]
        assert (scale, int(seeds)) == (row["scale"], row["n_seeds"])
        assert (says, so_what) == find_study(study).findings("cpu", id)[id], f"{id}: run `make readme`"
        assert (ROOT / figure).is_file() and len(alt) > 30


def test_every_study_has_one_line():
    lines = [line for line in TEXT.splitlines() if line.startswith("| [")]
    for name in study_names(): assert sum(f"(nbs/studies/{name}.ipynb)" in line for line in lines) == 1, name


def test_what_was_verified_is_shown():
    rows = read_json(ROOT / "tests" / "vectors" / "verified.json")["layers"]
    for row in rows: assert f"`{row['function'].split(': ')[-1]}` | {row['error']:.0e} |" in TEXT, row["layer"]
    assert len(re.findall(r"\| \de-\d\d \|$", TEXT, re.M)) == len(rows)


@pytest.mark.parametrize("title", BLOCKS)
def test_example_runs(title, tmp_path, lend_text):
    lend_text(tmp_path)
    env = os.environ | {"MEMLAB_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", BLOCKS[title]], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"data", "figures"} & {f.name for f in tmp_path.iterdir()}           # the front page leaves what is committed alone
    if "claim" in title:
        found = read_json(tmp_path / "build/results/residual_growth/mine/claims.json")[-1]
        assert (found["id"], found["n_seeds"]) == ("MINE", 5) and found["verdict"] in done.stdout


def test_renewed_outputs_are_those_of_today_and_nothing_else_changes(tmp_path, monkeypatch):
    monkeypatch.setattr("outputs.ROOT", tmp_path)
    old, code = [nbformat.v4.new_output("stream", text="of old")], nbformat.v4.new_code_cell
    cells = [nbformat.v4.new_markdown_cell("# Words"), code("import sys; print('a', flush=True); print('no', file=sys.stderr); print('b')", outputs=old), code("6 * 7"), code("#| eval: false\n1 / 0", outputs=old)]
    before = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "python3"}})
    nbformat.write(before, path := tmp_path / "a.ipynb")
    renew(path)
    now = nbformat.read(path, 4)
    assert [[o.get("text") or o.data["text/plain"] for o in cell.outputs] for cell in now.cells[1:]] == [["a\nb\n"], ["42"], ["of old"]]
    for nb in (before, now):
        for cell in nb.cells[1:]: cell.outputs = []
    assert now == before
    nbformat.write(nbformat.v4.new_notebook(cells=[code("1 / 0")]), path)
    with pytest.raises(RuntimeError, match="a.ipynb failed: (?s:.*)ZeroDivisionError"): renew(path)
