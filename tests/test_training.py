"""What a step of training promises: one loss and one gradient however a batch is cut, and no blow-up that nobody hears of."""
import dataclasses
import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from memlab.data.recall import IGNORE
from memlab.eval.held_out import held_out_loss
from memlab.nn.blocks import BlockConfig
from memlab.nn.lm import residual_lm
from memlab.nn.segment import SegmentStack
from memlab.train.learner import Learner, RowMemories, random_states, take_random_states
from memlab.train.loop import FitConfig, fit, fit_model, parts, train_step
from memlab.train.losses import lm_loss, recall_loss, token_loss
from memlab.train.objectives import LayerLoss, RecallLoss, TokenLoss
from memlab.train.optim import AdamWConfig, SGDConfig
from memlab.train.schedule import Constant, Cosine, EpochDecay, Solved

V, ROWS, LENGTH = 13, 8, 9


def drawn(dtype=torch.float64, seed=0):
    "A small model with a readout at every layer."
    return residual_lm(BlockConfig(n_layers=2, d_model=16, n_heads=2, loss='all'), V, 16, seed=seed).to(dtype)


def text(empty=()):
    "Tokens and labels: some rows ask much, some little, the empty ones nothing."
    r = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(V, (2, ROWS, LENGTH), generator=r)
    asks = torch.rand(ROWS, LENGTH, generator=r) < torch.linspace(.1, 1, ROWS)[:, None]
    asks[list(empty)] = False
    return ids, labels.where(asks, IGNORE)


# -- one loss, one gradient -------------------------------------------------------------------------------------------

def one_step(objective, batch, accumulate, dtype=torch.float64):
    "The loss reported and the gradient of a step: what plain descent at rate 1 takes off the weights."
    model = drawn(dtype)
    config = FitConfig(steps=1, optimizer=SGDConfig(lr=1.), objective=objective, clip=1e9, accumulate=accumulate)
    before = [p.detach().clone() for p in model.parameters()]
    loss = objective.step(config)(Learner(model, config.optimizer.build(model)), batch, 0)
    return loss, [b - p.detach() for b, p in zip(before, model.parameters())]


def whole(logits, labels):
    "The mean over all labels that count, and its gradient, by torch alone."
    model = drawn()
    losses = [F.cross_entropy(z.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction='sum')/max(1, int((labels != IGNORE).sum())) for z in logits(model)]
    slopes = torch.autograd.grad(sum(losses), list(model.parameters()), materialize_grads=True)
    return losses[-1].detach(), slopes


def read_out(model, ids): return [model.norm(r) @ model.readout.T for r in model.streams(ids)[0]]


def positions(ids, labels):
    "Three positions of each row and the answers there."
    at = torch.tensor([[0, 4, 8]]).expand(len(ids), -1)
    return at, labels.gather(1, at)


CASES = {
    'tokens': (TokenLoss(), lambda ids, labels: (ids, labels), lambda model, ids, labels: (read_out(model, ids)[-1:], labels)),
    'layers': (LayerLoss(placement='all'), lambda ids, labels: (ids, labels), lambda model, ids, labels: (read_out(model, ids)[1:], labels)),
    'answers': (RecallLoss(), lambda ids, labels: (ids, *positions(ids, labels)),
                lambda model, ids, labels: ([read_out(model, ids)[-1].gather(1, positions(ids, labels)[0][..., None].expand(-1, -1, V))], positions(ids, labels)[1]))}


@pytest.mark.parametrize('accumulate', [1, 2, 4, 8])
@pytest.mark.parametrize('empty', [(), (0, 1), (6, 7), (0, 3, 4)], ids=str)
@pytest.mark.parametrize('case', CASES)
def test_a_batch_in_parts_is_the_batch(case, empty, accumulate):
    "Labels left out unevenly, a first or last part with none: loss and gradient are those of the whole batch."
    objective, batch, logits = CASES[case]
    ids, labels = text(empty)
    loss, slopes = whole(lambda model: logits(model, ids, labels)[0], logits(drawn(), ids, labels)[1])
    got, moved = one_step(objective, batch(ids, labels), accumulate)
    torch.testing.assert_close(got, loss, rtol=0, atol=1e-12)
    for g, w in zip(moved, slopes): torch.testing.assert_close(g, w, rtol=0, atol=1e-12)


@pytest.mark.parametrize('accumulate', [2, 8])
def test_a_batch_in_parts_is_the_batch_in_float32(accumulate):
    ids, labels = text((0, 3))
    (loss, slopes), (got, moved) = (one_step(TokenLoss(), (ids, labels), n, torch.float32) for n in (1, accumulate))
    torch.testing.assert_close(got, loss, rtol=1e-6, atol=0)
    for g, w in zip(moved, slopes): torch.testing.assert_close(g, w, rtol=0, atol=1e-6)


