"""Prompts of different lengths go on together as each would alone, and each ends at its own stop token."""
import pytest
import torch
from memlab.nn.generate import generate
from memlab.nn.lm import residual_lm
from memlab.nn.mixer_lm import MixerLMConfig, mixer_config
from memlab.nn.models import create_model
from memlab.nn.pythia import PythiaConfig
from memlab.nn.segment import SegmentStack
from memlab.nn.selective import SelectiveConfig
from memlab.nn.variants import vanilla

V, STEPS = 23, 8
LENGTHS = (7, 2, 7, 1, 5)


def mixers(*names, **kw): return MixerLMConfig(vocab_size=V, mixers=tuple(mixer_config(n, d_model=16, **kw) for n in names), std=.5).build()


MODELS = dict(attention=lambda: mixers('attention', rope=True), windowed=lambda: mixers('attention', window=4), unified=lambda: mixers('unified_kv', rope=True), recurrent=lambda: mixers('gated_delta', 'mamba2'), ttt=lambda: mixers('ttt'),
              hybrid=lambda: mixers('baseconv', 'delta', 'attention'), learned=lambda: residual_lm(vanilla(n_layers=2, d_model=16, n_heads=2, positions='learned'), V, 40, std=.5),
              pythia=lambda: PythiaConfig(vocab_size=V, d_model=16, n_layers=2, n_heads=2, intermediate=24, std=.5).build(), infini=lambda: create_model('infini', PythiaConfig(vocab_size=V, d_model=16, n_layers=2, n_heads=2, intermediate=24, std=.5), segment=4),
              selective=lambda: SelectiveConfig(model=PythiaConfig(vocab_size=V, d_model=16, n_layers=2, n_heads=2, intermediate=24, std=.5)).build(0, V))
models = pytest.mark.parametrize('name', MODELS)


def prompts():
    r = torch.Generator().manual_seed(0)
    return [torch.randint(V, (n,), generator=r) for n in LENGTHS]


def padded(rows, side, pad=0):
    "Prompts as a rectangle, and where they are."
    t = max(map(len, rows))
    ids, mask = torch.full((len(rows), t), pad), torch.zeros(len(rows), t, dtype=torch.bool)
    for i, row in enumerate(rows):
        at = slice(t - len(row), None) if side == 'left' else slice(0, len(row))
        ids[i, at], mask[i, at] = row, True
    return ids, mask


def alone(model, rows, steps=STEPS, memory=None, **kw):
    return [generate(model, row[None], steps, memory=None if memory is None else tuple(s[i:i+1] for s in memory), **kw) for i, row in enumerate(rows)]


def check(got, one_by_one):
    assert got.lengths.tolist() == [w.ids.shape[1] for w in one_by_one]
    for row, n, want in zip(got.ids, got.lengths.tolist(), one_by_one): assert torch.equal(row[:n], want.ids[0])


@models
def test_prompts_of_different_lengths_go_on_as_each_alone(name):
    model, rows = MODELS[name]().double(), prompts()
    want = alone(model, rows)
    for got in (generate(model, rows, STEPS), generate(model, [r.tolist() for r in rows], STEPS), *(generate(model, ids, STEPS, mask=mask) for ids, mask in (padded(rows, 'left'), padded(rows, 'right', 5)))):
        check(got, want)
    assert got.ids[1, 2 + STEPS:].tolist() == [0]*5
    more = [torch.tensor([3, 1]), torch.tensor([4]), torch.tensor([5]), torch.tensor([6, 7, 8]), torch.tensor([9])]     # the memory has read each row to its own end
    check(generate(model, more, 5, memory=got.memory), [generate(model, row[None], 5, memory=w.memory) for row, w in zip(more, want)])


@models
def test_each_row_ends_at_a_stop_token_of_its_own(name):
    model, rows = MODELS[name]().double(), prompts()
    free = generate(model, rows, STEPS)
    stop = [free.ids[0, 7 + 3].item(), free.ids[3, 1 + 5].item()]                    # said by some rows, sooner or later
    got, want = generate(model, rows, STEPS, stop=stop, pad=V - 1), alone(model, rows, stop=stop)
    check(got, want)
    assert not torch.equal(got.lengths, free.lengths) and got.ids.shape[1] == got.lengths.max()
    for row, n, prompt, whole in zip(got.ids, got.lengths.tolist(), rows, free.ids):
        said = row[len(prompt):n].tolist()
        assert row[n:].eq(V - 1).all() and whole[len(prompt):n].tolist() == said and not set(said[:-1]) & set(stop)
        assert n == len(prompt) + STEPS or said[-1] in stop
    again = [torch.tensor([2])]*len(rows)
    check(generate(model, again, 5, memory=got.memory), [generate(model, row[None], 5, memory=w.memory) for row, w in zip(again, want)])


def test_a_stop_cuts_what_is_drawn_and_changes_nothing_else():
    "Rows that have ended take none of the draws of the others."
    model, ids = MODELS['hybrid'](), torch.arange(6).view(3, 2)
    free = generate(model, ids, 30, temperature=1., seed=4)
    for stop in (7, [7, 11]):
        got = generate(model, ids, 30, temperature=1., seed=4, stop=stop)
        for row, n, whole in zip(got.ids, got.lengths.tolist(), free.ids): assert torch.equal(row[:n], whole[:n])
    assert len(set(got.lengths.tolist())) > 1
    ended = generate(model, ids, 30, stop=range(V))
    assert ended.lengths.tolist() == [3, 3, 3] and ended.ids.shape == (3, 3)


def test_a_model_of_segments_says_that_rows_must_stand_at_one_place():
    model = SegmentStack(mixers=('rope',), d_model=16, segment=4).build(0, V)
    assert generate(model, [[1, 2], [3, 4]], 6).lengths.tolist() == [8, 8]
    with pytest.raises(ValueError, match='read rows together that stand at the same place'): generate(model, [[1, 2], [3, 4, 5]], 6)


def test_what_cannot_be_generated_is_refused():
    model = MODELS['hybrid']()
    ids, mask = padded(prompts(), 'left')
    for call, why in ((lambda: generate(model, [[1, 2], []], 3), 'prompt 1 is empty: begin with the separator'), (lambda: generate(model, [], 3), 'no prompts were given'), (lambda: generate(model, ids, 3, mask=mask[:, 1:]), r'mask has shape \(5, 6\), expected \(5, 7\)'),
                      (lambda: generate(model, [[1]], 3, mask=mask), 'a mask belongs to a rectangle of tokens'), (lambda: generate(model, ids, 3, mask=mask & (torch.arange(7) != 3)), 'row 0 of the mask is .* expected one run of tokens'),
                      (lambda: generate(model, ids, 3, mask=mask.long()), 'mask is torch.int64, expected torch.bool'), (lambda: generate(model, ids, 3, mask=mask & (torch.arange(5) != 2)[:, None]), 'prompt 2 is empty'),
                      (lambda: generate(model, ids, 3, stop=V), f'stop token {V} is not in the vocabulary of {V}'), (lambda: generate(model, [[1.5]], 3), r'prompt 0 holds torch.float32 of shape \(1,\), expected whole numbers'),
                      (lambda: generate(model, ids, 3, memory=model.init_memory(2)), 'memory has 2 rows, there are 5 prompts')):
        with pytest.raises(ValueError, match=why): call()
