"""Several documents in a row: outputs, states and gradients are those of the documents one by one, in every form and layer, and nothing crosses a border."""
import math
from dataclasses import replace

import pytest
import torch
from memlab.nn.adapter import Adapter
from memlab.nn.attention import CausalAttention, KVState, LearnedPositions
from memlab.nn.delta import DeltaNetConfig, GatedDeltaNetConfig
from memlab.nn.infini import AsCoded, HierarchicalConfig, InfiniConfig, InfiniState, MultiMemoryConfig, reset_rows
from memlab.nn.init import init_parameters
from memlab.nn.linear import BasedConfig, GLAConfig, LinearAttentionConfig, Mamba2Config
from memlab.nn.lm import residual_lm
from memlab.nn.mixer_lm import MIXERS, MixerLMConfig, mixer_config
from memlab.nn.pythia import PythiaAttention, PythiaConfig, PythiaLayer
from memlab.nn.segment import SegmentStack
from memlab.nn.softmax import AttentionConfig, HeldState, UnifiedKVConfig
from memlab.nn.state import State
from memlab.nn.variants import VARIANTS, vanilla

WIDE = dict(d_model=8, n_heads=2, dk=4, dv=6, chunk=4)
PLAIN = dict(d_model=8, n_heads=2, dk=4, chunk=4)
FAMILIES = dict(
    linear=dict(linear=LinearAttentionConfig(**WIDE, conv=4), undivided=LinearAttentionConfig(**WIDE, q_kernel='dpfp', k_kernel='dpfp', denominator=False), based=BasedConfig(**WIDE),
                retention=mixer_config('retention', **WIDE), gla=GLAConfig(**WIDE, rank=3, conv=4), mamba2=Mamba2Config(d_model=8, dk=5, dv=4, chunk=4)),
    delta=dict(delta=DeltaNetConfig(**WIDE), gated_delta=GatedDeltaNetConfig(**WIDE, rope=True)),
    titans=dict(titans=mixer_config('titans', **WIDE), plain=mixer_config('titans', **WIDE, momentum=False, decay=False)), ttt=dict(ttt=mixer_config('ttt', **PLAIN, mini_batch=4)),
    softmax=dict(attention=AttentionConfig(**WIDE, conv=3), rotated=AttentionConfig(**WIDE, rope=True), windowed=AttentionConfig(**WIDE, window=3, rope=True),
                 unified_kv=UnifiedKVConfig(**PLAIN, conv=4, rope=True), unified_window=UnifiedKVConfig(**PLAIN, window=4)), baseconv=dict(baseconv=mixer_config('baseconv', d_model=8)),
    infini=dict(infini=InfiniConfig(**WIDE, segment=4), softmax=InfiniConfig(**WIDE, segment=5, local='softmax', conv=3), banks=InfiniConfig(**WIDE, segment=3, rule='delta', banks=2, segments_per_bank=1),
                multi=MultiMemoryConfig(**WIDE, segment=3, banks=3), hierarchical=HierarchicalConfig(**WIDE, segment=2, banks=2, hidden=5)))

T, SEEN = 13, 6
BATCHES = ([], [4, 8], [3]), ([0], [5, 6], [12], [0, 1, 4, 5, 9, 12], range(T))   # borders of each row: at edges of chunks, inside them, two in a row, at either end, everywhere


def built(config, seed=0):
    "A float64 layer with weights large enough to matter."
    return init_parameters(config.build(), seed, std=.5).double()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def starts_at(*rows, t=T):
    "Starts of some rows."
    starts = torch.zeros(len(rows), t, dtype=torch.bool)
    for i, row in enumerate(rows): starts[i, list(row)] = True
    return starts


CASES = [pytest.param(name, replace(c, form=form) if form else c, id=f'{name}-{form}' if form else name) for family in FAMILIES.values() for name, c in family.items() for form in getattr(c.build(), 'FORMS', [None])]


# -- the definition ---------------------------------------------------------------------------------------------------

