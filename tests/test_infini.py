"Compressive memories against a reference in plain loops, and the lessons of their source, each a test."
import ast
import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch
from memlab.nn.checks import check_causal, check_mixer, check_rows, error_ratio
from memlab.nn.infini import AsCoded, HierarchicalConfig, InfiniConfig, InfiniState, MultiMemoryConfig, is_empty, linear_local, linear_loop, payload, reset_rows, selection, shares
from memlab.nn.init import init_parameters
from safetensors.torch import load, save
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WIDE = dict(d_model=8, n_heads=2, dk=4, dv=6, segment=4)
KINDS = dict(infini=InfiniConfig, banks=lambda **o: InfiniConfig(banks=3, segments_per_bank=1, **o), multi=lambda **o: MultiMemoryConfig(banks=3, **o), hierarchical=lambda **o: HierarchicalConfig(banks=2, hidden=5, **o))
RULES = dict(additive=dict(), delta=dict(rule='delta'), fading=dict(decay=.7), normalised_delta=dict(rule='delta', as_coded=AsCoded(normalised_delta=True)))
kinds, rules = pytest.mark.parametrize('kind', KINDS), pytest.mark.parametrize('rule', ['additive', 'delta'])


def built(config, seed=0):
    "A float64 layer with weights large enough to matter."
    return init_parameters(config.build(), seed, std=.5).double()


def made(kind, rule='additive', **options):
    return built(KINDS[kind](**WIDE | RULES[rule] | options))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class After(nn.Module):
    "A layer that always starts from one state."
    def __init__(self, layer, state): super().__init__(); self.layer, self.state = layer, state
    def forward(self, x): return self.layer(x, self.state if len(x) == self.state.batch else self.state[:len(x)])


# -- the definition, once more ----------------------------------------------------------------------------------------

def phi(u): return torch.where(u > 0, u + 1, u.exp())
def size(u): return (u.square().mean() + 1e-8).sqrt()
def unit(u): return u / (u.square().sum() + 1e-6).sqrt()


class Bank:
    "One head of one bank of one row, token by token."
    def __init__(self, config): self.c, self.M, self.z = config, torch.zeros(config.key, config.value).double(), torch.zeros(config.key).double()

    def read(self, q):
        return unit(q) @ self.M if self.c.corrects else (q @ self.M) / (q @ self.z + 1e-6)

    def write(self, keys, values, rates):
        c, M, z = self.c, self.c.decay * self.M, self.c.decay * self.z
        for k, v, beta in zip(keys, values, rates):
            if c.corrects:
                k = unit(k)
                M = M + beta * torch.outer(k, v - k @ M)
            else:
                if c.as_coded.normalised_delta: v = v - self.read(k)
                M = M + torch.outer(k, v) / (len(keys) if c.as_coded.readout_scale else 1)
            z = z + k
        self.M, self.z = M, z


def slot_weights(layer, q, banks, written, head):
    "Weights of one token and head over the banks that hold something."
    c, full = layer.config, [i for i, n in enumerate(written) if n]
    if not isinstance(c, MultiMemoryConfig):
        logits = {i: layer.bank_logits[i] if c.banks > 1 else torch.zeros(()).double() for i in full}
    else:
        logits = {i: (q / size(q)) @ (banks[i].z / size(banks[i].z)) / math.sqrt(c.key) / c.temperature for i in full}
        if c.top: logits = dict(sorted(logits.items(), key=lambda item: -item[1])[:c.top])
        if c.has_null: logits['null'] = math.sqrt(c.key) / c.temperature * layer.null[head]
    total = sum(u.exp() for u in logits.values())
    return {i: u.exp() / total for i, u in logits.items()}


def local(config, q, keys, values):
    "What a token reads in its own segment."
    if config.local == 'none': return torch.zeros_like(values[0])
    weights = [(q @ k / math.sqrt(len(q))).exp() for k in keys] if config.local == 'softmax' else [phi(q) @ phi(k) for k in keys]
    return sum(w * v for w, v in zip(weights, values)) / (sum(weights) + (1e-6 if config.local == 'linear' else 0))


