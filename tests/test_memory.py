"""Memory as a value: its effect, reset and reading without learning for every layer there is, and files from one process to another."""
import json
import re
import subprocess
import sys
from dataclasses import replace

import jaxtyping
import pytest
import torch
from memlab.nn.blocks import BlockConfig
from memlab.nn.checks import error_ratio
from memlab.nn.infini import AsCoded, InfiniConfig, payload
from memlab.nn.init import init_parameters
from memlab.nn.lm import residual_lm
from memlab.core.files import tensor_digest
from memlab.nn.memory import check_memory, fingerprint, freeze, keep_banks, load_memory, memory_bytes, merge_memories, reset, save_memory, trim, unfreeze, unpack
from memlab.nn.mixer_lm import MIXERS, MixerLMConfig, mixer_config
from memlab.nn.models import MEMORIES, create_model
from memlab.nn.pythia import PythiaAttention, PythiaConfig
from memlab.nn.selective import SelectiveConfig
from safetensors.torch import load_file, save, save_file

SMALL = PythiaConfig(vocab_size=67, d_model=16, n_layers=3, n_heads=2, intermediate=24, std=.3)
memories = pytest.mark.parametrize('name', MEMORIES)
rules = pytest.mark.parametrize('delta', [False, True], ids=['additive', 'delta'])


def of_mixer(name):
    fields = dict(d_model=16) | (dict(n_heads=2, conv=4) if name not in ('baseconv', 'mamba2') else {})
    return MixerLMConfig(vocab_size=67, mixers=(mixer_config(name, **fields),) * 2, std=.3).build()


MODELS = {name: lambda name=name: of_mixer(name) for name in MIXERS} | {name: lambda name=name: create_model(name, SMALL, segment=4) for name in ('pythia', *MEMORIES) if name != 'pythia'}
MODELS |= dict(pythia=lambda: SMALL.build(), no_attention=lambda: SMALL.build([None]), learned=lambda: residual_lm(BlockConfig(n_layers=2, d_model=16, n_heads=2, positions='learned'), 67, 64), selective=lambda: SelectiveConfig(model=SMALL).build(0, 67))
models = pytest.mark.parametrize('name', MODELS)


def tokens(b, t, seed=0):
    return torch.randint(67, (b, t), generator=torch.Generator().manual_seed(seed))


def same(a, b):
    "Are two memories equal to the bit?"
    return all(type(s) is type(t) and all(torch.equal(u, getattr(t, n)) for n, u in s.tensors().items()) for s, t in zip(a, b, strict=True))


@memories
@rules
@torch.no_grad()
def test_05_memory_effect(name, delta):
    "Only the banks are carried, so nothing else can move the logits."
    model, ids = create_model(name, SMALL, segment=4, use_delta_rule=delta), tokens(2, 16)
    memory = keep_banks(model, model(ids)[1])
    with_memory, without = model(ids[:, :4], memory)[0], model(ids[:, :4])[0]
    assert (with_memory - without).abs().max() > 1e-3
    assert torch.equal(model(ids[:, :4], reset(model, memory))[0], without)


@models
def test_16_state_api(name, tmp_path):
    "Saved and loaded, every model goes on to the bit; a memory of None is an empty one; the state follows device and dtype."
    model, ids = MODELS[name](), tokens(2, 23)
    with torch.no_grad(): _, memory = model(ids[:, :11])
    save_memory(tmp_path/'m', model, memory)
    back = load_memory(tmp_path/'m', model)
    with torch.no_grad():
        assert same(back, memory) and torch.equal(model(ids[:, 11:], back)[0], model(ids[:, 11:], memory)[0])
        assert error_ratio(model(ids)[0], model(ids, model.init_memory(2))[0]) < 1e-5
        exact = tuple(s.to(torch.float64) for s in memory)
        assert error_ratio(model(ids[:, 11:], memory)[0], model.double()(ids[:, 11:], exact)[0]) < 1e-4
    content = (tmp_path/'m').read_bytes()
    assert len(content) == 8 + int.from_bytes(content[:8], 'little') + memory_bytes(memory)
    assert [s.k.dtype for s in load_memory(tmp_path/'m', model) if hasattr(s, 'k')] == [torch.float64] * sum(hasattr(s, 'k') for s in memory)


