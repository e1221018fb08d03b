"""Recurrences found all at once: scans, Newton's method and sweeps are the loop, and objectives do not mind how batches are cut, ordered or interrupted."""
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from memlab.core.files import load_tensors
from memlab.data.recall import IGNORE, RecallConfig
from memlab.data.samples import Copy, Pairs, TextSamples
from memlab.eval.parity import settled_share
from memlab.lab.arm import Arm, execute
from memlab.nn.cells import GRU, ContextCell, Feedback
from memlab.nn.checks import check_causal, check_rows, error_ratio
from memlab.nn.continuous import MODES, ContinuousConfig, after_states, before_states
from memlab.nn.generate import generate
from memlab.nn.init import init_parameters
from memlab.nn.memory import load_memory, save_memory
from memlab.nn.recurrence import previous, sequential, stacked
from memlab.train.lagged import LaggedCache, centroid_dispersion, lagged
from memlab.train.learner import Learner
from memlab.train.loop import CHECKPOINT, FitConfig, fit
from memlab.train.newton import adjoint, fastest, newton, scan, scan_chunks, scan_doubling, scan_loop, scan_products, solve
from memlab.train.optim import AdamWConfig, SGDConfig
from memlab.train.recurrent import LaggedLoss, NewtonLoss, SequentialLoss
from memlab.train.settled import SettledLoss, noise_on


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def worst(got, want):
    "The largest error ratio of any token."
    return max((error_ratio(a, b) for a, b in zip(got.unbind(1), want.unbind(1), strict=True)), default=0.)


# -- scans ------------------------------------------------------------------------------------------------------------

LENGTHS = (0, 1, 2, 3, 8, 9, 16, 17, 67)
DENSE, DIAGONAL = (scan_loop, scan_products, scan_doubling, scan), (scan_loop, scan_products, scan_chunks, scan)


def linear(rows, t, kind, reach, c=3):
    "Jacobians and residuals; those that are the same at every token take no more room than one."
    r = reach * random(t, rows, c, seed=t).transpose(0, 1)
    if kind == 'same': return reach * random(c, c, seed=1).expand(rows, t, c, c), r
    return reach * random(rows, t, *([c, c] if kind == 'dense' else [c]), seed=1), r


def by_hand(J, r):
    "δ_t = J_t δ_{t-1} + r_t"
    delta, found = r.new_zeros(r[:, :1].sum(1).shape), torch.empty(r.shape, dtype=r.dtype)
    for t in range(r.shape[1]):
        delta = (torch.einsum('bij,bj->bi', J[:, t], delta) if J.dim() == 4 else J[:, t] * delta) + r[:, t]
        found[:, t] = delta
    return found


@pytest.mark.parametrize('reach', [.4, 1.5], ids=['that forgets', 'that grows'])
@pytest.mark.parametrize('kind', ['dense', 'same', 'diagonal'])
@pytest.mark.parametrize('rows', [1, 3])
def test_every_scan_is_the_loop(rows, kind, reach):
    "At awkward lengths, and what is given is not written to."
    for t in LENGTHS:
        J, r = linear(rows, t, kind, reach)
        before = J.clone(), r.clone()
        for form in DIAGONAL if kind == 'diagonal' else DENSE:
            assert worst(form(J, r), by_hand(J, r)) < 1e-10, (form.__name__, t)
            assert torch.equal(J, before[0]) and torch.equal(r, before[1]), (form.__name__, t)


@pytest.mark.parametrize('kind', ['dense', 'same', 'diagonal'])
@pytest.mark.parametrize('rows', [1, 3])
def test_the_adjoint_is_the_gradient_of_the_loop(rows, kind, monkeypatch):
    "Of what is added at each token, and with the states before, of the Jacobians; whichever form is the fastest."
    for t in LENGTHS[1:]:
        J, r = (u.requires_grad_() for u in linear(rows, t, kind, .4))
        g = random(t, rows, 3, seed=5).transpose(0, 1)
        delta = scan_loop(J, r)
        of_J, of_r = torch.autograd.grad((delta * g).sum(), [J, r])
        J, before = J.detach(), (J.detach().clone(), g.clone())
        for form in DIAGONAL[1:-1] if kind == 'diagonal' else DENSE[1:-1]:
            monkeypatch.setattr('memlab.train.newton.fastest', lambda J, g: form)
            assert worst(found := adjoint(J, g), of_r) < 1e-10
        past = torch.cat([torch.zeros(rows, 1, 3), delta[:, :-1]], 1)
        assert error_ratio(found * past if kind == 'diagonal' else found[..., None] * past[..., None, :], of_J) < 1e-10 or t == 1      # the first Jacobian multiplies zero
        assert torch.equal(J, before[0]) and torch.equal(g, before[1])


