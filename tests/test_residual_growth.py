"""The claims of the study, decided on invented numbers: every verdict each of them can give, and what must leave it undecided.

And its arms: each differs from its base in what it is named after and in nothing else, on the same batches and from the same weights.
"""
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from math import exp, log

import pyarrow as pa
import pytest
import torch

from memlab.eval.held_out import HeldOut
from memlab.eval.stream import Streams
from memlab.lab import arm as arm_
from memlab.lab.arm import with_factors
from memlab.lab.claims import claim_row, judge
from memlab.lab.records import RUNS, frame, record_table
from memlab.nn.lm import residual_lm
from memlab.studies import residual_growth as rg
from memlab.train.loop import FitResult

CLAIMS = {c.id: c for c in rg.study.claims}
UNIGRAM, BIGRAM = 5., 1.6
DEVIATION = 0., 1., -1., .5, -.5, .7, -.7, .3, -.3, 0.   # of a seed, in units of the noise; none on average over 2 (nearly), 3, 5 or 10 of them


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
def plan(preset): return {arm.name: (arm, seeds) for arm, seeds in rg.study.presets[preset]().plan}


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
def at(step, gap, then=0.): return lambda seed, now: gap if now == step else then


def arms(text, fake=Arm()): return {name: fake for name in text.split(', ')}


# -- every verdict ----------------------------------------------------------------------------------------------------

ALL, ADD = 'r*A shared all', 'r+A shared all'
def blown(gap): return Arm(gap=gap, rms=grows(2.))
def read(gap): return Arm(gap=gap, bigram=9.)   # of a text where pairs tell little

GRID = ', '.join(f'{sign} {share} {loss}' for sign in ('r*A', 'r+A') for share in ('shared', 'unshared') for loss in ('all', 'single'))
PLAIN = 'vanilla, vanilla shared'

