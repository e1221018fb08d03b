"""Two processes that train one model: uneven labels, what differs between them, and one that dies or hangs."""
import os
import runpy
import subprocess
import sys

import pytest
import torch
from objectives import CASES

SCRIPT = '''
import os, signal, sys, time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
import torch
import torch.distributed as dist
from objectives import CASES
from torch import nn
from memlab.core.record import record
from memlab.data.recall import IGNORE
from memlab.nn.blocks import BlockConfig
from memlab.nn.lm import residual_lm
from memlab.train.components import EWC, Guarded, Kept
from memlab.train.learner import Learner
from memlab.train.loop import FitConfig, fit, fit_model, supervised
from memlab.train.losses import Summed, lm_loss
from memlab.train.objectives import TokenLoss
from memlab.train.optim import SGDConfig
from memlab.train.schedule import Constant, Solved

CONFIG = FitConfig(steps=4, optimizer=SGDConfig(lr=.5, momentum=.5), schedule=Constant(warmup=0), clip=None, log_every=1)

def draw(step, seed=0):
    "Rows that ask more and more; in every second batch the first half of them asks nothing."
    r = torch.Generator().manual_seed(10*seed + step)
    ids, labels = torch.randint(13, (2, 8, 9), generator=r)
    asks = torch.rand(8, 9, generator=r) < torch.linspace(.1, 1, 8)[:, None]
    if step % 2: asks[:4] = False
    return ids, labels.where(asks, IGNORE)

def train(config=CONFIG, weights=0, batch=draw, moments=False, heads=2, **how):
    "What a run in float64 came to, or the ValueError with which it was refused."
    model = residual_lm(BlockConfig(n_layers=2, d_model=16, n_heads=heads), 13, 16, seed=weights).double()
    learner = Learner(model, config.optimizer.build(model))
    if moments: learner.optimizer.state[learner.model.readout]['momentum_buffer'] = torch.ones_like(learner.model.readout)
    try: result = fit(learner, batch, supervised(lm_loss, config), config, **how)
    except ValueError as e: return str(e)
    losses = [r['value'] for r in result.records if r['metric'] == 'loss']
    return dict(weights=torch.cat([p.detach().flatten() for p in model.parameters()]), losses=losses, end=(result.status, result.step))

def differing(rank, folder):
    "What a process hears when the second differs from the first."
    where = lambda there: dict(folder=folder/('saved' if rank == 0 else there))
    return dict(
        weights=train(weights=rank), heads=train(heads=2 + 2*rank), saves=train(folder=[folder/'one', None][rank]), rate=train(replace(CONFIG, optimizer=SGDConfig(lr=.5 + rank))), seed=train(seed=rank), batch=train(batch=lambda step: draw(step, rank)),
        end=train(stop=2 + rank), moments=train(moments=rank == 1), step=train(**where('empty')), damaged=train(**where('damaged')), settings=train(**where('other')))

def reached(rank):
    "A run that may end itself, where only the first process sees that it has reached its bar."
    return train(replace(CONFIG, solved=Solved(times=2)), hooks=[lambda learner, step: [record(step, 'accuracy', float(rank == 0))]])

class Dropped(nn.Module):
    "A layer that draws, and a buffer that counts, to infinity where it is told to."
    def __init__(self, most):
        super().__init__()
        torch.manual_seed(0)
        self.maps, self.most = nn.Sequential(nn.Linear(4, 8), nn.Dropout(.5), nn.Linear(8, 1)), torch.tensor(most)   # no setting, which must be the same on both
        self.register_buffer('count', torch.zeros(()))
    def forward(self, x):
        self.count.add_(1 if self.count < self.most else torch.inf)
        return self.maps(x)

def dropped(rank, folder=None, most=100., **how):
    "Weights and end of four steps; each process draws from a generator of its own, which a new attempt does not know."
    model = Dropped(most)
    torch.manual_seed(100 + rank if how.get('stop') != 4 else 0)
    def loss(model, x): return Summed(total := model(x).square().sum(), total.detach(), len(x))
    result = fit_model(model, lambda step: torch.randn(8, 4, generator=torch.Generator().manual_seed(step)), loss, CONFIG, folder=folder, **how)
    return torch.cat([p.detach().flatten() for p in model.parameters()]), (result.status, result.step)

def cut_in_two(rank, folder):
    "The same, stopped after two steps and at once begun again."
    dropped(rank, folder/'dropped', stop=2)
    return dropped(rank, folder/'dropped', stop=4)

def held():
    "Weights and the information that holds them, after two turns of two steps."
    model = residual_lm(BlockConfig(n_layers=2, d_model=16, n_heads=2), 13, 16).double()
    learner, step = Learner(model, CONFIG.optimizer.build(model), Kept(model, 2, 2)), Guarded(loss=TokenLoss(), guard=EWC(strength=.5)).step(CONFIG)
    for i in range(4): step(learner, draw(i), i)
    return [torch.cat([u.detach().flatten() for u in some.values()]) for some in (learner.carry.of('fisher'), dict(model.named_parameters()))]

def fails(how, rank):
    "A batch by which the second process dies, or hangs, at the third step."
    def batch(step):
        if step == 2 and rank == 1: os.kill(os.getpid(), signal.SIGKILL) if how == 'dies' else time.sleep(1000)
        return draw(step)
    return batch

if __name__ == '__main__':
    rank, folder, what = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    dist.init_process_group('gloo', init_method=f'file://{folder}/{what}', rank=rank, world_size=2, timeout=timedelta(seconds=120 if what == 'agree' else 4))
    if what != 'agree': train(batch=fails(what, rank))
    else: torch.save(dict(cut=[train(replace(CONFIG, accumulate=n)) for n in (1, 2, 4)], differing=differing(rank, folder), reached=reached(rank), held=held(), cases={n: c.step(1) for n, c in CASES.items()},
                    whole=dropped(rank), two=cut_in_two(rank, folder), counted=dropped(rank, most=4. - rank)), folder/f'{rank}.pt')
'''


