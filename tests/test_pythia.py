"""Pythia against the model of transformers, files that lie, the tokenizer, and generation with every memory."""
import json
import math
import re
import sys
from dataclasses import replace

import pytest
import torch
from memlab.data.tokens import load_tokenizer
from memlab.nn.adapter import adapt
from memlab.nn.generate import generate
from memlab.nn.memory import fingerprint
from memlab.nn.models import MEMORIES, create_model
from memlab.nn.pythia import PythiaConfig, from_pretrained, neox_config, neox_name, safetensors_files
from safetensors.torch import save_file

SMALL = PythiaConfig(vocab_size=67, d_model=32, n_layers=3, n_heads=4, intermediate=48, std=.2)
KINDS = [('pythia', {}), *((name, dict(segment=4, use_delta_rule=rule)) for name in MEMORIES for rule in (False, True))]
kinds = pytest.mark.parametrize('name, options', KINDS, ids=lambda v: v if isinstance(v, str) else 'delta' if v.get('use_delta_rule') else 'additive')


def tokens(b, t, vocabulary=67, seed=0):
    return torch.randint(vocabulary, (b, t), generator=torch.Generator().manual_seed(seed))


# -- weights of others ------------------------------------------------------------------------------------------------

SHAPES = [dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, rotary_pct=.25), dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=2, intermediate_size=40, rotary_pct=1.),
          dict(hidden_size=40, num_hidden_layers=1, num_attention_heads=5, intermediate_size=64, rotary_pct=.5, rotary_emb_base=500, layer_norm_eps=1e-3, tie_word_embeddings=True)]


def theirs(folder, shape, **saving):
    "A GPT-NeoX of transformers with every number random, biases and norms included, saved to `folder`."
    transformers = pytest.importorskip('transformers')
    model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(vocab_size=67, max_position_embeddings=64, **shape)).eval()
    r = torch.Generator().manual_seed(1)
    for p in model.parameters(): p.data = torch.randn(p.shape, generator=r) * .2
    model.tie_weights()
    model.save_pretrained(folder, **saving)
    return model


@pytest.mark.parametrize('shape', SHAPES)
@torch.no_grad()
def test_logits_are_those_of_transformers(tmp_path, shape):
    want = theirs(tmp_path, shape)
    got = from_pretrained(tmp_path)
    ids = tokens(2, 50)
    assert (got(ids)[0] - want(ids).logits).abs().max() <= 1e-5
    assert sum(p.numel() for p in got.parameters()) == sum(p.numel() for p in want.parameters())
    written = generate(got, ids[:, :7], 12)[0]
    assert torch.equal(written, want.generate(ids[:, :7], attention_mask=torch.ones(2, 7), max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None))


@torch.no_grad()
def test_older_config_shards_and_buffers_are_read(tmp_path):
    want = theirs(tmp_path, SHAPES[0], max_shard_size='30KB')
    assert (tmp_path/'model.safetensors.index.json').is_file()
    said = json.loads((tmp_path/'config.json').read_text())
    old = {n: v for n, v in said.items() if n != 'rope_parameters'} | dict(rotary_pct=.25, rotary_emb_base=10000)
    (tmp_path/'config.json').write_text(json.dumps(old))
    ids = tokens(2, 50)
    assert (from_pretrained(str(tmp_path))(ids)[0] - want(ids).logits).abs().max() <= 1e-5


def test_a_model_of_the_hub_is_fetched_at_its_revision_without_pickles(tmp_path, monkeypatch):
    hub = pytest.importorskip('huggingface_hub')
    theirs(tmp_path, SHAPES[0])
    asked = {}
    monkeypatch.setattr(hub, 'snapshot_download', lambda name, **said: asked.update(said, name=name) or str(tmp_path))
    from_pretrained('EleutherAI/pythia-70m', revision='step3000')
    assert (asked['name'], asked['revision']) == ('EleutherAI/pythia-70m', 'step3000')
    assert not any(p.endswith('bin') for p in asked['allow_patterns'])


def test_without_the_hub_the_error_says_what_to_do(monkeypatch):
    hub = pytest.importorskip('huggingface_hub')
    def fails(name, **said): raise OSError('no network')
    monkeypatch.setattr(hub, 'snapshot_download', fails)
    with pytest.raises(ValueError, match='could not be fetched from the hub: no network. Without a network, give a folder'): from_pretrained('EleutherAI/pythia-70m')
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(ValueError, match='pip install huggingface_hub'): from_pretrained('EleutherAI/pythia-70m')