@torch.no_grad()
def reference(layer, x, frozen=()):
    "The output for one row, t c: loops over tokens, heads and banks, with lists for what is held."
    c, plain = layer.config, layer.config.as_coded.static_gate
    banks = [[Bank(c) for _ in range(c.n_heads)] for _ in range(c.banks)]
    written, turn, count, held, out = [0] * c.banks, 0, 0, [], []
    while c.banks and turn in frozen: turn += 1
    for u in x:
        q, k, v = ((p.weight @ u).view(c.n_heads, -1) for p in layer.proj.values())
        held.append((k, v, (layer.rate.weight @ u).sigmoid() if layer.rate is not None else torch.ones(c.n_heads)))
        fine, coarse, mass = [], [], []
        for h in range(c.n_heads):
            w = slot_weights(layer, phi(q[h]), [bank[h] for bank in banks], written, h)
            fine.append(sum((w[i] * banks[i][h].read(phi(q[h])) for i in w if i != 'null'), torch.zeros(c.value).double()))
            mass.append(sum((w[i] for i in w if i != 'null'), torch.zeros(()).double()))
            whole = Bank(c)
            for bank in banks: whole.M, whole.z = whole.M + bank[h].M, whole.z + bank[h].z
            coarse.append(whole.read(phi(q[h])))
        if isinstance(c, HierarchicalConfig):
            e = c.expand if c.expand is not None else layer.expander(torch.cat([u if plain else u / size(u) for u in coarse]))[0].sigmoid()
            fine, mass = [e * f + (1 - e) * u for f, u in zip(fine, coarse)], [e * m + (1 - e) * any(written) for m in mass]
        gate = torch.zeros(c.n_heads) if not c.banks else layer.memory_gate.sigmoid() if plain else layer.memory_gate(u).sigmoid()
        o = []
        for h in range(c.n_heads):
            L = local(c, q[h], [k[h] for k, _, _ in held], [v[h] for _, v, _ in held])
            o.append(gate[h] * (fine[h] if plain else mass[h] * fine[h] / size(fine[h])) + (1 - gate[h]) * (L if plain else L / size(L)))
        out.append(layer.out(torch.cat(o)))
        if len(held) == c.segment:
            if c.banks and turn not in frozen:
                for h, bank in enumerate(banks[turn]): bank.write([phi(k[h]) for k, _, _ in held], [v[h] for _, v, _ in held], [r[h] for _, _, r in held])
                written[turn], count = written[turn] + 1, count + 1
                if count == c.segments_per_bank: turn, count = next(i % c.banks for i in range(turn + 1, turn + c.banks + 1) if i % c.banks not in frozen), 0
            held = []
    return torch.stack(out)


OPTIONS = dict(
    plain=InfiniConfig(**WIDE), fading=InfiniConfig(**WIDE, decay=.7, local='softmax'), delta=InfiniConfig(**WIDE, rule='delta', decay=.9), banks=InfiniConfig(**WIDE, banks=3, segments_per_bank=1),
    turns=InfiniConfig(**WIDE, banks=2, segments_per_bank=2, rule='delta'), memory_only=InfiniConfig(**WIDE, local='none', credit=1), local_only=InfiniConfig(**WIDE, banks=0), one_token=InfiniConfig(**WIDE | dict(segment=1)),
    small_chunks=InfiniConfig(**WIDE | dict(segment=5), rule='delta', chunk=2), multi=MultiMemoryConfig(**WIDE, banks=3), multi_top=MultiMemoryConfig(**WIDE, banks=3, top=1, temperature=.2, null=False, rule='delta'),
    hierarchical=HierarchicalConfig(**WIDE, banks=2, hidden=5), half=HierarchicalConfig(**WIDE, banks=3, expand=.5, rule='delta', top=2),
    as_coded=InfiniConfig(**WIDE, as_coded=AsCoded(readout_scale=True, static_gate=True)), as_coded_delta=InfiniConfig(**WIDE, rule='delta', as_coded=AsCoded(readout_scale=True, normalised_delta=True, static_gate=True)),
    half_right=HierarchicalConfig(**WIDE, banks=2, hidden=5, rule='delta', as_coded=AsCoded(normalised_delta=True, static_gate=True)))


@pytest.mark.parametrize('form', ['recurrent', 'chunked'])
@pytest.mark.parametrize('name', OPTIONS)
def test_a_layer_is_its_reference(name, form):
    layer, x = built(replace(OPTIONS[name], form=form)), normal(2, 23, 8)
    if getattr(layer, 'bank_logits', None) is not None: layer.bank_logits.data.copy_(normal(layer.config.banks))
    y = layer(x)[0]
    for row, got in zip(x, y): assert error_ratio(got, reference(layer, row)) < 1e-10


@pytest.mark.parametrize('frozen', [(0,), (1,), (0, 2)])
@kinds
def test_a_layer_with_frozen_banks_is_its_reference(kind, frozen):
    layer, x = made(kind, **dict(banks=3)) if kind not in ('banks', 'multi', 'hierarchical') else made(kind), normal(1, 23, 8)
    frozen = [i for i in frozen if i < layer.config.banks]
    if len(frozen) == layer.config.banks: return
    assert error_ratio(layer(x, layer.init_state(1).with_frozen(True, frozen))[0][0], reference(layer, x[0], frozen)) < 1e-10


@pytest.mark.parametrize('name', [n for n in OPTIONS if n != 'memory_only'])
def test_a_layer_passes_every_check(name):
    check_mixer(built(OPTIONS[name]), normal(2, 11, 8))


@pytest.mark.parametrize('name', OPTIONS)
def test_forms_agree_in_outputs_states_and_every_gradient(name):
    "From a state that holds memories and an unfinished segment, with credit for the whole call."
    def everything(form):
        layer = built(replace(OPTIONS[name], form=form, credit=9 if OPTIONS[name].banks else 0))
        with torch.no_grad(): state = layer(normal(2, 11, 8, seed=1))[1]
        leaves = {n: s.clone().requires_grad_() for n, s in state.tensors().items() if s.is_floating_point()}
        x = normal(2, 14, 8, seed=2).requires_grad_()
        y, end = layer(x, replace(state, **leaves))
        value = sum((u * normal(*u.shape, seed=3)).sum() for u in (y, *(s for s in end.tensors().values() if s.is_floating_point())))
        wanted = [x, *leaves.values(), *layer.parameters()]
        slopes = torch.autograd.grad(value, wanted, allow_unused=True)
        return [y, *end.tensors().values(), *(torch.zeros_like(w) if g is None else g for g, w in zip(slopes, wanted))]
    for got, want in zip(everything('chunked'), everything('recurrent'), strict=True): assert error_ratio(got, want) < 1e-9