@pytest.mark.parametrize('accumulate', [1, 4])
@pytest.mark.parametrize('objective', [TokenLoss(), LayerLoss()], ids=str)
def test_a_batch_that_asks_nothing_teaches_nothing(objective, accumulate):
    "No label counts: the loss is 0 and no weight moves, as for a sum of nothing."
    loss, moved = one_step(objective, text(range(ROWS)), accumulate)
    assert loss == 0 and not any(m.any() for m in moved)


@pytest.mark.parametrize('accumulate', [1, 2, 4])
def test_a_term_that_is_no_mean_over_labels(accumulate):
    "A term of each part, times its count, counts as the mean of the parts weighted by their labels."
    ids, labels = text((1,))
    def loss(model, ids, labels):
        total, report, count = token_loss(model, model.features(ids)[0], labels)
        return total + count*ids.double().mean()*model.norm.weight.sum(), report, count
    model = drawn()
    before = model.norm.weight.detach().clone()
    config = FitConfig(steps=1, optimizer=SGDConfig(lr=1.), schedule=Constant(warmup=0), clip=None, accumulate=accumulate)
    fit_model(model, lambda step: (ids, labels), loss, config)
    weights = torch.stack([(y != IGNORE).sum() for y in labels.chunk(accumulate)]).double()
    term = (weights*torch.stack([x.double().mean() for x in ids.chunk(accumulate)])).sum()/weights.sum()
    plain = drawn()
    fit_model(plain, lambda step: (ids, labels), lambda model, ids, labels: token_loss(model, model.features(ids)[0], labels), config)
    torch.testing.assert_close(before - model.norm.weight.detach(), before - plain.norm.weight.detach() + term, rtol=0, atol=1e-12)


def test_a_loss_that_is_no_sum_is_refused():
    with pytest.raises(ValueError, match='the loss returned a tuple of 2.*how many count'):
        fit_model(nn.Linear(2, 1), lambda step: torch.ones(4, 2), lambda model, x: (model(x).mean(), model(x).mean()), FitConfig(steps=1))


def test_the_held_out_loss_is_a_mean_over_labels():
    "Labels that are left out are not counted."
    model, (ids, labels) = drawn(), text((2,))
    z = read_out(model, ids)[-1]
    want = F.cross_entropy(z.flatten(0, 1), labels.flatten(), ignore_index=IGNORE).item()
    for rows in (1, 3, 8): assert held_out_loss(model, ids, labels, rows=rows) == pytest.approx(want, abs=1e-12)


def test_labels_of_another_shape_are_refused():
    "As many labels in another order are no labels of these tokens; the error says both shapes."
    model, ids = drawn(), torch.zeros(2, 6, dtype=torch.long)
    loss = {f.__name__: inspect.unwrap(f) for f in (lm_loss, token_loss, recall_loss, held_out_loss)}   # the checked annotations would hide what users meet
    for call in (lambda y: loss['lm_loss'](model, ids, y), lambda y: loss['token_loss'](model, model.features(ids)[0], y), lambda y: loss['held_out_loss'](model, ids, y)):
        with pytest.raises(ValueError, match=r'labels of shape \(6, 2\) for tokens of shape \(2, 6\)'): call(ids.view(6, 2))
    at = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r'answers of shape \(3, 2\) for positions of shape \(2, 3\)'): loss['recall_loss'](model, ids, at, at.view(3, 2))
    with pytest.raises(ValueError, match=r'positions in 1 rows for tokens of shape \(2, 6\)'): loss['recall_loss'](model, ids, at[:1], at[:1])


def test_tensors_of_a_batch_have_the_same_rows():
    with pytest.raises(ValueError, match='tensors of 2 and 6 rows'): parts((torch.zeros(2, 6), torch.zeros(6, 2)), 2, torch.device('cpu'))
    with pytest.raises(ValueError, match='a batch of 0 rows'): parts(torch.zeros(0, 6), 1, torch.device('cpu'))


def test_a_step_leaves_no_gradient_behind():
    "With two optimizers, each of its own weights: what one step found out about the other's is not added to the next."
    model = drawn()
    first, second = (SGDConfig(lr=.1).build(layer) for layer in model.layers)
    train_step(model, first, text(), lambda model, ids, labels: lm_loss(model, ids, labels), FitConfig(steps=1))
    assert all(p.grad is None for p in model.parameters())


# -- blow-ups ---------------------------------------------------------------------------------------------------------

class Steep(nn.Module):
    "Its loss is finite, its gradient is what the last input says."
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))

    def forward(self, x): return (self.w*x).sum()


