"""Lagged Cache Training: what is stored for whom, one function in both modes, measures that look at the recurrence, and dispersion."""
import math
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from memlab.eval.parity import agreement, settled_share, state_error
from memlab.nn.cells import ContextCell, slope
from memlab.nn.checks import check_causal, check_rows, error_ratio
from memlab.nn.init import init_parameters
from memlab.nn.pythia import PythiaAttention, PythiaConfig, PythiaLayer
from memlab.nn.recurrence import alone, previous, sequential, stacked
from memlab.train.lagged import LaggedCache, centroid_dispersion, lagged
from torch import nn


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaky(h, x):
    "Slope of at most a half."
    return (.5 * h + x).tanh()


def gru(d, seed=0):
    "A GRU as a cell: torch's takes one token, so rows and tokens are one."
    unit = nn.GRUCell(d, d, bias=False).double()
    init_parameters(unit, seed, std=.5)
    return lambda h, x: unit(x.reshape(-1, d), h.reshape(-1, d)).view(h.shape)


def attention(width=8, n=2, kind=PythiaAttention):
    "Blocks that attend, all channels turned by their position."
    layers = [PythiaLayer(kind(width, 2, rotary_pct=1.), width, 2 * width) for _ in range(n)]
    return init_parameters(nn.ModuleList(layers), seed=0, std=.5).double()


class Feed(nn.Module):
    "u = x + P h"
    def __init__(self, width=8, seed=5):
        super().__init__()
        self.P = nn.Parameter(.3 * random(width, width, seed=seed))

    def forward(self, h, x): return x + h @ self.P


class Mode(nn.Module):
    "A mode as a layer, for the checks."
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x): return self.f(x), None


CELLS = dict(context=(init_parameters(ContextCell(4, 4), 0).double(), alone), leaky=(leaky, alone), gru=(gru(4), alone), attention=(Feed(4), stacked(attention(4))))
each_cell = pytest.mark.parametrize('cell, stack', CELLS.values(), ids=CELLS)


def grads(states, inputs):
    return torch.autograd.grad((states * random(*states.shape, seed=9)).sum(), inputs)


# -- parity -----------------------------------------------------------------------------------------------------------

@each_cell
@pytest.mark.parametrize('rows', [False, True])
@torch.no_grad()
def test_19_as_many_sweeps_as_tokens_are_the_recurrence(cell, stack, rows):
    "Whatever was stored, and with one start or a start for each row; state t is exact after t+1 sweeps and not before."
    for t in (0, 1, 4) if rows else (1, 2, 9):
        x, start, stored = random(2, t, 4, seed=t), random(2, 4, seed=1) if rows else random(4, seed=1), random(2, t, 4, seed=2)
        true = sequential(cell, x, start, stack)
        assert true.shape == (2, t, 4)
        if t: assert error_ratio(lagged(cell, x, stored, start, t, stack), true) < 1e-10
        for sweeps in range(1, t):
            error = (lagged(cell, x, stored, start, sweeps, stack) - true).abs().amax((0, 2))
            assert error[:sweeps].max() < 1e-10 < error[sweeps]


@each_cell
@torch.no_grad()
def test_19_position_0(cell, stack):
    "h_0 = f(start, x_0) in both modes, whatever is stored; everything else takes what was stored one place before."
    x, start, stored = random(2, 5, 4), random(4, seed=1), random(2, 5, 4, seed=2)
    first = stack(cell(start.expand(2, 1, 4), x[:, :1]), None)[0]
    for states in (sequential(cell, x, start, stack), lagged(cell, x, stored, start, stack=stack), lagged(cell, x, 2 * stored, start, 3, stack)): assert error_ratio(states[:, :1], first) < 1e-12
    assert torch.equal(previous(stored, start)[:, 1:], stored[:, :-1]) and torch.equal(previous(stored, start)[:, 0], start.expand(2, 4))
    other = torch.cat([stored[:, :-1], -stored[:, -1:]], 1)                                   # the last stored state is nobody's past
    assert torch.equal(lagged(cell, x, stored, start, stack=stack), lagged(cell, x, other, start, stack=stack))


