"""Every mixer by name and under its options: forms, cuts, causality, rows, sizes, gradients through the state, and what is refused."""
import itertools
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from memlab.nn.attention import CausalAttention, LearnedPositions
from memlab.nn.checks import check_mixer, error_ratio
from memlab.nn.delta import DeltaNetConfig, GatedDeltaNetConfig, delta_recurrent
from memlab.nn.infini import InfiniConfig
from memlab.nn.generate import generate
from memlab.nn.init import init_parameters
from memlab.nn.linear import BasedConfig, GLAConfig, LinearAttentionConfig, Mamba2Config, linear_recurrent
from memlab.nn.lm import TransformerLM
from memlab.nn.memory import check_memory
from memlab.nn.mixer import KERNELS, NORMS, precise
from memlab.nn.models import MEMORIES
from memlab.nn.mixer_lm import MIXERS, MixerLMConfig, mixer_config
from memlab.nn.pythia import PythiaConfig
from memlab.nn.segment import SegmentStack
from memlab.nn.softmax import AttentionConfig, UnifiedKVConfig
from memlab.nn.state import State
from memlab.nn.titans import titans_chunked, titans_recurrent
from torch.utils._python_dispatch import TorchDispatchMode

WIDE = dict(d_model=8, n_heads=2, dk=4, dv=6, chunk=4)
PLAIN = dict(d_model=8, n_heads=2, dk=4, chunk=4)
OPTIONS = dict(
    attention=AttentionConfig(**WIDE, conv=3, q_gated=True, out_norm='rms', out_gate='silu'), windowed=AttentionConfig(**WIDE, window=3, rope=True),
    unified_kv=UnifiedKVConfig(**PLAIN, conv=4, rope=True, q_norm='l2'), linear=LinearAttentionConfig(**WIDE, conv=4, k_norm='sum', q_norm='sum'),
    dpfp=LinearAttentionConfig(**WIDE, q_kernel='dpfp', k_kernel='dpfp'), relu=LinearAttentionConfig(**WIDE, q_kernel='relu', k_kernel='relu', denominator=False, v_kernel='silu'),
    softmax_keys=DeltaNetConfig(**WIDE, q_norm='softmax', k_norm='softmax', conv=0), rms_keys=GatedDeltaNetConfig(**WIDE, k_kernel='silu', q_kernel='silu', k_gated=True),
    rope=DeltaNetConfig(**WIDE, rope=True, negative=True), retention=mixer_config('retention', **WIDE), gla=GLAConfig(**WIDE, rank=3, conv=4), based=BasedConfig(**WIDE),
    mamba2=Mamba2Config(d_model=8, dk=5, dv=4, chunk=4), delta=DeltaNetConfig(**WIDE), gated_delta=GatedDeltaNetConfig(**WIDE), titans=mixer_config('titans', **WIDE),
    titans_plain=mixer_config('titans', **WIDE, momentum=False, decay=False), ttt=mixer_config('ttt', **PLAIN), baseconv=mixer_config('baseconv', d_model=8))


def built(config, seed=0):
    "A float64 layer with weights large enough to matter."
    return init_parameters(config.build(), seed, std=.5).double()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_every_mixer_has_an_options_row():
    assert {type(c) for c in OPTIONS.values()} == set(MIXERS.values())


@pytest.mark.parametrize('name', OPTIONS)
def test_a_mixer_passes_every_check(name):
    check_mixer(built(OPTIONS[name]), normal(3, 19, 8))