def run(slopes, folder=None, **more):
    "A run whose steps have these gradients."
    model = Steep()
    def loss(model, x):
        total = model(x)
        return total, torch.ones(()), torch.tensor(1)
    config = FitConfig(**dict(steps=len(slopes), optimizer=SGDConfig(lr=1e-3), schedule=Constant(warmup=0), log_every=4) | more)
    return fit_model(model, lambda step: torch.full((1, 3), slopes[step]), loss, config, folder=folder), model


@pytest.mark.parametrize('clip', [1., None])
@pytest.mark.parametrize('bad', [math.inf, math.nan, 3e38], ids=str)   # the squares of the last overflow: its norm is infinite
@pytest.mark.parametrize('at', [0, 2, 5])
def test_a_gradient_that_is_not_finite_is_a_blow_up(at, bad, clip, tmp_path):
    "With a finite loss too, in the last step as in any other: the run diverged there, and no checkpoint holds what came of it."
    result, _ = run([bad if i == at else .1 for i in range(6)], tmp_path, clip=clip)
    assert (result.status, result.diverged_at, result.step) == ('diverged', at + 1, at)
    assert not list(tmp_path.iterdir()) and all(r['step'] <= at for r in result.records)


def test_weights_that_overflow_in_the_last_step_are_a_blow_up():
    "A finite gradient can leave infinite weights, and no loss follows that would show it."
    result, model = run([1e30]*3, optimizer=SGDConfig(lr=1e30), clip=None)
    assert (result.status, result.diverged_at) == ('diverged', 1)
    result, model = run([0., 0., 1e15], optimizer=SGDConfig(lr=1e30), clip=None)
    assert not model.w.isfinite().all() and (result.status, result.diverged_at, result.step) == ('diverged', 3, 2)


@pytest.mark.parametrize('clip', [0, 0., -1., math.inf, math.nan, True, '1'], ids=repr)
def test_no_clipping_is_said_with_none(clip):
    with pytest.raises(ValueError, match='clip=.*expected a finite number above 0.*None for no clipping'): made(FitConfig, steps=1, clip=clip)
    assert FitConfig(steps=1, clip=None).clip is None and FitConfig(steps=1).clip == 1.


def test_no_step_asks_the_device():
    "What is found stays a tensor until the window closes: a step makes no number of it."
    class Asked(torch.utils._python_dispatch.TorchDispatchMode):
        n = 0
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            self.n += op is torch.ops.aten._local_scalar_dense.default
            return op(*args, **(kwargs or {}))
    model = drawn()
    config = FitConfig(steps=1, optimizer=SGDConfig(lr=1.), objective=TokenLoss(), accumulate=2)
    with Asked() as asked: TokenLoss().step(config)(Learner(model, config.optimizer.build(model)), text(), 0)
    assert asked.n == 0


# -- checkpoints ------------------------------------------------------------------------------------------------------

class Skips(nn.Module):
    "Layers are left out by the generator of NumPy. That of Python, which checks of annotations draw from here, is tried in the notebook."
    def __init__(self):
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))

    def forward(self, x):
        x = self.maps[0](x)
        for f in self.maps[1:]:
            if np.random.rand() < .7: x = f(x)
        return x


def skipping(folder=None, **how):
    "Weights and records of a run of layers that draw from generators torch knows nothing of."
    torch.manual_seed(0); np.random.seed(0)
    model = Skips()
    def loss(model, x): return (total := model(x).square().sum()), total.detach(), len(x)
    result = fit_model(model, lambda step: torch.ones(2, 3), loss, FitConfig(steps=9, schedule=Constant(warmup=0)), folder=folder, **how)
    return torch.cat([p.detach().flatten() for p in model.parameters()]), result.records


def test_every_generator_goes_on_where_it_was(tmp_path):
    for stop in (2, 5, 9): got = skipping(tmp_path, stop=stop)
    want = skipping()
    assert torch.equal(got[0], want[0]) and got[1] == want[1]


def test_the_generator_of_an_accelerator_goes_on_where_it_was(monkeypatch):
    "Its state is that of every device on which there are weights, whatever number the device has next time."
    states = {3: torch.tensor([3]), 5: torch.tensor([5])}
    monkeypatch.setattr(torch.cuda, 'get_rng_state', lambda device: states[device.index])
    monkeypatch.setattr(torch.cuda, 'set_rng_state', lambda state, device: states.update({device.index: state}))
    on = lambda *numbers: {torch.device('cuda', i) for i in numbers} | {torch.device('cpu')}
    saved = random_states(on(5, 3))
    take_random_states(saved, on(0, 1))
    assert states[0] == 3 and states[1] == 5
    take_random_states(random_states(on()), on(0))      # saved without one
    assert states[0] == 3
    with pytest.raises(ValueError, match='lacks the generator of numpy'): take_random_states({n: u for n, u in saved.items() if n != 'numpy'}, on())


