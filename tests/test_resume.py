"""Training killed with SIGKILL, also in the middle of writing a checkpoint, ends with the bits of a run that nobody disturbed."""
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from memlab.lab.records import RUNS, read_table
from memlab.nn.blocks import BlockConfig
from memlab.nn.lm import residual_lm
from memlab.core.files import load_tensors
from memlab.train.loop import CHECKPOINT, FitConfig, fit_model
from memlab.train.schedule import Constant
from memlab.train.losses import lm_loss

# Each attempt is a process of its own, forked from one that has only imported things. It kills itself when its moment has come: at an
# event ('batch', 'loss', 'hook', or 'write' with half of a checkpoint's temporary file on the disk), at a step or the first time after it.
ATTEMPTS = '''
import json, os, signal, sys, traceback
from pathlib import Path
import torch
torch.optim.AdamW([torch.zeros(1)])  # the first optimizer imports a lot: once, before the forks

class Moment:
    "When to die; `step` is where training is."
    def __init__(self, event=None, step=0): self.event, self.at, self.step = event, step, 0
    def due(self, event): return event == self.event and self.step >= self.at
    def pass_(self, event):
        if self.due(event): os.kill(os.getpid(), signal.SIGKILL)
    def fsync(self, fd, real=os.fsync):
        if self.due('write'): os.ftruncate(fd, os.fstat(fd).st_size // 2)
        self.pass_('write')
        real(fd)

def attempt(train, folder, moment):
    "Exit status, negative for a signal, and the files then."
    folder.mkdir(exist_ok=True)
    if (child := os.fork()) == 0:
        os.fsync, status = moment.fsync, 1
        try: train(folder, moment); status = 0
        except BaseException: traceback.print_exc()
        sys.stderr.flush()
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return [status, {p.name: p.stat().st_size for p in folder.rglob('*')}]

def all_attempts(train):
    print(json.dumps([attempt(train, Path(folder), Moment(*moment)) for folder, moment in json.loads(sys.argv[1])]))
'''

STEPS, SAVE_EVERY = 24, 4
FORKED = 'generator/python'   # which a fork seeds anew, whatever it was; nothing here draws from it
TRAIN = ATTEMPTS + f'''
from memlab.nn.blocks import BlockConfig
from memlab.nn.lm import residual_lm
from memlab.core.record import record
from memlab.train.loop import FitConfig, fit_model
from memlab.train.optim import AdamWConfig
from memlab.train.schedule import Cosine
from memlab.train.losses import lm_loss

def train(folder, moment):
    "A model of two layers learns random tokens; what it ends with is stored in `end`."
    model = residual_lm(BlockConfig(n_layers=2, d_model=16, n_heads=2), 32, 12, seed=1)
    def batch(step):
        moment.step = step; moment.pass_('batch')
        return torch.randint(32, (4, 13), generator=torch.Generator().manual_seed(step))
    def loss(model, ids):
        loss = lm_loss(model, ids[:, :-1], ids[:, 1:])
        moment.pass_('loss')
        return loss
    def hook(learner, step):
        moment.step = step; moment.pass_('hook')
        return [record(step, 'norm', float(p.norm()), layer, 'rest') for layer, p in enumerate(model.parameters())]
    config = FitConfig(steps={STEPS}, optimizer=AdamWConfig(lr=1e-2), schedule=Cosine(warmup=6), log_every=5)
    result = fit_model(model, batch, loss, config, hooks=[hook], folder=folder, save_every={SAVE_EVERY})
    torch.save(dict(weights=model.state_dict(), records=result.records, status=result.status), folder/'end')

all_attempts(train)
'''


def moments(story: int) -> list:
    "Three moments to die at, drawn by a seeded generator, one of them inside a write."
    rng = random.Random(story)
    events = ['write', *rng.sample(['batch', 'loss', 'hook'], 2)]
    rng.shuffle(events)
    return list(zip(events, sorted(rng.sample(range(1, STEPS), 3))))


