"The Python in README.md runs as it stands there, each block by itself in a folder that holds nothing but Python's own text."
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from memlab.core.files import read_json

TEXT = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
SECTIONS = re.split(r"^## ", TEXT, flags=re.M)[1:]
BLOCKS = {section.splitlines()[0]: block for section in SECTIONS for block in re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)}


def test_the_two_examples_are_there():
    assert list(BLOCKS) == ["Use a layer in your own model", "Add your own arm and claim"]
    assert TEXT.count("```python") == len(BLOCKS)


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
