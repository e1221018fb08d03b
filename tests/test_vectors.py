"""Memory layers against other people's code, in float64, on the vectors in tests/vectors (its README says what made them).

`python tests/test_vectors.py` writes tests/vectors/verified.json, which the front page shows.
"""
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from memlab.core.files import read_json, write_json
from memlab.nn import delta, linear, titans, ttt
from memlab.nn.delta import DeltaNetConfig, GatedDeltaNetConfig
from memlab.nn.linear import BasedConfig, GLAConfig, LinearAttentionConfig, Mamba2Config, RetentionConfig
from memlab.nn.mixer import taylor
from memlab.nn.pythia import from_pretrained
from memlab.nn.softmax import AttentionConfig
from memlab.nn.softmax import FORMS as SOFTMAX

VECTORS = Path(__file__).parent/'vectors'
CHUNK = 8        # tokens, so that 19 of them end in the middle of a chunk
ALL = linear.FORMS


def vectors(name):
    "What a reference was given and what it gave, and where it comes from."
    with safe_open(VECTORS/f'{name}.safetensors', 'pt') as f:
        tensors = {n: f.get_tensor(n) for n in f.keys()}
        parts = [{n.removeprefix(p): x.double() if x.is_floating_point() else x for n, x in tensors.items() if n.startswith(p)} for p in ('in.', 'out.')]
        return *parts, f.metadata()


def bare(config, **given):
    "The layer of a configuration in float64, some of its methods giving what they are told."
    layer = config.build().double()
    for name, value in given.items(): setattr(layer, name, lambda x, value=value: value)
    return layer


def mixed(config, forms, given, q, k, v, S=None, **stubs):
    "What the memory of a layer reads, and holds at the end, in each of its forms."
    for form in forms:
        layer = bare(replace(config, form=form, chunk=CHUNK), **stubs)
        past = layer.init_state(len(q))
        o, held = layer.mix(q.new_zeros(*q.shape[:2], config.d_model), q, k, v, past if S is None else replace(past, S=S), None)
        yield dict(o=o, **held)


def written(layer, **weights):
    "A layer with all of its weights given."
    layer.load_state_dict(weights)
    return layer


# -- the layers: what was given -> what each form of ours gives ------------------------------------------------------

def linear_attention(i):
    yield from mixed(LinearAttentionConfig(d_model=12, n_heads=2, dv=4, denominator=False, q_kernel='none', k_kernel='none'), ALL, i, **i)


def retention(i): yield from mixed(RetentionConfig(d_model=12, n_heads=2, dv=4), ALL, i, **i)


def gla(i): yield from mixed(GLAConfig(d_model=12, n_heads=2, dk=6, dv=4), ALL, i, **{n: i[n] for n in 'qkvS'}, log_decay=i['g'])


def based(i): yield from mixed(BasedConfig(d_model=12, n_heads=2, dk=6, dv=4), ALL, i, taylor(i['q']), taylor(i['k']), i['v'])


def deltanet(i): yield from mixed(DeltaNetConfig(d_model=12, n_heads=2, dv=4), delta.FORMS, i, **{n: i[n] for n in 'qkvS'}, beta=i['beta'])


def gated_deltanet(i):
    yield from mixed(GatedDeltaNetConfig(d_model=12, n_heads=2, dv=4), delta.FORMS, i, **{n: i[n] for n in 'qkvS'}, beta=i['beta'], log_decay=i['g'])


def ssd(i):
    for form in ALL.values():
        o, S = form(i['q'], i['k'], i['v'], i['g'][..., None], i['S'], CHUNK)
        yield dict(o=o, S=S)


