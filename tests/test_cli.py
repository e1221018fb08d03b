"""The command line and the notebook runner, on a tree of their own with the toy study and notebooks of three cells."""
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import toy
from click.testing import CliRunner

from memlab.cli import main
from memlab.lab import runner
from memlab.lab.runner import NotebookFailed

HEAVY = ('matplotlib', 'papermill', 'nbformat', 'IPython', 'ipywidgets', 'nbdev', 'datasets')


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    "A tree with the toy study in place of the real ones."
    monkeypatch.setenv('MEMLAB_HOME', str(tmp_path))
    (tmp_path/'nbs'/'studies').mkdir(parents=True)
    (tmp_path/'settings.ini').write_text('[DEFAULT]\ntimeout_quick = 120\ntimeout_cpu = 120\n')
    package = types.ModuleType('memlab.studies')
    package.__path__ = [str(Path(toy.__file__).parent)]
    monkeypatch.setattr('memlab.lab.study.study_names', lambda: ['toy'])
    monkeypatch.setitem(sys.modules, 'memlab.studies', package)
    monkeypatch.setitem(sys.modules, 'memlab.studies.toy', toy)
    return tmp_path


def memlab(*words):
    "Exit code and everything that was printed."
    result = CliRunner().invoke(main, list(words), prog_name='memlab')
    if result.exception and not isinstance(result.exception, SystemExit): raise result.exception
    return result.exit_code, result.output


def notebook(*cells, study='toy'):
    "Write a study notebook; the first cell holds the parameters."
    cells = [nbformat.v4.new_code_cell(c, id=f'c{i}', metadata=dict(tags=['parameters']) if i == 0 else {}) for i, c in enumerate(cells)]
    kernel = dict(kernelspec=dict(name='python3', language='python', display_name='python3'))
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), runner.notebook_file(study))


def printed(file):
    "What the cells of a notebook printed or returned."
    return [o.get('text', '').strip() or o['data']['text/plain'] for c in nbformat.read(file, 4).cells for o in c.get('outputs', [])]


def test_list_says_where_it_looks_and_how_far_each_preset_is(home):
    assert memlab('list') == (0, f'tree: {home}\ntoy: Is fast better than slow?\n  quick  0 of 4 runs finished\n  cpu    0 of 4 runs finished\n  wide   0 of 6 runs finished\n')
    toy.study.run('cpu', progress=False)
    assert '  cpu    4 of 4 runs finished, 4 of them committed\n' in memlab('list')[1]


def test_list_and_dry_run_say_what_a_preset_is_for(monkeypatch):
    monkeypatch.setattr(toy, 'study', toy.make())
    monkeypatch.setitem(toy.study.presets, 'cpu', lambda: replace(toy.make().preset('cpu'), note='two rates'))
    assert '  cpu    0 of 4 runs finished · two rates\n' in memlab('list')[1]
    assert memlab('run', 'toy', '--preset', 'cpu', '--dry-run')[1].splitlines()[1] == 'two rates'


def test_list_goes_on_where_the_text_of_a_preset_cannot_be_kept(monkeypatch):
    def fails(study, preset): raise OSError('nothing was written')
    monkeypatch.setattr('memlab.lab.study.Study.tally', fails)
    code, text = memlab('list')
    assert code == 0 and text.count('not known here, where its text cannot be read or kept: nothing was written') == 3


@pytest.mark.parametrize('words, want', [
    (['run'], "Missing argument 'STUDY'"),
    (['run', 'nowhere'], "no study 'nowhere': choose from toy"),
    (['run', 'toy', '--preset', 'huge'], "toy has no preset 'huge': choose from quick, cpu, wide"),
    (['run', 'toy', '--jobs', '0'], '0 is not in the range x>=1'),
    (['run', 'toy', '--engine', 'slurm'], "no engine 'slurm': choose from loky, dask, ray"),
    (['run', 'toy', '--scheduler', 'node1:8786'], 'engine loky has no scheduler: leave node1:8786 out, or choose dask or ray'),
    (['run', 'toy', '--store', '--no-notebook'], 'leave --no-notebook out'),
    (['run', 'toy', '--draw', '--fresh'], 'leave --fresh, --stale and --no-notebook out'),
    (['run', 'toy', '--draw'], 'toy has no runs at preset quick to draw'),
    (['run', 'toy', '--speed'], 'No such option'),
    (['renew', '--preset', 'huge'], "no preset 'huge': choose from cpu, wide"),
    (['walk'], 'No such command')])
def test_bad_arguments_exit_2_and_say_what_was_wanted(words, want):
    code, text = memlab(*words)
    assert code == 2 and want in text