@pytest.mark.parametrize('name', [n for n, c in OPTIONS.items() if hasattr(c, 'form')])
def test_forms_agree_in_outputs_states_and_every_gradient(name):
    "Through the whole layer, from a state that is not empty, with gradients of inputs, weights and state."
    config = OPTIONS[name]
    forms = config.build().FORMS
    def everything(form, dtype=torch.float64):
        layer = built(replace(config, form=form)).to(dtype)
        with torch.no_grad(): state = layer(normal(2, 5, 8, seed=1).to(dtype))[1]
        leaves = {n: s.clone().requires_grad_() for n, s in state.tensors().items() if s.is_floating_point()}
        x = normal(2, 9, 8, seed=2).to(dtype).requires_grad_()
        y, end = layer(x, replace(state, **leaves))
        value = sum((u.double() * normal(*u.shape, seed=3)).sum() for u in (y, *(s for s in end.tensors().values() if s.is_floating_point())))
        wanted = [x, *leaves.values(), *layer.parameters()]
        slopes = torch.autograd.grad(value, wanted, allow_unused=True)
        return [y, *end.tensors().values(), *(g if g is not None else torch.zeros_like(w) for g, w in zip(slopes, wanted))]
    loop = everything('recurrent')
    for form in forms:
        for got, want in zip(everything(form), loop): assert error_ratio(got, want) < 1e-9, form
        for got, want in zip(everything(form, torch.float32)[:2], loop): assert error_ratio(got, want) < 1e-4, form


@pytest.mark.parametrize('name', OPTIONS)
def test_rows_with_different_histories_go_on_together(name):
    layer = built(OPTIONS[name])
    x = normal(2, 30, 8)
    with torch.no_grad():
        (_, a), (_, b) = layer(x[:1, :20]), layer(x[1:, :3])
        both, end = layer(x[:, 20:], type(a).cat([a, b]))
        alone = torch.cat([layer(x[:1, 20:], a)[0], layer(x[1:, 20:], b)[0]])
    assert error_ratio(both, alone) < 1e-10
    assert end.seen.tolist() == [30, 13]


@pytest.mark.parametrize('name', MIXERS)
def test_a_model_in_bfloat16_stays_near_the_loop_in_float64(name):
    "Autocast rounds the layers around a memory, not the memory."
    fields = dict(d_model=32) | (dict(n_heads=2, conv=4) if name not in ('baseconv', 'mamba2') else {})
    layer = init_parameters(mixer_config(name, **fields).build(), 0, std=.2)
    exact = init_parameters(mixer_config(name, **fields | (dict(form='recurrent') if 'form' in MIXERS[name].__dataclass_fields__ else {})).build(), 0, std=.2).double()
    x = normal(2, 512, 32)
    with torch.no_grad():
        with torch.autocast('cpu', torch.bfloat16): y, state = layer(x.float())
        want = exact(x)[0]
    assert error_ratio(y, want) < .05
    assert all(s.dtype in (torch.float32, torch.int64, torch.bfloat16) for s in state.tensors().values())
    assert state.numel() == layer.state_size(512)


# -- equivalences -----------------------------------------------------------------------------------------------------

def test_titans_without_momentum_and_decay_is_the_delta_rule():
    b, t, h, k, v = 2, 37, 2, 3, 4
    q, key, value, rate = normal(b, t, h, k), torch.nn.functional.normalize(normal(b, t, h, k, seed=1), dim=-1), normal(b, t, h, v, seed=2), normal(b, t, h, seed=3).sigmoid()
    M, zero = normal(b, h, k, v, seed=4), torch.zeros(b, t, h, dtype=torch.float64)
    want, S = delta_recurrent(q, key, value, rate, None, M)
    for form in (titans_recurrent, titans_chunked):
        o, got, _ = form(q, key, value, zero, rate, zero, M, torch.zeros_like(M), 16)
        assert error_ratio(o, want) < 1e-10 and error_ratio(got, S) < 1e-10


def test_linear_attention_is_the_delta_rule_on_orthogonal_keys():
    eye = torch.eye(6, dtype=torch.float64)[None, :, None]
    v, S = normal(1, 6, 1, 4), torch.zeros(1, 1, 6, 4, dtype=torch.float64)
    for a, b in zip(delta_recurrent(eye, eye, v, torch.ones(1, 6, 1, dtype=torch.float64), None, S), linear_recurrent(eye, eye, v, None, S)): assert error_ratio(a, b) < 1e-12