def mamba2(i):
    gate, v, k, q, step = i['in_proj.weight'].split([16, 16, 5, 5, 4])
    taps = i['conv1d.weight'][:, 0].split([16, 5, 5])
    for form in ALL:
        layer = written(bare(Mamba2Config(d_model=8, dk=5, dv=4, form=form, chunk=CHUNK)), **{
            'proj.q.weight': q, 'proj.k.weight': k, 'proj.v.weight': v, 'conv.weight': torch.cat(taps[::-1]), 'gate.weight': gate, 'out.weight': i['out_proj.weight'],
            'inner_norm.weight': i['norm.weight'], 'direct': i['D'], 'decay.step.weight': step, 'decay.bias': i['dt_bias'], 'decay.rate': i['A_log']})
        yield dict(y=layer(i['x'])[0])


def gated_deltanet_layer(i):
    q, k, v, gate = (u.flatten(0, 1) for u in i['in_proj_qkvz.weight'].view(2, 4, 4, 8).unbind(1))     # for each head q, k, v and gate
    rate, step = i['in_proj_ba.weight'].view(2, 2, 8).unbind(1)
    for form in delta.FORMS:
        layer = written(bare(GatedDeltaNetConfig(d_model=8, n_heads=2, form=form, chunk=CHUNK)), **{
            'proj.q.weight': q, 'proj.k.weight': k, 'proj.v.weight': v, 'conv.weight': i['conv1d.weight'][:, 0], 'gate.weight': gate, 'out.weight': i['out_proj.weight'],
            'norm.weight': i['norm.weight'], 'rate.weight': rate, 'decay.step.weight': step, 'decay.bias': i['dt_bias'], 'decay.rate': i['A_log']})
        yield dict(y=layer(i['x'])[0])


def attention(i, window=None):
    weights = {f'proj.{n}.weight': i[f'{n}_proj.weight'] for n in 'qkv'} | {'out.weight': i['o_proj.weight']}
    for form in SOFTMAX: yield dict(y=written(bare(AttentionConfig(d_model=8, n_heads=2, rope=True, window=window, form=form)), **weights)(i['x'])[0])


def window(i): yield from attention(i, window=5)


def pythia(i, config, folder):
    from safetensors.torch import save_file
    save_file({n: x.float() for n, x in i.items() if n != 'ids'}, folder/'model.safetensors')
    (folder/'config.json').write_text(config)
    yield dict(logits=from_pretrained(folder).double()(i['ids'])[0])


def ttt_linear(i):
    W = torch.cat([i['W'], i['c']], 1).expand(len(i['q']), -1, -1, -1)
    for form in ttt.FORMS.values():
        yield dict(o=form(i['q'], i['k'], i['v'], i['lr'], i['gain'], i['bias'], i['pos'], None, W, torch.zeros_like(W), 5)[0])


RATES = .03, .1, .3, 1

def titans_at(rate, i):
    "The loss there is a mean over channels, ours half a sum."
    M = i['M'][:, None].expand(len(i['q']), -1, -1, -1)
    for form in titans.FORMS.values():
        yield form(i['q'], i['k'], i['v'], i['eta'], 2 / 8 * rate * i['step'], i['alpha'], M, torch.zeros_like(M), CHUNK)[0]


def titans_memory(i):
    for outs in zip(*(titans_at(rate, i) for rate in RATES)): yield {f'exact.{rate}': o[:, :, 0] for rate, o in zip(RATES, outs)}


CASES = {   # in the order of the table: vectors, layer, what is compared, ours
    'attention': ('Attention with RoPE', 'the layer', attention),
    'window': ('Sliding window', 'the layer', window),
    'pythia': ('Pythia', 'logits', pythia),
    'linear_attention': ('Linear attention', 'reads and memory', linear_attention),
    'retention': ('Retention', 'reads', retention),
    'gla': ('GLA', 'reads and memory', gla),
    'based': ('Based', 'reads', based),
    'ssd': ('Mamba-2', 'reads and memory', ssd),
    'mamba2': ('Mamba-2', 'the layer', mamba2),
    'deltanet': ('DeltaNet', 'reads and memory', deltanet),
    'gated_deltanet': ('Gated DeltaNet', 'reads and memory', gated_deltanet),
    'gated_deltanet_layer': ('Gated DeltaNet', 'the layer', gated_deltanet_layer),
    'ttt': ('TTT-Linear', 'reads', ttt_linear),
    'titans': ('Titans, linear', 'reads', titans_memory),
}


