"""Directions of optimizers: what is compared, what is asked for and had, published signs, conflicts as others resolve them, and turns that survive an interruption."""
import math
from dataclasses import replace

import cvxpy
import pytest
import torch
import torchjd.aggregation as peer
from torch import nn

from memlab.core.identity import changed
from memlab.data.digits import Digits
from memlab.data.turns import InTurn, Together, turn_of
from memlab.eval.turns import Classified, StepRelations
from memlab.lab.arm import Arm, execute, learner_of
from memlab.nn.mlp import MLPConfig
from memlab.train.alternate import STATES, Alternating, Turns
from memlab.train.conflicts import AGEM, CAGrad, Jointly, PCGrad, conflict_share, orthogonal_to, orthonormal
from memlab.train.directions import Recorder, Taken, Vector, cosine, cosines, gradient, owned, update_cosine
from memlab.train.learner import Learner
from memlab.train.loop import FitConfig, fit
from memlab.train.moments import MOMENTS, take_mean
from memlab.train.objectives import ClassLoss, EachItsOwn, StreamLoss
from memlab.train.optim import AdamWConfig, SGDConfig
from memlab.train.schedule import Constant
from memlab.train.steering import CosinePenalty, Matched, Orthogonal, Repulsion, Shove, Steered, Target, across

TARGETS = (-1., -.9, -.3, 0., .5, 1.)
SGD, ADAM = SGDConfig(lr=.1), AdamWConfig(lr=1e-3, weight_decay=0.)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vector(kind, seed, shapes=((4, 3), (5,), (2, 2))):
    return Vector(kind, tuple(drawn(*s, seed=seed + i) for i, s in enumerate(shapes)))


def config(objective, steps, optimizer=ADAM, **kw):
    return FitConfig(steps=steps, objective=objective, optimizer=optimizer, **dict(schedule=Constant(warmup=0), clip=None, log_every=5) | kw)


def trained(objective, steps=12, optimizer=ADAM, task=Digits(samples=600, rows=100), dtype=torch.float32, every=1, **kw):
    "A learner after some steps in turn, and what was recorded."
    c, model = config(objective, steps, optimizer), MLPConfig(hidden=8).build(0).to(dtype)
    learner = Learner(model, objective.optimizers(dict(model=model), c), objective.carry(model, task, 0))
    rows = task.batches(0)
    batch = lambda i: tuple(x.to(dtype) if x.is_floating_point() else x for x in rows(i))
    report = lambda learner, step: learner.carry.records(step) if step and step % every == 0 else []
    return learner, fit(learner, batch, objective.step(c), c, hooks=[report], **kw)


def values(result, metric, item='second'):
    return [r['value'] for r in result.records if r['metric'] == metric and r['item'] == item]


# -- directions -------------------------------------------------------------------------------------------------------

def test_a_long_vector_and_its_copy_have_a_cosine_of_one():
    "In float32 the sums of the source were off by a few thousandths, and exceeded one."
    for x in (torch.rand(2_000_000, generator=torch.Generator().manual_seed(0)) * 1e-5, torch.full((3_000_001,), 3.3e-3)):
        assert abs(cosine(x, x.clone()).item() - 1) < 1e-12 and abs(cosine(x, -x).item() + 1) < 1e-12


