"What JupyterLab does to notebooks here: opening one changes nothing, and the stored outputs of a study survive whatever is run."
import asyncio
import os
import shutil
from pathlib import Path

import nbformat
import pytest
from ipykernel.ipkernel import IPythonKernel
from traitlets.config import PyFileConfigLoader

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.filterwarnings('ignore:Overriding existing pre_save_hook')


@pytest.fixture
def lab(tmp_path):
    "JupyterLab's files, in a tree with a study and a library notebook."
    for name in ('settings.ini', 'nbs/studies/mqar.ipynb', 'nbs/nn/state.ipynb'):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/name, tmp_path/name)
    config = PyFileConfigLoader('jupyter_server_config.py', str(ROOT/'tools'/'jupyter')).load_config()
    files = config.ServerApp.contents_manager_class
    return files(root_dir=str(tmp_path), config=config)


def opened(lab, path): return asyncio.run(lab.get(path))


def save(lab, path, content):
    model = dict(type='notebook', format='json', content=content)
    asyncio.run(lab.save(model, path))


def ran(content, preset='quick'):
    "The notebook after run-all: toys everywhere, counters, and what the kernel says of itself."
    for cell in content['cells']:
        if cell['cell_type'] == 'code': cell |= dict(execution_count=3, outputs=[nbformat.v4.new_output('stream', text=f'a toy at {preset}')])
    return content


@pytest.mark.parametrize('path', ['nbs/studies/mqar.ipynb', 'nbs/nn/state.ipynb'])
def test_opening_changes_nothing(lab, tmp_path, path):
    "A kernel that starts writes its name and language into the notebook: they are there already; saving leaves the file as it was."
    before, model = (tmp_path/path).read_bytes(), opened(lab, path)
    assert model['content']['metadata']['kernelspec']['display_name'].startswith('Python 3')
    assert model['content']['metadata']['language_info'] == IPythonKernel.language_info
    save(lab, path, model['content'])
    assert (tmp_path/path).read_bytes() == before


def test_a_run_leaves_the_stored_outputs_of_a_study(lab, tmp_path):
    path = 'nbs/studies/mqar.ipynb'
    before = (tmp_path/path).read_bytes()
    for _ in range(2): save(lab, path, ran(opened(lab, path)['content']))             # autosave, and again
    assert (tmp_path/path).read_bytes() == before


def test_a_cell_that_was_changed_shows_what_it_gave(lab, tmp_path):
    path = 'nbs/studies/mqar.ipynb'
    old = nbformat.read(tmp_path/path, 4)
    content = ran(opened(lab, path)['content'])
    at, other = [i for i, cell in enumerate(old.cells) if cell.get('outputs')][:2]
    content['cells'][at]['source'] += '\n# another'
    save(lab, path, content)
    new = nbformat.read(tmp_path/path, 4)
    assert new.cells[at].outputs[0].text == 'a toy at quick' and new.cells[other].outputs == old.cells[other].outputs


def test_a_study_that_has_nothing_stored_and_a_library_page_keep_what_was_run(lab, tmp_path):
    fresh = nbformat.read(tmp_path/'nbs/studies/mqar.ipynb', 4)
    for cell in fresh.cells:
        if cell.cell_type == 'code': cell.outputs = []
    nbformat.write(fresh, tmp_path/'nbs/studies/new.ipynb')
    for path in ('nbs/studies/new.ipynb', 'nbs/nn/state.ipynb'):
        save(lab, path, ran(opened(lab, path)['content']))
        assert {o.text for cell in nbformat.read(tmp_path/path, 4).cells for o in cell.get('outputs', [])} == {'a toy at quick'}


def test_other_files_and_kernels_are_left_alone(lab, tmp_path):
    (tmp_path/'note.txt').write_text('x')
    assert opened(lab, 'note.txt')['content'] == 'x'
    book = nbformat.v4.new_notebook(metadata=dict(kernelspec=dict(name='nowhere', display_name='Nowhere', language='x')))
    nbformat.write(book, tmp_path/'other.ipynb')
    assert opened(lab, 'other.ipynb')['content']['metadata'] == book.metadata


def started(tmp_path, monkeypatch, folder):
    "MEMLAB_HOME of a kernel that starts in a folder, of the .venv in `tmp_path/tree`."
    for name in ('tree/nbs', 'tree/.venv', 'elsewhere/deep', 'other'): (tmp_path/name).mkdir(parents=True, exist_ok=True)
    for name in ('tree', 'other'): (tmp_path/name/'settings.ini').write_text('')
    monkeypatch.setattr('sys.prefix', str(tmp_path/'tree'/'.venv'))
    monkeypatch.chdir(tmp_path/folder)
    PyFileConfigLoader('ipython_kernel_config.py', str(ROOT/'tools'/'jupyter')).load_config()
    return os.environ.get('MEMLAB_HOME')


@pytest.mark.parametrize('folder, home', [('elsewhere/deep', 'tree'), ('tree/nbs', None), ('other', None)])
def test_a_kernel_outside_of_any_tree_works_in_that_of_its_environment(tmp_path, monkeypatch, folder, home):
    "As papermill does with the path of a study, from any folder; in a tree, or where MEMLAB_HOME says otherwise, nothing is set."
    with monkeypatch.context() as patch:
        patch.delenv('MEMLAB_HOME', raising=False)
        assert started(tmp_path, patch, folder) == (home and str(tmp_path/home))
        patch.setenv('MEMLAB_HOME', 'mine')
        assert started(tmp_path, patch, folder) == 'mine'
