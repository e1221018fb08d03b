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

from memlab.core.files import load_tensors, save_tensors
from memlab.core.record import record
from memlab.data.recall import IGNORE
from memlab.eval.held_out import HeldOut, held_out_loss
from memlab.eval.measure import Measure
from memlab.eval.passages import Passages
from memlab.eval.perplexity import Perplexity
from memlab.eval.turns import ReadInTurn
from memlab.nn.blocks import BlockConfig
from memlab.nn.lm import residual_lm
from memlab.nn.segment import SegmentStack
from memlab.train.learner import Learner, RowMemories, random_states, take_random_states
from memlab.train.loop import CHECKPOINT, FitConfig, fit, fit_model, parts, train_step
from memlab.train.losses import lm_loss, linear_cross_entropy, recall_loss, token_loss
from memlab.train.objectives import ClassLoss, LayerLoss, RecallLoss, TokenLoss
from memlab.train.optim import AdamWConfig, GroupedAdamWConfig, SGDConfig
from memlab.train.recurrent import LaggedLoss, NewtonLoss, SequentialLoss, TruncatedLoss
from memlab.train.schedule import Constant, Cosine, EpochDecay, Patience, Solved
from memlab.train.settled import SettledLoss

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


@pytest.mark.parametrize('chunk', [None, 2], ids=str)
def test_labels_are_whole_numbers_however_rows_are_read_out(chunk):
    "Of any width; truths, fractions, and what is no token are refused, at once or chunk by chunk; a chunk of no rows too."
    loss = inspect.unwrap(linear_cross_entropy)
    h, w = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0)).double()
    want = -(h @ w.T).log_softmax(1)[[0, 1, 3], [3, 0, 1]].sum()
    for dtype in (torch.int64, torch.int32, torch.int8): torch.testing.assert_close(loss(h, w, torch.tensor([3, 0, IGNORE, 1], dtype=dtype), chunk)[0], want)
    for wrong in ([True] * 4, [1.] * 4):
        with pytest.raises(ValueError, match='labels are torch.(bool|float32): pass whole numbers'): loss(h, w, torch.tensor(wrong), chunk)
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match=f'a label is {wrong}, there are tokens 0 to 3'): loss(h, w, torch.tensor([0, 1, wrong, 2]), chunk)
    for wrong in (0, -1, 1.5):
        with pytest.raises(ValueError, match=f'chunk={wrong}: expected a whole number of at least 1'): loss(h, w, torch.tensor([0, 1, 1, 2]), wrong)


def test_what_is_no_class_and_no_position_is_refused():
    model, x = nn.Linear(4, 3), torch.randn(2, 4)
    learner, loss = Learner(model, SGDConfig().build(model)), inspect.unwrap(ClassLoss.__call__)
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match=f'a label is {wrong}, there are classes 0 to 2'): loss(ClassLoss(), learner, x, torch.tensor([wrong, 0]))
    torch.testing.assert_close(loss(ClassLoss(), learner, x, torch.tensor([IGNORE, 0])).mean, -model(x).log_softmax(1)[1, 0])
    model, ids = drawn(), text()[0]
    for wrong in (-1, LENGTH):
        with pytest.raises(ValueError, match=f'a position that asks is {wrong}, there are tokens 0 to {LENGTH - 1}'): inspect.unwrap(recall_loss)(model, ids, torch.full((ROWS, 2), wrong), torch.zeros(ROWS, 2, dtype=torch.long))


@pytest.mark.parametrize('count', [-1, math.nan, math.inf, True])
def test_a_count_is_no_less_than_nothing(count):
    "A number is refused; a tensor, for which no step waits, ends the run as a blow-up."
    run = lambda count: fit_model(nn.Linear(2, 1), lambda step: torch.ones(4, 2), lambda model, x: ((total := model(x).sum()), total.detach(), count), FitConfig(steps=3))
    with pytest.raises(ValueError, match='count=.*expected a finite number of at least 0'): run(count)
    if count == -1: assert run(torch.tensor(count)).status == 'diverged'


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


class Buffered(nn.Linear):
    "A mask that is infinite from the start, and a count that becomes it at a step."
    def __init__(self, at):
        super().__init__(2, 1)
        self.register_buffer('mask', torch.tensor([0., -math.inf]))
        self.register_buffer('count', torch.zeros(()))
        self._at = at

    def forward(self, x):
        self.count.add_(math.inf if self.count + 1 >= self._at else 1)
        return super().forward(x)