@each_cell
def test_19_a_sweep_sends_gradients_one_token_back(cell, stack):
    "They are those of the loop whose cell forgets where its state came from; the stored states get none, the start gets that of position 0."
    x, stored = random(2, 5, 4).requires_grad_(), random(2, 5, 4, seed=2).requires_grad_()
    inputs = [x, *(p for n, p in (cell.named_parameters() if isinstance(cell, nn.Module) else ()) if not n.startswith('input'))]
    for t in (1, 5):
        h = lagged(cell, x[:, :t], stored[:, :t], torch.zeros(4).double(), t, stack)
        want = sequential(lambda h, x: cell(h.detach(), x), x[:, :t], torch.zeros(4).double(), stack)
        for a, b in zip(grads(h, inputs), grads(want, inputs)): assert error_ratio(a, b) < 1e-10
    assert torch.autograd.grad(lagged(cell, x, stored, torch.zeros(4).double(), 1, stack).sum(), stored, allow_unused=True)[0] is None
    start = random(4, seed=1).requires_grad_()
    if stack is alone:
        (a,), (b,) = grads(lagged(cell, x, stored, start, 5), [start]), torch.autograd.grad((cell(start.expand(2, 4), x[:, 0]) * random(2, 5, 4, seed=9)[:, 0]).sum(), [start])
        assert error_ratio(a, b) < 1e-10


@each_cell
def test_19_no_mode_looks_ahead_or_sideways(cell, stack):
    x, stored, start = random(2, 5, 4), random(2, 5, 4, seed=2), random(4, seed=1)
    check_causal(Mode(lambda x: sequential(cell, x, start, stack)), x)
    check_causal(Mode(lambda x: lagged(cell, x, stored, start, 3, stack)), x)
    check_rows(Mode(lambda x: sequential(cell, x, start, stack)), x)
    check_rows(Mode(lambda x: lagged(cell, x, torch.zeros_like(x), start, 3, stack)), x)


def test_19_only_the_last_sweep_builds_a_graph():
    graphs = []
    lagged(lambda h, x: (graphs.append(torch.is_grad_enabled()), leaky(h, x))[1], random(2, 5, 4), random(2, 5, 4), random(4), 3)
    assert graphs == [False, False, True]


@torch.no_grad()
def test_19_a_sweep_carries_news_by_one_token():
    "After s sweeps from the same stored states a changed input has reached s places."
    x, stored, start = random(2, 9, 4), random(2, 9, 4, seed=2), random(4, seed=1)
    other = x.clone(); other[:, 3] += 1
    for sweeps in (1, 2, 4):
        moved = (lagged(leaky, x, stored, start, sweeps) != lagged(leaky, other, stored, start, sweeps)).any(-1)
        assert torch.equal(moved, (torch.arange(9) - 3).ge(0).logical_and(torch.arange(9) < 3 + sweeps).expand(2, 9))


def test_19_bad_input_says_what_was_wanted():
    x, start = random(2, 5, 4), random(4)
    with pytest.raises(ValueError, match='sweeps=0, through=1: expected at least 1'): lagged(leaky, x, x, start, 0)
    with pytest.raises(ValueError, match=r'stored states are of \(1, 5\) rows and tokens, drives of \(2, 5\)'): lagged(leaky, x, x[:1], start)
    for f in (lambda s: sequential(leaky, x, s), lambda s: lagged(leaky, x, x, s)):
        with pytest.raises(ValueError, match=r'start has shape \(1, 4\): expected \(width,\), or \(2, width\)'): f(start[None])


MAPS = Path('/proc/self/maps')


def span(line):
    "Bytes of a mapping."
    low, high = line.split()[0].split('-')
    return int(high, 16) - int(low, 16)


# -- the store --------------------------------------------------------------------------------------------------------