def one_by_one(layer, x, starts, state=None):
    "Each document of each row in a call of its own; the first goes on from the row's state unless it starts there."
    ys, ends = [], []
    for i, row in enumerate(starts):
        borders = [0, *(j for j in row.nonzero()[:, 0].tolist() if j), len(row)]
        s, y = None if state is None or row[0] else state[i:i+1], []
        for a, b in zip(borders, borders[1:]):
            o, end = layer(x[i:i+1, a:b], s)
            y, s = [*y, o], None
        ys, ends = [*ys, torch.cat(y, 1)], [*ends, end]
    return torch.cat(ys), type(ends[0]).cat(ends)


def held(state: State) -> list[torch.Tensor]:
    "The tensors of a state without the slots that no row owns."
    n = {KVState: ('k', 'v'), InfiniState: ('k', 'v', 'beta')}.get(type(state)) or (tuple(n for n in state.tensors() if n not in ('conv', 'seen')) if isinstance(state, HeldState) else ())
    count = state.filled if isinstance(state, InfiniState) else state.seen
    mine = lambda u: u.masked_fill((torch.arange(u.shape[1]) < u.shape[1] - count[:, None]).view(*u.shape[:2], *[1]*(u.dim() - 2)), 0.)
    short = lambda u: mine(u)[:, max(u.shape[1] - int(count.max()), 0):]
    return [short(u) if name in n else u for name, u in state.tensors().items()]


def everything(run, layer, x, starts, state):
    "Outputs, the state after them, and the gradients of a random function of both: of the input, the weights and the state before."
    leaves = {n: u.clone().requires_grad_() for n, u in state.tensors().items() if u.is_floating_point()}
    x = x.clone().requires_grad_()
    y, end = run(layer, x, starts, replace(state, **leaves))
    out = [y, *held(end)]
    value = sum((u * normal(*u.shape, seed=3)).sum() for u in out if u.is_floating_point())
    wanted = [x, *leaves.values(), *layer.parameters()]
    slopes = torch.autograd.grad(value, wanted, allow_unused=True)
    return [*out, *(torch.zeros_like(w) if g is None else g for g, w in zip(slopes, wanted))]


def packed(layer, x, starts, state): return layer(x, state, starts=starts)


def close(got, want):
    for a, b in zip(got, want, strict=True): torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# -- every mixer in every form ----------------------------------------------------------------------------------------

@pytest.mark.parametrize('name, config', CASES)
def test_a_row_gives_what_its_documents_give_one_by_one(name, config):
    layer = built(config)
    for rows in BATCHES:
        x, starts = normal(len(rows), T, 8, seed=2), starts_at(*rows)
        with torch.no_grad(): state = layer(normal(len(rows), SEEN, 8, seed=1))[1]
        close(everything(packed, layer, x, starts, state), everything(one_by_one, layer, x, starts, state))
    with torch.no_grad(): close([layer(x, starts=starts)[0]], [one_by_one(layer, x, starts)[0]])


@pytest.mark.parametrize('name, config', CASES)
@pytest.mark.parametrize('value', [1e30, math.nan])
def test_nothing_crosses_a_border(name, config, value):
    "Neither a number nor what is none, from the row before, the state before or the document before; to the bit."
    layer, x, starts = built(config), normal(2, T, 8, seed=2), starts_at([5, 9], [9])
    with torch.no_grad():
        state = layer(normal(2, SEEN, 8, seed=1))[1]
        spoilt = x.clone(); spoilt[0, 3:5] = value
        sick = replace(state, **{n: u.index_fill(0, torch.tensor([0]), value) for n, u in state.tensors().items() if u.is_floating_point()})
        want, end = layer(x, state, starts=starts)
        for got, after in (layer(spoilt, state, starts=starts), layer(x, sick, starts=starts)):
            assert torch.equal(got[0, 5:], want[0, 5:]) and torch.equal(got[1], want[1]) and not torch.equal(got[0, :5], want[0, :5])
            for a, b in zip(held(after), held(end)): assert torch.equal(a, b)