# claim: arms for which it is supported, the effect it then reports, and what changes the verdict to which
SCENES = {
    'RG1': ({ALL: Arm(rms=grows(1.2, 1.6, 2.5, size=.01))}, 2.5, [
        ('refuted', {ALL: Arm(rms=grows(1.05, 1.2, 1.4))}),                # too small at the end
        ('refuted', {ALL: Arm(rms=grows(1.2, 3., 2.5))}),                  # falls later
        ('refuted', {ALL: Arm(rms=grows(1.8, 1.6, 2.5))}),                 # falls earlier
        ('inconclusive', {ALL: Arm(rms=grows(1.2, 1.4, 1.6, size=.5))}),
        ('inconclusive', {ALL: Arm(rms=lambda seed, step, layer: grows(1.2, 1.6, 1.7 if seed else 1.5)(seed, step, layer))})]),
    'RG2': ({ALL: blown(noise(.06, .01)), ADD: Arm()}, .06, [
        ('refuted', {ALL: blown(noise(0, .01))}),
        ('refuted', {ALL: blown(noise(-.5, .01))}),
        ('inconclusive', {ALL: blown(noise(.06, .2))}),
        ('inconclusive', {ALL: blown(noise(.02, .01))}),
        ('inconclusive', {ALL: Arm(gap=noise(.06, .01))})]),               # it costs, and has not blown up
    'RG3': (arms(GRID, Arm(rms=grows(1.05), cos=settles(.5))) | {ALL: Arm(rms=grows(2., size=.05), cos=settles(.999))}, 1., [
        ('supported', {ADD: Arm(rms=grows(1.6), cos=settles(.999))}),      # the additive stream may grow where it stands still
        ('refuted', {ADD: Arm(rms=grows(1.6), cos=settles(.5))}),          # and may not where it turns
        ('refuted', {ALL: Arm(rms=grows(2.), cos=settles(.9))}),           # grows while it turns
        ('refuted', {ALL: Arm(rms=grows(2.), cos=lambda seed, step, layer: .9 if layer == 7 else .999)}),   # one layer turns it
        ('inconclusive', {ALL: Arm(rms=grows(1.2), cos=settles(.999))}),   # nothing grows: untested
        ('refuted', {'r+A unshared single': Arm(rms=grows(1.05), cos=settles(.999))}),
        ('refuted', {'r*A shared single': Arm(rms=grows(1.3))}),           # no halting, and still above 1.2
        ('refuted', {'r*A unshared all': Arm(rms=grows(1.6), cos=settles(.999))}),   # halting without one shared block
        ('inconclusive', {ALL: Arm(rms=grows(2.), cos=noise(.991, .005))}),
        ('inconclusive', {'r*A unshared single': Arm(rms=grows(1.2, size=.1))})]),
    'RG4': ({'r*A shared single': Arm(rms=grows(3., size=.01)), ALL: Arm(rms=grows(1.2))}, log(3) - log(1.2), [
        ('refuted', {ALL: Arm(rms=grows(9.))}),
        ('refuted', {'r*A shared single': Arm(rms=grows(1.3))}),           # larger than 1.2, no explosion
        ('inconclusive', {'r*A shared single': Arm(rms=grows(1.7, size=.5))}),
        ('inconclusive', {ALL: Arm(rms=grows(3.1, size=.5))})]),
    'RG5': ({ADD: Arm(rms=line(1, .6, .01)), 'r+A shared single': Arm(rms=line(3, .05))}, .6, [
        ('refuted', {ADD: Arm(rms=line(3, -.1)), 'r+A shared single': Arm(rms=line(3, -.1))}),   # shrinks
        ('refuted', {ADD: Arm(rms=3.)}),                                   # stays
        ('refuted', {'r+A shared single': Arm(rms=line(3, .3))}),          # only twice as steep
        ('refuted', {ADD: Arm(rms=grows(2.))}),                            # not straight
        ('inconclusive', {'r+A shared single': Arm(rms=line(3, .2, .1))}),
        ('inconclusive', {ADD: Arm(rms=lambda seed, step, layer: 1 + .6*layer + (seed % 2)*(layer == 4))})]),
    'RG6': ({'r*A*M shared': Arm(rms=lambda seed, step, layer: 1e-4 if layer == 6 else 1., gap=3.), 'r*A*M shared from one': Arm(), 'vanilla shared': Arm()}, -4., [
        ('refuted', {'r*A*M shared': Arm(rms=1.)}),
        ('supported', {'r*A*M shared': Arm(rms=lambda seed, step, layer: (1e-6, 3e-6, 1e-5)[seed])}),
        ('supported', {'r*A*M shared': Arm(rms=0.)}),
        ('refuted', {'r*A*M shared': Arm(rms=.0033)}),                     # sqrt(1e-5) is 0.00316
        ('inconclusive', {'r*A*M shared': Arm(rms=noise(.003, .001))})]),
    'RG7': (arms('normed skip, normed skip shared, normed skip x sqrt(L), normed skip x sqrt(L) shared', Arm(gap=noise(.3, .02))) | arms(PLAIN), .3, [
        ('refuted', {'normed skip': Arm(gap=-.3)}),
        ('refuted', {'normed skip shared': Arm(gap=-.03)}),
        ('inconclusive', {'normed skip': Arm(gap=.015)}),                  # under the bar
        ('inconclusive', {'normed skip shared': Arm(gap=noise(.3, .4))})]),   # under 3 SE
    'RG8': (arms('r+A shared all, r+A shared all affine') | arms('r*A shared all, r*A shared all affine', Arm(gap=.5)), 0, [
        ('supported', {f'{ALL} affine': Arm(gap=noise(.51, .004))}),       # real, and too small to matter
        ('refuted', {f'{ALL} affine': Arm(gap=noise(.44, .01))}),
        ('refuted', {f'{ADD} affine': Arm(gap=.03)}),
        ('inconclusive', {f'{ADD} affine': Arm(gap=noise(0, .1))})]),
    'RG9': (arms('parallel, parallel shared') | arms(PLAIN), 0, [
        ('refuted', {'parallel': Arm(gap=.03)}),
        ('refuted', {'parallel shared': Arm(gap=-.03)}),
        ('inconclusive', {'parallel shared': Arm(gap=noise(.01, .02))})]),
    'RG10': (arms('r+A shared all, r+A unshared all', Arm(seconds=39)) | arms('r+A shared single, r+A unshared single'), 0, [
        ('refuted', {ADD: Arm(gap=.06)}),
        ('refuted', {'r+A unshared all': Arm(gap=-.06)}),
        ('inconclusive', {'r+A unshared all': Arm(gap=noise(0, .05))})]),
    'RG11': ({'parallel shared': Arm(), 'parallel shared 2A': Arm(gap=at(500, .1)), 'parallel shared A/2': Arm(gap=early(.3, 1000)),
              'parallel shared no A': Arm(gap=at(200, .03, then=.5))}, .1, [   # 200: the mean loss, 2.67, is last above 1.6 + 1 there
        ('inconclusive', {'parallel shared 2A': Arm(gap=at(400, .1))}),    # too early
        ('refuted', {'parallel shared 2A': Arm(gap=-.1)}),
        ('refuted', {'parallel shared A/2': Arm(gap=.05)}),
        ('refuted', {'parallel shared no A': Arm(gap=.06)}),
        ('inconclusive', {'parallel shared 2A': Arm(gap=at(1000, .1))}),   # too late
        ('inconclusive', {'parallel shared A/2': Arm(gap=noise(0, .1))}),
        ('inconclusive', {'parallel shared no A': Arm(gap=noise(.05, .05))})]),
    'RG12': (arms('vanilla shared, axm shared, vanilla shared warmup 10, vanilla shared warmup 400')
             | {'axm shared warmup 400': Arm(gap=at(500, -.1, then=.5)), 'axm shared warmup 10': Arm(gap=.3)}, -.1, [
        ('refuted', {'axm shared warmup 400': Arm(gap=.1)}),
        ('refuted', {'axm shared': Arm(gap=-.1)}),                         # not level at the end
        ('inconclusive', {'axm shared warmup 400': Arm(gap=-.015)}),
        ('inconclusive', {'axm shared': Arm(gap=noise(0, .05))})]),
    'RG13': (arms('vanilla, novalue sum') | arms('novalue mean, novalue sqrt', Arm(gap=.4)), 0, [
        ('refuted', {'novalue sum': Arm(gap=.03)}),
        ('refuted', {'novalue sum': Arm(gap=-.03)}),
        ('inconclusive', {'novalue sum': Arm(gap=noise(.01, .02))})]),
    'RG17': (arms('vanilla, vanilla long, own masked, own projected, sink key', read(0.)) | arms('own deleted, own deleted long', read(noise(-.05, .005))), -.05, [
        ('refuted', {'own deleted': read(.05)}),
        ('refuted', {'own deleted long': read(.02)}),
        ('inconclusive', {'own deleted long': read(-.008)}),
        ('inconclusive', {'own deleted': read(noise(-.05, .12))})]),
}
CASES = [(claim, verdict, changes) for claim, (base, _, cases) in SCENES.items() for verdict, changes in [('supported', {}), *cases]]