def run(script: str, plan: list, **environment) -> list:
    "What became of each attempt of a plan."
    done = subprocess.run([sys.executable, '-c', script, json.dumps(plan)], capture_output=True, text=True, timeout=300,
                          env=os.environ | environment | dict(OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert all(status in (0, -signal.SIGKILL) for status, _ in said), done.stderr
    return said


STORIES = range(5)


@pytest.fixture(scope='module')
def stories(tmp_path_factory):
    "Folder of an undisturbed run; and per story its folder, its moments and what became of the attempts."
    root = tmp_path_factory.mktemp('stories')
    plan = [(str(root/'whole'), [])] + [(str(root/str(s)), m) for s in STORIES for m in [*moments(s), []]]
    whole, *said = run(TRAIN, plan)
    assert whole[0] == 0
    return root/'whole', [(root/str(s), moments(s), said[4*s:4*s + 4]) for s in STORIES]


def test_the_stories_differ():
    drawn = [moments(s) for s in STORIES]
    assert {m[0][0] for m in drawn} >= {'write', 'loss', 'hook'} and {m[-1][0] for m in drawn} >= {'write', 'batch'}
    assert any(m[0][1] < SAVE_EVERY for m in drawn) and any(m[-1][1] >= STEPS - SAVE_EVERY for m in drawn)  # before the first checkpoint, after the last but one


@pytest.mark.parametrize('story', STORIES)
def test_three_kills_leave_no_trace(stories, story):
    whole, (folder, died_at, said) = stories[0], stories[1][story]
    assert [status for status, _ in said] == [-signal.SIGKILL]*3 + [0], died_at
    want, got = (torch.load(f/'end') for f in (whole, folder))
    assert got['records'] == want['records'] and got['status'] == want['status'] == 'finished'
    assert {r['step'] for r in got['records'] if r['metric'] == 'norm'} == set(range(STEPS + 1))
    assert all(torch.equal(w, got['weights'][n]) for n, w in want['weights'].items())
    want, got = (load_tensors(f/CHECKPOINT)[0] for f in (whole, folder))  # with the optimizer's moments
    assert want.keys() == got.keys() and any(n.startswith('optimizer/optimizer/exp_avg_sq/') for n in got)
    assert all(torch.equal(t, got[n]) for n, t in want.items() if n != FORKED)


@pytest.mark.parametrize('story', STORIES)
def test_a_half_written_checkpoint_lies_beside_the_whole_one(stories, story):
    folder, died_at, said = stories[1][story]
    killed = [event for event, _ in died_at].index('write')
    half = {n: size for n, size in said[killed][1].items() if n.startswith('.')}
    assert len(half) == 1 and half == {n: size for n, size in said[-1][1].items() if n in half}  # still there at the end
    assert 0 < next(iter(half.values())) < .6*said[-1][1][CHECKPOINT]   # about half: a later header has other numbers of digits, such as those of its seconds


def tiny(folder):
    "Result of four steps of training in this process."
    model = residual_lm(BlockConfig(n_layers=1, d_model=8, n_heads=2), 16, 8, seed=0)
    ids = torch.arange(18).remainder(16).view(2, 9)
    def loss(model, ids): return lm_loss(model, ids[:, :-1], ids[:, 1:])
    return fit_model(model, lambda step: ids, loss, FitConfig(steps=8, schedule=Constant(warmup=0)), folder=folder, save_every=2, stop=4)


@pytest.mark.parametrize('keep', [0, 5, 60, .5, -1])
def test_a_truncated_checkpoint_is_named(tmp_path, keep):
    tiny(tmp_path)
    data = (tmp_path/CHECKPOINT).read_bytes()
    (tmp_path/CHECKPOINT).write_bytes(data[:int(keep*len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r'checkpoint\.safetensors is damaged \(.+\): delete it to start over$'): tiny(tmp_path)
    (tmp_path/CHECKPOINT).unlink()
    assert tiny(tmp_path).step == 4


STUDY = ATTEMPTS + '''
import time
from dataclasses import replace
from memlab.data import text
from memlab.lab.study import Preset
from memlab.studies import residual_growth as rg

arm = next(a for a, _ in rg.quick().plan if a.name == 'r*A shared all').on(os.environ['CORPUS'])
arm = replace(arm, train=replace(arm.train, log_every=2))   # a checkpoint at every second step
rg.study.presets = dict(quick=lambda: Preset(((arm, (0,)),)))
draw = text.windows

def train(home, moment):
    "Run the study, and write down which steps are trained; the clock ticks once a batch."
    drawn = []
    time.perf_counter = lambda: float(len(drawn))
    def windows(*args):
        moment.step = args[-1]; moment.pass_('batch')
        drawn.append(moment.step)
        with open(home/'steps', 'a') as f: f.write(f'{moment.step} ')
        return draw(*args)
    os.environ['MEMLAB_HOME'] = str(home)
    text.windows = windows
    rg.study.run('quick', progress=False)

all_attempts(train)
'''


def write_corpus(folder: Path) -> Path:
    "A few documents of random words."
    rng = random.Random(0)
    words = [''.join(rng.choices('aeilnorst', k=rng.randint(2, 7))) for _ in range(200)]
    folder.mkdir()
    for i in range(24): (folder/f'{i:02}.txt').write_text(' '.join(rng.choices(words, k=400)))
    return folder


def test_a_run_of_the_study_survives_three_kills(tmp_path):
    corpus, whole, killed = write_corpus(tmp_path/'corpus'), tmp_path/'whole', tmp_path/'killed'
    said = run(STUDY, [(str(whole), [])] + [(str(killed), m) for m in (('batch', 3), ('write', 3), ('batch', 5), [])], CORPUS=str(corpus))
    assert [status for status, _ in said] == [0] + [-signal.SIGKILL]*3 + [0]
    trained = (killed/'steps').read_text().split()
    assert trained == [*'012', *'23', *'234', *'45'] and (whole/'steps').read_text().split() == [*'012345']
    tables = [h/'build'/'results'/'residual_growth'/'quick' for h in (whole, killed)]
    want, got = ((t/'records.parquet').read_bytes() for t in tables)
    assert want == got and len(want) > 1000
    want, got = (read_table(t/'runs.parquet', RUNS).to_pylist() for t in tables)
    assert want == got and [(row['status'], row['seconds']) for row in got] == [('finished', 6.)]   # of all attempts, what came to be saved
    assert not [p for p in killed.rglob('*.part') if p.is_dir()]


LEARNERS = ATTEMPTS + f'''
from memlab.core.record import record
from memlab.nn.cells import ContextCell
from memlab.nn.init import init_parameters
from memlab.nn.segment import SegmentStack
from memlab.train.lagged import LaggedCache, lagged
from memlab.train.learner import Learner, RowMemories
from memlab.train.loop import FitConfig, fit
from memlab.train.losses import token_loss

C = 8

def cached(moment):
    "Two models on the states of a cell, each moved by an optimizer of its own in turn; every sample's states are kept in a cache."
    cell, reader = (init_parameters(m, seed=s, std=.3) for s, m in enumerate((ContextCell(C, C), torch.nn.Linear(C, 4))))
    adam, sgd = torch.optim.AdamW(cell.parameters(), lr=1e-2), torch.optim.SGD(reader.parameters(), lr=.1, momentum=.9)
    learner = Learner(dict(cell=cell, reader=reader), dict(adam=adam, sgd=sgd), LaggedCache(12, 6, C))
    inputs, answers = torch.randn(12, 6, C, generator=torch.Generator().manual_seed(0)), torch.randint(4, (12, 6), generator=torch.Generator().manual_seed(1))
    def step(learner, ids, step):
        h = lagged(cell, inputs[ids], learner.carry.read(ids), torch.zeros(C))
        learner.carry.write(ids, h, step)
        loss = torch.nn.functional.cross_entropy(reader(h).flatten(0, 1), answers[ids].flatten())
        loss.backward()
        moment.pass_('loss')
        learner.optimizers['adam' if step % 2 else 'sgd'].step()
        for o in learner.optimizers.values(): o.zero_grad()
        return loss.detach()
    return learner, lambda step: torch.randperm(12, generator=torch.Generator().manual_seed(step))[:4], step

def remembered(moment):
    "A model whose rows remember their document from step to step."
    model = SegmentStack(d_model=C, n_heads=1, segment=4, mixers=('rope',)).build(0, 16)
    learner = Learner(model, torch.optim.AdamW(model.parameters(), lr=1e-2), RowMemories(model, 3))
    def step(learner, ids, step):
        h, memory = model.features(ids[:, :-1], learner.carry.begin(torch.tensor([step % 7 == i for i in range(3)])))
        loss = token_loss(model, h, ids[:, 1:]).mean
        loss.backward()
        moment.pass_('loss')
        learner.carry.keep(memory)
        learner.optimizer.step(); learner.optimizer.zero_grad()
        return loss.detach()
    return learner, lambda step: torch.randint(16, (3, 5), generator=torch.Generator().manual_seed(step)), step

def train(folder, moment):
    "Train what the folder is named after; what it ends with is stored in `end`."
    learner, draw, step = dict(cached=cached, remembered=remembered)[folder.name.split()[0]](moment)
    def batch(step):
        moment.step = step; moment.pass_('batch')
        return draw(step)
    def hook(learner, step):
        moment.step = step; moment.pass_('hook')
        return []
    result = fit(learner, batch, step, FitConfig(steps={STEPS}, log_every=5), hooks=[hook], folder=folder, save_every={SAVE_EVERY})
    torch.save(dict(learner={{n: u.detach().clone() for n, u in learner.pack().items()}}, records=result.records), folder/'end')

all_attempts(train)
'''


def test_what_is_carried_survives_three_kills(tmp_path):
    "A cache keyed by sample beside two optimizers that take turns, and memories of rows: killed three times, they end with the bits of an undisturbed run."
    names = [f'{kind} {how}' for kind in ('cached', 'remembered') for how in ('whole', '0', '3')]
    deaths = [[] if n.endswith('whole') else moments(int(n.split()[1])) for n in names]
    said = iter(run(LEARNERS, [(str(tmp_path/n), m) for n, died_at in zip(names, deaths) for m in [*died_at, []]]))
    for died_at in deaths: assert [next(said)[0] for _ in range(len(died_at) + 1)] == [-signal.SIGKILL]*len(died_at) + [0]
    for kind in ('cached', 'remembered'):
        want, *others = (torch.load(tmp_path/f'{kind} {how}'/'end') for how in ('whole', '0', '3'))
        assert sum(n.startswith('carry/') and bool(u.any()) for n, u in want['learner'].items()) >= 2   # something is carried
        for got in others:
            assert got['records'] == want['records'] and got['learner'].keys() == want['learner'].keys()
            assert all(torch.equal(u, got['learner'][n]) for n, u in want['learner'].items() if n != FORKED)