@pytest.mark.parametrize('name, config', CASES)
def test_without_starts_no_document_starts(name, config):
    layer, x = built(config), normal(2, T, 8)
    with torch.no_grad():
        (y, end), (z, after) = layer(x), layer(x, starts=torch.zeros(2, T, dtype=torch.bool))
        nothing, same = layer(x[:, :0], end, starts=torch.zeros(2, 0, dtype=torch.bool))
    close([z, *held(after)], [y, *held(end)])
    assert nothing.shape == (2, 0, 8) and all(torch.equal(a, b) for a, b in zip(held(same), held(end)))


# -- layers and models around them ------------------------------------------------------------------------------------

ATTENTION = dict(plain=dict(), rope=dict(positions='rope'), fused=dict(kernel='fused', positions='rope'), novalue=dict(values=False), deleted=dict(own='delete'), masked=dict(own='mask'), projected=dict(own='project'), sink=dict(sink=True),
                 mean=dict(sink=True, sink_kind='mean'), alibi=dict(positions='alibi'), slanted=dict(positions='alibi', values=False, sink=True, sink_growth=1.))


def drawn(layer, seed=0):
    "Every parameter of a layer drawn, in float64."
    r = torch.Generator().manual_seed(seed)
    for p in layer.parameters(): torch.nn.init.normal_(p, std=.5, generator=r)
    return layer.double()


def layers():
    return {n: drawn(CausalAttention(8, 2, **kw).double()) for n, kw in ATTENTION.items()} | dict(
        partial=drawn(PythiaAttention(8, 2, .5)), positions=drawn(LearnedPositions(SEEN + T, 8)), adapter=drawn(Adapter(DeltaNetConfig(d_model=8).build(), 8)), alone=drawn(PythiaLayer(None, 8, 16)))


@pytest.mark.parametrize('name', layers())
def test_a_layer_gives_what_documents_give_one_by_one(name):
    layer = layers()[name]
    for rows in BATCHES:
        x, starts = normal(len(rows), T, 8, seed=2), starts_at(*rows)
        with torch.no_grad(): state = layer(normal(len(rows), SEEN, 8, seed=1))[1]
        close(everything(packed, layer, x, starts, state), everything(one_by_one, layer, x, starts, state))
    with torch.no_grad():
        close([layer(x, starts=starts)[0]], [one_by_one(layer, x, starts)[0]])
        spoilt, starts = x.clone(), starts_at(*[[5, 9]]*len(x))
        spoilt[0, 3:5] = math.nan
        assert torch.equal(layer(spoilt, starts=starts)[0][0, 5:], layer(x, starts=starts)[0][0, 5:])


def test_positions_are_those_of_the_longest_document():
    "A table as long as a document serves a row of many."
    layer, x = drawn(LearnedPositions(5, 8)), normal(2, T, 8)
    assert torch.equal(layer(x, starts=starts_at([4, 9], [3, 8]))[0][:, 9], torch.stack([x[0, 9] + layer.weight[0], x[1, 9] + layer.weight[1]]))
    with pytest.raises(ValueError, match='6 positions were asked for, the table holds 5'): layer(x, starts=starts_at([4, 9], [2, 8]))


MODELS = dict({n: f for n, f in VARIANTS.items() if n in ('vanilla', 'double_attention', 'mlp_only', 'axm_values_from_mlp', 'own_masked', 'sink_key', 'attention_only_novalue', 'sigmoid_axm_own_one')},
              again=lambda **kw: VARIANTS['axm_novalue'](positions='again', **kw), times=lambda **kw: vanilla(positions='times', **kw), routed=lambda **kw: VARIANTS['executor'](router='softmax', **kw),
              growing=lambda **kw: VARIANTS['sink_gate'](sink_growth=1., **kw), learned=lambda **kw: vanilla(positions='learned', **kw), rope=lambda **kw: vanilla(positions='rope', kernel='fused', **kw), alibi=lambda **kw: vanilla(positions='alibi', kernel='fused', **kw),
              program=lambda **kw: vanilla(program_std=.5, **kw))


