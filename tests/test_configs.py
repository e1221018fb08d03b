"""Every configuration of data and models refuses what its fields do not mean."""
import importlib
import math
import pkgutil
from dataclasses import MISSING, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import get_args, get_origin

import pytest
import torch

from memlab.core.identity import default_of
from memlab.core.numbers import Config, meant
from memlab.data.recall import RecallConfig
from memlab.data.strings import RandomStrings
from memlab.nn.blocks import BlockConfig
from memlab.nn.delta import DeltaNetConfig
from memlab.nn.lm import ResidualLMConfig
from memlab.nn.mixer_lm import MIXERS, MixerLMConfig
from memlab.nn.mlp import MLPConfig
from memlab.nn.pythia import PythiaConfig
from memlab.nn.segment import SegmentStack
from memlab.nn.state import State

RECALL, DELTA = RecallConfig(vocab_size=16, length=16, pairs=2), DeltaNetConfig(d_model=8)
NEEDED = dict(vocab_size=16, length=32, pairs=2, rows=1, config=RECALL, configs=(RECALL,), by='documents', told=1, segment=4, tasks=(RandomStrings(),) * 2, passes=((0, 1),),
              d_model=8, mixers=(DELTA,), block=BlockConfig(), max_len=8, stack=SegmentStack(mixers=('rope',)), model=PythiaConfig(), base=MLPConfig(), layer=1, p=.5, tau=.5,
              grid=2, codes=4, width=4, sketch_width=4, samples=1, seed=0)

# What is no configuration: texts, rows and pictures that were read or drawn, and tokenizers that were fitted
MADE = {'Pictures', 'Parts', 'Document', 'Corpus', 'Images', 'Sides', 'Relation', 'Fact', 'Line', 'FactRows', 'Encoded', 'PatchTokenizer', 'VAETokenizer', 'Question', 'RecallBatch', 'Words',
        'TokenStore', 'Batch', 'StreamBatch'}

# What -1, 0 and words that nobody knows mean where they are allowed
NONE_OF_THEM = 'conv between inside after delay before copies text_rows hold fall every controls least pattern held_pairs updates focal predecessors expand max_len prefix credit banks'
MEANT = {(name, 0): 'none of them' for name in NONE_OF_THEM.split()} | {
    **{(name, 0): 'switched off' for name in ('sink_fill', 'sink_growth', 'product_fill', 'program_std', 'attn_scale', 'dropout', 'class_drop', 'memory_drop', 'strength', 'alike', 'share', 'repeats', 'rotary_pct', 'p')},
    ('slot', 0): 'the first', **{('attn_scale', -1): 'a factor of any sign', ('tau', -1): 'a cosine', ('tau', 0): 'a cosine'},
    **{(name, x): 'a weight of any sign' for name in ('s_y', 's_m') for x in (-1, 0)}, **{(name, x): 'a seed' for name in ('seed', 'permuted') for x in (-1, 0)},
    ('form', 'zzz'): 'the layer knows its forms', **{(name, 'zzz'): 'looked for when it is read' for name in ('corpus', 'tokenizer', 'images', 'wordnet')}}


def dataclasses_of(*packages):
    "All of them."
    for package in packages:
        for module in pkgutil.iter_modules(importlib.import_module(f'memlab.{package}').__path__, f'memlab.{package}.'):
            yield from (c for c in vars(importlib.import_module(module.name)).values() if isinstance(c, type) and is_dataclass(c) and c.__module__ == module.name)


CONFIGS = {c.__name__: c for c in dataclasses_of('data', 'nn') if issubclass(c, Config)}


def made(cls, **own):
    "A right one with other fields, checked again: tests check the arguments of `__init__` themselves, so wrong kinds would not reach it."
    some = cls(**{f.name: NEEDED[f.name] for f in fields(cls) if default_of(f) is MISSING})
    for name, x in own.items(): object.__setattr__(some, name, x)
    some.__post_init__()
    return some


def alternatives(kind):
    return get_args(kind) if isinstance(kind, UnionType) else (kind,)


def wrong_kinds(kind):
    "Values that no annotation of this kind means."
    kinds = alternatives(kind)
    if not set(kinds) <= {int, float, bool, str, NoneType} and not any(k is tuple or get_origin(k) is tuple for k in kinds): return []
    wrong = [math.nan, math.inf, [1], object()]
    if NoneType not in kinds: wrong.append(None)
    if bool not in kinds: wrong.append(True)
    if str not in kinds: wrong += ['false', '4']
    if float not in kinds: wrong.append(1.5)
    if bool in kinds: wrong += [2, 0]
    for k in kinds:
        if get_origin(k) is tuple: wrong += [(u,) for u in wrong_kinds(get_args(k)[0])]
    return wrong