@pytest.mark.parametrize('name', OPTIONS)
def test_rows_at_different_places_go_on_together(name):
    "Outputs, states and gradients are those of each row alone, whatever the others hold; also for some of the rows."
    layer, x, starts = built(replace(OPTIONS[name], credit=min(1, OPTIONS[name].banks))), normal(3, 21, 8), (7, 2, 12)
    with torch.no_grad(): states = [layer(x[i:i+1, :n], None)[1] for i, n in enumerate(starts)]
    def after(rows, state):
        u = x[rows, 12:].clone().requires_grad_()
        y, end = layer(u, state)
        return y, end, torch.autograd.grad((y * normal(3, *y.shape[1:], seed=5)[rows]).sum(), u)[0]
    together = after([0, 1, 2], InfiniState.cat(states))
    for i, state in enumerate(states):
        y, end, slope = after([i], state)
        assert error_ratio(together[0][i:i+1], y) < 1e-10 and error_ratio(together[2][i:i+1], slope) < 1e-10
        for n in ('M', 'z', 'writes', 'bank', 'counter', 'filled', 'seen'): assert error_ratio(getattr(together[1], n)[i:i+1], getattr(end, n)) < 1e-10
        for n in ('k', 'v', 'beta'):
            held, own = getattr(together[1], n)[i], getattr(end, n)[0]
            assert not held[:len(held) - len(own)].any() and error_ratio(held[len(held) - len(own):], own) < 1e-10
    some = InfiniState.cat(states)[[1, 2]]
    assert error_ratio(after([1, 2], some)[0], together[0][1:]) < 1e-10


@pytest.mark.parametrize('name', ['plain', 'delta', 'multi', 'hierarchical'])
def test_a_layer_in_bfloat16_stays_near_the_loop_in_float64(name):
    config = replace(OPTIONS[name], d_model=32, dk=16, dv=16, segment=16)
    layer, exact, x = init_parameters(config.build(), 0, std=.2), init_parameters(replace(config, form='recurrent').build(), 0, std=.2).double(), normal(2, 130, 32)
    with torch.no_grad():
        with torch.autocast('cpu', torch.bfloat16): y, state = layer(x.float())
        assert error_ratio(y, exact(x)[0]) < .05
        assert error_ratio(layer(x.float())[0], exact(x)[0]) < 1e-4
    assert state.numel() == layer.state_size(130) and all(s.dtype in (torch.float32, torch.long, torch.bool) for n, s in state.tensors().items() if n != 'conv')


class Made(TorchDispatchMode):
    "Sizes of all tensors that are made."
    def __init__(self): super().__init__(); self.sizes = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        self.sizes += [u.numel() for u in tree_leaves(out) if isinstance(u, torch.Tensor)]
        return out


def step(config, t):
    "Sizes of all tensors of one forward and backward pass over `t` tokens."
    layer, x = config.build(), torch.randn(1, t, config.d_model, requires_grad=True)
    with Made() as made: layer(x)[0].sum().backward()
    return made.sizes


@pytest.mark.parametrize('credit', [0, 3])
def test_a_long_call_costs_in_proportion_to_its_length(credit):
    config = MultiMemoryConfig(**WIDE | dict(segment=8), credit=credit)
    short, long = sum(step(config, 4 * 8)), sum(step(config, 16 * 8))
    assert long < 4.2 * short


# -- lessons ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('credit', [0, 2])
@rules
@kinds
def test_01_double_backward(kind, rule, credit):
    "Two training steps with carried memory; what is written without credit needs no gradient; a cut state frees its graph."
    layer = made(kind, rule, credit=credit)
    _, state = layer(normal(2, 8, 8))
    assert state.M.requires_grad == state.z.requires_grad == (credit > 0)
    for seed in (1, 2):
        y, state = layer(normal(2, 9, 8, seed=seed), state.detach())
        y.square().sum().backward()
    y, _ = layer(normal(2, 4, 8), state)
    if credit:
        with pytest.raises(RuntimeError, match='second time'): y.sum().backward()
    assert not any(s.requires_grad for s in state.detach().tensors().values())


@rules
@kinds
def test_02_write_path_gradient(kind, rule):
    "What segment 1 wrote gets a gradient from segment 2 with credit, and none without."
    for credit in (0, 1):
        layer, x = made(kind, rule, credit=credit), normal(2, 8, 8).requires_grad_()
        past = torch.autograd.grad(layer(x)[0][:, 4:].sum(), x)[0][:, :4]
        assert bool(past.abs().max() > 0) == (credit == 1)
    only = made(kind, rule, credit=1, local='none')
    only(normal(2, 8, 8))[0].sum().backward()
    learned = [only.proj['k'], only.proj['v'], *([only.rate] if rule == 'delta' else [])]
    assert all(p.weight.grad.abs().max() > 0 for p in learned)
    with pytest.raises(ValueError, match='would get no gradient at all'): KINDS[kind](**WIDE | RULES[rule], local='none')
    never = made(kind, rule, local='none', as_coded=AsCoded(memory_only=True))
    never(normal(2, 8, 8))[0].sum().backward()
    assert not never.proj['k'].weight.grad.any() and not never.proj['v'].weight.grad.any()


