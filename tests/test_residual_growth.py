"""The claims of the study, decided on invented numbers: every verdict each of them can give, and what must leave it undecided.

And its arms: each differs from its base in what it is named after and in nothing else, on the same batches and from the same weights.
"""
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from math import exp, log, sqrt

import numpy as np
import pages
import pyarrow as pa
import pytest
import torch

from memlab.eval.held_out import HeldOut
from memlab.eval.stream import Streams
from memlab.lab import arm as arm_
from memlab.lab.arm import with_factors
from memlab.lab.claims import judge, names_of, read_values
from memlab.lab.records import RUNS, frame, record_table
from memlab.lab.rules import interval
from memlab.lab.stages import second_looks, wrong_in_two
from memlab.lab.study import joined
from memlab.nn.lm import residual_lm
from memlab.studies import residual_growth as rg
from memlab.train.loop import FitResult

CLAIMS = {c.id: c for c in rg.study.claims}
UNIGRAM, BIGRAM = 5., 1.6
DEVIATION = (0., 1., -1., .5, -.5, .7, -.7, .3, -.3, 0.) * 5   # of a seed, in units of the noise; none on average over 5, 10, 20, ... of them


# -- invented numbers -------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Arm:
    "What an arm measured; each a number, or a function of (seed, step) and for streams of (seed, step, layer)."
    gap: float | Callable = 0.   # held-out loss above the curve that all arms share
    rms: float | Callable = 1.   # of the stream after a layer
    cos: float | Callable = .5   # between the streams before and after a layer
    seconds: float = 10.         # a run takes
    bigram: float = BIGRAM       # floor of the text


def said(value, *where): return value(*where) if callable(value) else value


def curve(arm, seed, step):
    "Seeds and families of arms differ more than any effect below: only pairs with the right base tell."
    return 2 + 2*exp(-step/100) + seed%5/10 + .3*(' shared' in arm) + .4*(' long' in arm) + .2*(' warmup' in arm)


def asked(arm, kind): return next(m for m in arm.measures if isinstance(m, kind))


@cache
def plan(preset):
    "Arms by name with their seeds, of both stages."
    first = rg.study.presets[preset]()
    return {arm.name: (arm, seeds) for arm, seeds in joined(first.plan + (first.then(None, None) if first.then else ()))}


def rows(arm, fake, seed):
    "Records of one run, at the steps its preset measures."
    row = lambda step, metric, value, layer=None, position=None, item=None: dict(step=step, metric=metric, layer=layer, position=position, item=item, value=value)
    yield row(0, 'floor', UNIGRAM, item='unigram')
    yield row(0, 'floor', fake.bigram, item='bigram')
    for step in asked(arm, HeldOut).at: yield row(step, 'val_loss', curve(arm.name, seed, step) + said(fake.gap, seed, step))
    for step in asked(arm, Streams).at:
        for layer in range(1, arm.model.block.n_layers + 1):
            for metric in ('rms', 'cos'): yield row(step, f'{metric}_stream', said(getattr(fake, metric), seed, step, layer), layer, 'rest')
            yield row(step, 'rms_stream', 1e3, layer, 'first')                      # a position apart, which no claim may read


def tables(arms: dict, preset='cpu'):
    "Runs and records of some arms, as `study.load` gives them."
    todo = [(*plan(preset)[name], fake) for name, fake in arms.items()]
    todo = [(f'{arm.name} {seed}', arm, fake, seed) for arm, seeds, fake in todo for seed in seeds]
    runs = [dict(run_id=i, arm=arm.name, seed=seed, status='finished', seconds=fake.seconds) for i, arm, fake, seed in todo]
    records = pa.concat_tables(record_table(list(rows(arm, fake, seed)), i, arm.name, seed) for i, arm, fake, seed in todo)
    return with_factors(frame(pa.Table.from_pylist(runs, RUNS)), [arm for arm, _ in plan(preset).values()]), frame(records)


def noise(mean, size): return lambda seed, *_: mean + size*DEVIATION[seed]