def apart(got, want):
    "The largest difference as a share of the largest number that was wanted."
    return ((got - want).abs().max() / want.abs().max()).item()


@torch.no_grad()
def errors(name, folder):
    "The largest error of each form."
    given, wanted, about = vectors(name)
    made = CASES[name][2](given, **(dict(config=about['config'], folder=folder) if name == 'pythia' else {}))
    return [max(apart(ours[n], x) for n, x in wanted.items() if n in ours) for ours in made]


@torch.no_grad()
def at_chunk_starts():
    "By rate, how far reads stand from the exact ones where all gradients of 16 tokens are taken at the memory before them."
    given, wanted, _ = vectors('titans')
    gap = lambda a, b: ((a - b).norm() / b.norm()).item()
    return {f'{rate:g}': gap(wanted[f'chunk.{rate}'], next(titans_at(rate, given))[:, :, 0]) for rate in RATES}


def verified(folder):
    "What the front page says."
    rows = [dict(vectors=name, layer=layer, compared=compared, error=float(f'{max(errors(name, folder)):.1e}'), **{k: vectors(name)[2][k] for k in ('repository', 'commit', 'function')})
            for name, (layer, compared, _) in CASES.items()]
    return dict(layers=rows, titans_at_chunk_starts={rate: round(gap, 2) for rate, gap in at_chunk_starts().items()})


# -- tests -----------------------------------------------------------------------------------------------------------

def stated(): return read_json(VECTORS/'verified.json')


@pytest.mark.parametrize('name', CASES)
def test_every_form_gives_what_the_reference_gives(name, tmp_path):
    found = errors(name, tmp_path)
    said = next(row['error'] for row in stated()['layers'] if row['vectors'] == name)
    assert found and max(found) <= 1e-13, found
    assert max(found) <= 10 * said <= 1e-12, f'{max(found):.1e} where {said:.1e} is stated: run `python tests/test_vectors.py`'


def test_what_is_stated_is_what_the_files_say():
    assert {f.stem for f in VECTORS.glob('*.safetensors')} == set(CASES) == {row['vectors'] for row in stated()['layers']}
    for row in stated()['layers']: assert {k: row[k] for k in ('repository', 'commit', 'function')}.items() <= vectors(row['vectors'])[2].items()
    assert sum(f.stat().st_size for f in VECTORS.iterdir()) <= 200_000


def test_a_gradient_taken_at_the_chunk_start_is_another_memory():
    found = at_chunk_starts()
    assert found == pytest.approx(stated()['titans_at_chunk_starts'], abs=.01) and list(found.values()) == sorted(found.values())
    assert found['0.03'] > .05 and found['1'] > 5


@pytest.mark.parametrize('name', CASES)
def test_everything_that_was_given_matters(name, tmp_path, monkeypatch):
    "With any tensor a little off, no form gives what the reference gives."
    given, wanted, about = vectors(name)
    r = torch.Generator().manual_seed(0)
    for which, x in given.items():
        if not x.is_floating_point(): continue
        off = given | {which: x + .01 * torch.randn(x.shape, generator=r).double()}
        monkeypatch.setitem(globals(), 'vectors', lambda name: (off, wanted, about))
        assert min(errors(name, tmp_path)) > 1e-8, which


if __name__ == '__main__':
    from tempfile import TemporaryDirectory
    with TemporaryDirectory() as d: found = verified(Path(d))
    write_json(VECTORS/'verified.json', found)
    for row in found['layers']: print(f"{row['error']:.1e}  {row['layer']}: {row['repository']}, {row['function']}")
    print(found['titans_at_chunk_starts'])