def decide(claim, changes={}):
    "What a claim says once some arms have changed."
    return judge(CLAIMS[claim], *tables(SCENES[claim][0] | changes), 'cpu')


@cache
def scene(claim):
    "Runs and records for which a claim is supported, for tests that take some away."
    return tables(SCENES[claim][0])


def test_every_claim_has_every_verdict():
    assert set(SCENES) == set(CLAIMS) and len(CLAIMS) == 14
    assert {(c, v) for c, v, _ in CASES} == {(c, v) for c in CLAIMS for v in ('supported', 'refuted', 'inconclusive')}


@pytest.mark.parametrize('claim, verdict, changes', CASES, ids=[f'{c}-{v}-{"+".join(x)}' for c, v, x in CASES])
def test_verdict(claim, verdict, changes):
    runs, records = tables(SCENES[claim][0] | changes)
    found = judge(CLAIMS[claim], runs, records, 'cpu')
    assert found.verdict == verdict, found
    assert found.n_seeds == min(len(plan('cpu')[arm][1]) for arm in SCENES[claim][0] if arm not in BESIDE) and found.ci_low <= found.effect <= found.ci_high
    toy = judge(CLAIMS[claim], runs, records, 'quick')
    assert toy.verdict == 'inconclusive' and toy.effect == found.effect
    assert toy.note == (found.note if verdict == 'inconclusive' else f'preset quick decides nothing; the numbers alone would read: {verdict}')


@pytest.mark.parametrize('claim', SCENES)
def test_effect(claim):
    assert decide(claim).effect == pytest.approx(SCENES[claim][1], abs=1e-4)


@pytest.mark.parametrize('repaired, told', [(0., 'the start is to blame: from one, +0.000'), (1., 'the architecture is to blame: from one, +1.000'),
                                            (noise(.1, .1), 'the repair is undecided: from one, +0.100')])
def test_a_collapse_says_what_is_to_blame(repaired, told):
    "The repair is read at the end of the short run."
    short = lambda seed, step: said(repaired, seed, step) if step == 300 else 9.
    found = decide('RG6', {'r*A*M shared from one': Arm(gap=short)})
    assert found.verdict == 'supported' and told in found.note


def test_notes_carry_what_does_not_decide():
    assert decide('RG10').note.count('3.9 times as long; at equal time (its step 500)') == 2
    assert 'elsewhere unshared all +0.200' in decide('RG2', arms('r+A unshared all') | arms('r*A unshared all', Arm(gap=.2))).note
    assert decide('RG13').note.endswith('A°/H +0.400, A°/sqrt(H) +0.400')
    assert decide('RG7').note.endswith('scaled by sqrt(L): shared +0.300, unshared +0.300')
    assert decide('RG17', {'own masked': read(.2)}).note.endswith('masked +0.200, projected +0.000, sink +0.000')
    assert 'no A at step 200' in decide('RG11').note