def test_16_another_process_goes_on_to_the_bit(tmp_path):
    "Every memory with every rule, one bank of it frozen, an unfinished segment held."
    built = [(name, delta) for name in MEMORIES for delta in (False, True)]
    code = f"""import sys, torch; torch.set_num_threads(1)
from memlab.nn.memory import load_memory
from memlab.nn.models import create_model
from memlab.nn.pythia import PythiaConfig
from safetensors.torch import load_file, save_file
logits, ids = {{}}, load_file('ids')['ids']
for name, delta in {built}:
    model = create_model(name, {SMALL}, segment=4, use_delta_rule=delta)
    with torch.no_grad(): logits[name + str(delta)], _ = model(ids[:, 14:], load_memory(name + str(delta) + '.memory', model))
save_file(logits, 'logits')"""
    ids, want = tokens(2, 23), {}
    save_file(dict(ids=ids), tmp_path/'ids')
    for name, delta in built:
        model = create_model(name, SMALL, segment=4, use_delta_rule=delta)
        with torch.no_grad():
            memory = freeze(model(ids[:, :14])[1], banks=[0])
            want[f'{name}{delta}'] = model(ids[:, 14:], memory)[0]
        save_memory(tmp_path/f'{name}{delta}.memory', model, memory)
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    got = load_file(tmp_path/'logits')
    assert got.keys() == want.keys() and all(torch.equal(got[n], u) for n, u in want.items())