def tries(kind):
    "Values of the kind that a range or a list of words may refuse."
    kinds = alternatives(kind)
    return [x for x in (-1, 0) if int in kinds or float in kinds] + ['zzz'] * (str in kinds)


def test_every_dataclass_of_data_and_models_is_a_configuration_or_holds_what_was_made():
    left = [c for c in dataclasses_of('data', 'nn') if not issubclass(c, Config | State)]
    assert {c.__name__ for c in left} == MADE
    assert not [(n, f.name) for n, c in CONFIGS.items() for f in fields(c) if isinstance(f.type, str)]    # a text is no annotation that can be checked


@pytest.mark.parametrize('name', CONFIGS)
def test_fields_are_what_their_annotations_say(name):
    made(cls := CONFIGS[name])
    for f in fields(cls):
        for wrong in wrong_kinds(f.type):
            with pytest.raises(ValueError): print(f'{f.name}={wrong!r} passes:', made(cls, **{f.name: wrong}))


@pytest.mark.parametrize('name', CONFIGS)
def test_numbers_are_in_range_and_words_are_known(name):
    for f in fields(cls := CONFIGS[name]):
        for x in tries(f.type):
            try: made(cls, **{f.name: x})
            except ValueError as error: assert ': ' in str(error)
            else: assert (f.name, x) in MEANT, f'{f.name}={x!r} passes'


def test_what_is_allowed_is_allowed_somewhere():
    def passes(cls, **own):
        try: return bool(made(cls, **own))
        except ValueError: return False
    assert not [(name, x) for name, x in MEANT if not any(passes(c, **{name: x}) for c in CONFIGS.values() if name in c.__dataclass_fields__)]


@pytest.mark.parametrize('kind, right, wrong', [
    (int, (3, -1, torch.tensor([3]).numpy()[0]), (True, 1., '3', None, math.nan)), (float, (1, 1., -2.), (math.nan, -math.inf, True, '1', None, 1j)), (bool, (True, False), (0, 1, 'false', None)), (str, ('', 'a'), (1, None, b'a')),
    (int | None, (None, 0), (False, 1.5)), (tuple[int, ...], ((), (1, 2)), ([1], (1, None), 1)), (tuple[int, str], ((1, 'a'),), ((1,), (1, 'a', 1), ('a', 1))), (tuple, ((1, 'a'),), ([],)),
    (MLPConfig, (MLPConfig(),), (RECALL, MLPConfig, dict(inputs=1))), (MLPConfig | RecallConfig, (RECALL,), (None,)), (tuple[tuple[int, ...], ...], (((1,), ()),), ((1,), ((1.,),)))])
def test_what_annotations_mean(kind, right, wrong):
    assert all(meant(kind)[1](x) for x in right) and not any(meant(kind)[1](x) for x in wrong)


@pytest.mark.parametrize('make, said', [
    (lambda: replace(DELTA, n_heads=0), 'n_heads=0: expected at least 1'), (lambda: replace(DELTA, dk=0), 'dk=0: expected at least 1'), (lambda: replace(DELTA, temperature=math.nan), 'temperature=nan: expected a finite number'),
    (lambda: made(PythiaConfig, tied='false'), "tied='false': expected True or False"), (lambda: MIXERS['gla'](d_model=8, rank=0), 'rank=0: expected at least 1'), (lambda: MIXERS['mamba2'](d_model=8, expand=-1), 'expand=-1: expected at least 1'),
    (lambda: MixerLMConfig(vocab_size=8, mixers=('delta',)), "mixers has 'delta' in it: expected configs of mixers"), (lambda: ResidualLMConfig(block=BlockConfig(), max_len=8).build(0, 0), 'vocab_size=0: expected a whole number of at least 1'),
    (lambda: made(CONFIGS['FactLessons'], told=5, facts=4), 'told=5: there are 4 lines in all'), (lambda: made(CONFIGS['Topics'], topics=4, pairs=2, vocab_size=16), 'vocab_size=16 is too small: 4 topics of 2 keys and as many values need 18')])
def test_what_errors_say(make, said):
    with pytest.raises(ValueError) as error: make()
    assert str(error.value).startswith(said)