def test_orthonormal_keys_are_recalled():
    eye = torch.eye(4, dtype=torch.float64)[None, :, None]
    v, ones, zero = normal(1, 4, 1, 3), torch.ones(1, 4, 1, dtype=torch.float64), torch.zeros(1, 1, 4, 3, dtype=torch.float64)
    memories = [linear_recurrent(eye, eye, v, None, zero)[1], delta_recurrent(eye, eye, v, ones, None, zero)[1], titans_recurrent(eye, eye, v, 0 * ones, ones, 0 * ones, zero, zero, 4)[1]]
    for S in memories: torch.testing.assert_close(torch.einsum('bthk,bhkv->bthv', eye, S), v, rtol=1e-12, atol=1e-12)


# -- numbers that were published --------------------------------------------------------------------------------------

BYTES = {  # mixers, published bytes at 1,024 tokens: the mixers' memories and the inputs of the convolution layer below, 3 a channel
    'attention 64': (AttentionConfig(d_model=64), 525), 'attention 128': (AttentionConfig(d_model=128), 1050),
    'delta 64': (DeltaNetConfig(d_model=64), 9.0), 'delta 128': (DeltaNetConfig(d_model=128), 34), 'delta 256': (DeltaNetConfig(d_model=256), 134),
    'gated 64': (GatedDeltaNetConfig(d_model=64, dv=64), 17), 'gated 128': (GatedDeltaNetConfig(d_model=128, dv=128), 67), 'gated 256': (GatedDeltaNetConfig(d_model=256, dv=256), 265),
    'gla 64': (GLAConfig(d_model=64), 4.9), 'gla 128': (GLAConfig(d_model=128), 18), 'gla 256': (GLAConfig(d_model=256), 69),
    'based 48': (BasedConfig(d_model=48, n_heads=1), 9.4), 'based 64 wide': (BasedConfig(d_model=64, n_heads=1, dk=16), 41), 'based 128 wide': (BasedConfig(d_model=128, n_heads=1, dk=16), 80),
}


@pytest.mark.parametrize('name', BYTES)
def test_published_bytes_of_state(name):
    config, kilobytes = BYTES[name]
    got = 4 * (config.build().memory_size(1024) + 3 * config.d_model) / 1000
    assert got == pytest.approx(kilobytes, rel=.02)


@pytest.mark.parametrize('width, state, kilobytes', [(64, 8, 8.2), (128, 16, 33), (256, 24, 98)])
def test_published_bytes_of_mamba2(width, state, kilobytes):
    layer = Mamba2Config(d_model=width, dk=state, dv=64).build()
    assert 4 * 2 * layer.memory_size(1024) / 1000 == pytest.approx(kilobytes, rel=.02)     # two such layers


# -- what is refused --------------------------------------------------------------------------------------------------

def test_no_layer_takes_the_state_of_another_kind():
    "Also where the fields have the same names and shapes."
    layers, x = {name: built(mixer_config(name, d_model=8)) for name in MIXERS}, normal(2, 3, 8)
    states = {name: layer(x)[1] for name, layer in layers.items()}
    for a, b in itertools.permutations(MIXERS, 2):
        with pytest.raises(ValueError, match='this layer needs a|it belongs to another layer'): layers[a](x, states[b])


def test_a_state_of_another_layer_width_or_batch_is_refused():
    layer, x = built(OPTIONS['delta']), normal(2, 3, 8)
    _, state = layer(x)
    with pytest.raises(ValueError, match='this layer needs a DeltaState'): layer(x, built(OPTIONS['attention'])(x)[1])
    with pytest.raises(ValueError, match='belongs to another layer or batch'): layer(x, state[:1])
    with pytest.raises(ValueError, match='belongs to another layer or batch'): layer(x, built(replace(OPTIONS['delta'], dv=4))(x)[1])
    with pytest.raises(ValueError, match='state.S is torch.int64, expected torch.float64: it belongs to another layer'): layer(x, replace(state, S=state.S.long()))
    with pytest.raises(ValueError, match='state.seen is torch.float32, expected torch.int64'): layer(x, replace(state, seen=state.seen.float()))
    with pytest.raises(ValueError, match=r'pass \(batch, time, 8\)'): layer(normal(2, 3, 9))


@pytest.mark.parametrize('field, word, known', [('k_kernel', 'gelu', KERNELS), ('q_norm', 'batch', NORMS), ('form', 'fast', ('recurrent',))])
def test_an_unknown_word_is_refused_with_the_known_ones(field, word, known):
    with pytest.raises(ValueError, match=f'{field}={word!r}') as error: DeltaNetConfig(**WIDE, **{field: word}).build()
    assert all(repr(k) in str(error.value) for k in known)