def test_what_is_carried_is_asked_for():
    "A checkpoint with something carried, or without, is refused by a learner that has nothing to carry, or has."
    model = SegmentStack(d_model=8, n_heads=1, segment=4, mixers=('rope',)).build(0, 16)
    alone, carrying = (Learner(model, SGDConfig().build(model), carry) for carry in (None, RowMemories(model, 2)))
    carrying.carry.keep(model.features(torch.zeros(2, 4, dtype=torch.long), carrying.carry.begin(torch.ones(2, dtype=torch.bool)))[1])
    with pytest.raises(ValueError, match='carries 0/.* this learner has nothing to carry it in'): alone.unpack(carrying.pack())
    with pytest.raises(ValueError, match='the checkpoint holds no memories of rows'): carrying.unpack(alone.pack())


class Counting(nn.Linear):
    "Holds something that is no tensor."
    def get_extra_state(self): return dict(calls=3)
    def set_extra_state(self, state): pass


class Restless(torch.optim.SGD):
    "Counts its steps where its constants are, as schedule-free optimizers do."
    def step(self, closure=None):
        self.param_groups[0]['k'] = self.param_groups[0].get('k', 0) + 1
        return super().step(closure)


def test_what_cannot_be_saved_is_refused(tmp_path):
    "State that is no tensor, before the first step; constants that an optimizer changes, when they would be lost."
    model, begun = Counting(3, 1), []
    with pytest.raises(ValueError, match='Counting holds state that is no tensor'): fit(Learner(model, SGDConfig().build(model)), lambda step: begun.append(step), lambda *_: torch.ones(()), FitConfig(steps=3), folder=tmp_path)
    assert not begun
    learner = Learner(steep := Steep(), Restless(steep.parameters(), lr=.1))
    learner.pack()
    learner.optimizer.step()
    with pytest.raises(ValueError, match="optimizer 'optimizer' .Restless. has changed its k: it cannot be saved"): learner.pack()


# -- settings ---------------------------------------------------------------------------------------------------------

def made(config, **fields):
    "A configuration as users make it: here annotations are checked too, and would hide what it says itself."
    c = object.__new__(config)
    for f in dataclasses.fields(config): object.__setattr__(c, f.name, fields.get(f.name, f.default))
    c.__post_init__()
    return c


NUMBERS = [(FitConfig, 'steps', (0, -1, 1.5, 1., True, '3', math.nan)), (FitConfig, 'log_every', (0, 1.5, True)), (FitConfig, 'accumulate', (0, 1.5, True)),
           (AdamWConfig, 'lr', (0, -1, math.nan, math.inf, True, '1e-3')), (AdamWConfig, 'weight_decay', (-1, math.nan, math.inf)), (AdamWConfig, 'eps', (-1e-8, math.nan, math.inf)),
           (AdamWConfig, 'betas', ((.9, 1.), (-.1, .9), (.9,), (.9, math.nan), .9)), (SGDConfig, 'momentum', (-.1, 1., math.nan)), (SGDConfig, 'lr', (0, math.nan)),
           (Constant, 'warmup', (-5, 1.5, True, math.nan)), (Cosine, 'floor', (-1, 1.5, math.nan, True)), (Cosine, 'warmup', (-1,)),
           (EpochDecay, 'epoch', (0, 1.5, True)), (EpochDecay, 'factor', (0, -1, 1.1, math.nan)), (Solved, 'times', (0, -1, 1.5, True)), (Solved, 'bar', (math.nan, 'high'))]


@pytest.mark.parametrize('config, name, wrong', NUMBERS, ids=lambda x: getattr(x, '__name__', str(x)))
def test_numbers_out_of_their_range_are_refused(config, name, wrong):
    least = {FitConfig: dict(steps=1), EpochDecay: dict(epoch=1)}.get(config, {})
    made(config, **least)
    for value in wrong:
        with pytest.raises(ValueError, match=f'{name}=.*expected'): made(config, **least | {name: value})


@pytest.mark.parametrize('more', [dict(save_every=0), dict(save_every=-1), dict(save_every=1.5), dict(stop=-1), dict(stop=1.5), dict(stop=True)], ids=str)
def test_options_of_fit_out_of_their_range_are_refused(more, tmp_path):
    model = Steep()
    with pytest.raises(ValueError, match=f'{next(iter(more))}=.*expected'): inspect.unwrap(fit)(Learner(model, SGDConfig().build(model)), None, None, FitConfig(steps=4), folder=tmp_path, **more)


def test_settings_that_stand_are_settings():
    "What is at a border but means something stays."
    assert Cosine(warmup=0, floor=1.).at(2., 50, 60) == 2. and Constant(warmup=0).at(2., 0, 60) == 2. and EpochDecay(epoch=1, factor=1.).at(2., 500, 600) == 2.
    assert replace(AdamWConfig(), weight_decay=0., betas=(0., 0.), eps=0.).build(Steep()) and SGDConfig(momentum=0).build(Steep())
