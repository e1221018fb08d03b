"""`torchrun -m memlab`: two processes compute what one does, one of them writes it, and none waits for one that has died."""
import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_study import wait_for

from memlab.cli import main
from memlab.core.files import load_tensors, read_json

TINY = '''
from dataclasses import replace
from memlab.lab.single import single_arm
from memlab.lab.study import Preset, Study

def arm(name, rows, mixer='delta', steps=6):
    words = dict(vocab_size='32', length='16', pairs='2', rows=str(rows))
    return replace(single_arm('recall', words, mixer, dim=16, n_layers=1, lr=1e-2, steps=steps, log_every=3), name=name)

def preset(*arms): return lambda: Preset(tuple((a, (0,)) for a in arms))

study = Study('tiny', 'Is two one?', dict(cpu=preset(arm('delta', 8), arm('attention', 8, 'attention')), odd=preset(arm('odd', 7)), long=preset(arm('long', 8, steps=100_000))))
'''
SCRIPT = '''
import sys
from pathlib import Path
import memlab.studies
memlab.studies.__path__.append(str(Path(__file__).parent))
from memlab.cli import main
if __name__ == '__main__': main()
'''
TRAIN = 'train', 'strings', 'facts=16', 'rows=4', '--dim', '16', '--n-layers', '1', '--steps', '4', '--log-every', '2'


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with the tiny study and a memlab that knows it."
    folder = tmp_path_factory.mktemp('torchrun')
    (folder/'tiny.py').write_text(TINY)
    (folder/'memlab_with_tiny.py').write_text(SCRIPT)
    return folder


@pytest.fixture(scope='module')
def tiny(place):
    "The tiny study, in this process."
    spec = importlib.util.spec_from_file_location('memlab.studies.tiny', place/'tiny.py')
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module.study


def environment(home, **more): return os.environ | dict(MEMLAB_HOME=str(home), OMP_NUM_THREADS='1', **more)


def torchrun(home, *words):
    "What two processes that torchrun starts have to say."
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(home))


@pytest.fixture
def pair(place, tmp_path):
    "Starts two processes that meet without torchrun, which would end one itself when the other dies."
    started = []
    def pair(*words):
        with socket.socket() as s: s.bind(('', 0)); port = s.getsockname()[1]
        meet = lambda rank: environment(tmp_path, RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR=socket.gethostname(), MASTER_PORT=str(port))
        started.extend(subprocess.Popen([sys.executable, str(place/'memlab_with_tiny.py'), *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=meet(rank)) for rank in (0, 1))
        return started
    yield pair
    for process in started: process.kill(); process.communicate()


@pytest.fixture(scope='module')
def both(place, tiny, tmp_path_factory):
    "The folder where two processes have computed the tiny study, what they said, and the folder where one has."
    two, one = (tmp_path_factory.mktemp(n) for n in ('two', 'one'))
    done = torchrun(two, str(place/'memlab_with_tiny.py'), 'run', 'tiny', '--preset', 'cpu', '--no-notebook')
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MEMLAB_HOME', str(one))
        tiny.run('cpu', progress=False)
    return two, done, one


def tables(home, study, patch):
    "Runs without their times, and records with all but their values; the values."
    patch.setenv('MEMLAB_HOME', str(home))
    runs, records = study.load('cpu')
    return runs.drop(columns='seconds'), records.drop(columns='value'), records.value.to_numpy()


def test_the_tables_of_two_processes_are_those_of_one(both, tiny, monkeypatch):
    (runs, where, values), (runs1, where1, values1) = (tables(home, tiny, monkeypatch) for home in (both[0], both[2]))
    assert len(runs) == 2 and runs.equals(runs1) and where.equals(where1) and len(values) > 20
    assert abs(values - values1).max() < 1e-6   # 2.4e-07 seen
    assert (both[0]/'data/results/tiny/cpu/rehearsals.parquet').read_bytes() == (both[2]/'data/results/tiny/cpu/rehearsals.parquet').read_bytes()


def test_one_of_two_processes_speaks_and_writes(both):
    home, done, one = both
    assert done.stdout.count('tables: ') == 1 and done.stderr.count('tiny cpu: 100%') <= 1
    files = lambda home: sorted(p.relative_to(home).as_posix() for p in home.rglob('*') if p.is_file())
    assert [f for f in files(home) if 'claims.json' not in f] == files(one)


def test_one_model_outside_of_a_study(tmp_path, monkeypatch):
    done = torchrun(tmp_path/'two', '-m', 'memlab', *TRAIN, '--out', str(tmp_path/'out'))
    assert done.returncode == 0 and done.stdout.count('training loss') == 1, done.stderr
    monkeypatch.setenv('MEMLAB_HOME', str(tmp_path/'one'))
    assert CliRunner().invoke(main, [*TRAIN, '--out', str(tmp_path/'alone')]).exit_code == 0
    (two, _), (one, _) = (load_tensors(tmp_path/out/'model.safetensors') for out in ('out', 'alone'))
    assert two.keys() == one.keys() and max((two[n] - one[n]).abs().max() for n in one) < 1e-5
    assert read_json(tmp_path/'out'/'done.json')['run_id'] == read_json(tmp_path/'alone'/'done.json')['run_id']


def test_a_batch_that_does_not_divide_ends_both(pair):
    for process in pair('run', 'tiny', '--preset', 'odd', '--no-notebook'):
        err = process.communicate(timeout=300)[1]
        assert process.returncode == 1 and 'a batch of 7 rows does not divide into 1 parts on 2 processes: choose a multiple of 2' in err and 'Traceback' not in err, err


def test_a_process_that_is_killed_ends_the_other(pair, tmp_path):
    "With a word, and long before a collective operation would give up, which takes days; three minutes are for a busy machine, it is seconds."
    first, second = pair('run', 'tiny', '--preset', 'long', '--no-notebook')
    saved = lambda: next(tmp_path.rglob('*.part/checkpoint.safetensors'), None)
    wait_for(lambda: saved() or first.poll() is not None)
    second.kill()
    err = first.communicate(timeout=180)[1]
    assert first.returncode == 1
    assert 'process 0 of 2 waits for the others in vain' in err and 'start all of them again, they go on from their last checkpoint' in err and 'Traceback' not in err, err
    assert load_tensors(saved())[1]['result']['step'] > 0


@pytest.mark.parametrize('words', [['--jobs', '2'], ['--dry-run'], ['--engine', 'loky', '--scheduler', 'host:1']], ids=lambda w: w[0])
def test_what_several_processes_cannot_do_is_told(words, monkeypatch, tmp_path):
    monkeypatch.setenv('MEMLAB_HOME', str(tmp_path))
    for name, value in dict(RANK='1', WORLD_SIZE='2').items(): monkeypatch.setenv(name, value)
    said = CliRunner().invoke(main, ['run', 'residual_growth', '--no-notebook', *words])
    assert said.exit_code == 2 and not any(tmp_path.iterdir())
    if '--scheduler' not in words: assert 'leave --jobs, --engine, --scheduler, --dry-run and --draw out, or torchrun' in ' '.join(said.output.split())