@pytest.mark.parametrize('said', [dict(use_parallel_residual=False), dict(hidden_act='gelu_new'), dict(attention_bias=False), dict(attention_dropout=.1), dict(hidden_dropout=.1), dict(model_type='gpt2'),
                                  dict(rope_scaling=dict(type='linear', factor=2.)), dict(rope_parameters=dict(rope_type='dynamic', factor=2.))], ids=lambda v: ','.join(v))
def test_a_config_that_would_be_computed_differently_is_refused(said):
    sizes = dict(vocab_size=67, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    assert neox_config(sizes).n_heads == 4
    with pytest.raises(ValueError, match='which is not Pythia'): neox_config(sizes | said)


BAD_INDEX = [('{', 'index.json is not JSON'), ('\udcff', 'index.json is not JSON'), ('[]', 'holds a list, expected a JSON object'), ('null', 'holds a NoneType, expected'), ('{}', 'has weight_map=None, expected an object'), ('{"weight_map": ["m"]}', "has weight_map=.'m'., expected"),
             ('{"weight_map": {}}', 'has weight_map={}, expected'), *((json.dumps(dict(weight_map=dict(a=name))), 'index.json says a: .*, expected the name of a file beside it') for name in ('../m.safetensors', '/m', 'sub/m', 'sub\\m', '..', '', 3, None)),
             ('{"weight_map": {"a": "other.safetensors"}}', 'lacks other.safetensors: is it complete')]

@pytest.mark.parametrize('content, why', BAD_INDEX)
def test_an_index_that_lies_is_refused(tmp_path, content, why):
    (tmp_path/'model.safetensors.index.json').write_bytes(content.encode(errors='surrogateescape'))
    with pytest.raises(ValueError, match=why): safetensors_files(tmp_path)


@pytest.mark.parametrize('content, why', [('{', 'config.json is not JSON'), ('[1]', 'config.json holds a list, expected a JSON object')])
def test_a_config_that_is_no_object_is_refused(tmp_path, content, why):
    (tmp_path/'config.json').write_text(content)
    with pytest.raises(ValueError, match=why): from_pretrained(tmp_path)


# -- options ----------------------------------------------------------------------------------------------------------

IDLE = [('infini', dict(segments_per_bank=7), 'segments_per_bank=7 changes nothing with num_memory_banks=1'), ('infini', dict(segments_per_bank=4, num_memory_banks=1), 'with num_memory_banks=1'), ('multi_memory', dict(banks=1, segments_per_bank=2), 'with num_memories=1'),
        ('hierarchical', dict(num_memories=1, segments_per_bank=2), 'with num_memories=1'), *(('infini', dict(num_memory_banks=0) | o, f'{next(iter(o))}=.* changes nothing with num_memory_banks=0') for o in (dict(use_delta_rule=False), dict(rule='delta'), dict(credit=1), dict(decay=.9), dict(segments_per_bank=2))),
        ('hierarchical', dict(expand=.5, hidden=64), 'hidden=64 changes nothing with expand=0.5'), ('hierarchical', dict(expand=0., hidden=64), 'hidden=64 changes nothing with expand=0.0')]

@pytest.mark.parametrize('name, options, why', IDLE)
def test_an_option_that_changes_nothing_is_refused(name, options, why):
    with pytest.raises(ValueError, match=why): create_model(name, SMALL, **options)


@pytest.mark.parametrize('name, options', [('infini', dict(num_memory_banks=2, segments_per_bank=7)), ('infini', dict(num_memory_banks=0, segment=8)), ('multi_memory', dict(segments_per_bank=7)), ('hierarchical', dict(expand=None, hidden=64)), ('hierarchical', dict(expand=0.))])
def test_an_option_that_applies_is_taken(name, options):
    config, words = create_model(name, SMALL, **options).layers[0].mixer.config, dict(num_memory_banks='banks')
    assert {o: getattr(config, words.get(o, o)) for o in options} == options


@pytest.mark.parametrize('name', MEMORIES)
@pytest.mark.parametrize('value', ['additive', 'delta', '', 0, 1, None], ids=repr)
def test_the_delta_rule_is_asked_for_by_a_truth_value(name, value):
    with pytest.raises(ValueError, match=f'use_delta_rule={value!r}: expected True or False'): create_model(name, SMALL, use_delta_rule=value)


# -- names ------------------------------------------------------------------------------------------------------------

def test_every_parameter_has_a_name_of_its_own():
    for norms, tied in ((2, False), (2, True)):
        names = [neox_name(n) for n, _ in replace(SMALL, norms=norms, tied=tied).build().named_parameters()]
        assert len(set(names)) == len(names)


# -- the lessons ------------------------------------------------------------------------------------------------------

@torch.no_grad()
def test_14_evaluation_uses_the_loaded_weights_and_leaves_them(tmp_path):
    theirs(tmp_path, SHAPES[0])
    model = from_pretrained(tmp_path)
    before, ids = fingerprint(model)['weights'], tokens(2, 20)
    generate(model, ids, 5, temperature=1.)
    assert fingerprint(model)['weights'] == before
    random = neox_config(json.loads((tmp_path/'config.json').read_text())).build()
    assert fingerprint(random)['weights'] != before and (random(ids)[0] - model(ids)[0]).abs().max() > .1


@kinds
@torch.no_grad()
def test_15_training_and_evaluation_compute_the_same(name, options):
    model, ids = create_model(name, SMALL, **options), tokens(2, 20)
    assert torch.equal(model.train()(ids)[0], model.eval()(ids)[0])


@pytest.mark.parametrize('memory', MEMORIES.values(), ids=MEMORIES)
@pytest.mark.parametrize('rule', ['additive', 'delta'])
def test_29_an_adapter_begins_as_nothing_and_learns_at_once(tmp_path, memory, rule):
    "Before layer 0 of weights that were trained elsewhere: the same logits to the bit, and a gradient; with a share of 0 as the source had it, no gradient but its own."
    theirs(tmp_path, SHAPES[0])
    base, ids = from_pretrained(tmp_path), tokens(2, 23)
    for alpha, moving in ((1., {'mixer.out.weight'}), (0., {'alpha'})):
        model = adapt(from_pretrained(tmp_path), memory(d_model=32, n_heads=2, segment=8, rule=rule).build(), alpha=alpha)
        assert torch.equal(model(ids)[0], base(ids)[0])
        torch.nn.functional.cross_entropy(model(ids[:, :-1])[0].flatten(0, 1), ids[:, 1:].flatten()).backward()
        learning = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert learning == {f'layers.0.{n}' for n in moving}


@kinds
@torch.no_grad()
def test_new_tokens_with_a_carried_memory_equal_the_whole_again(name, options):
    "Logits, token by token; then the tokens themselves, greedy and drawn."
    model, ids = create_model(name, SMALL, **options), tokens(2, 23)
    whole, memory = model(ids)[0], None
    for t in range(ids.shape[1]):
        step, memory = model(ids[:, t:t+1], memory)
        assert (step[:, 0] - whole[:, t]).abs().max() <= 1e-5
    written, end, _ = generate(model, ids, 9, temperature=1., top=5, seed=3)
    r, again = torch.Generator().manual_seed(3), ids
    for _ in range(9):
        logits = model(again)[0][:, -1]
        kept = logits.masked_fill(logits < logits.topk(5).values[:, -1:], -torch.inf)
        again = torch.cat([again, torch.multinomial(kept.softmax(-1), 1, generator=r)], 1)
    assert torch.equal(written, again)
    assert (model(ids[:, :1], end)[0] - model(torch.cat([written, ids[:, :1]], 1))[0][:, -1:]).abs().max() <= 1e-5


@kinds
def test_every_parameter_learns(name, options):
    "Three segments in a call, the gradient reaching back over two."
    options = options | (dict(credit=2) if options else {})
    model, ids = create_model(name, SMALL, **options), tokens(2, 13)
    logits, _ = model(ids[:, :-1])
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_text_goes_through_the_tokenizer_of_pythia(shared_data):
    file = shared_data/'pythia-tokenizer'/'tokenizer.json'
    if not file.is_file(): pytest.skip('no tokenizer of Pythia here')
    tokenizer, text = load_tokenizer(file), 'Memory is a value: it goes in, and another comes out.'
    model = create_model('infini', PythiaConfig(d_model=16, n_layers=2, n_heads=2, intermediate=24), segment=4)
    assert tokenizer.vocab_size <= len(model.readout)
    ids = torch.from_numpy(tokenizer.encode(text))[None]
    assert tokenizer.decode(ids[0]) == text
    written, *_ = generate(model, ids, 5)
    assert written.shape == (1, ids.shape[1] + 5) and tokenizer.decode(written[0]).startswith(text)


# -- folders that lie -------------------------------------------------------------------------------------------------

SAID = dict(model_type='gpt_neox', vocab_size=67, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, rotary_pct=.5)


def folder_of(path, said=SAID, **tensors):
    "A model folder with random weights, what its config says, and more tensors or others."
    made = {neox_name(n): torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) for n, p in neox_config(SAID).build().named_parameters()}
    (path/'config.json').write_text(json.dumps(said))
    save_file({n: u for n, u in (made | tensors).items() if u is not None}, path/'model.safetensors')
    return made