# -- what leaves a claim undecided ------------------------------------------------------------------------------------

USES = [(claim, arm) for claim, (base, _, _) in SCENES.items() for arm in base]
BESIDE = ['normed skip x sqrt(L)', 'normed skip x sqrt(L) shared', 'novalue mean', 'novalue sqrt', 'own masked', 'own projected', 'sink key',
          'axm shared warmup 10', 'vanilla shared warmup 10']   # told of in a note, or not the longest warmup


def undecided(found, *words): return found.verdict == 'inconclusive' and found.n_seeds == 0 and all(w in found.note for w in words)


@pytest.mark.parametrize('claim', SCENES)
def test_scenes_name_the_arms_the_claim_uses(claim, monkeypatch):
    used, real = set(), rg.require
    monkeypatch.setattr(rg, 'require', lambda runs, *arms: (used.update(arms), real(runs, *arms)))
    decide(claim)
    assert used == set(SCENES[claim][0]) - {'axm shared warmup 10', 'vanilla shared warmup 10'}   # the longest warmup counts, these must not


@pytest.mark.parametrize('claim, arm', USES)
def test_a_missing_arm_is_named(claim, arm):
    found = judge(CLAIMS[claim], *(table[table.arm != arm] for table in scene(claim)), 'cpu')
    if arm in BESIDE: assert found.verdict == 'supported'
    else: assert undecided(found, arm), found


@pytest.mark.parametrize('claim, arm', USES)
def test_a_diverged_run_is_named(claim, arm):
    runs, records = (table.copy() for table in scene(claim))
    bad = (runs.arm == arm) & (runs.seed == 1)
    runs.loc[bad, ['status', 'diverged_at']] = 'diverged', 40
    records = records[~(records.run_id.isin(runs.run_id[bad]) & (records.step > 40))]
    found = judge(CLAIMS[claim], runs, records, 'cpu')
    if arm in BESIDE: assert found.verdict == 'supported'
    else: assert undecided(found, arm, 'seed 1'), found


@pytest.mark.parametrize('claim, arm', [(c, a) for c, a in USES if c in ('RG1', 'RG2', 'RG3', 'RG4', 'RG5')])
def test_an_untrained_arm_is_named(claim, arm):
    "A run that does not beat the frequencies of tokens has not learned to use its stream."
    worst = replace(SCENES[claim][0][arm], gap=lambda seed, step: UNIGRAM - curve(arm, seed, step) + (.01 if seed == 1 else -.01))
    found, told = decide(claim, {arm: worst}), f'{arm} (has not beaten the unigram floor)'
    assert undecided(found, told) if claim != 'RG3' else found.verdict == 'inconclusive' and told in found.note


def test_an_untrained_arm_does_not_hide_what_the_others_show():
    "Nothing is read off the arm that did not learn; another that grows without both conditions still refutes."
    worst = Arm(rms=grows(9.), cos=settles(.5), gap=lambda seed, step: 9. if seed == 1 else 0.)
    grown = Arm(rms=grows(7.), cos=settles(.999))
    found = decide('RG3', {'r*A shared single': worst, 'r*A unshared all': grown})
    assert found.verdict == 'refuted' and 'grows without both conditions: r*A unshared all;' in found.note and found.n_seeds == 5
    assert undecided(decide('RG3', {a: worst for a in rg.GRID}), 'r+A unshared single (has not beaten the unigram floor)')


@pytest.mark.parametrize('arm', ['vanilla', 'vanilla long', 'own deleted', 'own deleted long'])
def test_own_values_are_judged_on_models_that_use_attention(arm):
    "A model within 0.1 nat of counting pairs says nothing about attention."
    close = replace(SCENES['RG17'][0][arm], bigram=curve(arm, 2, 1500) + .05)
    assert undecided(decide('RG17', {arm: close}), f'{arm} (has not beaten the bigram floor by 0.1 nat)')


@pytest.mark.parametrize('claim, few', [(c, n) for c in SCENES for n in (1, 2)])
def test_one_seed_or_two_decide_nothing(claim, few):
    found = judge(CLAIMS[claim], *(table[table.seed.between(1, few)] for table in scene(claim)), 'cpu')
    assert found.verdict == 'inconclusive' and found.n_seeds == few
    assert claim == 'RG3' or f'{few} seed{"s" * (few > 1)}: a verdict needs at least 3' in found.note   # RG3 lists the arms it is open in