def test_the_fastest_scan_depends_on_size():
    "On a processor a loop of products, but for diagonals of few numbers."
    for rows, c, form in ((1, 1024, scan_chunks), (8, 128, scan_chunks), (8, 129, scan_products), (0, 4, scan_chunks)):
        assert fastest(torch.zeros(rows, 3, c), torch.zeros(rows, 3, c)) is form and fastest(torch.zeros(1, 1, 1, 1).expand(rows, 3, c, c), torch.zeros(rows, 3, c)) is scan_products


# -- Newton's method --------------------------------------------------------------------------------------------------

class Leaky(nn.Module):
    "h' = tanh(P h + u): a user's cell, which gives no Jacobian."
    def __init__(self, reach):
        super().__init__()
        self.P = nn.Parameter(reach * random(4, 4, seed=3))

    def drive(self, x): return x
    def forward(self, h, u): return (h @ self.P.T + u).tanh()


def steep(cell, times):
    "Weights so large that errors grow from token to token."
    cell.state.weight.data.mul_(times)
    return cell


drawn = lambda cell: init_parameters(cell, seed=0).double()
CELLS = dict(context=lambda: drawn(ContextCell(4, 4)), gru=lambda: drawn(GRU(4, 4)), feedback=lambda: drawn(Feedback(4)), user=lambda: Leaky(.2),
             steep_context=lambda: steep(drawn(ContextCell(4, 4)), 9.), steep_gru=lambda: steep(drawn(GRU(4, 4)), 6.), steep_user=lambda: Leaky(1.5))
each_cell = pytest.mark.parametrize('name', CELLS)


def problem(name, rows=3, t=13, own_start=False, seed=0):
    "A cell, inputs, the state before the first token, and the states of the loop."
    cell, x, start = CELLS[name](), random(rows, t, 4, seed=seed).requires_grad_(), random(*([rows] if own_start else []), 4, seed=1).requires_grad_()
    return cell, x, start, sequential(cell, cell.drive(x), start)


def slopes(h, cell, *inputs):
    "Gradients of a random function of states."
    return torch.autograd.grad((h * random(*h.shape, seed=9)).sum(), [*cell.parameters(), *inputs], materialize_grads=True)


@each_cell
@pytest.mark.parametrize('rows, t, own_start', [(3, 13, False), (1, 6, True), (3, 1, True)])
def test_newton_from_near_has_states_and_gradients_of_the_loop(name, rows, t, own_start):
    cell, x, start, true = problem(name, rows, t, own_start)
    guess = true.detach() + 1e-4 * random(rows, t, 4, seed=4)
    before = guess.clone()
    h, found = newton(cell, cell.drive(x), guess, start, steps=4)
    assert worst(h, true) < 1e-11 and worst(found.states, true) < 1e-11 and found.residual.max() < 1e-11 and not found.wild.any()
    for got, want in zip(slopes(h, cell, x, start), slopes(true, cell, x, start)): assert error_ratio(got, want) < 1e-9
    assert torch.equal(guess, before)


@each_cell
def test_newton_from_zeros_is_right_at_one_more_token_each_step(name):
    "However wild the steps are, whole Jacobians or their diagonals; with as many steps as tokens the gradients are the loop's too."
    cell, x, start, true = problem(name)
    zero, wild = torch.zeros_like(true), {}
    for diagonal in (False, True):
        for steps in (1, 2, 5, 13):
            found = solve(cell, cell.drive(x), zero, start, steps, diagonal)
            assert worst(found.states[:, :steps], true[:, :steps]) < 1e-11
        wild[diagonal] = found.wild.sum()
    h, found = newton(cell, cell.drive(x), zero, start, steps=13)
    for got, want in zip(slopes(h, cell, x, start), slopes(true, cell, x, start)): assert error_ratio(got, want) < 1e-9
    if name.startswith('steep'): assert wild[False] > 0
    if name == 'feedback': assert wild[False] == 0 and worst(solve(cell, cell.drive(x), zero, start, 1).states, true) < 1e-11    # linear: one step


@each_cell
def test_newton_does_not_mix_rows(name):
    "A row gives alone what it gives beside others, wild or not."
    cell, x, start, true = problem(name, rows=6, own_start=True)
    u, guess = cell.drive(x), true.detach() + torch.tensor([0., 1e-6, 1e-3, .3, 3., 30.])[:, None, None] * random(6, 13, 4, seed=4)
    wild = 0
    for steps in (1, 2):
        found = solve(cell, u, guess, start, steps)
        wild = wild + found.wild
        for i in range(6):
            alone = solve(cell, u[i:i+1], guess[i:i+1], start[i:i+1], steps)
            assert alone.wild == found.wild[i] and worst(alone.states, found.states[i:i+1]) < 1e-9 and torch.allclose(alone.residual, found.residual[i:i+1], rtol=1e-6, atol=1e-12)
    if name.startswith('steep'): assert wild[:2].sum() == 0 < wild[4:].sum()