SIZES = ('vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads', 'intermediate_size')
LIES = [*((dict({name: value}), f'config.json says {name}={re.escape(repr(value))}, expected a whole number') for name in SIZES for value in ('2', 2., True, None, [2])),
        *((dict(num_hidden_layers=n), f'config.json says num_hidden_layers={n}, the files hold 2 layers') for n in (1, 3, 8000, 10**7, 10**30)), (dict(num_hidden_layers=0), 'n_layers=0: expected at least 1'),
        (dict(vocab_size=10**12), r'embed_in.weight is \(67, 16\), expected \(1000000000000, 16\)'), (dict(hidden_size=2 * 10**10), r'embed_in.weight is \(67, 16\), expected \(67, 20000000000\)'),
        (dict(intermediate_size=10**15), r'dense_h_to_4h.weight is \(24, 16\), expected \(1000000000000000, 16\)'), (dict(num_attention_heads=10**30), 'does not divide into n_heads'),
        *((dict(tie_word_embeddings=v), f'config.json says tie_word_embeddings={re.escape(repr(v))}, expected true or false') for v in ('false', 'true', 0, None, [])),
        *((dict({name: v}), f'config.json says {name}=.*, expected a (positive )?number') for name in ('rotary_pct', 'rotary_emb_base', 'layer_norm_eps') for v in ('0.5', None, True, math.nan, 10**400)),
        *((dict({name: v}), f'config.json says {name}=.*, expected a positive number') for name in ('rotary_emb_base', 'layer_norm_eps') for v in (0, -1.)),
        *((dict(rope_parameters=v), 'config.json says rope_parameters=.*, expected an object') for v in ('default', 3, [1]))]