@pytest.mark.parametrize('make, named', [
    (lambda: mixer_config('attention', **PLAIN, conv_act='none'), "conv_act='none' changes nothing with conv=0"), (lambda: DeltaNetConfig(**WIDE, beta=False, temperature=2.), 'temperature=2.0 changes nothing with beta=False'),
    (lambda: DeltaNetConfig(**WIDE, beta=False, negative=True), 'negative=True changes nothing with beta=False'),
    (lambda: MixerLMConfig(vocab_size=9, mixers=(DeltaNetConfig(**WIDE),), act='sigmoid'), "act='sigmoid' changes nothing with expand=0"),
    (lambda: MixerLMConfig(vocab_size=9, mixers=(DeltaNetConfig(**WIDE),), max_len=8), "max_len=8 changes nothing with positions='none'"),
    (lambda: CausalAttention(8, 2, head_scale='mean'), "head_scale='mean' changes nothing with values=True"), (lambda: CausalAttention(8, 2, values=False, out_fill=1.), 'out_fill=1.0 changes nothing with values=False'),
    (lambda: CausalAttention(8, 2, bias=False, out_fill=1.), 'out_fill=1.0 changes nothing with bias=False'), (lambda: PythiaConfig(rotary_pct=0., base=500.), 'base=500.0 changes nothing with rotary_pct=0.0')])
def test_an_idle_option_is_refused_by_name(make, named):
    with pytest.raises(ValueError, match=f'{named}: leave it at its default, or change'): make()


def test_a_rotation_of_an_odd_number_of_channels_is_refused_with_the_config():
    with pytest.raises(ValueError, match='rope turns pairs of channels, keys have 3'): AttentionConfig(d_model=6, rope=True)
    with pytest.raises(ValueError, match='turns 3 of 8 channels: expected an even number'): PythiaConfig(d_model=16, n_heads=2, rotary_pct=.4)


# -- states -----------------------------------------------------------------------------------------------------------

LAYERS = OPTIONS | dict(causal=None, novalue=None, infini=InfiniConfig(d_model=8, segment=4), banks=InfiniConfig(d_model=8, segment=4, rule='delta', banks=2), positions=None)

def layer_of(name):
    "A layer of each kind of state there is."
    made = dict(causal=lambda: CausalAttention(8, 2), novalue=lambda: CausalAttention(8, 2, values=False), positions=lambda: LearnedPositions(50, 8))
    return made[name]().double() if name in made else built(LAYERS[name])


class Waits(TorchDispatchMode):
    "Raises where the host would have to wait for a number from the device."
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default): raise AssertionError(f'the step asks the device: {func}')
        return func(*args, **kwargs or {})


@pytest.mark.parametrize('name', [n for n in LAYERS if n != 'positions'])
def test_a_step_never_waits_for_the_device(name):
    "Nor where documents start in the rows, but for TTT and compressive memories, which cut a call by them."
    layer, x, starts = layer_of(name), normal(2, 16, 8), torch.arange(16).view(2, 8) % 5 == 2
    with torch.no_grad():
        _, state = layer(x[:, :8])                    # at the end of a segment, where nothing of it is held
        with Waits():
            layer(x[:, 8:]), layer(x[:, 8:], state)
            if name not in ('ttt', 'infini', 'banks'): layer(x[:, 8:], None, starts=starts), layer(x[:, 8:], state, starts=starts)
    with pytest.raises(AssertionError, match='asks the device'), Waits(): x.isfinite().all().item()


def test_a_model_of_segments_never_waits_for_the_device():
    model, ids = SegmentStack(mixers=('none', InfiniConfig(d_model=16, segment=4), 'rope'), d_model=16, segment=4).build(0, 16), torch.arange(16).view(2, 8)
    with torch.no_grad(), Waits(): model(ids)
    with torch.no_grad(): model.embed.weight.fill_(torch.inf)
    assert model(ids)[0].isnan().all()                # a run that diverges goes on to a loss that is no number