@pytest.mark.parametrize('credit', [0, 1, 2, 4])
def test_02_credit_reaches_as_many_segments_as_it_says(credit):
    layer, x = built(InfiniConfig(**WIDE, credit=credit)), normal(1, 28, 8).requires_grad_()
    for i, part in enumerate(layer(x)[0].split(4, 1)):
        slopes = torch.autograd.grad(part.sum(), x, retain_graph=True)[0].split(4, 1)
        assert [bool(g.abs().max() > 0) for g in slopes] == [i - i % (credit + 1) <= j <= i for j in range(7)]


def memory_of_a_constant(S, B, n, repeat, **options):
    "What is read in units of the one value stored in n segments, by whole layers: channel 0 is 1, and values see only it."
    config = InfiniConfig(**WIDE | dict(segment=S), local='none', **options)
    layer, x = built(config), normal(B, S, 8).repeat(1, n + 1, 1) if repeat else normal(B, S * (n + 1), 8)
    x[..., 0] = 1
    with torch.no_grad():
        layer.proj['v'].weight[:, 1:] = 0
        return layer.trace(x)['memory'][:, -S:] / (layer.proj['v'].weight[:, 0]).view(2, 6)


@pytest.mark.parametrize('n', [1, 2, 10])
@pytest.mark.parametrize('B', [1, 8])
@pytest.mark.parametrize('S', [8, 64, 512])
def test_03_normalisation(S, B, n):
    "A constant value is read back, whatever the keys; v / S and v / 2 are what the source makes of it."
    off = lambda got, want: (got - want).square().mean().sqrt() / want
    only = AsCoded(memory_only=True)
    assert off(memory_of_a_constant(S, B, n, False, as_coded=only), 1.) < 1e-3
    assert off(memory_of_a_constant(S, B, n, False, as_coded=replace(only, readout_scale=True)), 1 / S) < 1e-3
    assert off(memory_of_a_constant(S, B, n, True, rule='delta', as_coded=replace(only, normalised_delta=True)), 1. if n == 1 else .5) < 1e-3
    assert off(memory_of_a_constant(S, B, n, False, as_coded=replace(only, shared=True)), 1.) < 1e-3