@pytest.mark.parametrize('at, end', [(3, ('diverged', 2)), (9, ('finished', 3))])
def test_buffers_that_overflow_are_a_blow_up(at, end):
    "Those that were finite at the start; a mask may be infinite."
    result = fit_model(Buffered(at), lambda step: torch.ones(4, 2), lambda model, x: ((total := model(x).sum()), total.detach(), len(x)), FitConfig(steps=3))
    assert (result.status, result.step) == end


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


def restored(folder, tensors=lambda t: t, header=lambda h: h, steps=4, model=nn.Linear, **how):
    "A run of the checkpoint in a folder, after its tensors and header were changed."
    held, said = load_tensors(folder/CHECKPOINT)
    save_tensors(folder/CHECKPOINT, tensors(held), header(said))
    return learnt(folder, steps, model, **how)


def learnt(folder, steps=4, model=nn.Linear, **how):
    torch.manual_seed(0)
    def loss(model, x): return (total := model(x).square().sum()), total.detach(), len(x)
    return fit_model(model(3, 2), lambda step: torch.ones(2, 3), loss, FitConfig(steps=steps, log_every=1), folder=folder, **how)


SAID = {'step 9': (dict(step=10**9), 'was saved after 1000000000 steps, this run has 4'), 'step -1': (dict(step=-1), 'step=-1: expected'), 'status': (dict(status='odd'), "status='odd'"),
        'window': (dict(window=None), 'window'), 'records': (dict(records={}), 'records'), 'seconds': (dict(seconds=-1.), 'seconds=-1.0: expected'), 'more': (dict(more=1), 'more')}


@pytest.mark.parametrize('said, words', SAID.values(), ids=SAID)
def test_a_checkpoint_says_what_a_run_can_have_said(said, words, tmp_path):
    learnt(tmp_path, stop=2)
    with pytest.raises(ValueError, match=words): restored(tmp_path, header=lambda h: h | dict(result=h['result'] | said))


WEIGHT = 'optimizer/optimizer/exp_avg/model/weight'
HELD = {'no moment': (lambda t: {n: u for n, u in t.items() if n != WEIGHT}, True, 'tensors are missing'), 'none of a weight': (lambda t: {n: u for n, u in t.items() if not n.startswith('optimizer/') or 'weight' not in n}, True, 'tensors are missing'),
        'no moment, unsaid': (lambda t: {n: u for n, u in t.items() if n != WEIGHT}, False, 'lacks exp_avg of model/weight'), 'shape': (lambda t: t | {WEIGHT: t[WEIGHT][:1, :1]}, True, 'has exp_avg of model/weight in torch.float32 of shape .1, 1.'),
        'type': (lambda t: t | {WEIGHT: t[WEIGHT].double()}, True, 'has exp_avg of model/weight in torch.float64'), 'others': (lambda t: dict(a=torch.zeros(1)), False, 'another model')}


@pytest.mark.parametrize('change, named, words', HELD.values(), ids=HELD)
def test_a_checkpoint_holds_what_it_was_given(change, named, words, tmp_path):
    "Also one of before their names were noted."
    learnt(tmp_path, stop=2)
    with pytest.raises(ValueError, match=words): restored(tmp_path, change, lambda h: h if named else {n: u for n, u in h.items() if n != 'names'})


def test_a_file_of_something_else_is_no_checkpoint(tmp_path):
    save_tensors(tmp_path/CHECKPOINT, dict(a=torch.zeros(1)), dict(x=1))
    with pytest.raises(ValueError, match='holds what no run has saved .*choose another folder'): learnt(tmp_path)


class Leaky(nn.Linear):
    "A layer with a setting."
    def __init__(self, inputs, outputs, slope=.1):
        super().__init__(inputs, outputs)
        self.slope = slope

    def forward(self, x): return nn.functional.leaky_relu(super().forward(x), self.slope)


def test_another_model_of_the_same_shapes_is_refused(tmp_path):
    "By the type or a setting of a module; unless it is asked for, or the checkpoint is one of before this was noted."
    learnt(tmp_path, model=Leaky, stop=2)
    with pytest.raises(ValueError, match=r"other settings \(models.model/.slope is gone\)"): learnt(tmp_path)
    with pytest.raises(ValueError, match=r'other settings \(models.model/.slope was 0.1, is 0.3\)'): learnt(tmp_path, model=lambda *n: Leaky(*n, slope=.3))
    without = lambda h: h | dict(settings={n: u for n, u in h['settings'].items() if n != 'models'})
    assert learnt(tmp_path, model=Leaky, stop=3).step == 3 and restored(tmp_path, header=without).status == 'finished'