def test_a_step_that_overflows_is_swept_and_counted():
    square, u = lambda h, u: h * h + u, .1 * random(2, 40, 4).float()
    guess = torch.stack([sequential(square, u[:1], torch.zeros(4))[0], torch.full((40, 4), 1e3)])
    found = solve(square, u, guess, torch.zeros(4))
    assert found.wild.tolist() == [0, 1] and found.states.isfinite().all()
    assert error_ratio(found.states[1:], lagged(square, u[1:], guess[1:], torch.zeros(4))) < 1e-6


@each_cell
def test_newton_cut_anywhere(name):
    "With the state handed over: states and gradients, which flow through the cut."
    cell, x, start, true = problem(name)
    guess, want = true.detach() + 1e-4 * random(3, 13, 4, seed=4), slopes(true, cell, x, start)
    for cut in (0, 1, 6, 12, 13):
        u = cell.drive(x)
        first = newton(cell, u[:, :cut], guess[:, :cut], start, steps=4)[0]
        rest = newton(cell, u[:, cut:], guess[:, cut:], first[:, -1] if cut else start, steps=4)[0]
        h = torch.cat([first, rest], 1)
        assert worst(h, true) < 1e-11
        for got, wanted in zip(slopes(h, cell, x, start), want): assert error_ratio(got, wanted) < 1e-9


@each_cell
@pytest.mark.parametrize('diagonal', [False, True])
def test_no_number_stays_in_its_row(name, diagonal):
    "From its token on, with an infinite residual; other rows and their gradients are as they were."
    cell, x, start, true = problem(name)
    ill = x.detach().clone()
    ill[1, 5] = math.nan
    ill.requires_grad_()
    guess = true.detach() + 1e-4 * random(3, 13, 4, seed=4)
    (h, found), (good, well) = (newton(cell, cell.drive(x_), guess, start, 2, diagonal) for x_ in (ill, x))
    rest = [0, 2]
    assert error_ratio(h[rest], good[rest]) < 1e-12 and torch.equal(found.wild[rest], well.wild[rest]) and error_ratio(found.residual[rest], well.residual[rest]) < 1e-6
    assert found.residual.isinf().tolist() == [False, True, False] and well.residual.isfinite().all()
    assert h[1, 5:].isnan().any(-1).all()
    (got,), (want,) = (torch.autograd.grad(h_[rest].sin().sum(), [x_]) for h_, x_ in ((h, ill), (good, x)))
    assert error_ratio(got[rest], want[rest]) < 1e-12


@each_cell
def test_newton_does_not_look_ahead(name):
    "Also before it has arrived, and where steps are wild: whether a token takes a step or a sweep is for its past to say."
    cell, x, start, true = problem(name, rows=24)
    other, flips = x.detach().clone(), 0
    other[:, 9:] = 2 * random(24, 4, 4, seed=50)
    for steps in (1, 2, 3):
        a, b = (solve(cell, cell.drive(x_), torch.zeros_like(true), start, steps) for x_ in (x, other))
        assert torch.equal(a.states[:, :9], b.states[:, :9]) and not torch.isclose(a.states[:, 9], b.states[:, 9]).all(-1).any()
        flips += (a.wild != b.wild).sum()
    if name.startswith('steep'): assert flips, 'the change should decide of some row whether a step is wild'
    h, _ = newton(cell, cell.drive(x), true.detach(), start)
    assert torch.autograd.grad(h[:, :9].sin().sum(), x)[0][:, 9:].abs().max() == 0


# -- sweeps at frozen weights -----------------------------------------------------------------------------------------