@pytest.mark.parametrize('name', LAYERS)
def test_states_without_rows_are_joined_and_read(name):
    layer, x = layer_of(name), normal(2, 12, 8)
    with torch.no_grad():
        whole, state = layer(x[:, :6])[1], layer(x[:, :6])[1]
        want = layer(x[:, 6:], whole)[0]
        for none in (state[:0], state[[]], layer.init_state(0)):
            for some in ([state, none], [none, state], [none, state[:1], none, state[1:]]):
                both = type(state).cat(some)
                for a, b in zip(both.tensors().values(), state.tensors().values(), strict=True): assert torch.equal(a, b)
                assert torch.equal(layer(x[:, 6:], both)[0], want)
            nobody = type(state).cat([none, none])
            assert nobody.batch == 0 and nobody.numel() == 0 and layer(x[:0, 6:], nobody)[0].shape == (0, 6, 8)


@pytest.mark.parametrize('name', LAYERS)
def test_no_states_cannot_be_joined(name):
    T = type(layer_of(name).init_state(1))
    with pytest.raises(ValueError, match=f'no states were given: {T.__name__}.cat joins at least one'): T.cat([])
    with pytest.raises(ValueError, match=f'{T.__name__}.cat was given a State: join states of one layer'): T.cat([layer_of(name).init_state(1), State()])


@pytest.mark.parametrize('name', LAYERS)
def test_a_state_of_other_numbers_is_refused(name):
    "Floats for counters, counters of another size, double precision, and a field cut or turned: each by its name."
    layer, x = layer_of(name), normal(2, 3, 8)
    with torch.no_grad(): _, state = layer(x)
    for field, u in state.tensors().items():
        others = [u.float(), u.int()] if not u.is_floating_point() else [u.float(), u.half(), u.long(), u.to(torch.complex64)]
        for other in others:
            with pytest.raises(ValueError, match=rf'state\.{field} is {other.dtype}, expected {u.dtype}'): layer(x, replace(state, **{field: other}))
        for other in (u[:1], u[:, None]):
            with pytest.raises(ValueError, match=rf'state\.{field} has shape .*, expected'): layer(x, replace(state, **{field: other}))
    for field in state.per_token[1:]:
        with pytest.raises(ValueError, match=rf'state\.{", ".join(state.per_token)} hold \[\d, \d\] tokens'): layer(x, replace(state, **{field: getattr(state, field)[:, 1:]}))


@pytest.mark.parametrize('name', LAYERS)
def test_tokens_in_another_precision_are_refused(name):
    layer, x = layer_of(name), normal(2, 3, 8)
    with torch.no_grad(): _, state = layer(x)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for past in (None, state):
            with pytest.raises(ValueError, match=f'x is {dtype}, this layer has weights of torch.float64'): layer(x.to(dtype), past)


@pytest.mark.parametrize('name', [n for n in LAYERS if n != 'positions'])
def test_counts_below_zero_are_refused_where_a_memory_comes_in(name):
    "A layer asks the device for no number; what is written to a file, read from one, or gone on from is looked at."
    model = TransformerLM([layer_of(name)], vocab_size=11, d_model=8).double()
    with torch.no_grad(): _, memory = model(torch.arange(10).view(2, 5))
    check_memory(model, memory)
    for field, u in memory[0].tensors().items():
        if u.dtype != torch.int64: continue
        wrong = (replace(memory[0], **{field: u * 0 - 1}),)
        for call in (lambda: check_memory(model, wrong), lambda: generate(model, torch.ones(2, 1, dtype=torch.long), 3, memory=wrong)):
            with pytest.raises(ValueError, match=f'state 0: {field} is .*, expected'): call()


@pytest.mark.parametrize('name', ['attention', 'unified_kv', 'causal', 'novalue', 'windowed'])
def test_a_memory_of_fewer_tokens_than_were_seen_is_refused(name):
    model = TransformerLM([layer_of(name)], vocab_size=11, d_model=8).double()
    with torch.no_grad(): _, memory = model(torch.arange(10).view(2, 5))
    cut = replace(memory[0], **{f: getattr(memory[0], f)[:, 1:] for f in memory[0].per_token})
    with pytest.raises(ValueError, match=r'state 0: seen is \[5, 5\], of which the layer holds \d tokens, but there are \d: it is not whole'): check_memory(model, (cut,))