@pytest.mark.parametrize('claim, changes, unit', [('RG1', {}, 'factor a layer'), ('RG1', {ALL: Arm(rms=grows(1.05, 1.2, 1.4))}, 'factor a layer'), ('RG1', {ALL: Arm(rms=grows(1.2, 3., 2.5))}, 'log factor a layer'),
                                                  ('RG5', {'r+A shared single': Arm(rms=line(3, .3))}, 'rms a layer'), ('RG5', {ADD: Arm(rms=grows(2.))}, 'R²'), ('RG7', {}, 'nats a token')])
def test_an_effect_has_the_unit_of_the_part_that_is_shown(claim, changes, unit):
    assert claim_row(CLAIMS[claim], decide(claim, changes), 'cpu')['unit'] == unit


STREAMS = ['RG1', 'RG3', 'RG4', 'RG5', 'RG6']


@pytest.mark.parametrize('claim, arm', [(c, next(iter(SCENES[c][0]))) for c in STREAMS])
def test_a_stream_that_was_not_measured_is_named(claim, arm):
    runs, records = scene(claim)
    found = judge(CLAIMS[claim], runs, records[~((records.arm == arm) & (records.metric == 'rms_stream'))], 'cpu')
    assert undecided(found, arm)


@pytest.mark.parametrize('claim, arm', [('RG1', ALL), ('RG3', 'r*A unshared all'), ('RG4', 'r*A shared single')])
def test_a_stream_that_vanished_is_named(claim, arm):
    "Nothing multiplied by anything stays nothing, and has no logarithm."
    assert undecided(decide(claim, {arm: Arm(rms=lambda seed, step, layer: float(seed != 1), cos=SCENES[claim][0][arm].cos)}), arm)


@pytest.mark.parametrize('floor', [BIGRAM, None, 9.])
def test_attention_is_judged_where_the_loss_is_above_the_bigram_floor(floor):
    runs, records = (table.copy() for table in scene('RG11'))
    records.loc[records['item'] == 'bigram', 'value'] = floor or 0.
    if floor is None: records = records[records['item'] != 'bigram']
    found = judge(CLAIMS['RG11'], runs, records, 'cpu')
    assert found.verdict == 'supported' if floor == BIGRAM else undecided(found, 'bigram')


# -- presets ----------------------------------------------------------------------------------------------------------

PRESETS = ['quick', 'cpu', 'gpu', 'full']


def in_preset(claim, preset):
    "What a claim says of a preset in which every arm has run and measured what it measures there."
    there = {name: SCENES[claim][0][old] for old in SCENES[claim][0] for name in [warmup(old, preset)] if name in plan(preset)} or arms(next(iter(plan(preset))))
    return judge(CLAIMS[claim], *tables(there, preset), preset)


def warmup(arm, preset): return arm.replace('warmup 10', 'warmup 1').replace('warmup 400', 'warmup 4') if preset == 'quick' else arm


@pytest.mark.parametrize('preset', ['quick', 'cpu', 'full'])
def test_every_arm_of_every_claim_is_in_the_preset(preset):
    assert {warmup(arm, preset) for _, arm in USES} - plan(preset).keys() == set()
    assert plan(preset).keys() - {warmup(arm, preset) for _, arm in USES} == set()   # and none that no claim uses


@pytest.mark.parametrize('preset, claim', [(p, c) for p in ('quick', 'cpu', 'full') for c in SCENES])
def test_every_claim_finds_the_steps_it_reads(preset, claim):
    found = in_preset(claim, preset)
    assert found.n_seeds > 0, found.note


def test_what_the_gpu_preset_leaves_out():
    "All but these arms; so it can decide what its note says, and nothing else."
    assert set(plan('gpu')) == set(rg.GRID) and rg.gpu().note.endswith('claims 1 to 5 and 10')
    assert {c for c in SCENES if in_preset(c, 'gpu').n_seeds} == {'RG1', 'RG2', 'RG3', 'RG4', 'RG5', 'RG10'}


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
    assert [(a, b) for i, a in enumerate(names) for b in names[:i] if not differences(preset, a, b)] == []


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
}


@pytest.mark.parametrize('preset', PRESETS)
def test_twins_differ_in_what_they_are_named_after(preset):
    pairs = {tuple(warmup(arm, preset) for arm in pair): set(named.split(', ')) for pair, named in TWINS.items()}
    there = {pair: named for pair, named in pairs.items() if plan(preset).keys() >= set(pair)}
    assert there and (there == pairs or preset == 'gpu')
    assert {pair: differences(preset, *pair) for pair in there} == there
    for pair in there: assert len(set.intersection(*(set(plan(preset)[arm][1]) for arm in pair))) >= 2   # seeds that make pairs


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