def test_products_are_summed_in_float64():
    x, y = (torch.randn(1_000_003, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    want = (x.double() @ y.double()) / (x.double().norm() * y.double().norm())
    assert abs(cosine(x, y) - want) < 1e-13 and abs(cosine(x, y + 1e-3 * x) - want - 1e-3) < 1e-6


def test_no_number_without_a_length():
    assert cosine(torch.zeros(3), torch.ones(3)).isnan() and cosine(torch.zeros(3), torch.zeros(3)).isnan()
    found = cosines(Vector('gradient', (torch.zeros(2), torch.ones(2))), Vector('gradient', (torch.ones(2), torch.ones(2))))
    assert found.per_tensor[0].isnan() and abs(found.flattened - .5 ** .5) < 1e-12


@pytest.mark.parametrize('look', [lambda g: g, lambda g: g.view(-1), lambda g: g[1:], lambda g: g.detach(), lambda g: g.T])
def test_views_of_one_storage_are_refused(look):
    g = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match='views of one storage'): cosine(g.flatten()[:look(g).numel()], look(g).reshape(-1)) if look(g).is_contiguous() else cosine(g, look(g))


def test_one_gradient_is_not_two():
    "As it is read through two optimizers; copies of it, taken at two steps, are two."
    model = nn.Linear(3, 2).double()
    one, two = (torch.optim.AdamW(model.parameters()) for _ in range(2))
    model(drawn(4, 3)).square().sum().backward()
    with pytest.raises(ValueError, match='views of one storage'): cosines(gradient(one), gradient(two))
    before = gradient(one).kept()
    model.zero_grad(); model(drawn(4, 3, seed=1)).square().sum().backward()
    assert -1 <= cosines(before, gradient(two)).flattened <= 1


@pytest.mark.parametrize('make', [lambda p: torch.optim.SGD(p, lr=.1, momentum=.9), lambda p: torch.optim.Adam(p, lr=.01), lambda p: torch.optim.Adagrad(p), lambda p: torch.optim.RMSprop(p)])
def test_a_recorder_sees_every_step_and_changes_none(make):
    def run(recorded):
        model = nn.Linear(3, 2).double()
        for i, p in enumerate(model.parameters()): p.data = drawn(*p.shape, seed=i)
        optimizer = make(model.parameters())
        recorder, places = Recorder(optimizer) if recorded else None, []
        for i in range(4):
            places.append(nn.utils.parameters_to_vector(model.parameters()).detach().clone())
            model.zero_grad(); model(drawn(4, 3, seed=i)).square().sum().backward()
            optimizer.step()
            if recorded: assert torch.equal(recorder.last.displacement.flat, nn.utils.parameters_to_vector(model.parameters()).detach() - places[-1])
        if recorded:
            last = recorder.last
            recorder.remove(); optimizer.step()
            assert recorder.last is last
        return places
    assert all(torch.equal(a, b) for a, b in zip(run(True), run(False), strict=True))


def test_what_has_no_one_gradient_is_refused():
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match='closure'): Recorder(torch.optim.LBFGS([p]))
    with Recorder(torch.optim.SGD([p], lr=.1)) as r, pytest.raises(ValueError, match='closure'): r.optimizer.step(closure=lambda: 0.)
    rows = nn.Embedding(4, 2, sparse=True)
    rows(torch.tensor([1])).sum().backward()
    with Recorder(torch.optim.SGD(rows.parameters(), lr=.1)) as r, pytest.raises(ValueError, match='sparse'): r.optimizer.step()
    assert torch.equal(rows.weight.grad.coalesce().indices(), torch.tensor([[1]]))        # not densified on the way
    with pytest.raises(ValueError, match='own 1 and 1 tensors, not the same ones'): update_cosine(Recorder(torch.optim.SGD([p])), Recorder(torch.optim.SGD([nn.Parameter(torch.ones(2))])))


# -- steering ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('each', ['whole', 'tensor'])
@pytest.mark.parametrize('of, against', [('gradient', 'gradient'), ('gradient', 'displacement'), ('displacement', 'displacement'), ('displacement', 'gradient')])
@pytest.mark.parametrize('s', TARGETS)
def test_a_target_is_met_with_the_length_kept(s, of, against, each):
    "Of descent directions: a gradient and a displacement meet it with the opposite sign."
    v, r = vector(of, 0), vector(against, 10)
    got, sign = Target(cosine=s, of=of, against=against, each=each)(v, r), 1 if of == against else -1
    pairs = zip(got.parts, r.parts, v.parts) if each == 'tensor' else [(got.flat, r.flat, v.flat)]
    for x, y, before in pairs:
        assert abs(cosine(x, y) - sign * s) < 1e-12
        assert abs(x.norm() - before.norm()) < 1e-12 * before.norm()
        if 0 < abs(s) < 1: assert across(before.flatten(), y.flatten()) @ x.flatten() > 0     # turned towards r in the plane of both, the near way