@pytest.mark.parametrize('engine, package', [('dask', 'distributed'), ('ray', 'ray')])
def test_an_engine_that_is_not_installed_is_named_with_its_extra(engine, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    code, text = memlab('run', 'toy', '--engine', engine, '--no-notebook')
    assert code == 2 and f"engine {engine} needs {package}, which is missing: pip install 'memlab[cluster]'" in text


def test_a_scheduler_that_does_not_answer_exits_2(monkeypatch):
    "Nothing listens at port 9 of this machine; whether the package of the engine is there does not matter."
    monkeypatch.setattr('memlab.lab.work.find_spec', lambda package: True)
    start = time.monotonic()
    code, text = memlab('run', 'toy', '--engine', 'dask', '--scheduler', '127.0.0.1:9', '--no-notebook')
    assert code == 2 and 'no scheduler answers at 127.0.0.1:9' in text and time.monotonic() - start < 30 and toy.study.tally('quick')['finished'] == 0


def commands(group, *words):
    "Every command, as it is typed."
    yield list(words)
    for name, command in getattr(group, 'commands', {}).items(): yield from commands(command, *words, name)


@pytest.mark.parametrize('command', list(commands(main)), ids=' '.join)
def test_every_command_explains_itself(command):
    code, text = memlab(*command, '--help')
    assert code == 0 and 'Example:' in text


def test_dry_run_computes_nothing(home):
    code, text = memlab('run', 'toy', '--preset', 'cpu', '--dry-run')
    assert code == 0 and '4 runs of 2 arms, 0 finished, 4 to do' in text and not toy.study.folder('cpu').exists()


def test_help_is_not_cut():
    commands = memlab('--help')[1].partition('Commands:')[2]
    assert 'run         Compute the runs of STUDY, then execute its notebook.\n' in commands and '...' not in commands


def test_run_computes_then_executes_the_notebook(home):
    notebook('preset = "none"', 'print("drawn at", preset)')
    code, text = memlab('run', 'toy', '--store')
    done = home/'build'/'notebooks'/'toy'/'quick.ipynb'
    assert code == 0 and str(done) in text and len(toy.study.load('quick')[0]) == 4
    assert printed(done) == ['drawn at quick']
    kept = nbformat.read(runner.notebook_file('toy'), 4)
    assert printed(runner.notebook_file('toy')) == ['drawn at quick'] and kept.cells[0].source == 'preset = "none"' and len(kept.cells) == 2
    assert kept.cells[1].execution_count is None and list(kept.cells[1].metadata) == [] and list(kept.metadata) == ['kernelspec']
    before = done.stat().st_mtime_ns
    assert memlab('run', 'toy')[0] == 0 and done.stat().st_mtime_ns == before         # up to date
    claims = toy.study.results('quick')/'claims.json'
    claims.write_text(claims.read_text() + ' ' if claims.exists() else '[]')          # something the notebook reads has changed
    memlab('run', 'toy')
    assert done.stat().st_mtime_ns > before


def test_a_few_runs_can_be_drawn(home):
    "The notebook is executed on what is there, and nothing is computed."
    notebook('preset = "none"', 'print("drawn at", preset)')
    memlab('run', 'toy', '--preset', 'cpu', '--no-notebook')
    runs = sorted(toy.study.folder('cpu').glob('*/done.json'))
    shutil.rmtree(runs[0].parent), shutil.rmtree(toy.study.results('cpu'))
    code, _ = memlab('run', 'toy', '--preset', 'cpu', '--draw')
    assert code == 0 and printed(home/'build'/'notebooks'/'toy'/'cpu.ipynb') == ['drawn at cpu'] and toy.study.tally('cpu')['finished'] == 3


def test_failures_exit_1(home, monkeypatch):
    notebook('preset = "none"', 'ready = True', 'import os\nos._exit(9)')
    code, text = memlab('run', 'toy')
    assert code == 1 and 'toy.ipynb failed in the cell' in text and 'os._exit(9)' in text and 'quick.failed.ipynb' in text
    monkeypatch.setattr(toy, 'study', toy.make(toy.Arm('bad', .1, fault='raise'), toy.ARMS[1]))
    code, text = memlab('run', 'toy', '--preset', 'cpu')
    assert code == 1 and 'bad seed 0, bad seed 1' in text and 'too steep' in text


def test_what_cannot_be_drawn_is_said_before_anything_is_computed(home, monkeypatch):
    code, text = memlab('run', 'toy')
    assert code == 2 and 'there is no notebook' in text and 'add --no-notebook' in text and not (home/'build').exists()
    assert memlab('run', 'toy', '--dry-run')[0] == 0 and memlab('run', 'toy', '--no-notebook')[0] == 0
    notebook('preset = "none"')
    monkeypatch.setattr('importlib.util.find_spec', lambda name, real=importlib.util.find_spec: None if name == 'papermill' else real(name))
    code, text = memlab('run', 'toy', '--preset', 'cpu')
    assert code == 2 and 'memlab[lab]' in text and not toy.study.folder('cpu').exists()


def test_interruption_says_how_to_go_on(monkeypatch):
    monkeypatch.setattr(toy, 'study', toy.make(toy.ARMS[0], toy.Arm('fast', .5, fault='interrupt')))
    code, text = memlab('run', 'toy', '--preset', 'cpu', '--no-notebook')
    assert code == 130 and 'stopped: 1 of 4 runs finished' in text
    assert memlab('run', 'toy', '--preset', 'cpu', '--no-notebook')[0] == 0


def test_a_good_notebook_replaces_the_failed_one(home, monkeypatch):
    notebook('preset = "none"', '1/0')
    with pytest.raises(NotebookFailed, match='(?s)1/0.*ZeroDivisionError'): runner.execute('toy', 'quick')
    folder = home/'build'/'notebooks'/'toy'
    assert [f.name for f in folder.iterdir()] == ['quick.failed.ipynb']
    notebook('preset = "none"', 'import os; print(os.environ["MEMLAB_HOME"], os.environ["TQDM_DISABLE"], os.environ["OMP_NUM_THREADS"])')
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    assert printed(runner.execute('toy', 'quick')) == [f'{home} 1 1']                   # one thread, as in a run
    assert sorted(f.name for f in folder.iterdir()) == ['quick.ipynb', 'quick.stamp'] and not {'TQDM_DISABLE', 'OMP_NUM_THREADS'} & set(os.environ)
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    assert printed(runner.execute('toy', 'quick', fresh=True)) == [f'{home} 1 3']       # unless somebody says otherwise


def test_a_cell_cut_off_at_the_limit_fails_although_it_is_marked_completed(home, monkeypatch):
    notebook('preset = "none"', 'slow()')

    def hang(file, output, parameters, limit):
        book = nbformat.read(file, 4)
        book.cells[1].metadata['papermill'] = dict(status='completed', duration=limit + .01)
        nbformat.write(book, output)

    monkeypatch.setattr(runner, '_papermill', hang)
    with pytest.raises(NotebookFailed, match=r'(?s)slow\(\).*hit the limit of 120 s'): runner.execute('toy', 'quick')


def test_unknown_parameters_are_errors():
    notebook('preset = "none"\nfresh = False', 'preset')
    with pytest.raises(ValueError, match='has no parameter colour: its cell tagged "parameters" has preset, fresh'):
        runner.execute('toy', 'quick', dict(colour=1))


def python(code, **environment):
    "Run code in a fresh interpreter."
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=os.environ | environment, timeout=300)


