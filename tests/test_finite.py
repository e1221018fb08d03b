"""A number that is infinite or none at all reaches its own token and what comes after it, in every form; and so does a number that is only far too large."""
import math

import pytest
import torch
from memlab.nn.infini import InfiniConfig
from memlab.nn.lm import residual_lm
from memlab.nn.mixer_lm import MIXERS, MixerLMConfig, mixer_config
from memlab.nn.variants import VARIANTS
from test_packing import CASES, T, WIDE, built, layers, normal

AT = 6
wrong = pytest.mark.parametrize('value', [math.nan, -math.inf])


def spoilt(x, value):
    "One token of one row with other numbers in it."
    x = x.clone()
    x[0, AT] = value
    return x


def stays_before(layer, x, value, state=None):
    "What is before the token and in other rows is what it was, to the bit; returns the rest of the row, and the state."
    want, (got, after) = layer(x, state)[0], layer(spoilt(x, value), state)
    assert torch.equal(got[0, :AT], want[0, :AT]) and torch.equal(got[1:], want[1:]) and want.isfinite().all()
    return got[0, AT:], after


@pytest.mark.parametrize('name, config', CASES)
@wrong
def test_what_is_no_number_reaches_nothing_before_it(name, config, value):
    layer, x = built(config).float(), normal(2, T, 8).float()
    with torch.no_grad():
        _, state = layer(normal(2, 5, 8, seed=1).float())
        for past in (None, state):
            rest, after = stays_before(layer, x, value, past)
            again = layer(x, after)[0]
            assert rest.isnan().all() and again[0, 0].isnan().all() and again[1].isfinite().all()      # nor is it ever forgotten


@pytest.mark.parametrize('name, config', CASES)
@pytest.mark.parametrize('dtype, value', [(torch.float32, 1e30), (torch.float64, -1e200)])
def test_what_is_far_too_large_reaches_nothing_before_it(name, config, value, dtype):
    with torch.no_grad(): stays_before(built(config).to(dtype), normal(2, T, 8).to(dtype), value)


@pytest.mark.parametrize('name', [n for n in layers() if n not in ('positions', 'alone')])
@wrong
def test_nor_in_layers_that_are_no_mixers(name, value):
    layer, x = layers()[name], normal(2, T, 8)
    with torch.no_grad():
        for past in (None, layer(normal(2, 5, 8, seed=1))[1]):
            rest, after = stays_before(layer, x, value, past)
            assert rest.isnan().all() and layer(x, after)[0][0].isnan().all()


@pytest.mark.parametrize('name', ['axm_values_from_mlp', 'vanilla', 'double_attention'])
def test_nor_in_values_that_come_from_elsewhere(name):
    "An MLP that overflows is read by attention as values only."
    layer = residual_lm(VARIANTS[name](n_layers=1, d_model=8, n_heads=2), 11, T, std=.5).layers[0]
    x = normal(1, T, 8).float()
    with torch.no_grad():
        want = layer(x)[0]
        if layer.mlp is not None: layer.mlp.register_forward_hook(lambda module, args, m: spoilt(m, math.inf))
        assert torch.equal(layer(x)[0][0, :AT], want[0, :AT]) and not layer(x)[0][0, AT].isfinite().all()


@pytest.mark.parametrize('name', MIXERS)
def test_nor_in_a_model(name):
    model = MixerLMConfig(vocab_size=11, mixers=(mixer_config(name, d_model=8),)*2, expand=1, std=.5).build()
    ids = torch.arange(10)[None]
    with torch.no_grad():
        want = model(ids)[0]
        model.embed.weight[AT] = math.nan
        got, memory = model(ids)
        assert torch.equal(got[:, :AT], want[:, :AT]) and got[:, AT:].isnan().all()
        assert model(ids[:, :3], memory)[0].isnan().all()


def test_a_lost_document_leaves_frozen_banks():
    "They are what a reset goes back to."
    layer, x = built(InfiniConfig(**WIDE, segment=3, banks=2, segments_per_bank=1)), normal(1, T, 8)
    with torch.no_grad():
        state = layer(x)[1].with_frozen(True, [0])
        after = layer(spoilt(x, math.nan), state)[1]
    assert torch.equal(after.M[:, 0], state.M[:, 0]) and after.M[:, 1].isnan().all()