@pytest.mark.parametrize('name', [n for n in LAYERS if n != 'positions'])
def test_no_rows_with_a_state_are_read(name):
    "Also where a document starts, and in every place of a segment."
    layer, x = layer_of(name), normal(2, 9, 8)
    for t in range(6):
        with torch.no_grad():
            _, state = layer(x[:, :t])
            for starts in (None, torch.zeros(0, 3, dtype=torch.bool)):
                y, after = layer(x[:0, :3], state[:0], starts=starts)
                assert y.shape == (0, 3, 8) and after.batch == 0


# -- scale ------------------------------------------------------------------------------------------------------------

def test_what_a_step_costs_does_not_depend_on_what_came_before():
    "The state after many tokens has the shapes of the state after one, for every memory that is not softmax attention."
    for name in MIXERS:
        if name in ('attention', 'unified_kv'): continue
        layer = built(OPTIONS[name])
        with torch.no_grad(): early, late = layer(normal(1, 1, 8))[1], layer(normal(1, 400, 8))[1]
        assert [s.shape for s in early.tensors().values()] == [s.shape for s in late.tensors().values()]


def test_memories_keep_at_least_float32():
    seen = []
    def form(q, k, v, S, chunk): seen.append((q.dtype, S.dtype)); return v, S
    low = torch.ones(1, 1, 1, 2, dtype=torch.bfloat16)
    with torch.autocast('cpu', torch.bfloat16): o, S = precise(form, low, low, low, torch.zeros(1, 1, 2, 2))
    assert seen == [(torch.float32, torch.float32)] and o.dtype == torch.bfloat16 and S.dtype == torch.float32
    precise(form, low.double(), low.double(), low.double(), torch.zeros(1, 1, 2, 2).double())
    assert seen[1] == (torch.float64, torch.float64)


def test_mixers_import_no_plotting_and_no_kernels():
    code = 'import sys, json, memlab.nn.mixer_lm; print(json.dumps([m for m in sys.modules if m.split(".")[0] in ("matplotlib", "pandas", "datasets", "IPython", "nbdev", "triton", "fla")]))'
    assert json.loads(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout) == []


@pytest.mark.parametrize('form', ['recurrent', 'chunked', 'parallel'])
def test_weights_of_strongly_negative_keys_are_small_and_not_zero(form):
    "elu(x) + 1 is e^x below zero; taken as a difference it was 0 where float32 has no number so near to 1."
    x = torch.tensor([-80., -40., -17., -1., 0., 2., 100.], requires_grad=True)
    y = KERNELS['elu+1'].map(x)
    assert y.tolist() == pytest.approx([*x[:4].double().exp().tolist(), 1, 3, 101], rel=1e-6)
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == pytest.approx([*x[:4].double().exp().tolist(), 1, 1, 1], rel=1e-6)
    layer = built(LinearAttentionConfig(d_model=8, form=form))
    for p in layer.proj.parameters(): p.data.abs_()
    x = -normal(2, 19, 8).abs() * 10     # all queries and keys far below zero
    with torch.no_grad(): want, got = layer(x)[0], layer.float()(x.float())[0]
    assert error_ratio(got, want) < 1e-3


@pytest.mark.parametrize('name', MIXERS | MEMORIES)
def test_counts_below_zero_are_none_that_a_layer_gave(name):
    layer = built((MIXERS | MEMORIES)[name](d_model=8))
    x = normal(2, 5, 8)
    state = layer(x)[1]
    counts = [n for n, u in state.tensors().items() if u.dtype == torch.int64]
    assert 'seen' in counts and (name not in MEMORIES or {'bank', 'counter', 'writes', 'filled'} <= set(counts))
    for n in counts:
        wrong = getattr(state, n).clone()
        wrong.view(-1)[-1] = -5
        with pytest.raises(ValueError, match=f'state.{n} is .*-5.*, expected counts'): layer(x, replace(state, **{n: wrong}))