def model_of(name):
    if name in MODELS: return residual_lm(MODELS[name](n_layers=2, d_model=8, n_heads=2), 11, SEEN + T, std=.5)
    if name == 'pythia': return PythiaConfig(vocab_size=11, d_model=8, n_layers=2, n_heads=2, intermediate=8, rotary_pct=.5, std=.5).build()
    mixers = tuple(mixer_config(n, d_model=8) for n in (MIXERS if name == 'mixers' else ('delta', 'attention')))
    return MixerLMConfig(vocab_size=11, mixers=mixers, positions='learned', max_len=SEEN + T, expand=1, std=.5).build()


@pytest.mark.parametrize('name', [*MODELS, 'pythia', 'mixers', 'hybrid'])
def test_a_model_gives_what_documents_give_one_by_one(name):
    model = model_of(name).double()
    ids = torch.randint(11, (3, SEEN + T), generator=torch.Generator().manual_seed(0))
    rows = BATCHES[0] if name in ('mixers', 'pythia') else BATCHES[1][:3]
    starts = starts_at(*rows)
    _, memory = model(ids[:, :SEEN])
    logits, after = model(ids[:, SEEN:], memory, starts)
    want, ends = [], []
    for i, row in enumerate(starts):
        borders = [0, *(j for j in row.nonzero()[:, 0].tolist() if j), T]
        for a, b in zip(borders, borders[1:]):
            y, end = model(ids[i:i+1, SEEN + a:SEEN + b], tuple(s[i:i+1] for s in memory) if a == 0 and not row[0] else None)
            want.append(y)
        ends.append(end)
    weight = normal(1, T, 11)
    value = lambda y: (y * weight).sum()
    slopes = lambda y: torch.autograd.grad(value(y), list(model.parameters()), retain_graph=True, allow_unused=True)
    parts = torch.cat([torch.cat(want, 1)[:, i*T:(i + 1)*T] for i in range(3)])
    close([logits, *(g for g in slopes(logits) if g is not None)], [parts, *(g for g in slopes(parts) if g is not None)])
    for got, *alone in zip(after, *ends): close(held(got), held(type(got).cat(alone)))


def test_a_model_of_segments_refuses_documents_in_its_rows():
    model = SegmentStack(mixers=('rope',), d_model=16, segment=4).build(0, 11)
    with pytest.raises(ValueError, match='give each document a row'): model(torch.zeros(2, T, dtype=torch.long), None, starts_at([3], [4]))


def test_what_counts_over_a_call_refuses_documents_in_a_row():
    for config in (InfiniConfig(**WIDE, segment=4, credit=1), InfiniConfig(**WIDE, segment=4, as_coded=AsCoded(shared=True)), MultiMemoryConfig(**WIDE, segment=4, as_coded=AsCoded(sequence_mean=True))):
        with pytest.raises(ValueError, match='give each document a row of its own, or leave'): built(config)(normal(2, T, 8), None, starts_at([3], [4]))


def test_frozen_banks_outlast_a_border():
    layer, x = built(InfiniConfig(**WIDE, segment=3, banks=2, segments_per_bank=1)), normal(2, T, 8)
    with torch.no_grad():
        state = layer(x)[1].with_frozen(True, [0])
        y, after = layer(x, state, starts_at([5], [7]))
        kept = reset_rows(state, torch.tensor([True, True]))
        want = torch.cat([layer(x[:1, 5:], kept[:1])[0], layer(x[1:, 7:], kept[1:])[0]], 1)
    close([torch.cat([y[:1, 5:], y[1:, 7:]], 1)], [want])
    assert torch.equal(after.M[:, 0], state.M[:, 0]) and after.frozen.tolist() == [[True, False]]*2
