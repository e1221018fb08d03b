"""Runs that other processes hand out: the tables of loky, a worker that is killed, and engines that are not there or would compute other numbers."""
import json
import os
import signal
import subprocess
import sys
import threading
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import toy
from test_study import executed, home, tables, wait_for  # noqa: F401
from threadpoolctl import threadpool_info

from memlab.lab.runs import Run
from memlab.lab.work import How, NoEngine, _check_workers, _elsewhere, _ray

needs_dask = pytest.mark.skipif(not find_spec('distributed'), reason="Dask is not installed: pip install 'memlab[cluster]'")
needs_ray = pytest.mark.skipif(not find_spec('ray'), reason="Ray is not installed: pip install 'memlab[cluster]'")
CLUSTER = '''
import sys
import dask
from distributed import LocalCluster
if __name__ == '__main__':
    dask.config.set({'distributed.nanny.pre-spawn-environ': dict(OMP_NUM_THREADS='2', OPENBLAS_NUM_THREADS='2', MKL_NUM_THREADS='2')})
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=None) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()   # until whoever started this has closed it or is gone
'''


def threads(arm, seed, folder, progress=True, stop=None):
    "The toy, and in how many threads it could have computed; the log tells what else a worker of Dask does."
    import torch  # noqa: F401
    dask = sys.modules.get('dask')
    if not arm.quiet: toy.log(f"trims memory: {'MALLOC_TRIM_THRESHOLD_' in os.environ}, is profiled: {bool(dask and dask.config.get('distributed.worker.profile.enabled', False))}")
    out = toy.execute(arm, seed, folder, progress, stop)
    out.records.append(dict(step=8, metric='threads', value=max(pool['num_threads'] for pool in threadpool_info())))
    return out


def study():
    made = toy.make(*(toy.Arm(a.name, a.rate, pause=.1) for a in toy.ARMS))
    made.execute = threads
    return made


@pytest.fixture(scope='module')
def loky(tmp_path_factory):
    "What loky computes."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MEMLAB_HOME', str(tmp_path_factory.mktemp('loky')))
        study().run('quick', jobs=2, progress=False)
        return tables(study(), 'quick')


@pytest.fixture
def scheduler(home, tmp_path):  # noqa: F811
    "The address of a scheduler with two workers, which would compute with two threads."
    (script := tmp_path/'cluster.py').write_text(CLUSTER)
    process = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | dict(PYTHONPATH=os.pathsep.join(sys.path)))
    yield process.stdout.readline().strip()
    process.stdin.close()
    try: process.wait(60)
    finally: process.kill()


def kill_one(killed):
    "Kill the process that is in the middle of a run, as soon as there is one."
    middle = lambda: next((p.parent for p in study().folder('quick').glob('*.part/place.json') if 3 <= json.loads(p.read_text())[0] < 7), None)
    wait_for(middle)
    killed += [int((part := middle()).with_suffix('.holder').read_text().split()[1].strip(',')), part.stem]
    os.kill(killed[0], signal.SIGKILL)


@needs_dask
def test_a_worker_of_dask_that_is_killed_loses_nothing(home, scheduler, loky):  # noqa: F811
    "Its run goes on from its checkpoint, and the tables are those of loky to the byte."
    threading.Thread(target=kill_one, args=[killed := []], daemon=True).start()
    records = study().run('quick', jobs=2, progress=False, engine='dask', scheduler=scheduler)[1]
    assert killed[0] != os.getpid() and 'goes on after step' in (home/'log.txt').read_text() and sorted(executed(home).values()) == [1, 1, 1, 2]
    assert tables(study(), 'quick') == loky and set(records.value[records.metric == 'threads']) == {1}
    assert not list(study().folder('quick').glob('.seen-*'))


@needs_dask
def test_dask_brings_workers_of_its_own(home, loky):  # noqa: F811
    "They neither trim memory nor profile, which takes processor time from runs."
    study().run('quick', jobs=2, progress=False, engine='dask')
    assert tables(study(), 'quick') == loky
    assert (home/'log.txt').read_text().count('trims memory: False, is profiled: False') == 4


@needs_ray
def test_ray_brings_workers_of_its_own(home, loky):  # noqa: F811
    study().run('quick', jobs=2, progress=False, engine='ray')
    assert tables(study(), 'quick') == loky


def test_a_ray_that_does_not_start_is_told(monkeypatch):
    def init(address, num_cpus, include_dashboard): raise Exception('The current node timed out')
    for name, more in {'ray': dict(init=init), 'ray.util': {}, 'ray.util.joblib': dict(register_ray=None)}.items(): monkeypatch.setitem(sys.modules, name, SimpleNamespace(**more))
    with pytest.raises(NoEngine, match='Ray does not start, or is another one there .The current node timed out.: install the same ray everywhere'), _ray(How(jobs=2)): pass


@needs_dask
def test_a_scheduler_that_is_none_is_told_in_seconds():
    with pytest.raises(NoEngine, match='no scheduler answers at 127.0.0.1:9 .* write its address as host:port'): toy.make().run('quick', jobs=2, progress=False, engine='dask', scheduler='127.0.0.1:9')


class Client:
    "What a client of Dask would say of a cluster."

    def __init__(self, scheduler='1', worker='1', threads=1, workers=2): self.scheduler, self.worker, self.threads, self.workers = scheduler, worker, threads, workers

    def get_versions(self, packages):
        said = lambda version: dict(packages=dict(dask='1', distributed='1', torch=version))
        return dict(client=said('1'), scheduler=dict(packages=dict(dask=self.scheduler, distributed='1')), workers={'tcp://w:0': said(self.worker)})

    def nthreads(self): return {f'tcp://w:{i}': self.threads for i in range(self.workers)}

    def wait_for_workers(self, n, timeout):
        if self.workers < n: raise TimeoutError


@pytest.mark.parametrize('cluster, words', [
    (dict(scheduler='2'), 'dask is 1 here and 2 at the scheduler: install the same packages everywhere'),
    (dict(worker='2'), 'torch is 1 here and 2 at worker tcp://w:0: install the same packages everywhere'),
    (dict(threads=4), 'worker tcp://w:0 has several threads, and runs need a process each: start two or more with `dask worker tcp://s:1 --nworkers 2 --nthreads 1`'),
    (dict(workers=1), 'the scheduler at tcp://s:1 has 1 workers: start two or more')], ids=lambda case: next(iter(case), '') if isinstance(case, dict) else '')
def test_workers_that_would_compute_otherwise_are_refused(cluster, words):
    _check_workers(Client(), 'tcp://s:1')
    with pytest.raises(NoEngine) as error: _check_workers(Client(**cluster), 'tcp://s:1')
    assert words in str(error.value)


def test_a_worker_with_other_files_computes_nothing(home, tmp_path):  # noqa: F811
    run = Run(toy.ARMS[0], 0, 'a1')
    call = lambda seen, code: _elsewhere(str(tmp_path/seen), toy.execute, run, tmp_path/'runs', code, How(jobs=2), True)[1]
    (tmp_path/'seen').touch()
    assert 'sees another' in call('lost', 'code1') and 'give all machines one folder' in call('lost', 'code1')
    assert 'has other code' in call('seen', 'code1') and not (tmp_path/'runs').exists() and not executed(home)
    assert call('seen', toy.study.codes([run.arm])['slow']) == '' and executed(home) == {'slow 0': 1}