def test_a_finished_run_goes_on_where_more_steps_are_asked_for(tmp_path):
    "To what a longer run comes to; one that ended itself has still ended, and one that is longer already is refused."
    whole, _ = learnt(None, 8), learnt(tmp_path, 4)
    longer = learnt(tmp_path, 8, anyway=True)
    assert (longer.status, longer.step) == ('finished', 8) and longer.records == whole.records
    with pytest.raises(ValueError, match='was saved after 8 steps, this run has 4: give it more'): learnt(tmp_path, 4, anyway=True)
    with pytest.raises(ValueError, match='other settings'): learnt(tmp_path, 9)


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
           (EpochDecay, 'epoch', (0, 1.5, True)), (EpochDecay, 'factor', (0, -1, 1.1, math.nan)), (Solved, 'times', (0, -1, 1.5, True)), (Solved, 'bar', (math.nan, math.inf, 'high')),
           *((c, name, (math.nan, math.inf, -1.)) for c in (SequentialLoss, TruncatedLoss, LaggedLoss, NewtonLoss, SettledLoss) for name in ('slope', 'dispersion')),
           (SequentialLoss, 'window', (0, -1, math.nan)), (LaggedLoss, 'sweeps', (0, -1, 1.5)), (LaggedLoss, 'through', (0, 2, 1.5)), (NewtonLoss, 'steps', (-1, 1.5)), (SequentialLoss, 'remember', ('odd',)),
           (GroupedAdamWConfig, 'shares', ((math.nan,) * 5,)), (GroupedAdamWConfig, 'draw', (-1, 1.5, math.nan)),
           (Measure, 'seed', (-1, 1.5, math.nan)), (HeldOut, 'tokens', (0, -1, 1.5, math.nan)), (ReadInTurn, 'rows', (0, -1, True)),
           *((Passages, name, (0, -1, 1.5)) for name in ('segment', 'banks', 'rows')), *((Perplexity, name, (0, 1.5, math.nan)) for name in ('length', 'labels_by', 'rows'))]


@pytest.mark.parametrize('config, name, wrong', NUMBERS, ids=lambda x: getattr(x, '__name__', str(x)))
def test_numbers_out_of_their_range_are_refused(config, name, wrong):
    least = {FitConfig: dict(steps=1), EpochDecay: dict(epoch=1)}.get(config, {})
    made(config, **least)
    for value in wrong:
        with pytest.raises(ValueError, match=f'{dict(remember="dtype").get(name, name)}=.*expected'): made(config, **least | {name: value})


@pytest.mark.parametrize('more', [dict(save_every=0), dict(save_every=-1), dict(save_every=1.5), dict(stop=-1), dict(stop=1.5), dict(stop=True)], ids=str)
def test_options_of_fit_out_of_their_range_are_refused(more, tmp_path):
    model = Steep()
    with pytest.raises(ValueError, match=f'{next(iter(more))}=.*expected'): inspect.unwrap(fit)(Learner(model, SGDConfig().build(model)), None, None, FitConfig(steps=4), folder=tmp_path, **more)


def test_what_is_no_number_has_reached_no_bar():
    "Wherever it stands; nor is it the best so far."
    said = lambda *values: [record(i, 'accuracy', v) for i, v in enumerate(values)]
    assert Solved()(said(.9, 1., 1.)) and not any(Solved()(said(*v)) for v in ((1., math.nan), (math.nan, 1.), (1., .9)))
    patience = Patience(metric='accuracy', times=2)
    assert patience(said(3., 3., 3.)) and patience(said(math.nan, 3., 3., 3.)) and not any(patience(said(*v)) for v in ((math.nan, 3., 2., 1.), (3., math.nan, 1.), (math.nan, math.nan, 2., 1.)))


def test_settings_that_stand_are_settings():
    "What is at a border but means something stays."
    assert Cosine(warmup=0, floor=1.).at(2., 50, 60) == 2. and Constant(warmup=0).at(2., 0, 60) == 2. and EpochDecay(epoch=1, factor=1.).at(2., 500, 600) == 2.
    assert replace(AdamWConfig(), weight_decay=0., betas=(0., 0.), eps=0.).build(Steep()) and SGDConfig(momentum=0).build(Steep())