@pytest.mark.parametrize('s', (-1., 0., .5))
@pytest.mark.parametrize('optimizer', [SGD, ADAM], ids=['SGD', 'Adam'])
@pytest.mark.parametrize('rows', [100, 120], ids=['an even number of batches', 'an odd number of batches'])
def test_training_has_the_update_cosine_asked_for(s, optimizer, rows):
    "A displacement target, for both optimizers, at every step of the steered one; shuffled or not."
    for shuffled in (True, False):
        result = trained(Alternating(loss=ClassLoss(), steering=(Target(cosine=s, of='displacement'),)), optimizer=optimizer, task=Digits(samples=600, rows=rows, shuffled=shuffled), dtype=torch.float64)[1]
        got = values(result, 'update_cosine')
        assert len(got) == 6 and max(abs(x - s) for x in got) < 1e-9


def test_a_gradient_target_holds_for_sgd_and_not_for_adam():
    way = Alternating(loss=ClassLoss(), steering=(Target(cosine=-.5, against='gradient'),))
    assert max(abs(x + .5) for x in values(trained(way, optimizer=SGD, dtype=torch.float64)[1], 'update_cosine')) < 1e-9
    adam = trained(way, dtype=torch.float64)[1]
    assert max(abs(x + .5) for x in values(adam, 'gradient_cosine')) < 1e-9
    assert min(abs(x + .5) for x in values(adam, 'update_cosine')) > .05


def test_the_recorded_displacement_is_the_one_that_was_made():
    "In float32, where what is added to weights is rounded."
    learner, places = None, []
    objective = Alternating(loss=ClassLoss(), steering=(Target(cosine=.3, of='displacement'),))
    flat = lambda learner: torch.cat([p.detach().flatten() for p in owned(learner.optimizer)]).double()
    c, model = config(objective, 4), MLPConfig(hidden=8).build(0)
    learner = Learner(model, objective.optimizers(dict(model=model), c), objective.carry(model, None, 0))
    fit(learner, Digits(samples=600, rows=100).batches(0), objective.step(c), c, hooks=[lambda learner, step: places.append(flat(learner)) or []])
    moved = [b - a for a, b in zip(places, places[1:])]
    assert (learner.carry.last['second'].displacement.flat - moved[-1]).abs().max() < 1e-7
    assert abs(cosine(moved[-1], moved[-2]) - .3) < 1e-4


def test_moments_see_the_gradient_as_it_was_when_the_displacement_is_bent():
    def moments(*steering):
        w = nn.Parameter(drawn(6))
        first, mine = Recorder(torch.optim.SGD([w], lr=.1)), torch.optim.Adam([w], lr=.01)
        with first, Steered(mine, steering, first):
            for o, seed in ((first.optimizer, 1), (mine, 2)):
                w.grad = drawn(6, seed=seed)
                o.step()
        return mine.state[w]
    free, turned, bent = moments(), moments(Target(cosine=-1., of='displacement')), moments(Target(cosine=-1.))
    assert all(torch.equal(free[k], turned[k]) for k in free)
    assert not torch.equal(free['exp_avg'], bent['exp_avg'])


def bowl(seed, *steering, optimizer=torch.optim.SGD, lr=.05, steps=30):
    "Update cosines of the second of two optimizers on a quadratic, and the loss at the end."
    w, H = nn.Parameter(drawn(12, seed=seed)), torch.linspace(.2, 2, 12, dtype=torch.float64)
    first = Recorder(optimizer([w], lr=lr))
    second, seen = Steered(optimizer([w], lr=lr), steering, first), []
    for i in range(steps):
        w.grad = H * w.detach()
        (first, second)[i % 2].optimizer.step()
        if i % 2: seen.append(update_cosine(first, second).item())
    return sum(seen) / len(seen), (w.detach() @ (H * w.detach())).item()


@pytest.mark.parametrize('way, strength', [(Repulsion, .05), (CosinePenalty, .5)])
@pytest.mark.parametrize('seed', range(4))
def test_published_repulsion_attracts(way, strength, seed):
    published, free, corrected = bowl(seed, way(strength=strength, as_published=True)), bowl(seed), bowl(seed, way(strength=strength))
    assert published[0] > free[0] > corrected[0]