def visit(cache, x, order, batch, step, key=lambda samples, places: samples, sweeps=1):
    "One epoch at frozen weights: every sample's states, and what is stored goes on."
    h, start = torch.empty_like(x), torch.zeros(x.shape[-1], dtype=x.dtype)
    for samples, places in zip(order.split(batch), torch.arange(len(x)).split(batch)):
        ids = key(samples, places)
        h[samples] = lagged(leaky, x[samples], cache.read(ids, x.dtype), start, sweeps)
        cache.write(ids, h[samples], step)
    return h


def test_19_states_follow_the_sample():
    "Shuffled, in batches of any size and with a short last one: S visits are the recurrence. Keys of the place in the epoch are right in a fixed order and wrong in a shuffled one."
    x = random(11, 6, 4)
    true, errors = sequential(leaky, x, torch.zeros(4).double()), {}
    shuffled = lambda e: torch.randperm(11, generator=torch.Generator().manual_seed(e))
    for name, order, key in (('sample', shuffled, lambda s, p: s), ('ordered', lambda e: torch.arange(11), lambda s, p: p), ('batch', shuffled, lambda s, p: p)):
        cache = LaggedCache(11, 6, 4, dtype=torch.float64)
        for e in range(6): h = visit(cache, x, order(e), batch=4 - e % 2, step=e, key=key)
        errors[name] = error_ratio(h, true)
    assert max(errors['sample'], errors['ordered']) < 1e-10 and errors['batch'] > .1