def grows(*gains, size=0.):
    "A stream that grows by a factor a layer, which may differ in each third of training."
    return lambda seed, step, layer: exp(layer*(log(gains[min(len(gains) - 1, step//501)]) + size*DEVIATION[seed]))


def line(start, slope, size=0.): return lambda seed, step, layer: start + layer*(slope + size*DEVIATION[seed])
def settles(late): return lambda seed, step, layer: late if layer > 4 else .3   # of eight layers
def early(gap, until): return lambda seed, step: gap if step <= until else 0.
def at(step, gap, then=0.): return lambda seed, now: said(gap, seed, now) if now == step else then


def arms(text, fake=Arm()): return {name: fake for name in text.split(', ')}


# -- every verdict ----------------------------------------------------------------------------------------------------

ALL, ADD, SINGLE = 'r*A shared all', 'r+A shared all', 'r*A shared single'
LONGER = f'{ALL} longer', f'{ADD} longer'
def blown(gap): return Arm(gap=gap, rms=grows(2.))
def read(gap): return Arm(gap=gap, bigram=9.)   # of a text where pairs tell little
def thin(share): return lambda seed, step, layer: 1e-4 if layer == 6 and seed < 20 * share else 1.


def pair(arm, base, *cases, gap=noise(.3, .02), effect=.3):
    "Scenes of a claim that an arm costs loss against its base."
    return {arm: Arm(gap=gap), base: Arm()}, effect, [(verdict, {arm: Arm(gap=g)}) for verdict, g in cases or (('refuted', -.3), ('refuted', 0.), ('inconclusive', noise(.02, .02)), ('inconclusive', noise(.3, .6)))]


def twins(arm, base):
    "Scenes of a claim that two arms are equally good."
    return pair(arm, base, ('supported', noise(.01, .004)), ('refuted', .03), ('refuted', -.03), ('inconclusive', noise(.02, .03)), gap=0., effect=0.)


def growth(arm, most):
    "Scenes of a claim that a stream does not grow."
    return {arm: Arm(rms=grows(.9, size=.01))}, .9, [('refuted', {arm: Arm(rms=grows(7.))}), ('inconclusive', {arm: Arm(rms=grows(most, size=.2))})]


# claim: arms for which it is supported, the effect it then reports, and what changes the verdict to which
SCENES = {
    'RG1a': ({ALL: Arm(rms=grows(1.2, 1.6, 2.5))}, 2.5, [('refuted', {ALL: Arm(rms=grows(1.05, 1.2, 1.4))}), ('inconclusive', {ALL: Arm(rms=grows(1.2, 1.4, 1.5, size=.2))})]),
    'RG1b': ({ALL: Arm(rms=grows(1.2, 1.6, 2.4))}, log(2), [('refuted', {ALL: Arm(rms=grows(2., 1.6, 1.4))}), ('refuted', {ALL: Arm(rms=grows(2.))}),
                                                            ('inconclusive', {ALL: Arm(rms=lambda seed, step, layer: grows(1.2, 1.6, 1.6 if seed % 2 else 1.1)(seed, step, layer))})]),
    'RG2': ({LONGER[0]: blown(noise(.06, .01)), LONGER[1]: Arm()}, .06, [('refuted', {LONGER[0]: blown(0.)}), ('refuted', {LONGER[0]: blown(-.5)}), ('inconclusive', {LONGER[0]: blown(noise(.06, .2))})]),
    'RG3a': ({ALL: Arm(cos=settles(.999))}, .999, [('refuted', {ALL: Arm(cos=settles(.9))}), ('refuted', {ALL: Arm(cos=lambda seed, step, layer: .9 if layer == 7 else .999)}),   # one layer turns it
                                                   ('inconclusive', {ALL: Arm(cos=noise(.99, .005))})]),
    'RG3b': ({ADD: Arm(cos=settles(.9))}, .9, [('refuted', {ADD: Arm(cos=settles(.999))}), ('inconclusive', {ADD: Arm(cos=noise(.99, .005))})]),
    'RG3c': growth('r*A unshared all', 1.2), 'RG3d': growth(SINGLE, 1.2), 'RG3e': growth('r*A unshared single', 1.2),
    'RG4a': ({SINGLE: Arm(rms=grows(3.))}, 3., [('refuted', {SINGLE: Arm(rms=grows(1.3))}), ('inconclusive', {SINGLE: Arm(rms=grows(1.5, size=.3))})]),
    'RG4b': ({SINGLE: Arm(rms=grows(3.)), ALL: Arm(rms=grows(1.2))}, log(2.5), [('refuted', {ALL: Arm(rms=grows(9.))}), ('inconclusive', {ALL: Arm(rms=grows(2.8, size=.5))})]),
    'RG5a': ({ADD: Arm(rms=line(1, .6))}, .6, [('refuted', {ADD: Arm(rms=line(3, -.1))}), ('refuted', {ADD: Arm(rms=3.)}), ('inconclusive', {ADD: Arm(rms=line(3, .05, .05))})]),
    'RG5b': ({ADD: Arm(rms=line(1, .6))}, 1., [('refuted', {ADD: Arm(rms=grows(2.))}), ('inconclusive', {ADD: Arm(rms=lambda seed, step, layer: 1 + .6*layer + (seed % 2)*(layer == 4))})]),
    'RG5c': ({ADD: Arm(rms=line(1, .6)), 'r+A shared single': Arm(rms=line(3, .05))}, 12., [('refuted', {'r+A shared single': Arm(rms=line(3, .3))}), ('inconclusive', {'r+A shared single': Arm(rms=line(3, .21, .1))})]),
    'RG5d': ({'parallel shared': Arm(rms=lambda seed, step, layer: (3., 2.5, 2., 2.5, 3., 4.)[min(layer, 6) - 1])}, .5, [('refuted', {'parallel shared': Arm(rms=line(1, .5))}), ('refuted', {'parallel shared': Arm(rms=line(5, -.5))}),
                                                   ('inconclusive', {'parallel shared': Arm(rms=lambda seed, step, layer: (2. + .1*(seed % 2), 2., 2.1, 2.2, 2.3, 2.4)[min(layer, 6) - 1])})]),
    'RG6a': ({'r*A*M shared': Arm(rms=thin(1), gap=3.)}, 1., [('refuted', {'r*A*M shared': Arm(rms=1.)}), ('refuted', {'r*A*M shared': Arm(rms=.0033)}),   # 10^-2.5 is 0.00316
                                                              ('supported', {'r*A*M shared': Arm(rms=0.)}), ('inconclusive', {'r*A*M shared': Arm(rms=thin(.75))})]),
    'RG6b': ({'r*A*M shared from one': Arm(gap=at(300, noise(0, .01), then=9.)), 'vanilla shared': Arm()}, 0., [('refuted', {'r*A*M shared from one': Arm(gap=1.)}), ('inconclusive', {'r*A*M shared from one': Arm(gap=noise(.1, .1))})]),
    **{f'RG7{c}': pair(f'normed skip{x}{y}', f'vanilla{x}{y}') for c, x, y in zip('abcdef', (' shared', '') * 3, ('', '', ' all', ' all', ' deep', ' deep'))},
    'RG8a': twins(f'{ADD} affine', ADD), 'RG8b': twins(f'{ALL} affine', ALL),
    'RG9a': twins('parallel shared', 'vanilla shared'), 'RG9b': twins('parallel', 'vanilla'),
    'RG10a': twins(ADD, 'r+A shared single'), 'RG10b': twins('r+A unshared all', 'r+A unshared single'),
    'RG11a': pair('parallel shared 2A', 'parallel shared', ('refuted', at(400, .1)), ('refuted', -.1), ('refuted', at(1000, .1)), ('inconclusive', noise(.02, .05)), gap=at(500, .1), effect=.1),   # at a third, neither earlier nor later
    'RG11b': twins('parallel shared A/2', 'parallel shared'),
    'RG11c': pair('parallel shared no A', 'parallel shared', ('refuted', .06), ('inconclusive', noise(.05, .05)), gap=at(200, .03, then=.5), effect=.03),   # 200: the mean loss, 2.67, is last above 1.6 + 1 there
    'RG12a': ({'axm shared warmup 400': Arm(gap=at(500, -.1, then=.5)), 'vanilla shared warmup 400': Arm()}, .1, [('refuted', {'axm shared warmup 400': Arm(gap=.1)}), ('inconclusive', {'axm shared warmup 400': Arm(gap=noise(-.02, .05))})]),
    'RG12b': twins('axm shared', 'vanilla shared'),
    'RG13a': twins('novalue sum', 'vanilla'), 'RG13b': twins('novalue many heads', 'vanilla many heads'),
    **{id: ({f'own deleted{x}': read(noise(-.05, .005)), f'vanilla{x}': read(0.)}, .05, [('refuted', {f'own deleted{x}': read(.05)}), ('refuted', {f'own deleted{x}': read(-.005)}), ('inconclusive', {f'own deleted{x}': read(noise(-.05, .12))})])
       for id, x in (('RG17a', ''), ('RG17b', ' long'))},
}
CASES = [(claim, verdict, changes) for claim, (base, _, cases) in SCENES.items() for verdict, changes in [('supported', {}), *cases]]
USES = [(claim, arm) for claim, (base, _, _) in SCENES.items() for arm in base]


def decide(claim, changes={}):
    "What a claim says once some arms have changed."
    return judge(CLAIMS[claim], *tables(SCENES[claim][0] | changes), 'cpu')


@cache
def scene(claim):
    "Runs and records for which a claim is supported, for tests that take some away."
    return tables(SCENES[claim][0])


def counted(claim):
    "The planned seeds of a claim's arms that it reads."
    return min(sum(seed >= dict(rg.SINCE).get(claim, 0) for seed in plan('cpu')[arm][1]) for arm in SCENES[claim][0])


def test_every_claim_has_the_seeds_it_was_planned_for():
    for id in SCENES: assert counted(id) >= CLAIMS[id].seeds, id


def test_every_claim_has_every_verdict():
    assert set(SCENES) == set(CLAIMS)
    assert {(c, v) for c, v, _ in CASES} == {(c, v) for c in CLAIMS for v in ('supported', 'refuted', 'inconclusive')}


@pytest.mark.parametrize('claim, verdict, changes', CASES, ids=[f'{c}-{v}-{"+".join(x)}' for c, v, x in CASES])
def test_verdict(claim, verdict, changes):
    runs, records = tables(SCENES[claim][0] | changes)
    found = judge(CLAIMS[claim], runs, records, 'cpu')
    assert found.verdict == verdict, found
    assert found.n_seeds == min(len(plan('cpu')[arm][1]) for arm in SCENES[claim][0]) and found.ci_low <= found.effect <= found.ci_high
    toy = judge(CLAIMS[claim], runs, records, 'quick')
    assert toy.verdict == 'inconclusive' and toy.effect == found.effect
    assert toy.note == (found.note if verdict == 'inconclusive' else f'preset quick decides nothing; the numbers alone would read: {verdict}')


@pytest.mark.parametrize('claim', SCENES)
def test_effect(claim):
    assert decide(claim).effect == pytest.approx(SCENES[claim][1], abs=2e-3)


def test_a_second_stage_decides_the_claims_that_a_first_left_open():
    "No arm of the first stage changes, and no seed of it counts."
    first = rg.study.presets['cpu']()
    had, later = ({arm.name: (arm, seeds) for arm, seeds in some} for some in (first.plan, first.then(None, None)))
    assert all(arm == had[name][0] and had[name][1] + seeds == tuple(range(rg.SECOND[name])) for name, (arm, seeds) in later.items()) and set(later) == set(rg.SECOND)
    assert first.since == rg.SINCE and [id for id, _ in rg.SINCE] == ['RG8a', 'RG8b', 'RG12a', 'RG12b']
    for id, since in first.since:
        names = names_of(CLAIMS[id], scene(id)[0])
        assert since == min(len(had[a][1]) for a in names) and {rg.SECOND[a] for a in names} == {since + CLAIMS[id].seeds}
    assert sum(len(seeds) for _, seeds in later.values()) == 223
    assert [a for a, _ in joined(first.plan + first.then(None, None))] == [a for a, _ in first.plan]


def test_what_is_committed_of_them_was_read_off_new_seeds_alone():
    for id, since in rg.SINCE:
        gaps = read_values(replace(CLAIMS[id], since=since), committed(), pages.records(STUDY)).values
        assert gaps.index.min() >= since and len(gaps) == CLAIMS[id].seeds == claim(id, 'n_seeds') and gaps.mean() == pytest.approx(claim(id), rel=1e-4)


def test_every_arm_of_a_claim_is_in_its_scene():
    for claim, (base, _, _) in SCENES.items(): assert set(names_of(CLAIMS[claim], scene(claim)[0])) == set(base)


def test_notes_carry_what_does_not_decide():
    assert 'over the last fifth of the steps it went from +0.060 to +0.060; gain 2.00 a layer' in decide('RG2').note
    assert 'slopes 0.600 and 0.050' in decide('RG5c').note
    assert 'rms by layer 3.00, 2.50, 2.00' in decide('RG5d').note
    assert decide('RG6a', {'r*A*M shared': Arm(rms=0.)}).note == '20 of 20 seeds; median rms 0 (underflow)'
    assert decide('RG11c').note == 'read at step 200'


# -- what leaves a claim undecided ------------------------------------------------------------------------------------

def undecided(found, *words): return found.verdict == 'inconclusive' and found.n_seeds == 0 and all(w in found.note for w in words)


@pytest.mark.parametrize('claim, arm', USES)
def test_a_missing_arm_is_named(claim, arm):
    found = judge(CLAIMS[claim], *(table[table.arm != arm] for table in scene(claim)), 'cpu')
    assert undecided(found, arm) or claim == 'RG12a' and undecided(found), found


@pytest.mark.parametrize('claim, arm', USES)
def test_a_diverged_run_is_named(claim, arm):
    runs, records = (table.copy() for table in scene(claim))
    bad = (runs.arm == arm) & (runs.seed == 1)
    runs.loc[bad, ['status', 'diverged_at']] = 'diverged', 40
    records = records[~(records.run_id.isin(runs.run_id[bad]) & (records.step > 40))]
    assert undecided(judge(CLAIMS[claim], runs, records, 'cpu'), arm, 'seed 1')


GROWN = [(claim, arm) for claim, arm in USES if claim.startswith(('RG1a', 'RG1b', 'RG2', 'RG3', 'RG4', 'RG5'))]


@pytest.mark.parametrize('claim, arm', GROWN)
def test_a_seed_that_learned_nothing_is_left_out_and_counted(claim, arm):
    "A run that does not beat the frequencies of tokens has not learned to use its stream."
    fake = SCENES[claim][0][arm]
    worst = lambda bad: replace(fake, gap=lambda seed, step: UNIGRAM - curve(arm, seed, step) + .01 if seed in bad else said(fake.gap, seed, step))
    n = decide(claim).n_seeds
    found = decide(claim, {arm: worst([1])})
    assert found.n_seeds == n - 1 and f'{n - 1} of {n} seeds have beaten the unigram floor' in found.note or n == 5 and '4 seeds: a verdict needs at least 5' in found.note
    assert undecided(decide(claim, {arm: worst(range(44))}), 'no model does the task')


@pytest.mark.parametrize('claim, arm', [u for u in USES if u[0].startswith('RG17')])
def test_own_values_are_judged_on_models_that_use_attention(claim, arm):
    "A model within 0.1 nat of counting pairs says nothing about attention."
    close = replace(SCENES[claim][0][arm], bigram=curve(arm, 0, 1500) - .4)
    assert undecided(decide(claim, {arm: close}), 'no model does the task', 'bigram floor by 0.1 nat')


@pytest.mark.parametrize('claim', SCENES)
def test_four_seeds_decide_nothing(claim):
    found = judge(CLAIMS[claim], *(table[table.seed.between(1, 4)] for table in scene(claim)), 'cpu')
    assert found.verdict == 'inconclusive' and found.n_seeds == 4 and '4 seeds: a verdict needs at least 5' in found.note


STREAMS = ['RG1a', 'RG3a', 'RG3c', 'RG4a', 'RG5a', 'RG6a']


@pytest.mark.parametrize('claim, arm', [(c, next(iter(SCENES[c][0]))) for c in STREAMS])
def test_a_stream_that_was_not_measured_is_named(claim, arm):
    runs, records = scene(claim)
    found = judge(CLAIMS[claim], runs, records[~((records.arm == arm) & records.metric.isin(['rms_stream', 'cos_stream']))], 'cpu')
    assert undecided(found, arm)


@pytest.mark.parametrize('claim, arm', [('RG1a', ALL), ('RG3c', 'r*A unshared all'), ('RG4b', SINGLE)])
def test_a_stream_that_vanished_is_named(claim, arm):
    "Nothing multiplied by anything stays nothing, and has no logarithm."
    assert undecided(decide(claim, {arm: Arm(rms=lambda seed, step, layer: float(seed != 1))}), arm)


@pytest.mark.parametrize('floor', [BIGRAM, None, 9.])
def test_attention_is_judged_where_the_loss_is_above_the_bigram_floor(floor):
    runs, records = (table.copy() for table in scene('RG11c'))
    records.loc[records['item'] == 'bigram', 'value'] = floor or 0.
    if floor is None: records = records[records['item'] != 'bigram']
    found = judge(CLAIMS['RG11c'], runs, records, 'cpu')
    if floor == BIGRAM: assert found.verdict == 'supported'
    else: assert undecided(found, 'floor' if floor is None else 'bigram')


# -- presets ----------------------------------------------------------------------------------------------------------

PRESETS = ['quick', 'cpu', 'gpu', 'full']
BESIDE = ['normed skip x sqrt(L)', 'normed skip x sqrt(L) shared', 'novalue mean', 'novalue sqrt', 'own masked', 'own projected', 'sink key', 'axm shared warmup 10', 'vanilla shared warmup 10',
          'r+A unshared single']   # drawn beside those that claims read
ONE = {('vanilla shared deep', 'r+A shared all affine'), ('vanilla shared all', 'r+A shared all affine')}   # the same model where grid and substitutions have one depth


def in_preset(claim, preset):
    "What a claim says of a preset in which every arm has run and measured what it measures there."
    there = {name: SCENES[claim][0][old] for old in SCENES[claim][0] for name in [warmup(old, preset)] if name in plan(preset)} or arms(next(iter(plan(preset))))
    return judge(CLAIMS[claim], *tables(there, preset), preset)


def warmup(arm, preset): return arm.replace('warmup 10', 'warmup 1').replace('warmup 400', 'warmup 4') if preset == 'quick' else arm


@pytest.mark.parametrize('preset', ['quick', 'cpu', 'full'])
def test_every_arm_of_every_claim_is_in_the_preset(preset):
    used = {warmup(arm, preset) for arm in [*BESIDE, *(arm for _, arm in USES)]}
    assert used == plan(preset).keys()


@pytest.mark.parametrize('preset, claim', [(p, c) for p in ('quick', 'cpu', 'full') for c in SCENES])
def test_every_claim_finds_the_steps_it_reads(preset, claim):
    found = in_preset(claim, preset)
    assert found.n_seeds > 0, found.note


def test_what_the_gpu_preset_leaves_out():
    "All but these arms; so it can decide what its note says, and nothing else."
    assert set(plan('gpu')) == set(rg.GRID) and rg.gpu().note.endswith('claims 1, 3, 4, 5 and 10')
    assert {c for c in SCENES if in_preset(c, 'gpu').n_seeds} == {'RG1a', 'RG1b', *(f'RG3{c}' for c in 'abcde'), 'RG4a', 'RG4b', 'RG5a', 'RG5b', 'RG5c', 'RG10a', 'RG10b'}


def flat(config, prefix=''):
    "Nested mappings and sequences as {dotted path: value}."
    config = dict(enumerate(config)) if isinstance(config, tuple) else config
    return {k: v for name, x in config.items() for k, v in (flat(x, f'{prefix}{name}.') if isinstance(x, dict) or name == 'measures' or prefix == 'measures.' else {f'{prefix}{name}': x}).items()}


@cache
def fields(preset, arm): return flat(asdict(plan(preset)[arm][0]))


def differences(preset, one, other):
    "Fields in which two arms differ, apart from their names and from the kernel, which computes the same."
    a, b = fields(preset, one), fields(preset, other)
    return {k for k in a if a[k] != b[k]} - {'name', 'factors', 'model.block.kernel', 'train.objective.placement'}   # placement follows the block's


@pytest.mark.parametrize('preset', PRESETS)
def test_arms_differ(preset):
    names = [arm.name for arm, _ in rg.study.presets[preset]().plan]
    assert len(set(names)) == len(names)
    assert [(a, b) for i, a in enumerate(names) for b in names[:i] if not differences(preset, a, b) and (a, b) not in ONE] == []


PARALLEL = 'model.block.mlp_in, model.block.update, model.block.carry'
TWINS = {   # one, other: all that differs
    **{(f'r*A {cell}', f'r+A {cell}'): 'model.block.mid' for cell in rg.CELLS},
    **{(f'{sign} {share} all', f'{sign} {share} single'): 'model.block.loss' for sign in ('r*A', 'r+A') for share in ('shared', 'unshared')},
    **{(f'{sign} shared {loss}', f'{sign} unshared {loss}'): 'model.block.share' for sign in ('r*A', 'r+A') for loss in ('all', 'single')},
    **{(f'{sign} shared all affine', f'{sign} shared all'): 'model.block.affine' for sign in ('r*A', 'r+A')},
    **{(f'{arm} shared', arm): 'model.block.share' for arm in ('vanilla', 'parallel', 'normed skip', 'normed skip x sqrt(L)')},
    **{(f'parallel{x}', f'vanilla{x}'): PARALLEL for x in ('', ' shared')},
    **{(f'normed skip{x}', f'vanilla{x}'): 'model.block.skip' for x in ('', ' shared')},
    **{(f'normed skip x sqrt(L){x}', f'normed skip{x}'): 'model.block.skip_scale' for x in ('', ' shared')},
    **{(f'parallel shared {x}A{y}', 'parallel shared'): z for x, y, z in (('2', '', 'model.block.attn_scale'), ('', '/2', 'model.block.attn_scale'), ('no ', '', 'model.block.update'))},
    **{(f'axm shared{w}', f'vanilla shared{w}'): PARALLEL for w in ('', ' warmup 10', ' warmup 400')},
    **{(f'{arm} shared warmup {w}', f'{arm} shared'): 'train.schedule.warmup' for arm in ('axm', 'vanilla') for w in (10, 400)},
    ('novalue sum', 'vanilla'): 'model.block.values, model.block.mlp_ratio',
    **{(f'novalue {scale}', 'novalue sum'): 'model.block.head_scale' for scale in ('mean', 'sqrt')},
    ('r*A*M shared from one', 'r*A*M shared'): 'model.block.product_fill',
    ('r*A*M shared', 'vanilla shared'): 'model.block.mid, model.block.write, train.steps, measures.0.at, measures.1.at',
    **{(f'own {kind}', 'vanilla'): 'model.block.own' for kind in ('deleted', 'masked', 'projected')},
    ('sink key', 'vanilla'): 'model.block.sink',
    ('own deleted long', 'vanilla long'): 'model.block.own',
    **{(f'normed skip{x} {y}', f'vanilla{x} {y}'): 'model.block.skip' for x in ('', ' shared') for y in ('all', 'deep')},
    **{(f'{v}{x} all', f'{v}{x}'): 'model.block.loss' for v in ('vanilla', 'normed skip') for x in ('', ' shared')},
    **{(f'{v}{x} deep', f'{v}{x} all'): 'model.block.n_layers' for v in ('vanilla', 'normed skip') for x in ('', ' shared')},
    **{(f'{sign} shared all longer', f'{sign} shared all'): 'train.steps, measures.0.at, measures.1.at' for sign in ('r*A', 'r+A')},
    ('novalue many heads', 'vanilla many heads'): 'model.block.values, model.block.mlp_ratio', ('vanilla many heads', 'vanilla'): 'model.block.n_heads',
}


@pytest.mark.parametrize('preset', PRESETS)
def test_twins_differ_in_what_they_are_named_after(preset):
    pairs = {tuple(warmup(arm, preset) for arm in pair): set(named.split(', ')) for pair, named in TWINS.items()}
    there = {pair: named for pair, named in pairs.items() if plan(preset).keys() >= set(pair)}
    assert there and (there == pairs or preset == 'gpu')
    assert {pair: differences(preset, *pair) for pair in there} == there
    for pair in there:
        one, other = (set(plan(preset)[arm][1]) for arm in pair)
        assert one == other if preset == 'quick' else len(one & other) >= 2   # seeds that make pairs


def test_long_sequences_are_longer_and_as_many_tokens():
    for preset in ('quick', 'full', 'cpu'):
        short, long = (plan(preset)[arm][0] for arm in ('vanilla', 'vanilla long'))
        assert long.task.length > short.task.length and long.model.block == replace(short.model.block, positions='rope') and long.train == short.train
    assert long.task.length == 512 and short.task.length == 128 and long.tokens == short.tokens


def test_novalue_has_the_parameters_of_vanilla():
    blocks = [plan('cpu')[arm][0].model.block for arm in ('novalue sum', 'vanilla')]
    novalue, vanilla = (sum(p.numel() for p in residual_lm(block, 256, 128).parameters()) for block in blocks)
    assert abs(novalue / vanilla - 1) < .01 and novalue != vanilla


# -- what arms share --------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def begin(tmp_path_factory):
    "Begin a run on a small text: its model and its batches, nothing trained."
    home = tmp_path_factory.mktemp('home')
    for i in range(12): (home/f'{i:02}.txt').write_text(' '.join(str(n*n) for n in range(i, 400 + i)))
    def run(arm, seed):
        got = []
        def fit(learner, batch, step, config, **options):
            got.extend([learner.model, batch])
            return FitResult(status='stopped', step=config.steps)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv('MEMLAB_HOME', str(home/'home'))
            patch.setattr(arm_, 'fit', fit)
            arm_.execute(plan('quick')[arm][0].on(str(home)), seed, home)
        return got
    return run


@pytest.mark.parametrize('one, other', [(ALL, 'r+A unshared single'), ('vanilla', 'novalue sum'), ('vanilla', 'axm shared warmup 4'),
                                        ('vanilla long', 'own deleted long')])
def test_arms_of_a_seed_read_the_same_batches(begin, one, other):
    "A batch is a function of seed and step."
    (_, a), (_, b), (_, c) = begin(one, 0), begin(other, 0), begin(one, 1)
    for step in (5, 0, 3):                                            # in any order
        assert torch.equal(a(step)[0], b(step)[0]) and not torch.equal(a(step)[0], c(step)[0])
    assert not torch.equal(a(0)[0], a(1)[0]) and torch.equal(a(0)[0], a(0)[0])


BRANCHES = 'attn.qkv, attn.out, mlp.up, mlp.out'


@pytest.mark.parametrize('one, other, more', [
    (ALL, ADD, BRANCHES), ('r*A unshared all', 'r+A unshared single', BRANCHES), ('vanilla', 'parallel', BRANCHES), ('vanilla', 'own projected', BRANCHES),
    ('vanilla', 'sink key', BRANCHES), ('vanilla', 'vanilla shared', BRANCHES), ('vanilla shared', 'axm shared', BRANCHES),
    ('parallel shared', 'parallel shared no A', 'mlp.up, mlp.out'), ('vanilla', 'novalue sum', '')])
def test_arms_of_a_seed_start_from_the_same_weights(begin, one, other, more):
    "Parameters of one name and shape start equal."
    a, b, c = (dict(begin(*arm)[0].named_parameters()) for arm in ((one, 0), (other, 0), (one, 1)))
    both = [n for n in a.keys() & b.keys() if a[n].shape == b[n].shape]
    assert {'embed.weight', 'positions.weight'} | {f'layers.0.{n}.weight' for n in more.split(', ') if n} <= set(both)
    assert all(torch.equal(a[n], b[n]) for n in both)
    assert not any(torch.equal(a[n], c[n]) for n in both if a[n].ndim > 1)


# -- the page ---------------------------------------------------------------------------------------------------------

STUDY, USUAL = 'residual_growth', 'r+A unshared single'
SKIPS = [(f'normed skip{x}{y}', f'vanilla{x}{y}') for x in (' shared', '') for y in ('', ' all', ' deep')]
claim, percent = partial(pages.claim, STUDY), partial(pages.percent, STUDY)


def measured(read, *names, **how): return read(pages.records(STUDY), *names, **how)


@cache
def turned(arm): return 1 - rg.last_half(measured(rg.streams, arm, metric='cos_stream'))   # a row a seed, a column a late layer
def turn(arm): return turned(arm).max(axis=1).mean()


def brought(arm):
    "Loss if read halfway minus loss if read after the last layer, mean over seeds."
    lens = measured(rg.streams, arm, metric='lens_ce').mean()
    return lens.iloc[len(lens) // 2 - 1] - lens.iloc[-1]


def most_alike(arm):
    "The largest share in one bin of what attention writes after the last layer."
    rows = pages.records(STUDY).query('arm == @arm and metric == "hist_a" and position == "rest"')
    return rows.value[rows.layer == rows.layer.max()].max()


def gap(arm, base, step='last'): return measured(rg.loss_gap, arm, base, step=step).mean()
def price(cell): return gap(f'r*A {cell}', f'r+A {cell}')
def attention(change, step='last'): return gap(f'{rg.PARALLEL} {change}', rg.PARALLEL, step)


@cache
def standing(change):
    "The steps at which attention so changed is better (-1), worse (1) or neither by the 95 % interval over seeds, in their order."
    by_step = {s: interval(measured(rg.loss_gap, f'{rg.PARALLEL} {change}', rg.PARALLEL, step=s).to_numpy(float), .95) for s in asked(plan('cpu')[rg.PARALLEL][0], HeldOut).at if s}
    return {side: [step for step, (_, low, high) in by_step.items() if (low > 0) - (high < 0) == side] for side in (-1, 0, 1)}


def own_value(step, x=''): return gap(f'vanilla{x}', f'own deleted{x}', step)


@cache
def committed(): return with_factors(pages.runs(STUDY), [arm for arm, _ in plan('cpu').values()])


@cache
def look(id): return second_looks([CLAIMS[id]], committed(), pages.records(STUDY)).iloc[0]


def blocks(): return [plan('cpu')[name][0].model.block for name in committed().arm.unique()]
def once(id): return (100 - percent(id)) / 200   # how often one look is wrong there


def errs(id, first):
    "How often a look at the first seeds and one at all are wrong where the truth is the smallest effect that matters."
    c = CLAIMS[id]
    seen = read_values(c, committed(), pages.records(STUDY)).values.loc[:dict(rg.SINCE)[id] - 1]
    return wrong_in_two(c.rule, np.std(seen, ddof=1), first, c.seeds)


SAID = {   # words of the page -> what their numbers are; None: set, not measured
    'A growth above 1.5 is an explosion here and below 1.2 none at all': lambda: [claim('RG1a', 'least'), claim('RG3c', 'least')],
    'Intervals are over seeds, of 95 %; of 90 % where': lambda: [percent('RG1a'), percent('RG9a')],
    'late layers (the last half) turn the stream by at most .003': lambda: [('<', turn(rg.GROWING), turn(rg.ADDITIVE))],
    'every late layer turns it by .03.': lambda: [tuple(turned(USUAL).mean())],
    'late layers turn the stream by at most .009, yet they bring .15 nats': lambda: [('<', turn('r+A shared single')), brought('r+A shared single')],
    'they bring less than .01, and with one block they lose .02 to .04': lambda: [('<', *map(brought, rg.GRID[4:6])), *sorted(-brought(a) for a in (rg.GROWING, rg.ADDITIVE))],
    '88 and 95 % of what attention writes': lambda: [100 * most_alike(a) for a in (rg.GROWING, 'r*A unshared all')],
    'the bar of .01 in': lambda: [1 - claim('RG3a', 'least')],
    'after 1,500 steps multiplying costs loss in all four cells, .05 to .06 nats where the stream explodes, .2 to .3 elsewhere': lambda: [plan('cpu')[rg.GROWING][0].train.steps, price('shared all'), price('unshared all'), *sorted(price(f'{share} single') for share in ('shared', 'unshared'))],
    'moves the loss of the last by less than .02 nats with one block (five seeds, one learning rate) and costs .04': lambda: [('<', claim('RG10a', 'ci_high'), -claim('RG10a', 'ci_low')), claim('RG10b')],
    'the loss after 300 steps is below that of add, by .05': lambda: [None, -claim('RG6b')],
    'lower the loss of the added stream by .03 nats (*RG8a*, thirty new seeds); that of the multiplied one by .02,': lambda: [-claim('RG8a'), -claim('RG8b')],
    'is .04 nats ahead of their sum after a third of the training': lambda: [claim('RG12a')],
    'whether by .02 or more is open (*RG12b*)': lambda: [claim('RG12b', 'least')],
    'It is worth .03 nats to an added stream here': lambda: [-claim('RG8a')],
    'After four times the training it costs .03, and may cost .02 or less': lambda: [claim('RG2'), ('<', claim('RG2', 'ci_low'))],
    'Parallel branches cost .05 with one block (*RG9a*); with independent layers it is open whether .02 or more': lambda: [claim('RG9a'), claim('RG9b', 'least')],
    'falls back by .03 to .09 nats from step 500 to the end': lambda: [*np.sort([gap(*arms) - gap(*arms, step=500) for arms in SKIPS])[[0, -1]], None],
    'costs .09 nats with one block and .04 with independent layers': lambda: [claim('RG7c'), claim('RG7d')],
    'one block gains .04 by it': lambda: [-claim('RG7a')],
    'costs .37 nats with two heads and .43 with eight': lambda: [claim('RG13a'), claim('RG13b')],
    'about a tenth of the .8 nats that were said or less': lambda: [claim('RG7c', 'said')],
    'level with the whole one at steps 20 and 50 only, inside the warm-up of 100 steps': lambda: [*standing('no A')[0], plan('cpu')[rg.PARALLEL][0].train.schedule.warmup],
    'it falls behind, by .03 at step 100 and .6 in the end': lambda: [attention('no A', 100), standing('no A')[1][2], attention('no A')],
    'ahead at step 5, by .06, behind from step 20 to step 100, by .02,': lambda: [standing('2A')[-1][0], -attention('2A', 5), standing('2A')[1][0], standing('2A')[1][-1], tuple(attention('2A', s) for s in standing('2A')[1])],
    'ahead from step 300 on, by .01 to .02;': lambda: [standing('2A')[-1][1], *np.sort([-attention('2A', s) for s in standing('2A')[-1][1:]])[[0, -1]]],
    'halved attention is level from step 20 to step 100 and costs .01 at step 200, .03 in the end': lambda: [standing('A/2')[0][0], standing('A/2')[0][-1], attention('A/2', 200), None, claim('RG11b')],
    '.04 at step 500 and .01 in the end': lambda: [own_value(500, ' long'), None, claim('RG17b')],
    'is read at step 20, inside the warm-up, where no arm has learned anything, and would turn at step 200': lambda: [float(re.search('read at step ([0-9]+)', claim('RG11c', 'note'))[1]), min(s for s in standing('no A')[1] if s > 20 and attention('no A', s) > claim('RG11c', 'least'))],
    'at equal steps that costs .04 nats here with independent layers, whose later half then brings less than .01, and less than .02 with one block': lambda: [claim('RG10b'), ('<', brought('r+A unshared all')), ('<', claim('RG10a', 'ci_high'))],
    'and costs .15 against independent layers': lambda: [gap('r+A shared all', 'r+A unshared all')],
    'this toy passes 1.5 with the loss at the last layer': lambda: [claim('RG4a', 'least')],
    'loses .29 nats or more whichever way heads are summed': lambda: [min(gap(f'novalue {x}', 'vanilla') for x in ('sum', 'mean', 'sqrt'))],
    'about 40 seeds would decide if it is as deep as it looks now': lambda: [float(re.search('about ([0-9]+) seeds', claim('RG5d', 'note'))[1])],
    'where it saves .07 nats here': lambda: [claim('RG17a')],
    'Models of width 64 on 1.5 M bytes are small.': lambda: [plan('cpu')['vanilla'][0].model.block.d_model, plan('cpu')['vanilla'][0].tokens / 1e6],
    'err in up to .09 (RG8a, RG8b, RG12b) or .05 (RG12a) of studies, instead of .05 and .03.': lambda: [max(errs('RG8a', 10), errs('RG8b', 10), errs('RG12b', 5)), errs('RG12a', 5), tuple(map(once, ('RG8a', 'RG8b', 'RG12b'))), once('RG12a')],
    'with new ones alone RG8a takes 2.4 hours, RG8b 2.8': lambda: [CLAIMS[id].seeds * 292 / 3600 for id in ('RG8a', 'RG8b')],   # seconds a seed, as the table has them
    'RG5d would take 110 seeds': lambda: [look('RG5d')['if said']],
    'trains byte models of width 64 on 1.5 M tokens a run (claim 2 on 6.1 M)': lambda: [plan('cpu')['vanilla'][0].model.block.d_model, plan('cpu')['vanilla'][0].tokens / 1e6, None, plan('cpu')[rg.LONGER[0]][0].tokens / 1e6],
    "of the source's at its own width: 0.02 at 768": lambda: [(lambda m: m.std * sqrt(m.block.d_model / 768))(plan('cpu')['vanilla'][0].model), None],
    'the smallest that matters would take 110 seeds': lambda: [look('RG5d')['if said']],
    'the smallest that matters, .01: two more hours (16 seeds more than ten) would decide it with a chance of .11': lambda: [(claim('RG17b'), claim('RG17b', 'least')), look('RG17b').within - look('RG17b').seeds, look('RG17b').chance],
    'Width 64, ': lambda: [tuple(b.d_model for b in blocks())],
}


@pytest.mark.parametrize('words', SAID)
def test_the_text_says_what_was_measured(words): pages.check(STUDY, words, SAID[words])


def test_no_other_measurement_is_typed(): assert pages.untested(STUDY, SAID) == []
