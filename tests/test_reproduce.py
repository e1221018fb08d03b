"The one command, end to end: from text to figures and verdicts at preset quick, in an empty tree."
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    "A tree with notebooks and settings, and nothing computed."
    home = tmp_path_factory.mktemp('tree')
    shutil.copytree(ROOT/'nbs', home/'nbs')
    shutil.copy(ROOT/'settings.ini', home)
    return home


def run(home, *args):
    "`memlab run residual_growth` in a tree of its own."
    env = os.environ | dict(MEMLAB_HOME=str(home), TQDM_DISABLE='1')
    return subprocess.run([sys.executable, '-m', 'memlab.cli', 'run', 'residual_growth', *args], env=env, cwd=home, capture_output=True, text=True, timeout=300)


def figures(home):
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in (home/'build/figures/residual_growth/quick').glob('*.svg')}


def test_from_text_to_verdicts(tree):
    done = run(tree)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tree/'build/results/residual_growth/quick/claims.json').read_text())
    assert [r['id'] for r in rows] == [f'RG{n}' for n in (*range(1, 14), 17)]
    assert all(set(r) == {'id', 'statement', 'source', 'verdict', 'effect', 'ci_low', 'ci_high', 'n_seeds', 'preset', 'rule', 'note'} for r in rows)
    assert {r['verdict'] for r in rows} == {'inconclusive'}                       # quick decides nothing
    assert {'rg1.svg', 'rg3.svg', 'rg17.svg', 'streams.svg'} <= set(figures(tree))
    notebook = nbformat.read(tree/'build/notebooks/residual_growth/quick.ipynb', 4)
    assert sum('image/png' in o.get('data', {}) for c in notebook.cells for o in c.get('outputs', [])) >= 12
    assert not (tree/'data').exists() and not (tree/'figures').exists()           # quick writes under build/ only


def test_figures_are_drawn_again_to_the_byte(tree):
    before = figures(tree)
    shutil.rmtree(tree/'build/figures')
    assert before and run(tree).returncode == 0
    assert figures(tree) == before