def start(folder, what):
    "Both processes."
    (script := folder/'two.py').write_text(SCRIPT)
    return [subprocess.Popen([sys.executable, str(script), str(rank), str(folder), what], stderr=subprocess.PIPE, text=True, env=os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join([os.path.dirname(__file__), os.environ.get('PYTHONPATH', '')]))) for rank in (0, 1)]


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "The functions of the script, and what each of two processes has to say."
    folder = tmp_path_factory.mktemp('two')
    (folder/'two.py').write_text(SCRIPT)
    here = runpy.run_path(str(folder/'two.py'))
    for name, more in dict(saved={}, damaged={}, other=dict(seed=5)).items(): here['train'](folder=folder/name, stop=2, **more)
    (folder/'damaged'/'checkpoint.safetensors').write_bytes(b'damaged')
    for process in start(folder, 'agree'): assert process.communicate(timeout=300)[1] == '' and process.returncode == 0
    return here, [torch.load(folder/f'{rank}.pt') for rank in (0, 1)]


def test_uneven_labels_are_the_whole_batch(two):
    "One process or two, one part or four, a process whose rows ask nothing: the same losses and weights."
    want = two[0]['train']()
    for said in two[1]:
        for got in said['cut']:
            torch.testing.assert_close(got['weights'], want['weights'], rtol=0, atol=1e-12)
            assert got['end'] == ('finished', 4) and got['losses'] == pytest.approx(want['losses'], rel=0, abs=1e-12)


@pytest.mark.parametrize('case', CASES)
def test_every_objective_has_one_loss_on_one_process_or_two(two, case):
    "Losses and weights of two steps; or it is refused, in words."
    want, words = CASES[case].step(1), CASES[case].refusal(1, 2)
    for got in (said['cases'][case] for said in two[1]):
        if words: assert words in got
        else:
            assert got[0] == pytest.approx(want[0], rel=0, abs=1e-10)
            torch.testing.assert_close(got[1], want[1], rtol=0, atol=1e-10)


def test_each_process_goes_on_with_what_was_its_own(two):
    "Layers that draw leave out other things on each; a run stopped and begun again at once comes to the weights of one that was not."
    for said in two[1]:
        assert torch.equal(said['two'][0], said['whole'][0]) and said['two'][1] == said['whole'][1] == ('finished', 4)


def test_a_buffer_that_overflows_on_one_process_is_a_blow_up_on_both(two):
    for said in two[1]: assert said['counted'][1] == ('diverged', 3)


def test_important_weights_are_those_of_the_whole_batch(two):
    want = two[0]['held']()
    assert want[0].max() > 0
    for said in two[1]:
        for got, whole in zip(said['held'], want): torch.testing.assert_close(got, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize('what, words', dict(
    weights="weights was '", heads='settings.models.model/layers.0.config.n_heads was 2, is 4', saves='saves was 500, is False', rate='settings.config.optimizer.lr was 0.5, is 1.5', seed='settings.seed was 0, is 1', batch="batch was '", end='settings.end was 2, is 3',
    moments="optimizer was '", step='step was 2, is 0').items())
def test_what_differs_is_refused_on_both(two, what, words):
    for said in two[1]:
        text = said['differing'][what]
        assert text.startswith('the processes differ (from 0 to 1: ') and words in text and text.endswith('give all the same settings, seed and folder')


@pytest.mark.parametrize('what, words', dict(damaged='checkpoint.safetensors is damaged', settings='was saved with other settings (seed was 5, is None)').items())
def test_what_fails_on_one_fails_on_both(two, what, words):
    first, second = (said['differing'][what] for said in two[1])
    assert words in second and first.startswith('this process stops because others do (process 1: ') and words in first


def test_both_end_when_the_first_has_enough(two):
    "The second never sees the bar reached, and waits for nobody."
    for said in two[1]: assert said['reached']['end'] == ('finished', 1)


@pytest.mark.parametrize('how', ['dies', 'hangs'])
def test_a_process_that_is_lost_ends_the_other(tmp_path, how):
    "The one that is left waits no longer than it was told to, and says for what."
    left, lost = start(tmp_path, how)
    try: said = left.communicate(timeout=120)[1]
    finally: lost.kill(); lost.communicate()
    assert left.returncode == 1 and 'process 0 of 2 waits for the others in vain (' in said.splitlines()[-1] and 'one of them has died or hangs' in said.splitlines()[-1]