@memories
def test_16_size_is_the_documented_formula(name):
    "4 n h (d v + d) bytes a row, and 32 + 9 n for counts, pointers and flags."
    with torch.device('meta'): model = create_model(name)
    c = model.layers[0].mixer.config
    assert payload(c) == 4 * c.banks * c.n_heads * ((512 // c.n_heads) ** 2 + 512 // c.n_heads)
    for rows in (1, 3): assert memory_bytes(model.init_memory(rows)[:1]) == rows * (payload(c) + 32 + 9 * c.banks)


@torch.no_grad()
def test_16_a_memory_that_does_not_fit_is_refused_whole(tmp_path):
    model, ids = create_model('multi_memory', SMALL, segment=4), tokens(2, 8)
    memory, file = model(ids)[1], tmp_path/'m'
    save_memory(file, model, memory)
    kept = file.read_bytes()
    with pytest.raises(ValueError, match='not finite'): save_memory(file, model, (replace(memory[0], M=memory[0].M * torch.nan), *memory[1:]))
    with pytest.raises(ValueError, match='belongs to another model'): save_memory(file, model, memory[:2])
    assert file.read_bytes() == kept and [p.name for p in tmp_path.iterdir()] == ['m']
    for options, why in ((dict(num_memories=3), 'banks=3 here, 4 there'), (dict(use_delta_rule=True), "rule='delta' here, 'additive' there"), (dict(as_coded=AsCoded(static_gate=True)), "as_coded={.*} here")):
        with pytest.raises(ValueError, match=why): load_memory(file, create_model('multi_memory', SMALL, **dict(segment=4) | options))
    with pytest.raises(ValueError, match="type='HierarchicalMemory' here, 'MultiMemory' there"): load_memory(file, create_model('hierarchical', SMALL, segment=4))
    with pytest.raises(ValueError, match='other names or shapes'): load_memory(file, create_model('multi_memory', replace(SMALL, intermediate=32), segment=4))
    with pytest.raises(ValueError, match='2 layers here, 3 there'): load_memory(file, create_model('multi_memory', replace(SMALL, n_layers=2), segment=4))
    with pytest.raises(ValueError, match='base=500.0 here, 10000.0 there'): load_memory(file, create_model('multi_memory', replace(SMALL, base=500.), segment=4))
    assert same(load_memory(file, create_model('multi_memory', replace(SMALL, kernel='explicit'), segment=4, form='recurrent')), memory)


def test_16_every_truncation_is_noticed(tmp_path):
    model = create_model('infini', replace(SMALL, n_layers=1), segment=4)
    with torch.no_grad(): save_memory(tmp_path/'m', model, model(tokens(1, 6))[1])
    whole = (tmp_path/'m').read_bytes()
    for n in range(0, len(whole), 37):
        (tmp_path/'m').write_bytes(whole[:n])
        with pytest.raises(ValueError, match='m is damaged'): load_memory(tmp_path/'m', model)


@pytest.mark.parametrize('change, why', [(lambda t: t.pop('0.z'), 'not whole: 0.z on one side only'), (lambda t: t.update(extra=torch.ones(1)), 'not whole: extra on one side only'),
                                         (lambda t: t.update({'0.z': t['0.z'][..., :3]}), 'state 0: z has shape'), (lambda t: t.update({'0.M': t['0.M'] / 0}), 'state 0: M is not finite'),
                                         (lambda t: t.update({'0.filled': t['0.filled'] + 9}), 'belongs to another layer'), (lambda t: t.update({'1.seen': t['1.seen'][:1]}), r'm says batch=2, its tensors have 1, 2 rows'),
                                         (lambda t: t.update({'0.k': t['0.k'][:, :0], '0.v': t['0.v'][:, :0], '0.beta': t['0.beta'][:, :0]}), r'state 0: filled is \[3, 3\], expected 0 to 0'),
                                         *((lambda t, n=n, u=u: t.update({n: torch.full_like(t[n], u)}), f'state 0: {n[2:]} is .*, expected ' + ('counts, which are never below 0' if u < 0 else f'0 to {most}')) for n, u, most in (('0.bank', 99, 2), ('0.bank', -1, 2), ('0.bank', 3, 2), ('0.counter', 2, 1), ('0.counter', -1, 1), ('0.filled', -1, 3))),
                                         (lambda t: t.update({'0.writes': -t['0.writes']}), 'state 0: writes is .*, expected counts'), (lambda t: t.update({'1.seen': -t['1.seen']}), 'state 1: seen is .*, expected counts'),
                                         (lambda t: t['0.frozen'][1].copy_(torch.arange(3) == t['0.bank'][1]), 'state 0: bank is .*, a frozen bank while another is free'),
                                         *((lambda t, n=n, d=d: t.update({n: t[n].to(d)}), f'm has {n} in {d}, expected torch') for n, d in (('0.M', torch.float16), ('0.M', torch.float64), ('0.conv', torch.bfloat16), ('1.k', torch.bfloat16), ('0.M', torch.int64), ('0.writes', torch.int32), ('0.bank', torch.float32), ('0.frozen', torch.uint8))),
                                         (lambda t: t.update({'1.k': t['1.k'][:, 2:]}), r'state 1: k, v hold \[5, 7\] tokens'), (lambda t: t.update({'0.v': t['0.v'][:, 1:]}), r'state 0: k, v, beta hold \[2, 3\] tokens'),
                                         (lambda t: t.update({'1.k': t['1.k'][:, 2:], '1.v': t['1.v'][:, 2:]}), r'state 1: seen is \[7, 7\], of which the layer holds 7 tokens, but there are 5'),
                                         (lambda t: t.update({n: u.half() for n, u in t.items() if u.is_floating_point()}), 'in torch.float16, expected torch.float32')])
def test_16_a_file_that_lies_consistently_is_refused(change, why, tmp_path):
    "Header and digest agree with the tensors, the tensors do not fit the model."
    model = create_model('infini', SMALL, segment=4, num_memory_banks=3, segments_per_bank=2)
    with torch.no_grad(): save_memory(tmp_path/'m', model, model(tokens(2, 7))[1])
    tensors, said = unpack(tmp_path/'m')
    change(tensors)
    (tmp_path/'m').write_bytes(save({n: u.contiguous() for n, u in tensors.items()}, {'memory': json.dumps(said | dict(digest=tensor_digest(tensors)))}))
    with pytest.raises(ValueError, match=why): load_memory(tmp_path/'m', model)


HEADERS = [('{}', 'm is damaged: its header has layers=None, expected list'), ('', "header '' is not JSON"), ('{"batch": 2', 'is not JSON'), ('[' * 10 ** 5, 'is not JSON'), ('[]', 'is no JSON object'), ('3', 'is no JSON object'), ('null', 'is no JSON object'),
           *((dict(batch=u), f'batch={u!r}, expected int') for u in (2., '2', None, True)), *((dict(batch=u), f'm says batch={u}, its tensors have 2 rows') for u in (-1, 0, 3, 10 ** 18)),
           (dict(digest=None), 'digest=None, expected str'), (dict(layers={}), 'layers={}, expected list'), (dict(layers=[3]), r'layers=\[3\], expected objects'), (dict(layers=[dict(layer=3)]), 'expected objects of objects'), (dict(dtype=3), 'dtype=3, expected str')]

@pytest.mark.parametrize('header, why', HEADERS, ids=lambda u: str(u)[:30])
def test_16_a_header_that_is_none_is_refused(header, why, tmp_path):
    model = create_model('infini', SMALL, segment=4)
    with torch.no_grad(): save_memory(tmp_path/'m', model, model(tokens(2, 7))[1])
    tensors, said = unpack(tmp_path/'m')
    (tmp_path/'m').write_bytes(save(tensors, {'memory': header if isinstance(header, str) else json.dumps(said | header)}))
    with pytest.raises(ValueError, match=why): load_memory(tmp_path/'m', model)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16], ids=str)