def test_published_signs_by_hand():
    "g - λ h, g - λ d and |g|(c h + √(1 - c²) u), as the source has them; without the defect, the other way."
    g, d = vector('gradient', 0, ((6,),)), vector('displacement', 5, ((6,),))
    h, u = d.flat / d.flat.norm(), across(g.flat, d.flat)
    for wrong, sign in ((True, 1), (False, -1)):
        for got, want in ((Repulsion(as_published=wrong), g.flat - sign * .1 * h), (CosinePenalty(as_published=wrong), g.flat - sign * .1 * d.flat),
                          (Target(cosine=.3, as_published=wrong), g.flat.norm() * (sign * .3 * h + math.sqrt(.91) * u / u.norm()))):
            assert (got(g, d).flat - want).abs().max() < 1e-12, type(got).__name__
    assert Orthogonal()(g, d) is not g and abs(Orthogonal()(g, d).flat @ h) < 1e-12
    assert bowl(0, Target(cosine=.4, as_published=True))[0] == pytest.approx(-.4, abs=1e-9)


@pytest.mark.parametrize('sign', [1, -1])
def test_a_projection_only_of_conflicts(sign):
    "A gradient that would undo the other's step is one that points along that step."
    g = vector('gradient', 0, ((6,),))
    d = Vector('displacement', (sign * g.parts[0] + .1 * drawn(6, seed=9),))
    got = Orthogonal(conflicts_only=True)(g, d).flat
    assert torch.equal(got, g.flat) if sign < 0 else abs(cosine(got, d.flat)) < 1e-9


@pytest.mark.parametrize('s', TARGETS)
def test_the_control_moves_as_far_in_the_natural_direction(s):
    v, r = vector('displacement', 0), vector('displacement', 10)
    target, control = (r.flat + way(cosine=s, of='displacement')(v, r).flat for way in (Target, Matched))
    assert abs(target.norm() - control.norm()) < 1e-7 * r.flat.norm()
    if s > -1: assert abs(cosine(control, r.flat + v.flat) - 1) < 1e-12


def test_a_shove_moves_every_weight():
    short = vector('displacement', 0).like(.01 * vector('displacement', 0).flat)
    added = Shove(least=10., strength=.5)(short, vector('displacement', 3)).flat - short.flat
    assert (added - .5 * (10 - short.flat.norm())).abs().max() < 1e-12
    assert torch.equal(Shove(least=1e-9)(short, vector('displacement', 3)).flat, short.flat)


@pytest.mark.parametrize('way', [Orthogonal(of='displacement'), Repulsion(of='displacement'), CosinePenalty(of='displacement'), Target(cosine=.2, of='displacement'), Matched(cosine=.2), Target(cosine=.2, of='displacement', each='tensor')], ids=lambda w: type(w).__name__)
def test_zero_vectors_change_nothing_and_have_no_cosine(way):
    v, zero = vector('displacement', 0), vector('displacement', 0).like(torch.zeros(21, dtype=torch.float64))
    assert torch.equal(way(v, zero).flat, v.flat) and torch.equal(way(zero, v).flat, zero.flat)
    assert cosines(way(v, zero), zero).flattened.isnan()
    w = nn.Parameter(drawn(3))
    still = Recorder(torch.optim.SGD([w], lr=.1), Taken(Vector('gradient', (torch.zeros(3),)), Vector('displacement', (torch.zeros(3, dtype=torch.float64),))))
    steered = Steered(torch.optim.SGD([w], lr=.1), (way,), still)
    w.grad, was = torch.ones(3, dtype=torch.float64), w.detach().clone()
    steered.optimizer.step()
    assert torch.allclose(w, was - .1, atol=1e-15) and update_cosine(still, steered).isnan()
    carry = Turns(nn.Linear(1, 1))
    carry.note('second', update_cosine=update_cosine(still, steered))
    (r, n) = carry.records(1)
    assert math.isnan(r['value']) and (n['metric'], n['value']) == ('update_cosine_undefined', 1)


def test_parallel_vectors_are_turned_somewhere():
    r = vector('displacement', 0)
    for factor in (2., -1., 1e-8, 1e8):
        got = Target(cosine=.25, of='displacement')(r.like(factor * r.flat), r)
        assert abs(cosines(got, r).flattened - .25) < 1e-12 and abs(got.flat.norm() / r.flat.norm() - abs(factor)) < 1e-9 * abs(factor)


