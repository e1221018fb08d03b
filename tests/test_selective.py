"""A model with a gate: one step however a batch is cut or spread, no look ahead, and a whole run of it with its measure."""
import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from memlab.core.draw import generator_of
from memlab.data.recall import IGNORE
from memlab.eval.coverage import Coverage
from memlab.lab.arm import Arm, execute
from memlab.nn.checks import check_causal, check_rows, error_ratio
from memlab.nn.pythia import PythiaConfig
from memlab.nn.selective import SelectiveConfig
from memlab.train.learner import Learner
from memlab.train.loop import FitConfig
from memlab.train.optim import AdamWConfig, SGDConfig
from memlab.train.schedule import Constant
from memlab.train.selective import GATES, SelectiveLoss

V, ROWS, LENGTH = 13, 8, 9
CONFIG = SelectiveConfig(model=PythiaConfig(vocab_size=V, d_model=16, n_layers=2, n_heads=2, intermediate=32, std=.3), hidden=8, std=.5)
gates = pytest.mark.parametrize('gate', GATES)


def text(empty=(), seed=0):
    "Tokens and labels: some rows ask much, some little, the empty ones nothing."
    r = torch.Generator().manual_seed(seed)
    ids, labels = torch.randint(V, (2, ROWS, LENGTH), generator=r)
    asks = torch.rand(ROWS, LENGTH, generator=r) < torch.linspace(.1, 1, ROWS)[:, None]
    asks[list(empty)] = False
    return ids, labels.where(asks, IGNORE)


def whole(gate, calibration, ids, labels):
    "The loss over all labels and the gradient of the gated one, by torch alone and without parts."
    model = CONFIG.build(0, V).double()
    h, keep = model.features(ids)[0], labels != IGNORE
    z, p = (h @ model.readout.T)[keep], model.confidence(h)[keep]
    losses, weights = F.cross_entropy(z, labels[keep], reduction='none'), dict(none=torch.ones_like(p), soft=p, hard=(p > .5).double())[gate]
    target = 1 - torch.distributions.Categorical(logits=z.detach()).entropy()/math.log(V)
    gated = (weights*losses).sum()/weights.sum() + calibration*F.binary_cross_entropy(p, target)
    return losses.mean().detach(), torch.autograd.grad(gated, list(model.parameters()), materialize_grads=True)


def one_step(objective, batch, **how):
    "The loss reported and what plain descent at rate 1 takes off the weights."
    model = CONFIG.build(0, V).to(torch.float32 if 'precision' in how else torch.float64)
    config = FitConfig(steps=1, optimizer=SGDConfig(lr=1.), objective=objective, clip=1e9, **how)
    before = [p.detach().clone() for p in model.parameters()]
    loss = objective.step(config)(Learner(model, config.optimizer.build(model)), batch, 0)
    return loss, [b - p.detach() for b, p in zip(before, model.parameters())]


# -- one step ---------------------------------------------------------------------------------------------------------

@gates
@pytest.mark.parametrize('accumulate', [1, 2, 8])
@pytest.mark.parametrize('empty', [(), (0, 1, 2, 3), (3, 6, 7)], ids=str)
@pytest.mark.parametrize('calibration', [0., .1])
def test_a_gated_batch_in_parts_is_the_batch(gate, accumulate, empty, calibration):
    "A ratio of sums, of which every part knows its own: loss and gradient are those of the whole."
    loss, slopes = whole(gate, calibration, *text(empty))
    got, moved = one_step(SelectiveLoss(gate=gate, calibration=calibration), text(empty), accumulate=accumulate)
    torch.testing.assert_close(got, loss, rtol=0, atol=1e-12)
    for g, w in zip(moved, slopes): torch.testing.assert_close(g, w, rtol=0, atol=1e-12)


@gates
@pytest.mark.parametrize('accumulate', [1, 4])
def test_a_batch_that_asks_nothing_teaches_nothing(gate, accumulate):
    loss, moved = one_step(SelectiveLoss(gate=gate, calibration=.1), text(range(ROWS)), accumulate=accumulate)
    assert loss == 0 and not any(m.any() for m in moved)


@pytest.mark.parametrize('gate', ['none', 'soft'])   # rounding moves a threshold
@pytest.mark.parametrize('native', [False, True])
def test_bfloat16_is_float32_rounded(gate, native, monkeypatch):
    "Every matrix gets its gradient, with products in bfloat16 and with products of rounded numbers."
    monkeypatch.setattr('memlab.nn.dense.multiplies', lambda dtype, device: native)
    objective = SelectiveLoss(gate=gate, calibration=.1)
    (loss, slopes), *low = (one_step(objective, text(), precision=p, accumulate=n) for p, n in (('float32', 1), ('bfloat16', 1), ('bfloat16', 4)))
    for got, moved in low:
        assert abs(got - loss) < .02
        assert all(error_ratio(g, w) < .05 for g, w in zip(moved, slopes) if w.any())