def test_16_only_floats_follow_the_precision_of_a_model(dtype, tmp_path):
    "Another precision of the weights is the one reason for a cast, and it makes no number of a count."
    model = create_model('infini', SMALL, segment=4)
    with torch.no_grad(): save_memory(tmp_path/'m', model, model(tokens(2, 7))[1])
    tensors, said = unpack(tmp_path/'m')
    moved = create_model('infini', SMALL, segment=4).to(dtype)
    want = [u.dtype for s in moved.init_memory(2) for u in s.tensors().values()]
    assert [u.dtype for s in load_memory(tmp_path/'m', moved, foreign=True) for u in s.tensors().values()] == want
    for change in ({'0.M': tensors['0.M'].long()}, {'0.writes': tensors['0.writes'].float()}, {'0.frozen': tensors['0.frozen'].long()}):
        lies = tensors | change
        (tmp_path/'m').write_bytes(save(lies, {'memory': json.dumps(said | dict(digest=tensor_digest(lies)))}))
        with pytest.raises(ValueError, match=f'm has {next(iter(change))} in .*, expected torch'): load_memory(tmp_path/'m', moved, foreign=True)


def test_16_keys_and_values_of_autocast_are_saved_as_the_model_has_them(tmp_path):
    model, ids = create_model('infini', SMALL, segment=4), tokens(2, 11)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        memory = model(ids[:, :7])[1]
        save_memory(tmp_path/'m', model, memory)
        back = load_memory(tmp_path/'m', model)
        assert memory[1].k.dtype == torch.bfloat16 and back[1].k.dtype == torch.float32 and torch.equal(back[1].k, memory[1].k.float())
        assert torch.equal(model(ids[:, 7:], back)[0], model(ids[:, 7:], memory)[0])


@pytest.mark.parametrize('fields, why', [(dict(bank=99), 'bank is'), (dict(counter=2), 'counter is'), (dict(filled=4), 'filled is'), (dict(writes=-1), 'writes is')], ids=str)
@torch.no_grad()
def test_16_a_state_whose_pointers_lead_nowhere_is_not_saved(fields, why, tmp_path):
    model = create_model('infini', SMALL, segment=4, num_memory_banks=3, segments_per_bank=2)
    memory = model(tokens(2, 7))[1]
    broken = replace(memory[0], **{n: torch.full_like(getattr(memory[0], n), u) for n, u in fields.items()})
    with pytest.raises(ValueError, match=why): save_memory(tmp_path/'m', model, (broken, *memory[1:]))
    assert not list(tmp_path.iterdir())


def test_16_another_seed_is_taken_on_purpose_only(tmp_path):
    model, other = (create_model('infini', SMALL, segment=4, seed=s) for s in (0, 1))
    with torch.no_grad(): memory = model(tokens(2, 8))[1]
    save_memory(tmp_path/'m', model, memory)
    with pytest.raises(ValueError, match='other weights; foreign=True'): load_memory(tmp_path/'m', other)
    assert same(load_memory(tmp_path/'m', other, foreign=True), memory)


@models
@torch.no_grad()
def test_17_reset_and_update(name):
    "A row that starts afresh says what it says alone, the other goes on; reading without taking the memory leaves every byte."
    model, ids = MODELS[name]().double(), tokens(2, 23)
    _, memory = model(ids[:, :11])
    before = tuple(s.map(torch.clone) for s in memory)
    after, later = model(ids[:, 11:], reset(model, memory, torch.tensor([False, True])))
    assert same(memory, before)
    assert error_ratio(after[:1], model(ids[:1])[0][:, 11:]) < 1e-10
    assert error_ratio(after[1:], model(ids[1:, 11:])[0]) < 1e-10
    assert same(reset(model, memory), model.init_memory(2))
    assert same(reset(model, memory, torch.tensor([False, False])), memory)
    check_memory(model, trim(later))
    assert error_ratio(model(ids[:, :5], trim(later))[0], model(ids[:, :5], later)[0]) < 1e-10