@pytest.mark.parametrize('make, message', [
    (lambda: Target(cosine=1.0001), 'cosine=1.0001: expected a number from -1 to 1'), (lambda: Target(cosine=-math.inf), 'from -1 to 1'), (lambda: Matched(cosine=2.), 'from -1 to 1'), (lambda: Matched(cosine=0., of='gradient'), 'net displacement'),
    (lambda: Repulsion(strength=math.nan), 'strength=nan'), (lambda: Shove(least=0.), 'least=0.0'), (lambda: Orthogonal(of='momentum'), "of='momentum': expected one of"), (lambda: Repulsion(of='displacement', as_published=True), 'changes nothing'),
    (lambda: Orthogonal()(vector('displacement', 0), vector('displacement', 1)), 'bends a gradient'), (lambda: Alternating(loss=StreamLoss()), 'StreamLoss takes steps or carries'), (lambda: Alternating(loss=EachItsOwn()), 'EachItsOwn'),
    (lambda: Alternating(loss=ClassLoss(), turns=('a',)), 'two or more names'), (lambda: Alternating(loss=ClassLoss(), beta=1.), 'beta=1.0'), (lambda: Alternating(loss=ClassLoss(), each=0), 'each=0')])
def test_bad_settings_say_what_they_want(make, message):
    with pytest.raises(ValueError, match=message): make()


# -- conflicts --------------------------------------------------------------------------------------------------------

CASES = [drawn(k, n, seed=i) for i, (k, n) in enumerate(((2, 3), (2, 40), (3, 5), (4, 9), (5, 200)))] + [torch.tensor([[4., 0.], [-1., 1.]], dtype=torch.float64), torch.tensor([[1., 0.], [-1., 1e-3]], dtype=torch.float64)]


@pytest.mark.parametrize('G', CASES, ids=lambda G: 'x'.join(map(str, G.shape)))
def test_pcgrad_is_the_peers(G, monkeypatch):
    "In the same order of projections."
    orders, randperm = [], torch.randperm
    def kept(*args, **kw):
        orders.append(randperm(*args, **kw))
        return orders[-1]
    monkeypatch.setattr(torch, 'randperm', kept)
    ours, said = PCGrad()(G, step=3), iter(orders)
    assert len(orders) == len(G)
    monkeypatch.setattr(torch, 'randperm', lambda *_, **__: next(said))
    assert (ours - peer.PCGrad()(G)).norm() < 1e-6 * ours.norm()


@pytest.mark.parametrize('G', CASES, ids=lambda G: 'x'.join(map(str, G.shape)))
@pytest.mark.parametrize('c', [.1, .5, .9])
def test_cagrad_is_the_peers(G, c, monkeypatch):
    "The peer solves a cone program: at its default tolerance to a few parts in 10,000, here as closely as it can."
    solve = cvxpy.Problem.solve
    monkeypatch.setattr(cvxpy.Problem, 'solve', lambda self, solver: solve(self, solver, tol_gap_abs=1e-14, tol_gap_rel=1e-14, tol_feas=1e-14))
    ours, theirs = CAGrad(c=c)(G), peer.CAGrad(c=c, norm_eps=1e-12)(G)
    assert (ours - theirs).norm() < 1e-6 * theirs.norm()


def test_agem_is_the_nearest_direction_without_conflict():
    for seed in range(20):
        G = drawn(3, 4, seed=seed)
        got, ref = AGEM()(G), G[1:].mean(0)
        assert got @ ref >= -1e-12
        assert torch.equal(got, G[0]) if G[0] @ ref >= 0 else abs(got @ ref) < 1e-12
        for other in drawn(50, 4, seed=100 + seed):
            if other @ ref >= 0: assert (got - G[0]).norm() <= (other - G[0]).norm() + 1e-12


def test_ogd_is_the_residual_of_least_squares():
    V, g = drawn(4, 9), drawn(9, seed=1)
    V = torch.cat([V, V[:1] + V[1:2]])                       # one of them is nothing new
    basis = orthonormal(torch.zeros(0, 9, dtype=torch.float64), V)
    assert len(basis) == 4
    want = g - V.T @ torch.linalg.lstsq(V.T, g[:, None], driver='gelsd').solution[:, 0]
    assert (orthogonal_to(basis, g) - want).norm() < 1e-10


