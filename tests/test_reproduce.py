"The one command, end to end: from data to figures and verdicts at preset quick, in an empty tree."
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from memlab.core.files import read_json
from memlab.lab.study import find_study, study_names

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def tree(tmp_path_factory, lend_text):
    "A tree with notebooks and settings, and nothing computed."
    home = tmp_path_factory.mktemp('tree')
    shutil.copytree(ROOT/'nbs', home/'nbs')
    shutil.copy(ROOT/'settings.ini', home)
    return lend_text(home)


def run(home, study, *args):
    "`memlab run STUDY` in a tree of its own."
    env = os.environ | dict(MEMLAB_HOME=str(home), TQDM_DISABLE='1')
    return subprocess.run([sys.executable, '-m', 'memlab', 'run', study, *args], env=env, cwd=home, capture_output=True, text=True, timeout=1200)


def cells(home, study): return [c.source for c in nbformat.read(home/f'nbs/studies/{study}.ipynb', 4).cells if c.cell_type == 'code']


def drawn_by(home, study):
    "The files that the page of a study names where it draws them."
    return {f'{name}.svg' for source in cells(home, study) for name in re.findall(r"^ *finish\(.*?, '(\w+)',", source, re.M)}


def figures(home, study):
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in (home/f'build/figures/{study}/quick').glob('*.svg')}


DRAW = '''
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cell in sys.stdin.read().split('\\0'): shell.run_cell(cell).raise_error()
'''


def drawn_again(home, study):
    "Draw the figures of a page in another process, with other hashes of words, by those of its cells that neither train nor explore; what they show is not looked at."
    drawing = [source for source in cells(home, study) if not re.search(r'^#\||TemporaryDirectory|\bexplorer\(|\bImage\(|\bpower_table\(', source, re.M)]
    shutil.rmtree(home/'build/figures'/study)
    env = os.environ | dict(MEMLAB_HOME=str(home), MPLBACKEND='agg', PYTHONHASHSEED='7')
    return subprocess.run([sys.executable, '-c', DRAW], input='\0'.join(drawing), env=env, cwd=home/'nbs/studies', capture_output=True, text=True)


@pytest.mark.parametrize('study', study_names())
def test_from_data_to_verdicts(tree, study):
    done = run(tree, study)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = read_json(tree/f'build/results/{study}/quick/claims.json')
    assert [r['id'] for r in rows] == [c.id for c in find_study(study).claims]
    assert {r['verdict'] for r in rows} == {'inconclusive'}                       # quick decides nothing
    assert 5 <= len(drawn_by(tree, study)) and drawn_by(tree, study) <= set(figures(tree, study))
    notebook = nbformat.read(tree/f'build/notebooks/{study}/quick.ipynb', 4)
    assert sum('image/png' in o.get('data', {}) for c in notebook.cells for o in c.get('outputs', [])) >= 10
    assert not (tree/'data').exists() and not (tree/'figures').exists()           # quick writes under build/ only


@pytest.mark.parametrize('study', ['mqar'])   # executed by the test before it, on the same worker
def test_figures_are_drawn_again_to_the_byte(tree, study):
    "One page stands for all: it has every kind of figure, and they are saved in one place."
    before = figures(tree, study)
    done = drawn_again(tree, study)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert before and figures(tree, study) == before