@memories
@rules
@torch.no_grad()
def test_17_frozen_banks_outlive_a_reset(name, delta):
    count = dict(num_memory_banks=3) if name == 'infini' else dict(num_memories=3)
    model, ids = create_model(name, SMALL, segment=2, segments_per_bank=1, use_delta_rule=delta, **count), tokens(2, 12)
    _, memory = model(ids[:, :4], freeze(model.init_memory(2), banks=[1]))   # before the first write
    assert memory[0].writes.tolist() == [[1, 0, 1]] * 2
    kept = reset(model, freeze(memory, banks=[2], layers=[0]), torch.tensor([True, False]))
    assert kept[0].writes.tolist() == [[0, 0, 1], [1, 0, 1]] and kept[0].bank.tolist() == [0, 0]
    assert torch.equal(kept[0].M[:, 2], memory[0].M[:, 2]) and not kept[0].M[0, :2].any()
    _, frozen = model(ids, freeze(kept))
    assert torch.equal(frozen[0].M, kept[0].M) and torch.equal(frozen[0].writes, kept[0].writes)
    _, thawed = model(ids[:, :2], unfreeze(frozen, banks=[2], rows=torch.tensor([False, True])))
    assert (thawed[0].writes - frozen[0].writes).tolist() == [[0, 0, 0], [0, 0, 1]]
    assert same(reset(model, frozen, keep_frozen=False), model.init_memory(2))


@memories
@rules
@torch.no_grad()
def test_17_frozen_banks_are_read_and_never_written(name, delta):
    "Six segments in turn after a frozen memory: each says what it says right after it, whatever stood in the segments before."
    model, ids = create_model(name, SMALL, segment=4, use_delta_rule=delta), tokens(2, 32)
    known = keep_banks(model, model(ids[:, :8])[1])
    assert not torch.equal(model(ids[:, 8:12], known)[0], model(ids[:, 8:12])[0])
    m, pinned = freeze(known), freeze(known)[0]
    for segment in ids[:, 8:].split(4, 1):
        logits, m = model(segment, keep_banks(model, m))
        assert torch.equal(logits, model(segment, known)[0])
        assert same(m[:1], (replace(pinned, seen=m[0].seen),))
    other = torch.cat([(ids[:, 8:28] + 1) % 67, ids[:, 28:]], 1)
    one = SMALL.build([model.layers[0].mixer, None, None])   # nothing but the memory can carry
    known = one(ids[:, :8])[1]
    last = [one(u, m)[0][:, -4:] for m in (freeze(known), known) for u in (ids[:, 8:], other)]
    assert torch.equal(last[0], last[1]) and not torch.equal(last[2], last[3])


def test_17_gradients_pass_a_reset():
    "A row that goes on still learns from before; one that starts afresh does not."
    model, ids = of_mixer('delta').double(), tokens(2, 10)
    h = model.embed.weight.new_zeros(2, 5, 16, requires_grad=True)
    y, state = model.layers[0](h + model.embed(ids[:, :5]))
    memory = reset(model, (state, model.layers[1].init_state(2)), torch.tensor([False, True]))
    model(ids[:, 5:], memory)[0].square().sum().backward()
    assert h.grad[0].any() and not h.grad[1].any()


@pytest.mark.parametrize('options', [{}, dict(local='softmax'), dict(local='none', as_coded=AsCoded(memory_only=True)), dict(as_coded=AsCoded(readout_scale=True)), dict(as_coded=AsCoded(shared=True)), dict(num_memory_banks=2, segments_per_bank=1)], ids=str)
@torch.no_grad()
def test_merged_memories_are_what_one_reader_holds(options):
    model, ids = create_model('infini', SMALL, segment=4, **options).double(), tokens(2, 40)
    parts = [keep_banks(model, model(part)[1]) for part in ids.split([16, 8, 16], 1)]
    one, merged = keep_banks(model, model(ids)[1]), merge_memories(model, parts)
    for name, want in one[0].tensors().items(): assert torch.allclose(getattr(merged[0], name).double(), want.double(), rtol=1e-12, atol=1e-12), name
    assert error_ratio(model(ids[:, :6], merged)[0], model(ids[:, :6], one)[0]) < 1e-10