SCRIPT = '''
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[4])
import torch
import torch.distributed as dist
from test_selective import one_step, text
from memlab.train.selective import GATES, SelectiveLoss

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group('gloo', init_method=f'file://{folder}/{sys.argv[3]}', rank=rank, world_size=2)
torch.save({(gate, n): one_step(SelectiveLoss(gate=gate, calibration=.1), text((0, 1)), accumulate=n) for gate in GATES for n in (1, 2)}, folder/f'{rank}.pt')
'''


def test_two_processes_take_the_step_of_one(tmp_path):
    "The rows of one of them ask little, and half of them nothing."
    (tmp_path/'two.py').write_text(SCRIPT)
    command = lambda rank: [sys.executable, str(tmp_path/'two.py'), str(rank), str(tmp_path), 'meet', os.path.dirname(__file__)]
    pair = [subprocess.Popen(command(rank), stderr=subprocess.PIPE, text=True, env=os.environ | dict(OMP_NUM_THREADS='1')) for rank in (0, 1)]
    for process in pair: assert (process.communicate(timeout=300)[1], process.returncode) == ('', 0)
    for rank in (0, 1):
        for (gate, n), (got, moved) in torch.load(tmp_path/f'{rank}.pt').items():
            loss, slopes = whole(gate, .1, *text((0, 1)))
            torch.testing.assert_close(got, loss, rtol=0, atol=1e-12)
            for g, w in zip(moved, slopes): torch.testing.assert_close(g, w, rtol=0, atol=1e-12)


# -- the model --------------------------------------------------------------------------------------------------------

class Seen(nn.Module):
    "Logits and confidence from the vectors of tokens."
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        for layer in self.model.layers: x = layer(x)[0]
        h = self.model.norm(x)
        return torch.cat([h @ self.model.readout.T, self.model.confidence(h)[..., None]], -1), None


def test_confidence_sees_no_later_token_and_no_other_row():
    seen, x = Seen(CONFIG.build(0, V).double()), torch.randn(3, LENGTH, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    check_causal(seen, x), check_rows(seen, x)
    gate = lambda x: seen(x)[0][..., -1]
    moved = gate(torch.cat([x[:, :5], -x[:, 5:]], 1))
    assert torch.equal(moved[:, :5], gate(x)[:, :5]) and not torch.isclose(moved[:, 5:], gate(x)[:, 5:]).any()
    seen.model.gate.register_forward_hook(lambda gate, args, p: p + p.mean(1, keepdim=True))   # a gate that looks ahead
    with pytest.raises(AssertionError, match='reached an earlier output'): check_causal(seen, x)


# -- a run ------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True, kw_only=True)
class Rows:
    "A stand-in for a task with rows that are held out."
    vocab_size: int = V
    tokens: int = ROWS*LENGTH

    def batches(self, seed): return lambda step: text(seed=generator_of('rows', seed, step).initial_seed() % 2**31)
    def held_out(self, rows, seed): return tuple(u[:rows] for u in text((1,), seed=seed + 2**31))


@pytest.mark.parametrize('gate, calibration', [('none', .1), ('soft', 0.), ('hard', 0.), ('hard', .1)])
def test_a_run_is_cut_anywhere_and_measured(gate, calibration, tmp_path):
    "A gate that no step moves has no moments to save."
    train = FitConfig(steps=6, optimizer=AdamWConfig(), schedule=Constant(warmup=2), objective=SelectiveLoss(gate=gate, calibration=calibration), accumulate=2, log_every=3)
    arm = Arm(name=gate, task=Rows(), model=CONFIG, train=train, measures=(Coverage(at='log', shares=(), rows=4), Coverage(rows=4, shares=(.5, 1.))))
    run = execute(arm, 0, tmp_path/'whole', progress=False)
    for stop in (2, 5, None): cut = execute(arm, 0, tmp_path/'cut', progress=False, stop=stop)
    assert run.status == cut.status == 'finished' and run.records == cut.records
    of = lambda metric, **where: [r for r in run.records if r['metric'] == metric and all(r[k] == v for k, v in where.items())]
    assert [r['step'] for r in of('perplexity', item='all tokens')] == [0, 3, 6, 6] and len(of('risk_area', step=3)) == 4
    last, = of('perplexity_of_surest', item='gate', position='1')
    assert last['value'] == pytest.approx(of('perplexity', item='all tokens')[-1]['value'], rel=1e-12)
    assert execute(replace(arm.rehearsal(), train=replace(train, steps=3)), 0, tmp_path/'short', progress=False).status == 'finished'