@pytest.mark.parametrize('said, why', LIES, ids=[f'{next(iter(s))}-{str(next(iter(s.values())))[:12]}-{i}' for i, (s, _) in enumerate(LIES)])
def test_a_config_is_compared_with_the_file_before_anything_is_built(tmp_path, said, why, monkeypatch):
    folder_of(tmp_path, SAID | said)
    monkeypatch.setattr(PythiaConfig, 'build', lambda *_: pytest.fail('built'))
    with pytest.raises(ValueError, match=why): from_pretrained(tmp_path)


def test_tensors_that_are_no_weights_are_refused(tmp_path):
    name = 'gpt_neox.layers.1.attention.dense.bias'
    for tensor, why in ((torch.zeros(16, dtype=torch.int64), f'{name} is I64, expected floating-point'), (torch.zeros(3), r'dense.bias is \(3,\), expected \(16,\)'), (None, f'the file lacks {name}')):
        folder_of(tmp_path, **{name: tensor})
        with pytest.raises(ValueError, match=why): from_pretrained(tmp_path)


def test_each_tensor_comes_from_the_file_that_the_index_names(tmp_path):
    made = folder_of(tmp_path)
    (tmp_path/'model.safetensors').unlink()
    names, index = list(made), tmp_path/'model.safetensors.index.json'
    parts = [{n: made[n] for n in names[:9]}, {n: made[n] for n in names[9:]}]
    where = {n: f'm{i}.safetensors' for i, part in enumerate(parts) for n in part}
    def write(one, two, said=where):
        save_file(one, tmp_path/'m0.safetensors'); save_file(two, tmp_path/'m1.safetensors')
        index.write_text(json.dumps(dict(weight_map=said)))
    write(*parts)
    assert torch.equal(from_pretrained(tmp_path).embed.weight, made['gpt_neox.embed_in.weight'])
    for one, two, said, why in ((parts[0], parts[1] | {names[0]: torch.zeros_like(made[names[0]])}, where, f'm1.safetensors holds {names[0]}, which the index gives to m0.safetensors'),
                                (parts[0], parts[1] | {'extra': torch.zeros(1)}, where, 'm1.safetensors holds extra, of which the index says nothing'),
                                (dict(list(parts[0].items())[1:]), parts[1], where, f'm0.safetensors lacks {names[0]}, which the index gives to it')):
        write(one, two, said)
        with pytest.raises(ValueError, match=why): from_pretrained(tmp_path)
    write(parts[0], parts[1] | {'gpt_neox.layers.0.attention.bias': torch.ones(1, 1, 8, 8)})       # constants of older files are none of the model's
    assert torch.equal(from_pretrained(tmp_path).embed.weight, made['gpt_neox.embed_in.weight'])


def test_a_config_that_is_nested_without_end_is_refused(tmp_path):
    (tmp_path/'config.json').write_text('[' * 100_000)
    with pytest.raises(ValueError, match='config.json is not JSON'): from_pretrained(tmp_path)