def test_tasks_together_follow_the_mean_of_their_gradients():
    "As one batch of both would; and a rule is what decides."
    tasks = tuple(Digits(samples=400, rows=50, classes=c) for c in ((0, 1, 2), (3, 4, 5)))
    both, weights = Together(tasks=tasks).batches(0), {}
    for name, objective in dict(one=ClassLoss(), mean=Jointly(loss=ClassLoss()), pcgrad=Jointly(loss=ClassLoss(), rule=PCGrad())).items():
        c, model = config(objective, 5, SGD), MLPConfig(hidden=8).build(0).double()
        def batch(i):
            x, y, x2, y2 = both(i)
            return (torch.cat([x, x2]).double(), torch.cat([y, y2])) if name == 'one' else (x.double(), y, x2.double(), y2)
        fit(Learner(model, c.optimizer.build(model)), batch, objective.step(c), c)
        weights[name] = nn.utils.parameters_to_vector(model.parameters()).detach()
    assert (weights['one'] - weights['mean']).norm() < 1e-12 < 1e-3 < (weights['one'] - weights['pcgrad']).norm()
    assert conflict_share(torch.stack([weights['one'], -weights['one']])) == 1


# -- turns ------------------------------------------------------------------------------------------------------------

def test_the_default_turns_are_two_optimizers_step_by_step():
    "Against a loop written out."
    task, losses = Digits(samples=600, rows=100), []
    model = MLPConfig(hidden=8).build(0)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(.9, .95), weight_decay=0.) for _ in range(2)]
    for i in range(9):
        x, y = task.batches(0)(i)
        loss = nn.functional.cross_entropy(model(x), y)
        model.zero_grad(); loss.backward()
        optimizers[i % 2].step()
        losses.append(loss.item())
    got = [r['value'] for r in trained(Alternating(loss=ClassLoss()), steps=9, every=9)[1].records if r['metric'] == 'loss']
    assert got == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize('objective', [
    Alternating(loss=ClassLoss(), steering=(Target(cosine=0., of='displacement'),)), Alternating(loss=ClassLoss(), steering=(Orthogonal(), Target(cosine=.3, of='displacement')), both=True, beta=.7),
    *(Alternating(loss=ClassLoss(), each=3, states=s) for s in STATES), Alternating(loss=ClassLoss(), each=3, reptile=.5), Alternating(loss=ClassLoss(), turns=('a', 'b', 'c'), cross=4, rules=(ADAM, SGDConfig(momentum=.9), ADAM))],
    ids=['target', 'two steerings, running mean', *STATES, 'reptile', 'three, crossing'])
def test_an_interrupted_run_goes_on_to_the_bit(objective, tmp_path):
    "In the middle of a turn, and between two records."
    whole = trained(objective, steps=8, every=4)
    trained(objective, steps=8, every=4, stop=5, folder=tmp_path)
    again = trained(objective, steps=8, every=4, folder=tmp_path)
    mine, theirs = whole[0].pack(), again[0].pack()
    assert mine.keys() == theirs.keys() and not [n for n in mine if not n.startswith('generator/') and not torch.equal(mine[n], theirs[n])]
    assert repr(whole[1].records) == repr(again[1].records)


def states(steps, policy):
    learner = trained(Alternating(loss=ClassLoss(), each=3, states=policy), steps=steps)[0]
    p = next(iter(owned(learner.optimizer)))
    return {n: o.state[p] for n, o in learner.optimizers.items() if p in o.state}


def test_states_at_the_start_of_a_turn():
    "Three steps a turn: how many steps an optimizer has counted tells what it began with."
    counts = lambda steps, policy: {n: float(s['step']) for n, s in states(steps, policy).items()}
    assert counts(9, 'kept') == dict(first=6, second=3)
    assert counts(9, 'reset') == dict(first=3, second=3)
    assert counts(9, 'shared') == dict(first=9)
    assert counts(9, 'mean') == dict(first=(3 + 6) / 2 + 3, second=6)     # the second began with the first's 3, then the first with the mean of 3 and 6
    assert counts(4, 'mean_v') == dict(first=3, second=4)