def test_help_is_quick():
    done = python('import sys\nfrom memlab.cli import main\ntry: main(["run", "--help"])\nexcept SystemExit: pass\n'
                  'assert not {"torch", "pandas", "scipy", "pyarrow", "joblib"} & set(sys.modules), "help imports too much"')
    assert done.returncode == 0 and 'Compute the runs of STUDY' in done.stdout, done.stderr


def test_the_module_is_the_program():
    done = subprocess.run([sys.executable, '-m', 'memlab.cli', '--version'], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith('memlab, version ')


@pytest.mark.parametrize('words, spared', [('list', {'torch', 'pandas', 'scipy', 'pyarrow', 'matplotlib'}), ('scoreboard', {'torch', 'matplotlib', 'IPython'})])
def test_what_was_asked_before_is_there_at_once(words, spared):
    "Studies are imported for the first answer; the next one follows from what it said, as long as nothing changes."
    toy.study.run('cpu', progress=False), toy.study.verdicts('cpu')
    said = memlab(words)[1]
    done = python(f'import sys\nfrom memlab.cli import main\ntry: main([{words!r}])\nexcept SystemExit: pass\nprint(*sorted({spared} & set(sys.modules)), file=sys.stderr)')
    assert 'toy' in said and (done.stdout, done.stderr.strip()) == (said, '')
    shutil.rmtree(toy.study.folder('cpu')), shutil.rmtree(toy.study.results('cpu'))
    assert memlab(words)[1] != said


def test_the_scoreboard_draws_nothing():
    done = python(f'import sys\nsys.path.insert(0, {str(Path(toy.__file__).parent)!r})\nfrom memlab.cli import main\ntry: main(["scoreboard"])\nexcept SystemExit: pass\n'
                  'assert "matplotlib" not in sys.modules')
    assert done.returncode == 0 and done.stdout == 'No verdicts yet: `memlab run STUDY` makes some.\n', done.stderr


def test_runs_without_a_notebook_need_the_core_alone(home):
    code = f'''
import sys, types
class Refuse:
    def find_spec(self, name, *_):
        if name.split('.')[0] in {HEAVY}: raise ImportError(name + ' is not installed')
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, {str(Path(toy.__file__).parent)!r})
import toy, memlab.lab.study
memlab.lab.study.study_names = lambda: ['toy']
sys.modules['memlab.studies'] = types.ModuleType('memlab.studies')
sys.modules['memlab.studies'].__path__ = []
sys.modules['memlab.studies.toy'], toy.study = toy, toy.make(seeds=range(5))
from memlab.cli import main
main(['run', 'toy', '--preset', 'cpu', '--no-notebook'])
'''
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert 'T1     supported' in done.stdout and 'toy cpu' in done.stderr                  # the verdict, and a bar
    assert json.loads((home/'data/results/toy/cpu/claims.json').read_text())['content'][0]['verdict'] == 'supported'