@torch.no_grad()
def test_as_many_sweeps_as_tokens_are_the_recurrence_in_float32():
    "To 1e-5; half as many do not bring back what a cell remembers for long."
    S = 32
    for name in ('context', 'gru', 'user'):
        cell, x, start = CELLS[name]().float(), random(3, S, 4).float(), random(4, seed=1).float()
        u = cell.drive(x)
        error = {n: (lagged(cell, u, torch.zeros(3, S, 4), start, n) - sequential(cell, u, start)).abs().max() for n in (S, S // 2)}
        assert error[S] < 1e-5
        if name == 'context': assert error[S // 2] > 1e-3


# -- models -----------------------------------------------------------------------------------------------------------

V, ROWS, LENGTH = 16, 8, 7
BLOCKS = dict(n_heads=2, intermediate=16, rotary_pct=1.)
INSIDE = {mode: dict(inside=2, **fields) for mode, fields in MODES.items()} | dict(tied=dict(inside=1, second='tied'), gru=dict(inside=1, after=1, cell='gru'), context=dict(inside=1, after=1, cell='context', normed=True, d_embed=6))
ALONE = dict(context=dict(after=1, cell='context', normed=True), gru=dict(after=1, cell='gru', d_embed=6), feedback=dict(after=1))


def config(**fields):
    fields = dict(vocab_size=V, d_model=8, inside=0, after=0, std=.4) | fields
    return ContinuousConfig(**(BLOCKS if fields['inside'] + fields['after'] else {}), **fields)


def small(double=True, **fields):
    model = config(**fields).build(seed=0)
    return model.double() if double else model


def text(rows=ROWS, seed=0):
    "Tokens and labels of samples; some ask much, some little, one nothing."
    r = torch.Generator().manual_seed(seed)
    ids, labels = torch.randint(V, (2, rows, LENGTH), generator=r)
    asks = torch.rand(rows, LENGTH, generator=r) < torch.linspace(.1, 1, rows)[:, None]
    asks[1] = False
    return ids, labels.where(asks, IGNORE)


def task(samples=ROWS, data='a text'): return SimpleNamespace(samples=samples, length=LENGTH, fingerprint=lambda seed: data)


def all_gradients(objective, model, samples=ROWS):
    "Of every parameter, at the first visit."
    learner = Learner(model, SGDConfig().build(model), objective.carry(model, task(samples), 0))
    objective.loss(learner, 0, *text(samples), torch.arange(samples)).total.backward()
    return {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize('fields', [fields for name, fields in INSIDE.items() if name != 'discrete'], ids=[name for name in INSIDE if name != 'discrete'])
def test_with_attention_inside_loop_and_sweeps_are_one_function(fields):
    "Keys, values and positions carried token by token, or all tokens at once and as many sweeps as tokens: every gradient is the same."
    want = all_gradients(SequentialLoss(), small(**fields))
    got = all_gradients(LaggedLoss(sweeps=LENGTH, through=LENGTH, first='zeros', dtype='float32'), small(**fields))
    for name, g in want.items(): assert g.norm() > 1e-9 and error_ratio(got[name], g) < 1e-9, name


# -- objectives -------------------------------------------------------------------------------------------------------

OBJECTIVES = dict(sequential=SequentialLoss(remember='float32'), window=SequentialLoss(window=3), lagged=LaggedLoss(dtype='float32'), sweeps=LaggedLoss(sweeps=3, through=2, first='zeros'),
                  newton=NewtonLoss(dtype='float32'), diagonal=NewtonLoss(steps=2, diagonal=True), newton_zeros=NewtonLoss(guess='zeros'), newton_sweep=NewtonLoss(guess='sweep'))
each_objective = pytest.mark.parametrize('objective', OBJECTIVES.values(), ids=OBJECTIVES)


@each_objective
def test_a_batch_in_parts_is_the_batch(objective):
    "The loss, every gradient and what is stored, whatever was stored before; labels are spread unevenly, so that parts weigh differently."
    def step(accumulate):
        c = FitConfig(steps=1, optimizer=SGDConfig(lr=1.), clip=None, accumulate=accumulate)
        model = small(**ALONE['context'])
        learner = Learner(model, c.optimizer.build(model), objective.carry(model, task(), 0))
        if learner.carry: learner.carry.write(torch.arange(5), .5 * random(5, LENGTH, 8), 0)       # the others are new
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        loss = objective.step(c)(learner, (*text(), torch.arange(ROWS).flip(0)), 1)
        return loss, before - torch.cat([p.detach().flatten() for p in model.parameters()]), learner.carry.pack() if learner.carry else {}
    loss, gradient, stored = step(1)
    assert gradient.norm() > .1
    for accumulate in (2, 8):
        loss_, gradient_, stored_ = step(accumulate)
        assert abs(loss_ - loss) < 1e-10 and error_ratio(gradient_, gradient) < 1e-10
        assert all(torch.allclose(stored_[n].double(), u.double(), rtol=1e-4, atol=1e-6) for n, u in stored.items())


@pytest.mark.parametrize('objective', [LaggedLoss(first='zeros', dtype='float32'), NewtonLoss(first='zeros', dtype='float32'), NewtonLoss(diagonal=True, first='zeros', dtype='float32'), SequentialLoss(remember='float32')], ids=repr)
def test_shuffled_batches_with_a_short_last_one_arrive_at_the_recurrence(objective):
    "With weights that hardly move, after as many epochs as there are tokens; samples are known by their numbers."
    ids, labels = text(11)
    def batch(step):
        epoch, place = divmod(step, 3)
        rows = torch.randperm(11, generator=torch.Generator().manual_seed(epoch)).split(4)[place]
        return ids[rows], labels[rows], rows
    c = FitConfig(steps=3 * LENGTH, optimizer=SGDConfig(lr=1e-12))
    model = small(double=False, **ALONE['context'])
    learner = Learner(model, c.optimizer.build(model), objective.carry(model, task(11), 0))
    assert fit(learner, batch, objective.step(c), c).status == 'finished'
    with torch.no_grad(): true = sequential(model.cell, model.drives(ids), model.hidden.start)
    assert (learner.carry.read(torch.arange(11)) - true).abs().max() < 1e-5
    assert learner.carry.step.min() >= c.steps - 3 and learner.carry.residual.max() < 1e-5


def visits(objective, cache, *, seed=0, **options):
    "Training on shuffled samples, with a store of one's own."
    ids, labels = text(12)
    def batch(step):
        epoch, place = divmod(step, 3)
        rows = torch.randperm(12, generator=torch.Generator().manual_seed(epoch)).split(4)[place]
        return ids[rows], labels[rows], rows
    c = FitConfig(steps=8, optimizer=AdamWConfig(lr=.03))
    model = small(double=False, **options.pop('fields', ALONE['context']))
    learner = Learner(model, c.optimizer.build(model), cache)
    fit(learner, batch, objective.step(c), c, seed=seed, **options)
    return learner


def store(folder, data='a text', width=8):
    "In a file: two batches would be too much for memory."
    cache = LaggedCache(12, LENGTH, width, budget=8 * LENGTH * width * 2, folder=folder, data=data)
    assert cache.states.nbytes > cache.budget and not [f for f in folder.iterdir() if f.is_file()]
    return cache


@pytest.mark.parametrize('objective', [SequentialLoss(remember='float16'), LaggedLoss(slope=.01, dispersion=.1), NewtonLoss(first='zeros')], ids=['sequential', 'lagged', 'newton'])
def test_a_restart_changes_no_bit(objective, tmp_path):
    "Weights, moments, stored states and how they were found, with the store in a file."
    parts_of = lambda learner: {n: u for n, u in learner.pack().items() if not n.startswith('generator/')}
    whole = parts_of(visits(objective, store(tmp_path)))
    visits(objective, store(tmp_path), folder=tmp_path / 'run', stop=5)
    stopped = load_tensors(tmp_path / 'run' / CHECKPOINT)[0]
    after = parts_of(visits(objective, store(tmp_path), folder=tmp_path / 'run'))
    assert whole.keys() == after.keys()
    for name, u in whole.items(): assert torch.equal(u, after[name]), name
    assert whole['carry/step'].tolist() != stopped['carry/step'].tolist() and whole['carry/step'].min() >= 3
    if isinstance(objective, NewtonLoss):
        assert stopped['carry/residual'].min() > 0 and stopped['carry/wild'].sum() > 0
        back = visits(objective, store(tmp_path), folder=tmp_path / 'run')          # finished: nothing is trained, all comes from the file
        assert torch.equal(back.carry.residual, whole['carry/residual']) and torch.equal(back.carry.wild, whole['carry/wild'])


def test_a_store_of_others_is_refused(tmp_path):
    "Of other samples, of another model, of weights that are not these, or where there is none."
    visits(LaggedLoss(), kept := store(tmp_path), folder=tmp_path / 'run', stop=5)
    again = lambda cache, **options: visits(LaggedLoss(), cache, folder=tmp_path / 'run', **options)
    with pytest.raises(ValueError, match="states of the samples 'a text', this cache is of 'another text': train on the same data"): again(store(tmp_path, 'another text'))
    with pytest.raises(ValueError, match='saved with other settings .*seed'): again(store(tmp_path, 'another text'), seed=1)
    with pytest.raises(ValueError, match="states of the samples 'a text'"): again(store(tmp_path, 'another text'), seed=1, anyway=True)
    with pytest.raises(ValueError, match='saved with other settings .models.model/'): again(store(tmp_path), fields=ALONE['gru'])
    with pytest.raises(ValueError, match='the checkpoint is of another model'): again(store(tmp_path), fields=ALONE['gru'], anyway=True)
    with pytest.raises(ValueError, match='this cache .*: build it as it was'): again(store(tmp_path, width=9))
    with pytest.raises(ValueError, match='this learner has nothing to carry it in'): again(None)
    with pytest.raises(ValueError, match='made by weights of step 4, these are of step 0: the cache belongs to other weights'): visits(LaggedLoss(), kept)
    again(store(tmp_path))


def test_a_state_that_is_no_number_is_noted():
    "Its sample has an infinite residual, the others have theirs."
    objective, model = NewtonLoss(dtype='float32'), small(**ALONE['gru'])
    learner = Learner(model, SGDConfig().build(model), objective.carry(model, task(), 0))
    learner.carry.write(torch.arange(ROWS), random(ROWS, LENGTH, 8), 0)
    learner.carry.write(torch.tensor([3]), torch.full((1, LENGTH, 8), math.nan), 0)
    objective.loss(learner, 1, *text(), torch.arange(ROWS))
    assert learner.carry.residual.isinf().nonzero().tolist() == [[3]] and learner.carry.residual[torch.arange(ROWS) != 3].min() > 0


@torch.no_grad()
def test_a_first_visit_begins_with_the_loop():
    "Unless it is to begin with zeros, or with what the layers make of the tokens alone."
    model, (ids, _) = small(**ALONE['context']), text()
    u = model.drives(ids)
    true, found = sequential(model.cell, u, model.hidden.start), {}
    for first in ('sequential', 'zeros', 'tokens'):
        learner = Learner(model, SGDConfig().build(model), LaggedLoss().carry(model, task(), 0))
        found[first] = LaggedLoss(first=first).states(learner, ids, u, torch.arange(ROWS), 0)
    assert error_ratio(found['sequential'], true) < 1e-6
    for first, before in dict(zeros=torch.zeros_like(true), tokens=model.look_up(ids)).items():
        assert error_ratio(found[first], torch.cat([true[:, :1], model.cell(before[:, :-1], u[:, 1:])], 1)) < 1e-6 and error_ratio(found[first], true) > .1


# -- two phases -------------------------------------------------------------------------------------------------------

def two_phases(objective, fields=ALONE['context'], c=FitConfig(steps=9, optimizer=AdamWConfig(lr=.03, weight_decay=.5)), double=True):
    "A learner of 12 samples, three batches an epoch, and its batches."
    model, (ids, labels) = small(double, **fields), text(12)
    def batch(step):
        rows = torch.randperm(12, generator=torch.Generator().manual_seed(step // 3)).split(4)[step % 3]
        return ids[rows], labels[rows], rows
    return Learner(dict(model=model), objective.optimizers(dict(model=model), c), objective.carry(model, task(12), 0)), batch, c


def numbers_of(parts): return torch.cat([p.detach().flatten() for p in parts.parameters()])


@pytest.mark.parametrize('fields', [ALONE['context'], ALONE['gru'], INSIDE['gru']], ids=['context', 'gru', 'attention inside'])
def test_in_each_phase_what_learns_in_the_other_stays(fields):
    "To the bit, weight decay or not; and no parameter is of both, or of none."
    objective = SettledLoss(most=2, noise=2., settle=1.)
    learner, batch, c = two_phases(objective, fields)
    made, read = before_states(learner.model), after_states(learner.model)
    assert sorted(p.numel() for m in (made, read) for p in m.parameters()) == sorted(p.numel() for p in learner.model.parameters())
    for step in range(9):
        before = numbers_of(made), numbers_of(read)
        objective.step(c)(learner, batch(step), step)
        after = numbers_of(made), numbers_of(read)
        assert [torch.equal(a, b) for a, b in zip(before, after)] == ([False, True] if step < 6 else [True, False]), step
    assert learner.carry.begins == 6


def test_a_sweep_by_hand():
    "All tokens at once from the last visit, noise on what was stored alone; the dispersion of those states and nothing else has gradients."
    objective = SettledLoss(noise=.3, dispersion=2., dtype='float32')
    learner, batch, c = two_phases(objective)
    model, (ids, labels, rows), old = learner.model, batch(4), random(12, LENGTH, 8).float()
    learner.carry.write(torch.arange(12), old, 1)
    u = model.drives(ids)
    h = model.cell(previous(old[rows] + .3 * noise_on(old[rows], rows, 0, 4), model.hidden.start), u)
    want = torch.autograd.grad(2 * centroid_dispersion(h.flatten(0, 1)), list(before_states(model).parameters()))
    objective.loss(learner, 4, ids, labels, rows).mean.backward()
    for p, g in zip(before_states(model).parameters(), want, strict=True): assert error_ratio(p.grad, g) < 1e-6
    assert all(p.grad is None for p in after_states(model))
    assert error_ratio(learner.carry.read(rows), h.detach().float()) < 1e-6


def test_a_readout_by_hand():
    "Its loss and gradients are those on the recurrence, at the first visit and from the store; nothing else has any."
    objective = SettledLoss(dtype='float32')
    learner, batch, c = two_phases(objective)
    model, (ids, labels, rows) = learner.model, batch(4)
    learner.carry.write(torch.arange(12), random(12, LENGTH, 8), 2)
    learner.carry.begins.fill_(3)
    want = all_gradients_of(model, ids, labels)
    for step in (4, 7):
        model.zero_grad()
        objective.loss(learner, step, ids, labels, rows).mean.backward()
        for p, g in zip(after_states(model), want, strict=True): assert error_ratio(p.grad, g) < 1e-5
        assert all(p.grad is None for p in before_states(model).parameters()) and learner.carry.step[rows].eq(4).all()


def all_gradients_of(model, ids, labels):
    "Of what reads the states, by cross-entropy as it is defined."
    h = sequential(model.cell, model.drives(ids), model.hidden.start).detach()
    loss = nn.functional.cross_entropy((model.read(h) @ model.readout.T).flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
    return torch.autograd.grad(loss, list(after_states(model)))


def test_the_switch_comes_with_the_share():
    "At the first sweep at which as many have settled as `settle` says, counted here from what is stored; else after `most`."
    def shares(settle, most):
        objective = SettledLoss(settle=settle, most=most, noise=.05, tolerance=.02, dtype='float32')
        learner, batch, c = two_phases(objective, double=False)
        seen, old = [], torch.zeros(12, LENGTH, 8)
        while learner.carry.begins < 0:
            for place in range(3): objective.step(c)(learner, batch(3 * len(seen) + place), 3 * len(seen) + place)
            new = learner.carry.read(torch.arange(12))
            seen.append(settled_share(new, old, .02))
            old = new
        assert torch.allclose(learner.carry.shares[:len(seen)], torch.tensor(seen)) and learner.carry.begins == 3 * len(seen) == 3 * learner.carry.sweeps
        return seen
    whole = shares(1., 12)
    assert len(set(whole)) > 4 and len(whole) <= 12
    for settle in (whole[2] + 1e-6, .6, .9):
        first = next((i for i, share in enumerate(whole) if share >= settle), 11)
        assert shares(settle, 12) == whole[:first + 1]
    assert shares(1., 2) == whole[:2]


@pytest.mark.parametrize('stop', [4, 6, 8])
def test_a_restart_in_either_phase_changes_no_bit(stop, tmp_path):
    "In the middle of a sweep, between the phases, and after it."
    objective = SettledLoss(most=2, noise=.1, settle=1., tolerance=1e-9)
    parts_of = lambda learner: {n: u for n, u in learner.pack().items() if not n.startswith('generator/')}
    def run(**options):
        learner, batch, c = two_phases(objective, double=False)
        fit(learner, batch, objective.step(c), c, **options)
        return learner
    torch.manual_seed(0)
    whole = parts_of(run())
    run(folder=tmp_path, stop=stop)
    torch.manual_seed(1)
    after = parts_of(run(folder=tmp_path))
    assert whole['carry/begins'] == 6 and whole.keys() == after.keys()
    for name, u in whole.items(): assert torch.equal(u, after[name]), name


def test_noise_is_of_the_sample_and_the_step():
    "Standard normal, whatever batch a sample is in, and not from the global generator."
    like, rows = torch.zeros(4, 500, 8), torch.tensor([7, 1, 2, 5])
    torch.manual_seed(0)
    drawn = noise_on(like, rows, 0, 3)
    torch.manual_seed(1)
    assert torch.equal(noise_on(like[:2], rows[2:], 0, 3), drawn[2:])
    assert abs(drawn.mean()) < .03 and abs(drawn.std() - 1) < .03
    for other in (noise_on(like, rows, 1, 3), noise_on(like, rows, 0, 4), drawn.roll(1, 0)): assert (other != drawn).float().mean() > .99


def test_two_phases_refuse_what_they_cannot_do():
    for bad, said in ((dict(settle=0.), 'settle=0.0: expected a share above 0 and up to 1'), (dict(settle=1.1), 'settle=1.1: expected a share'), (dict(most=0), 'most=0: expected a whole number of at least 1'), (dict(noise=-.1), 'noise=-0.1'),
                      (dict(rate=0.), 'rate=0.0'), (dict(tolerance=0.), 'tolerance=0.0'), (dict(dispersion=0.), 'the first phase has nothing to minimise')):
        with pytest.raises(ValueError, match=said): SettledLoss(**bad)
    with pytest.raises(ValueError, match='build the model with tied=False'): SettledLoss().carry(small(tied=True, **ALONE['gru'] | dict(d_embed=None)), task(), 0)
    with pytest.raises(ValueError, match='2 models: one is trained in two phases'): SettledLoss().optimizers(dict(a=small(**ALONE['gru']), b=small(**ALONE['gru'])), FitConfig(steps=1))


# -- a language model around a recurrence -----------------------------------------------------------------------------

KINDS = {name: INSIDE[name] for name in ('discrete', 'continuous_combined', 'tied', 'gru')} | {f'{name}_alone': ALONE[name] for name in ('context', 'gru')}
each_kind = pytest.mark.parametrize('fields', KINDS.values(), ids=KINDS)


class Reads(nn.Module):
    "A language model as a layer, for the checks: numbers are tokens."
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x): return self.model(x[..., 0].long() % V)


def numbers(): return text(2)[0][:, :5, None].double()


@each_kind
def test_a_seed_draws_all_of_a_continuous_model(fields):
    "Whatever the global generator gave before."
    starts = []
    for used in (0, 1):
        torch.manual_seed(used)
        starts.append(config(**fields).build(seed=0).state_dict())
    for name, u in starts[0].items(): assert torch.equal(u, starts[1][name]), name


@each_kind
def test_a_continuous_model_looks_neither_ahead_nor_sideways(fields):
    model = Reads(small(**fields))
    check_causal(model, numbers())
    check_rows(model, numbers())


@each_kind
def test_a_continuous_model_goes_on_from_its_memory(fields, tmp_path):
    "What it says and writes after a prompt is what it does after the second half of it with the memory of the first, as it is or from a file."
    model, (ids, _) = small(**fields), text(2)
    written = lambda ids, memory=None: generate(model, ids, 5, memory=memory, temperature=1.).ids[:, -5:]
    with torch.no_grad(): memory = model.features(ids[:, :4])[1]
    save_memory(tmp_path / 'm', model, memory)
    with torch.no_grad(): whole, alone = model(ids)[0][:, 4:], model(ids[:, 4:])[0]
    assert error_ratio(alone, whole) > .01, 'the memory should matter'
    for kept in (memory, load_memory(tmp_path / 'm', model)):
        with torch.no_grad(): assert error_ratio(model(ids[:, 4:], kept)[0], whole) < 1e-10
        assert torch.equal(written(ids[:, 4:], kept), written(ids))
    other = small(**ALONE['feedback' if fields == ALONE['gru'] else 'gru'])
    with pytest.raises(ValueError, match='m is of another model'): load_memory(tmp_path / 'm', other)


@pytest.mark.parametrize('second', ['extra', 'combined', 'tied'])
@torch.no_grad()
def test_two_passes_by_hand(second):
    "h from the loop; then F(Q h), R[h; F(Q h)] or F(h), then the blocks after it."
    model, (ids, _) = small(inside=2, after=1, second=second), text(2)
    F = lambda h: stacked(model.inside)(h, None)[0]
    h = sequential(model.cell, model.drives(ids), model.hidden.start, stacked(model.inside))
    passed = F(h) if second == 'tied' else F(model.extra(h))
    if second == 'combined': passed = model.combine(torch.cat([h, passed], -1))
    want = model.norm(stacked(model.layers)(passed, None)[0]) @ model.readout.T
    assert error_ratio(model(ids)[0], want) < 1e-10
    assert error_ratio(model(ids)[0], small(inside=2, after=1)(ids)[0]) > .1


@torch.no_grad()
def test_the_first_token_alone_is_a_switch():
    "Off by default, it changes no weight; on, nothing after the first token of a text enters, in pieces or not."
    model, every, (ids, _) = small(inside=2, tokens='first'), small(inside=2), text(2)
    assert ContinuousConfig().tokens == 'every' and all(map(torch.equal, model.state_dict().values(), every.state_dict().values()))
    other = torch.cat([ids[:, :1], (ids[:, 1:] + 1) % V], 1)
    assert torch.equal(model(ids)[0], model(other)[0]) and not torch.equal(every(ids)[0], every(other)[0])
    memory = model(ids[:, :3])[1]
    assert torch.equal(model(ids[:, 3:], memory)[0], model(other[:, 3:], memory)[0]) and error_ratio(model(ids[:, 3:], memory)[0], model(ids)[0][:, 3:]) < 1e-10
    with pytest.raises(AssertionError, match='a change at position 1 did not reach its own output'): check_causal(Reads(model), numbers())


# -- runs -------------------------------------------------------------------------------------------------------------

def texts(folder):
    "A corpus of some texts."
    folder.mkdir(exist_ok=True)
    for i in range(8): (folder / f'{i}.txt').write_text(f'the {i}. cat sat on the mat, ' * 9)
    return str(folder)


TASKS = dict(copy=lambda _: Copy(samples=8, rows=4, symbols=4, items=3), pairs=lambda _: Pairs(samples=8, rows=4, config=RecallConfig(vocab_size=32, length=16, pairs=2)),
             text=lambda folder: TextSamples(corpus=texts(folder / 'texts'), samples=8, rows=4, length=16))
ARMS = [(objective, dict(cell='gru'), kind) for objective in (SequentialLoss(), LaggedLoss(), NewtonLoss()) for kind in TASKS]
ARMS += [(SequentialLoss(window=4, remember='bfloat16'), dict(inside=1), 'copy'), (LaggedLoss(sweeps=2), dict(inside=1), 'copy'), (NewtonLoss(diagonal=True), dict(cell='context', normed=True, after=1), 'copy')]


@pytest.mark.parametrize('objective, fields, kind', ARMS, ids=[f'{type(objective).__name__}-{next(iter(fields.values()))}-{kind}' for objective, fields, kind in ARMS])
def test_tasks_of_samples_train_as_arms(objective, fields, kind, tmp_path):
    "The whole path: an arm is executed at once and in two halves; every sample is visited and stored, and the records of the halves are those of one go."
    learned = TASKS[kind](tmp_path)
    arm = Arm(name='one', task=learned, model=config(vocab_size=learned.vocab_size, **fields), train=FitConfig(steps=4, objective=objective, log_every=2))
    run = lambda arm, folder, stop=None: execute(arm, 0, tmp_path / folder, progress=False, stop=stop)
    whole, half, halves = run(arm, 'whole'), run(arm, 'halves', stop=3), run(arm, 'halves')
    losses = [r['value'] for r in whole.records if r['metric'] == 'loss']
    assert whole.status == 'finished' and half.status == 'stopped' and whole.tokens == arm.tokens and len(set(losses)) == 4 and all(map(math.isfinite, losses))
    assert whole.records == halves.records
    if objective != SequentialLoss(): assert sorted(load_tensors(tmp_path / 'whole' / CHECKPOINT)[0]['carry/step'].tolist()) == [2] * 4 + [3] * 4
    if kind == 'copy': assert run(arm.rehearsal(), 'rehearsal').status == 'finished'