@pytest.mark.parametrize('moments', [MOMENTS, MOMENTS[:1], MOMENTS[1:]])
def test_mean_moments_by_hand(moments):
    w = nn.Parameter(torch.zeros(4))
    optimizers = [torch.optim.Adam([w]) for _ in range(3)]
    for i, o in enumerate(optimizers[:2]):
        for j in range(2 + i):
            w.grad = drawn(4, seed=10 * i + j).float()
            o.step()
    a, b = (optimizers[i].state[w] for i in (0, 1))
    new = optimizers[2]
    take_mean(new, optimizers, moments)
    for k in MOMENTS: assert torch.equal(new.state[w][k], (a[k] + b[k]) / 2 if k in moments else torch.zeros(4))
    assert float(new.state[w]['step']) == 2.5
    take_mean(optimizers[0], optimizers[:2], moments)
    assert len({s.data_ptr() for o in optimizers for s in o.state[w].values()}) == 9                # nobody shares a tensor with another
    w.grad = torch.ones(4); new.step()
    assert w.isfinite().all() and float(new.state[w]['step']) == 3.5


def test_reptile_goes_a_share_of_the_way():
    plain, half, none = (nn.utils.parameters_to_vector(trained(Alternating(loss=ClassLoss(), each=4, reptile=share), steps=4, optimizer=SGD, dtype=torch.float64)[0].model.parameters()) for share in (1., .5, 0.))
    assert ((plain - none) / 2 - (half - none)).norm() < 1e-12 < (plain - none).norm()
    assert torch.equal(none, nn.utils.parameters_to_vector(MLPConfig(hidden=8).build(0).double().parameters()))


@pytest.mark.parametrize('rows, cross, sees', [(100, 0, 3), (100, 6, 6), (120, 0, 5)], ids=['even: half of the data', 'even, crossing: all', 'odd: all'])
def test_what_the_second_optimizer_sees_of_data_in_a_fixed_order(rows, cross, sees):
    task, seen = Digits(samples=600, rows=rows, shuffled=False), set()
    for i in range(4 * task.steps_per_epoch):
        if turn_of(i, 2, cross=cross): seen.add(task.batches(0)(i)[0].numpy().tobytes())
    assert len(seen) == sees


def test_a_running_mean_is_what_is_steered_against():
    carry, steps = Turns(nn.Linear(1, 1), .8), [Taken(vector('gradient', i), vector('displacement', i + 50)) for i in range(3)]
    for t in steps: carry.took('first', t)
    want = .8 * (.8 * steps[0].gradient.flat + .2 * steps[1].gradient.flat) + .2 * steps[2].gradient.flat
    assert (carry.reference('first').gradient.flat - want).norm() < 1e-12
    assert carry.last['first'] is steps[2] and carry.reference('second') is None


def test_an_arm_names_all_of_it(tmp_path):
    "As a value with an identity; the run is rehearsed, interrupted and measured as any other."
    objective = Alternating(loss=ClassLoss(), each=4, steering=(Target(cosine=0., of='displacement'),), states='mean_v')
    task = InTurn(tasks=tuple(Digits(samples=400, rows=50, classes=c) for c in ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))), each=4)
    arm = Arm(name='steered', task=task, model=MLPConfig(hidden=8), train=config(objective, 24), measures=(StepRelations(), Classified()))
    assert changed(arm) != changed(replace(arm, train=config(replace(objective, steering=()), 24)))
    assert list(learner_of(arm, 0).optimizers) == ['first', 'second'] and arm.tokens == 24 * 50
    execute(arm.rehearsal(), 0, tmp_path/'a', progress=False, stop=7)
    one, two = (execute(arm.rehearsal(), 0, tmp_path/f, progress=False) for f in 'ab')
    assert repr(one.records) == repr(two.records)
    got = {(r['metric'], r['item']) for r in one.records}
    assert {('update_cosine', 'first'), ('update_cosine', 'second'), ('turn_loss', 'first'), ('accuracy', 'task 1'), ('val_loss', 'task 2')} <= got