@torch.no_grad()
def test_a_memory_behind_another_mixer_does_not_add():
    ids = tokens(2, 16)
    memory = lambda: InfiniConfig(d_model=16, segment=4).build()
    behind_mlp, behind_attention = SMALL.build([None, memory()]).double(), SMALL.build([PythiaAttention(16, 2), memory()]).double()
    def off(model):
        "How far the sum lies from what one reader holds."
        one, parts = model(ids)[1][1].M, [model(part)[1][1].M for part in ids.split(8, 1)]
        return error_ratio(sum(parts), one), [keep_banks(model, model(part)[1]) for part in ids.split(8, 1)]
    exact, parts = off(behind_mlp)
    assert exact < 1e-12 and torch.allclose(merge_memories(behind_mlp, parts)[1].M, behind_mlp(ids)[1][1].M, rtol=1e-12, atol=1e-12)
    wrong, parts = off(behind_attention)
    assert wrong > 1e-3
    with pytest.raises(ValueError, match='the first mixer of this model is PythiaAttention'): merge_memories(behind_attention, parts)


def test_a_fingerprint_is_the_same_in_every_process():
    code = "import json; from memlab.nn.memory import fingerprint; from memlab.nn.models import create_model; from memlab.nn.pythia import PythiaConfig; print(json.dumps(fingerprint(create_model('hierarchical', PythiaConfig(vocab_size=67, d_model=16, n_layers=3, n_heads=2, intermediate=24, std=.3)))))"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == fingerprint(create_model('hierarchical', SMALL))


@torch.no_grad()
def test_what_a_model_could_not_go_on_from_is_refused():
    "Nothing is computed to find out."
    learned, banks = MODELS['learned'](), create_model('infini', SMALL, segment=4)
    shared = MixerLMConfig(vocab_size=67, mixers=(InfiniConfig(d_model=16, n_heads=2, segment=4, as_coded=AsCoded(shared=True)),), std=.3).build()
    seen = lambda model: model(tokens(2, 6))[1]
    far = tuple(replace(s, seen=s.seen + 100) if len(s.tensors()) == 1 else s for s in seen(learned))
    low = tuple(s.map(lambda u: u.bfloat16() if u.is_floating_point() else u) if hasattr(s, 'M') else s for s in seen(banks))
    apart = tuple(replace(s, filled=s.filled.new_tensor([1, 2])) if hasattr(s, 'filled') else s for s in seen(shared))
    for model, memory, says in ((learned, far, '106 positions were asked for, the table holds 64'), (banks, low, r'state.M is torch.bfloat16 on cpu, this layer needs'), (shared, apart, 'one shared memory needs them at the same place')):
        check_memory(model, seen(model))
        with pytest.raises(ValueError, match=says): check_memory(model, memory)


def compiled(model, part):
    "The same, with `torch.compile` around the model, its stages, or their mixers; nothing is computed, so nothing is compiled."
    if part == 'model': return torch.compile(model)
    for name, module in [*model.layers.named_children(), *([('positions', model.positions)] if model.positions else [])]:
        if part == 'stages': setattr(model if name == 'positions' else model.layers, name, torch.compile(module))
        elif getattr(module, 'mixer', None): module.mixer = torch.compile(module.mixer)
    return model


@pytest.mark.parametrize('part', ['model', 'stages', 'mixers'])
@torch.no_grad()
def test_a_compiled_model_is_the_same_model(part, tmp_path, monkeypatch):
    "Its memories, its name for them, what it refuses and how it starts."
    monkeypatch.setattr(jaxtyping.config, 'jaxtyping_disable', True)   # torch gives it a type that says nothing of the model
    for name in ('delta', 'titans', 'infini', 'hierarchical', 'no_attention', 'learned'):
        plain, other = MODELS[name](), compiled(MODELS[name](), part)
        assert fingerprint(other) == fingerprint(plain)
        memory = plain(tokens(2, 6))[1]
        for one, two in ((plain, other), (other, plain)):
            save_memory(tmp_path/'memory', one, memory)
            assert same(load_memory(tmp_path/'memory', two), memory)
        if name == 'learned':
            with pytest.raises(ValueError, match='positions were asked for, the table holds 64'): check_memory(other, tuple(replace(s, seen=s.seen + 100) if len(s.tensors()) == 1 else s for s in memory))
        if name == 'infini':
            parts = [keep_banks(plain, plain(part)[1]) for part in tokens(2, 16).split(8, 1)]
            assert same(merge_memories(other, parts), merge_memories(plain, parts))
        for a, b in zip(init_parameters(plain, 5).parameters(), init_parameters(other, 5).parameters(), strict=True): assert torch.equal(a, b) or a.ndim < 2