@pytest.mark.parametrize('n', [1, 2, 10])
@pytest.mark.parametrize('S', [8, 64, 512])
def test_03_the_delta_rule_returns_a_constant_under_orthonormal_keys(S, n):
    layer = InfiniConfig(**WIDE | dict(segment=S), rule='delta', k_kernel='none', q_kernel='none', local='softmax').build().double()
    k, v = torch.eye(4).double().repeat(S // 4, 1)[None, :, None].expand(2, -1, 2, -1), normal(1, 1, 2, 6).expand(2, S, -1, -1)
    M, z = layer.init_state(2).M[:, 0].double(), layer.init_state(2).z[:, 0].double()
    for _ in range(n): M, z = layer.update(k, v, torch.ones(2, S, 2).double(), M, z)
    assert error_ratio(layer.answers(k[:, :4], M[:, None], z[:, None])[..., 0, :], v[:, :4]) < 1e-3


def written(layer, key, values):
    "What is read at one key after each value was written under it, in segments of one token."
    M, z, said = layer.init_state(1).M[:, 0], layer.init_state(1).z[:, 0], []
    for v in values:
        M, z = layer.update(key, v, torch.ones(1, 1, 2).double(), M, z)
        said.append(layer.answers(key, M[:, None], z[:, None])[..., 0, :])
    return said


@pytest.mark.parametrize('form', ['recurrent', 'chunked'])
def test_04_delta_rule(form):
    "The same key and value twice change nothing, another value replaces; adding gives the mean."
    one, two, key = normal(1, 1, 2, 6), normal(1, 1, 2, 6, seed=1), phi(normal(1, 1, 2, 4))
    first, again, other = written(made('infini', 'delta', form=form), key, (one, one, two))
    assert error_ratio(first, one) < 1e-5 and error_ratio(again, first) < 1e-5 and error_ratio(other, two) < 1e-5
    assert error_ratio(written(made('infini', form=form), key, (one, two))[1], (one + two) / 2) < 1e-5
    assert error_ratio(written(made('infini', 'normalised_delta', form=form), key, (one, two))[1], two / 2) < 1e-5


@rules
@kinds
def test_06_empty_memory(kind, rule):
    "Exactly zero, no NaN in value or gradient, no weight for empty banks; with all banks frozen nothing is ever written."
    layer, x = made(kind, rule, credit=2), normal(2, 14, 8).requires_grad_()
    start = layer.init_state(2)
    leaves = dict(M=start.M.clone().requires_grad_(), z=start.z.clone().requires_grad_())
    found = layer.trace(x, replace(start, **leaves))
    assert not found['memory'][:, :4].any() and not found['weight'][:, :4].any()
    used = found['weights'][..., :layer.config.banks]
    for i in range(1, min(3, layer.config.banks)): assert not used[:, 4 * i:4 * i + 4, :, i:].any() and used[:, 4 * i:4 * i + 4, :, :i].all()
    y, _ = layer(x, replace(start, **leaves))
    for out in (found['memory'].sum(), y.square().sum()):
        assert all(g is None or torch.isfinite(g).all() for g in torch.autograd.grad(out, [x, *leaves.values()], retain_graph=True, allow_unused=True))
    y, end = layer(x, start.with_frozen(True))
    assert is_empty(end).all() and not end.M.any() and not end.counter.any() and torch.isfinite(y).all()


def test_06_shares_of_nothing_are_nothing():
    logits, empty = normal(3, 2, 1, 2).requires_grad_(), torch.tensor([[True, True], [True, False], [False, False]])
    w = shares(logits, empty)
    assert w[0].tolist() == [[[0, 0]]] * 2 and w[1].tolist() == [[[0, 1]]] * 2
    torch.testing.assert_close(w[2].sum(-1), torch.ones(2, 1).double())
    assert torch.isfinite(torch.autograd.grad(w.square().sum(), logits)[0]).all()


@pytest.mark.parametrize('local', ['linear', 'softmax', 'none'])
@rules
@kinds
def test_07_causality(kind, rule, local):
    "From the start, and from a state with several memories and part of a segment."
    layer, x = made(kind, rule, local=local, credit=1), normal(2, 10, 8)
    if local != 'none': check_causal(layer, x)
    check_causal(After(layer, layer(normal(2, 14, 8, seed=1))[1]), x)


@pytest.mark.parametrize('config', [MultiMemoryConfig, HierarchicalConfig])
def test_07_a_choice_for_the_whole_call_is_caught(config):
    layer = built(config(**WIDE, banks=2, as_coded=AsCoded(sequence_mean=True)))
    with pytest.raises(AssertionError, match='reached an earlier output'): check_causal(layer, normal(2, 14, 8))


@rules
@kinds
def test_08_batch_isolation(kind, rule):
    "Rows ignore each other, also in the next call; a reset of one leaves the others as they are."
    layer, x = made(kind, rule), normal(3, 11, 8)
    state = layer(normal(3, 11, 8, seed=1))[1]
    check_rows(layer, x), check_rows(After(layer, state[[0, 0, 0]]), x)
    other = layer(torch.cat([normal(1, 11, 8, seed=1), normal(2, 11, 8, seed=2)]))[1]
    assert not torch.equal(other.M[1], state.M[1])
    mixed = replace(other, **{n: torch.cat([s[:1], getattr(other, n)[1:]]) for n, s in state.tensors().items()})
    assert torch.equal(layer(x, mixed)[0][0], layer(x, state)[0][0])
    y = layer(x, reset_rows(state, torch.tensor([False, True, False])))[0]
    assert error_ratio(y[1:2], layer(x[1:2])[0]) < 1e-10 and error_ratio(y[[0, 2]], layer(x, state)[0][[0, 2]]) < 1e-10


def test_08_a_memory_shared_by_the_batch_is_caught():
    layer, x = made('infini', as_coded=AsCoded(shared=True)), normal(2, 10, 8)
    with pytest.raises(AssertionError, match='a change of one row reached another'): check_rows(layer, x)
    state = layer(x[:, :8])[1]
    assert torch.equal(state.M[0], state.M[1])
    alone = [made('infini')(x[i:i+1, :4])[1].M for i in range(2)]
    assert error_ratio(layer(x[:, :4])[1].M[:1], sum(alone) / 2) < 1e-12
    with pytest.raises(ValueError, match='one shared memory needs them at the same place'): layer(x, InfiniState.cat([layer(x[:1, :2])[1], layer(x[1:, :3])[1]]))


@pytest.mark.parametrize('t, held', [(1, 0), (5, 0), (3, 4), (7, 2)])
def test_09_linear_attention_forms(t, held):
    "The loop and the chunks equal an explicit double loop, and so do the sums they leave."
    q, k, v = normal(2, t, 2, 3).exp(), normal(2, held + t, 2, 3, seed=1).exp(), normal(2, held + t, 2, 4, seed=2)
    own = torch.tensor([held, held // 2])
    want = torch.zeros(2, t, 2, 4).double()
    for b, i, h in itertools.product(range(2), range(t), range(2)):
        read = [(q[b, i, h] @ k[b, j, h], v[b, j, h]) for j in range(held - own[b], held + i + 1)]
        want[b, i, h] = sum(w * u for w, u in read) / (sum(w for w, _ in read) + 1e-6)
    keys = torch.stack([k[b, held - own[b]:].sum(0) for b in range(2)])
    for form in (linear_loop, linear_local):
        got, (M, z) = form(q, k, v, own)
        assert error_ratio(got, want) < 1e-12 and error_ratio(z, keys) < 1e-12
        assert error_ratio(M, torch.stack([torch.einsum('shd,shv->hdv', k[b, held - own[b]:], v[b, held - own[b]:]) for b in range(2)])) < 1e-12


@pytest.mark.parametrize('rule', ['additive', 'delta'])
def test_09_memory_is_linear_in_the_segment(rule):
    "No tensor has S × D × D numbers: the largest grows with S, beside the one matrix."
    D = 32
    for S in (64, 256, 1024):
        config = InfiniConfig(d_model=D, n_heads=1, segment=S, chunk=32, credit=1, rule=rule)
        assert max(step(config, 2 * S)) <= 6 * S * D + D * D


IDLE = [  # a config in which a switch or an option changes nothing, and what is said of it
    *((InfiniConfig, dict(banks=0, rule=rule, as_coded=AsCoded(**{name: True})), f'{name} is about what a memory is written: with banks=0 there is none') for name, rule in (('shared', 'additive'), ('readout_scale', 'additive'))),
    (InfiniConfig, dict(banks=0, rule='delta', as_coded=AsCoded(normalised_delta=True)), 'normalised_delta is about what a memory is written: with banks=0 there is none'),
    (MultiMemoryConfig, dict(banks=1, null=False, as_coded=AsCoded(sequence_mean=True)), 'sequence_mean is about the choice among banks: with banks=1 there is none'),
    (MultiMemoryConfig, dict(banks=1, as_coded=AsCoded(sequence_mean=True, static_gate=True)), 'sequence_mean is about the choice among banks: with banks=1 there is none'),
    (HierarchicalConfig, dict(expand=0., null=False, as_coded=AsCoded(sequence_mean=True)), 'sequence_mean is about the choice among banks: with expand=0.0 it is not read'),
    (InfiniConfig, dict(segments_per_bank=7), 'segments_per_bank=7 changes nothing with banks=1'), (MultiMemoryConfig, dict(banks=1, segments_per_bank=7), 'segments_per_bank=7 changes nothing with banks=1'),
    *((InfiniConfig, dict(banks=0) | options, f'{name}=.* changes nothing with banks=0') for name, options in dict(rule=dict(rule='delta'), decay=dict(decay=.5), credit=dict(credit=2), segments_per_bank=dict(segments_per_bank=2)).items()),
    *((InfiniConfig, {'banks': 0, 'local': 'softmax', name: word}, f"{name}='{word}' changes nothing with banks=0 and local='softmax'") for name, word in (('q_kernel', 'relu'), ('k_kernel', 'softmax'), ('q_norm', 'l2'), ('k_norm', 'rms'))),
    (HierarchicalConfig, dict(expand=.5, hidden=9), 'hidden=9 changes nothing with expand=0.5'),
    *((HierarchicalConfig, dict(expand=0.) | options, f'{name}=.* changes nothing with expand=0.0') for name, options in dict(temperature=dict(temperature=2.), top=dict(top=1), null=dict(null=False)).items()),
    (MultiMemoryConfig, dict(banks=1, null=False, temperature=2.), 'temperature=2.0 changes nothing with banks=1 and null=False: leave it at its default, or change banks or null'), (MultiMemoryConfig, dict(banks=1, top=1), 'top=1 changes nothing with banks=1')]


@pytest.mark.parametrize('config, options, message', IDLE, ids=lambda v: str(v)[:60])
def test_15_switches_and_options_that_change_nothing_are_refused_by_name(config, options, message):
    with pytest.raises(ValueError, match=message): config(**WIDE, **options)


def test_15_what_is_refused_as_idle_would_indeed_have_changed_nothing(monkeypatch):
    "Past the check, the layer gives the same numbers as the one that has its default."
    monkeypatch.setattr('memlab.nn.infini.check_idle_options', lambda c: None), monkeypatch.setattr('memlab.nn.infini.check_as_coded', lambda c: None)
    for config, options, _ in IDLE:
        layers = [built(config(**WIDE, **said)) for said in (options, {n: u for n, u in options.items() if n in ('banks', 'local', 'expand') or n == 'null' and 'as_coded' in options or n == 'null' and 'temperature' in options})]
        if options.get('as_coded', AsCoded()).static_gate: layers[1] = built(config(**WIDE, banks=1, null=False, as_coded=AsCoded(static_gate=True)))
        same = dict(layers[1].named_parameters())
        with torch.no_grad():
            for name, q in layers[0].named_parameters(): q.copy_(same[name]) if name in same and q.shape == same[name].shape else None
            y, z = (layer(normal(2, 23, 8))[0] for layer in layers)
        assert error_ratio(y, z) < 1e-12, (config, options)


def test_15_switches_that_matter_are_not_refused():
    for options in (dict(as_coded=AsCoded(readout_scale=True)), dict(as_coded=AsCoded(shared=True)), dict(banks=0, as_coded=AsCoded(static_gate=True)), dict(rule='delta', as_coded=AsCoded(normalised_delta=True, readout_scale=True)),
                    dict(local='none', as_coded=AsCoded(memory_only=True))): InfiniConfig(**WIDE, **options)
    for options in (dict(as_coded=AsCoded(sequence_mean=True)), dict(banks=1, as_coded=AsCoded(sequence_mean=True)), dict(banks=1, temperature=.5), dict(banks=1, null=False)): MultiMemoryConfig(**WIDE, **options)   # with one bank it takes the null slot away
    HierarchicalConfig(**WIDE, expand=1., temperature=.5), HierarchicalConfig(**WIDE, hidden=9)


@kinds
def test_16_state_api(kind):
    "Through bytes and back bit by bit; moved to another precision; of the documented size; another layer's is refused."
    layer, x = made(kind, 'delta'), normal(2, 11, 8)
    _, state = layer(x)
    again = InfiniState(**load(save(dict(state.tensors()))))
    assert torch.equal(layer(x, again)[0], layer(x, state)[0])
    c = layer.config
    assert payload(c) == 4 * c.banks * 2 * (4 * 6 + 4) == 4 * (state.M[0].numel() + state.z[0].numel())
    small = KINDS[kind](**WIDE, rule='delta').build()
    with pytest.raises(ValueError, match=r'call state.to\(torch.float32\)'): small(x.float(), state)
    low = state.to(torch.float32)
    assert small(x.float(), low)[1].M.dtype == torch.float32 and low.writes.dtype == torch.long and low.frozen.dtype == torch.bool
    refused = dict(M=state.M[:, :, :1], z=state.z[..., 1:], writes=state.writes[:, :0], bank=state.bank[:1], k=state.k[:, :, :1], beta=state.beta[:, :, :0], frozen=state.frozen[:1])
    for name, u in refused.items():
        with pytest.raises(ValueError, match=rf'state\.{name} has shape'): layer(x, replace(state, **{name: u}))
    with pytest.raises(ValueError, match='they must be of the same tokens'): layer(x, replace(state, v=state.v[:, :1]))
    with pytest.raises(ValueError, match='belongs to another layer'): layer(x, replace(state, filled=state.filled + 1))


def test_16_sizes_of_the_source():
    sizes = [payload(c) for c in (InfiniConfig(d_model=512, n_heads=1), InfiniConfig(d_model=512, n_heads=8), MultiMemoryConfig(d_model=512, n_heads=8))]
    assert sizes == [1_050_624, 133_120, 532_480]


@kinds
def test_17_reset(kind):
    layer, x = made(kind, 'delta', conv=3), normal(2, 13, 8)
    _, state = layer(x)
    n, first = layer.config.banks, torch.tensor([True, False])
    held = state.with_frozen(True, [0], first)
    kept, gone = reset_rows(held, first), reset_rows(held, first, keep_frozen=False)
    assert torch.equal(kept.M[0, 0], state.M[0, 0]) and kept.frozen[0, 0] and kept.writes[0, 0] == state.writes[0, 0] and not kept.M[0, 1:].any() and not kept.writes[0, 1:].any()
    assert kept.bank[0] == (1 if n > 1 else 0) and kept.counter[0] == 0
    for a, b in zip(gone[:1].tensors().values(), layer.init_state(1).tensors().values()): assert not a.any() and not b.any()
    for after, name in itertools.product((kept, gone), state.tensors()): assert torch.equal(getattr(after, name)[1], getattr(held, name)[1])
    before = {n: s.clone() for n, s in held.tensors().items()}
    layer(x, held)
    for name, s in held.tensors().items(): assert torch.equal(s, before[name])


@pytest.mark.parametrize('banks, turn, frozen', [(1, 4, ()), (3, 1, ()), (3, 2, (1,)), (4, 2, (0, 3)), (2, 3, (0,)), (3, 1, (0, 1, 2))])
def test_18_round_robin(banks, turn, frozen):
    "Write i goes to bank ⌊i / turn⌋ of those that are free, in a circle; the pointer never stands on a frozen one."
    layer, free = built(InfiniConfig(**WIDE, banks=banks, segments_per_bank=turn)), [i for i in range(banks) if i not in frozen]
    state = layer.init_state(1).with_frozen(True, frozen)
    for i in range(10):
        assert not free or state.bank.item() in free
        before, state = state, layer(normal(1, 4, 8, seed=i), state)[1]
        assert (state.writes - before.writes)[0].tolist() == [int(bool(free) and j == free[i // turn % len(free)]) for j in range(banks)]
    assert state.writes.sum() == (10 if free else 0)


def test_18_freezing_in_the_middle_of_a_turn_moves_on_and_thawing_does_not_move_back():
    layer = built(InfiniConfig(**WIDE, banks=3, segments_per_bank=3))
    state = layer(normal(1, 4, 8))[1].with_frozen(True, [0])
    assert (state.bank.item(), state.counter.item()) == (1, 0)
    assert state.with_frozen(False).bank.item() == 1 and state.with_frozen(True).with_frozen(False, [2]).bank.item() == 2
    for bad in ([-1], [0, 3]):
        with pytest.raises(ValueError, match=f'there is no bank {bad[-1] if bad[-1] > 0 else bad[0]}: this memory has 3'): state.with_frozen(True, bad)
    with pytest.raises(ValueError, match='rows has 2 entries, this memory has 1 rows'): state.with_frozen(False, rows=torch.tensor([True, False]))


@kinds
@rules
def test_26_gates_are_continuous(kind, rule):
    "Between two inputs nothing jumps; every gate learns from every token; and training asks no tensor for its value."
    layer, a, b = made(kind, rule), normal(1, 13, 8), normal(1, 13, 8, seed=1)
    steps = layer(torch.cat([a + (b - a) * i / 1000 for i in range(1001)]))[0].detach()
    assert steps.diff(dim=0).abs().max() < 100 * steps.diff(dim=0).abs().mean()
    first = layer(normal(1, 8, 8, seed=2))[1]
    said = layer.trace(normal(1, 4, 8, seed=3), first)
    assert ((said['gate'] > 0) & (said['gate'] < 1)).all() and (said['weights'].sum(-1) < 1 + 1e-9).all()
    with FakeTensorMode(allow_non_fake_inputs=True):
        fresh = KINDS[kind](**WIDE | RULES[rule]).build()
        fresh(torch.randn(2, 13, 8, requires_grad=True))[0].sum().backward()


def test_28_selection_entropy():
    "As the source chose, nearly all weight is on one bank from the start; by likeness it is spread."
    found = {}
    for name, options in dict(likeness=dict(null=False), size=dict(as_coded=AsCoded(sequence_mean=True))).items():
        layer = init_parameters(MultiMemoryConfig(d_model=64, n_heads=2, segment=64, **options).build(), 0)
        with torch.no_grad(): state = layer(normal(2, 64 * 9, 64).float())[1]
        found[name] = selection(layer.routing(normal(2, 32, 64, seed=1).float(), state))
    assert (found['likeness'].largest < .5).all() and (found['likeness'].entropy > .9 * math.log(4)).all()
    assert (found['size'].largest > .95).all() and (found['size'].entropy < .2).all()
    nothing, half = torch.zeros(1, 3, 1, 2), torch.tensor([.5, .5]).expand(1, 1, 1, 2)
    mixed = selection(torch.cat([nothing, half], 1))
    assert mixed.entropy.item() == pytest.approx(math.log(2)) and mixed.largest.item() == .5 and mixed.usage.tolist() == [[.5, .5]]
    assert selection(nothing).entropy.item() == 0


def test_31_sizes_in_the_text_are_computed():
    "The one-head memory of the source is 1.05 MB, which it called 135 KB: sizes stand in outputs, and the outputs are what the formula gives."
    root, size = Path(__file__).parents[1], re.compile(r'(\d[\d,.]*) ?(bytes|KB|kB|MB)\b')
    for path in [*(root/'nbs'/'nn').glob('*.ipynb')]:
        cells = nbformat.read(path, 4).cells
        computed = {n for c in cells if c.cell_type == 'code' for n in re.findall(r'\d[\d,.]*', str(c.outputs))}
        for c in cells:
            if c.cell_type == 'markdown': assert {n for n, _ in size.findall(c.source)} <= computed, (path.name, c.source)
    cells = nbformat.read(root/'nbs'/'nn'/'infini.ipynb', 4).cells
    [shown] = [o.data['text/plain'] for c in cells if c.cell_type == 'code' for o in c.outputs if '8 heads, 4 banks' in str(o.get('data'))]
    want = {f'{h} heads, {n} banks': payload(InfiniConfig(d_model=512, n_heads=h, banks=n)) for h, n in ((1, 1), (8, 1), (8, 4))}
    assert ast.literal_eval(shown) == {name: f'{bytes_:,} bytes' for name, bytes_ in want.items()}
    assert '1,050,624 bytes' in shown and '135' not in shown


# -- layers that are one another --------------------------------------------------------------------------------------

@torch.no_grad()
def test_one_memory_by_another_name():
    "A coarse memory alone is one memory; expanded in full it is the choice; a choice among one without a null slot is no choice."
    x, layer = normal(2, 22, 8), lambda config, **o: built(config(**WIDE, **o))(x)[0]
    assert error_ratio(layer(HierarchicalConfig, expand=0.), layer(InfiniConfig)) < 1e-10
    assert error_ratio(layer(HierarchicalConfig, expand=1.), layer(MultiMemoryConfig)) < 1e-12
    assert error_ratio(layer(MultiMemoryConfig, banks=1, null=False), layer(InfiniConfig)) < 1e-12
    assert error_ratio(layer(MultiMemoryConfig, top=4), layer(MultiMemoryConfig)) < 1e-12


@torch.no_grad()
def test_memories_of_a_first_layer_add_up():
    layer, a, b = made('infini'), normal(1, 8, 8), normal(1, 12, 8, seed=1)
    one, two, both = (layer(u)[1] for u in (a, b, torch.cat([a, b], 1)))
    assert error_ratio(one.M + two.M, both.M) < 1e-12 and error_ratio(one.z + two.z, both.z) < 1e-12 and torch.equal(one.writes + two.writes, both.writes)


@pytest.mark.parametrize('heads, config, extra', [(1, InfiniConfig, 1), (8, InfiniConfig, 8), (8, MultiMemoryConfig, 8), (8, HierarchicalConfig, 8 + 65_793)])
def test_parameters_of_the_source(heads, config, extra):
    "As coded, beside four projections of 512 × 512."
    coded = [AsCoded(static_gate=True)] + ([AsCoded(static_gate=True, sequence_mean=True)] if heads == 8 and config is not InfiniConfig else [])
    with torch.device('meta'): counts = {sum(p.numel() for p in config(d_model=512, n_heads=heads, as_coded=c).build().parameters()) for c in coded}
    assert counts == {4 * 512 ** 2 + extra}