@pytest.mark.parametrize('dtype, within', [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_19_parity_through_the_store(dtype, within):
    "Through a float32 store S visits are the recurrence to 1e-5; shorter numbers cost what they round."
    x = random(5, 8, 4)
    cache = LaggedCache(5, 8, 4, dtype=dtype)
    for e in range(8): h = visit(cache, x, torch.arange(5), 2, e)
    error = error_ratio(h, sequential(leaky, x, torch.zeros(4).double()))
    assert error < within and (dtype == torch.float64 or error > within * 1e-4)
    assert cache.states.dtype == dtype and cache.read(torch.tensor([0])).dtype == torch.float32 and LaggedCache(1, 1, 1).states.dtype == torch.float16


def test_19_reads_are_copies_and_writes_detach():
    cache, states = LaggedCache(4, 3, 2, dtype=torch.float32), torch.ones(2, 3, 2, requires_grad=True)
    cache.write(torch.tensor([3, 1]), states * 2, step=0)
    read = cache.read(torch.tensor([1, 3]))
    assert not (read.requires_grad or cache.states.requires_grad) and read.grad_fn is None
    read.zero_()
    assert torch.equal(cache.read(torch.arange(4)).amax((1, 2)), torch.tensor([0., 2, 0, 2]))


def test_19_budget(tmp_path):
    "Two bytes a number: what exceeds the budget by a byte lies in a file, of the promised size and without a name; a batch that exceeds it is refused."
    size = 1000 * 64 * 32 * 2
    assert LaggedCache(1000, 64, 32, budget=size, folder=tmp_path / 'none').states.nbytes == size     # no file, so no folder is looked for
    with pytest.raises(OSError): LaggedCache(1000, 64, 32, budget=size - 1, folder=tmp_path / 'none')
    with pytest.raises(OSError): LaggedCache(1000, 64, 32, dtype=torch.float32, budget=size, folder=tmp_path / 'none')
    cache = LaggedCache(1000, 64, 32, budget=size - 1, folder=tmp_path)
    if MAPS.exists(): assert any(str(tmp_path) in line and '(deleted)' in line and span(line) >= size for line in MAPS.read_text().splitlines())
    assert cache.states.nbytes == size and not list(tmp_path.iterdir())
    small = LaggedCache(10, 6, 4, budget=3 * 6 * 4 * 2)
    small.read(torch.arange(3))
    for f in (small.read, lambda ids: small.write(ids, torch.zeros(4, 6, 4), 0)):
        with pytest.raises(ValueError, match='the states of 4 samples are 192 bytes, the budget is 144: raise it, or take smaller batches'): f(torch.arange(4))


def test_19_a_full_disk_is_noticed_before_training(tmp_path):
    "The file takes its room when it is made: nothing is left of one that finds none."
    with pytest.raises(OSError, match='so nothing was written'): LaggedCache(10**9, 1000, 1000, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_19_a_file_holds_the_same(tmp_path):
    both = LaggedCache(5, 6, 4), LaggedCache(5, 6, 4, budget=3 * 6 * 4 * 2, folder=tmp_path)
    for cache in both:
        for e in range(3): visit(cache, random(5, 6, 4), torch.randperm(5, generator=torch.Generator().manual_seed(e)), 2, e)
    a, b = (cache.pack() for cache in both)
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a) and a['states'].any()


def test_19_version_stamp():
    cache, ids = LaggedCache(4, 2, 3), torch.tensor([2, 0, 3])
    assert not cache.seen(torch.arange(4)).any() and cache.read(ids).abs().max() == 0
    cache.write(ids[:2], torch.ones(2, 2, 3), step=0)
    cache.write(ids[1:2], torch.ones(1, 2, 3), step=7)
    assert cache.seen(ids).tolist() == [True, True, False] and cache.age(ids, step=10).tolist() == [10, 3, math.inf]
    with pytest.raises(ValueError, match='made by weights of step 7, these are of step 6: the cache belongs to other weights'): cache.age(ids, step=6)
    other = LaggedCache(4, 2, 3, data='other samples')
    with pytest.raises(ValueError, match="holds states of the samples '', this cache is of 'other samples'"): other.unpack(cache.pack())
    assert not other.seen(torch.arange(4)).any()


def test_19_the_store_refuses_what_it_cannot_keep():
    "A row that has finished has sample -1, which would be the last sample; a diverged state may be stored, one that float16 would make infinite may not."
    cache, one = LaggedCache(4, 2, 3), torch.ones(1, 2, 3)
    for ids, said in (([-1], '-1 to -1'), ([4], '4 to 4')):
        for f in (cache.read, cache.seen, lambda i: cache.age(i, 3), lambda i: cache.write(i, one, 3)):
            with pytest.raises(ValueError, match=f'sample ids from {said}: expected 0 to 3'): f(torch.tensor(ids))
    with pytest.raises(ValueError, match=r'shape \(1, 2, 3\): expected \(2, 2, 3\)'): cache.write(torch.tensor([0, 1]), one, 3)
    with pytest.raises(ValueError, match='step=-1'): cache.write(torch.tensor([0]), one, -1)
    with pytest.raises(ValueError, match='does not fit torch.float16'): cache.write(torch.tensor([0]), 7e4 * one, 3)
    assert not cache.seen(torch.arange(4)).any()
    cache.write(torch.tensor([0]), math.inf * one, 3)
    assert cache.read(torch.tensor([0])).isinf().all()
    for sizes in ((0, 2, 3), (4, 0, 3), (4, 2, 0)):
        with pytest.raises(ValueError, match='expected at least 1 of each'): LaggedCache(*sizes)
    with pytest.raises(ValueError, match='expected a floating-point type'): LaggedCache(4, 2, 3, dtype=torch.int16)


# -- attention in the recurrence --------------------------------------------------------------------------------------

class Unturned(PythiaAttention):
    def project(self, x, at, source): return super().project(x, 0 * at, source)


@torch.no_grad()
def test_20_both_modes_are_the_same_function():
    "Token by token with keys, values and positions carried, or all tokens at once, S times."
    feed, stack, start = Feed(), stacked(attention()), random(8, seed=1)
    for t in (1, 2, 13):
        x, stored = random(2, t, 8, seed=t), random(2, t, 8, seed=3)
        assert error_ratio(lagged(feed, x, stored, start, t, stack), sequential(feed, x, start, stack)) < 1e-10


@torch.no_grad()
def test_20_the_loop_is_the_blocks_on_its_own_inputs():
    "Written without any cache: state t is the last output of the blocks on u_0 .. u_t."
    feed, stack, x, start = Feed(), stacked(attention()), random(2, 6, 8), random(8, seed=1)
    h, us = start.expand(2, 1, 8), []
    for t in range(6):
        us.append(feed(h, x[:, t:t+1]))
        h = stack(torch.cat(us, 1), None)[0][:, -1:]
        assert error_ratio(sequential(feed, x, start, stack)[:, t:t+1], h) < 1e-10


@torch.no_grad()
def test_20_keys_values_and_positions_are_carried():
    "Any other bookkeeping is noticed: nothing carried (the source), every token at position 0, positions that skip one, keys of a layer handed to another."
    layers, feed, x, start = attention(), Feed(), random(2, 7, 8), random(8, seed=1)
    stack, unturned = stacked(layers), deepcopy(layers)
    for layer in unturned: layer.mixer.__class__ = Unturned
    skip = lambda u, memory: stack(u, memory and tuple(type(s)(s.k, s.v, s.seen + 1) for s in memory))
    wrong = {'nothing': lambda u, memory: stack(u, None), 'position 0': stacked(unturned), 'skip': skip, 'swapped': lambda u, memory: stack(u, memory and memory[::-1])}
    at_once = lagged(feed, x, torch.zeros_like(x), start, 7, stack)
    assert error_ratio(sequential(feed, x, start, stack), at_once) < 1e-10
    for name, other in wrong.items(): assert error_ratio(sequential(feed, x, start, other), at_once) > .01, name


@torch.no_grad()
def test_20_the_layers_of_a_language_model_are_a_stack():
    "Its own features, when nothing is fed back."
    model = PythiaConfig(vocab_size=16, d_model=8, n_layers=2, n_heads=2, intermediate=16, rotary_pct=1.).build(seed=0).double()
    ids = torch.randint(0, 16, (2, 9), generator=torch.Generator().manual_seed(0))
    h = sequential(lambda h, x: x, model.embed(ids), torch.zeros(8).double(), stacked(model.layers))
    assert error_ratio(model.norm(h), model.features(ids)[0]) < 1e-10


# -- measures ---------------------------------------------------------------------------------------------------------

@each_cell
@torch.no_grad()
def test_21_errors_are_distances_to_the_recurrence(cell, stack):
    "By hand: norm ratio and mean cosine after each number of sweeps from what is stored."
    x, stored, start = random(2, 6, 4), random(2, 6, 4, seed=2), random(4, seed=1)
    true, found = sequential(cell, x, start, stack), state_error(cell, x, stored, start, (0, 1, 3, 6), stack)
    for r, n in zip(found, (0, 1, 3, 6), strict=True):
        h = stored if n == 0 else lagged(cell, x, stored, start, n, stack)
        cosine = ((h * true).sum(-1) / h.norm(dim=-1) / true.norm(dim=-1)).mean()
        assert r.sweeps == n and math.isclose(r.error, (h - true).norm() / true.norm(), rel_tol=1e-9, abs_tol=1e-14) and math.isclose(r.cosine, cosine, rel_tol=1e-9)
    assert found[-1].error < 1e-10 and found[0].error > .5


def test_21_nothing_is_compared_with_itself():
    a = random(2, 3, 4)
    for b in (a, a.detach(), a[:], a.view(2, 3, 4)):
        for measure in (agreement, settled_share):
            with pytest.raises(ValueError, match='compared with themselves'): measure(a, b)
    both = random(2, 2, 3, 4)
    assert agreement(both[0], both[1])[0] > .5 and agreement(a, a.clone())[0] == 0   # neighbours in memory and equal copies are two tensors


@torch.no_grad()
def test_21_the_share_that_settled_is_no_error():
    "A slow sum settles at once and is far from what it should be; a cell that contracts settles and arrives."
    zero, x = torch.zeros(4).double(), 1 + .1 * random(2, 64, 4)
    found = {}
    for name, cell in dict(drift=lambda h, x: h + .1 * x, leaky=leaky).items():
        old, new = None, torch.zeros(2, 64, 4).double()
        for _ in range(12): old, new = new, lagged(cell, x, new, zero)
        found[name] = settled_share(new, old), agreement(new, sequential(cell, x, zero))[0]
    assert found['drift'][0] == found['leaky'][0] == 1 and found['drift'][1] > .5 and found['leaky'][1] < .01
    old, new = torch.zeros(1, 4, 2), torch.tensor([[[.1, .1], [.2, .2], [.3, 0], [1, 0]]])   # mean squares .01, .04, .045, .5
    assert settled_share(new, old) == .25 and settled_share(new, old, .05) == .75


def test_21_slope():
    "Of linear cells, of the accumulator, of a cell whose slope depends on the token, and of a GRU by its Jacobians."
    A, h, x = random(4, 4), random(2, 3, 4, seed=1), random(2, 3, 4, seed=2)
    largest = torch.linalg.matrix_norm(A, 2).item()
    for cell, want in ((lambda h, x: h @ A.T + x, largest), (lambda h, x: h @ A + x, largest), (lambda h, x: h + .1 * x, 1.), (lambda h, x: x + 0 * h, 0.)):
        assert torch.allclose(slope(cell, h, x, steps=60), torch.full((2, 3), want, dtype=torch.float64), atol=1e-6)
    each = .5 * (1 - (.5 * h + x).tanh().square()).amax(-1)
    assert torch.allclose(slope(leaky, h, x, steps=60), each, rtol=1e-3)
    unit = gru(4)
    J = [torch.autograd.functional.jacobian(lambda h, x=x_: unit(h, x), h_).squeeze() for h_, x_ in zip(h.view(-1, 1, 4), x.view(-1, 1, 4))]
    true = torch.stack([torch.linalg.matrix_norm(j, 2) for j in J])
    assert torch.allclose(slope(unit, h, x, steps=60).flatten(), true, rtol=1e-3)


@torch.no_grad()
def test_21_the_slope_bounds_how_fast_errors_shrink():
    x, start = random(2, 30, 4), torch.zeros(4).double()
    true = sequential(leaky, x, start)
    most, error = 0.5, lambda n: (lagged(leaky, x, torch.zeros_like(x), start, n) - true).norm(dim=-1).max()
    assert slope(leaky, previous(true, start), x).max() <= most and all(error(n + 1) <= most * error(n) + 1e-15 for n in range(1, 12))


# -- dispersion -------------------------------------------------------------------------------------------------------

def test_22_dispersion_takes_vectors():
    for shape in ((2, 5, 3), (3,), (0, 3)):
        with pytest.raises(ValueError, match=r'expected \(n, width\), so flatten'): centroid_dispersion(torch.zeros(shape))


def test_22_dispersion_by_hand():
    c = random(7, 3)
    for w in (.0, .1, 1.):
        spread = sum((v - c.mean(0)).square().sum() for v in c) ** .5
        assert math.isclose(centroid_dispersion(c, w), -spread / 7 + w * c.mean(0).norm() ** 2, rel_tol=1e-12)


def test_22_gradient_is_right_and_finite_where_all_vectors_are_one():
    c = random(5, 3).requires_grad_()
    assert torch.autograd.gradcheck(centroid_dispersion, c) and torch.autograd.gradcheck(lambda c: centroid_dispersion(c, .7), c)
    same = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(centroid_dispersion(same), same)[0].isfinite().all()


def test_22_the_layout_of_the_batch_changes_nothing():
    h = random(4, 6, 3)
    values = [centroid_dispersion(c).item() for c in (h.flatten(0, 1), h.transpose(0, 1).flatten(0, 1), h.reshape(2, 12, 3).flatten(0, 1), h.flatten(0, 1)[torch.randperm(24, generator=torch.Generator().manual_seed(0))])]
    assert max(values) - min(values) < 1e-12


def test_22_normalised_vectors_bound_the_dispersion():
    "The bound is reached by vectors in opposite directions, and by nothing that is larger."
    for n in (2, 10, 100): assert centroid_dispersion(F.layer_norm(random(n, 16, seed=n), (16,))) >= -(16 / n) ** .5
    v = F.layer_norm(random(1, 16), (16,), eps=0.)
    assert math.isclose(centroid_dispersion(torch.cat([v, -v])), -(16 / 2) ** .5, rel_tol=1e-9)
    assert centroid_dispersion(9 * torch.cat([v, -v])) < -(16 / 2) ** .5
