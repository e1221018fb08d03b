"""The claims of the study of image memory on invented numbers, and what its arms must share and may differ in."""
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial

import invented
import pages
import pytest
import torch
from invented import diverged, of, without
from memlab.eval.image import conflict_of, copy_rate, other_class
from memlab.eval.image_measures import probe_of
from memlab.lab.claims import judge, names_of
from memlab.lab.values import Missing
from memlab.studies import image_memory as study
from memlab.studies.image_memory import BASE, CAUSAL, CIFAR, D1, D2, DIAL, FULL, NARROW

CLAIMS, SEEDS = {c.id: c for c in study.study.claims}, 6
way = study.of


@dataclass(frozen=True)
class Ran:
    "What the runs of an arm measured: (metric, item) -> a number, or one for every seed; and errors at four positions, by item."
    of: dict = field(default_factory=dict)
    at: dict = field(default_factory=dict)
    tf: float = .1
    seeds: int = SEEDS


def rows(ran, seed):
    "Records of one run."
    for (metric, item), value in ({('nmse_tf', None): ran.tf} | ran.of).items(): yield dict(step=100, metric=metric, value=of(value, seed), item=item)
    for item, value in ran.at.items():
        for i, x in enumerate((.1, .1, .1, of(value, seed)), 1): yield dict(step=100, metric='nmse_fr_at', value=x, item=item, position=str(i))


def tables(arms): return invented.tables(arms, rows)
def does(f, x): return [f(v) for v in x] if isinstance(x, list) else f(x)
def one(arm, metric, item=None): return lambda x: {arm: Ran({(metric, item): x})}
def more(arm, other, metric, at=.5): return lambda x: {arm: Ran({(metric, None): does(lambda v: at + v, x)}), other: Ran({(metric, None): at})}
def times(arm, other, metric): return lambda x: {arm: Ran({(metric, None): does(lambda v: .3 * v, x)}), other: Ran({(metric, None): .3})}
def self_more(arm, metric, ours, theirs): return lambda x: {arm: Ran({(metric, ours): does(lambda v: .4 + v, x), (metric, theirs): .4})}
def self_times(arm, metric, ours, theirs): return lambda x: {arm: Ran({(metric, ours): does(lambda v: .4 * v, x), (metric, theirs): .4})}
def dials(arm): return lambda x: {arm: Ran({('w_mem', f's_m {s:g}'): does(lambda v: .2 + v * s / 2, x) for s in DIAL})}


def ranked(arm):
    "The dial turns as said in the first so many of six seeds, and backwards in the others."
    return lambda n: {arm: Ran({('w_mem', f's_m {s:g}'): [.2 + (s if seed < n else -s) / 20 for seed in range(6)] for s in DIAL})}


def recovers(name):
    "The cure takes away so much of a rise from 10 to 20."
    return lambda x: {D1: Ran({('fd_probe', None): 10., ('fd_probe', 'sampled'): 20.}), way(D1, name): Ran({('fd_probe', 'sampled'): does(lambda v: 20 - 10 * v, x)})}


def pushed(head, metric):
    "A mean changes by so much more than a head does."
    one_, two = (None, 's_y 2') if metric == 'w_mem' else ('s_y 2', None)
    return lambda x: {D1: Ran({(metric, one_): does(lambda v: .3 + v, x), (metric, two): .2}), way(D1, head): Ran({(metric, one_): .3, (metric, two): .2})}


SCENES = {   # claim -> how its effect makes arms; effects that support it, refute it, and leave it open
    'IG1a': (one(D2, 'gap'), 20., 2., (2., 12.)), 'IG1b': (one(D2, 'drift'), 2., 1., (1., 1.8)), 'IG1c': (one(CIFAR, 'gap'), 20., 2., (2., 12.)), 'IG1d': (one(CIFAR, 'drift'), 2., 1., (1., 1.8)),
    'IG2a': (self_times(D2, 'nmse_tf', None, 'early'), .3, 1.2, (.6, 1.2)), 'IG2b': (self_times(D2, 'gap', None, 'early'), 4., 1., (1., 3.)),
    'IG2c': (lambda x: {D2: Ran(at={None: does(lambda v: .3 + v, x), 'early': .3})}, .2, -.1, (-.1, .2)),
    'IG3a': (self_more_codes := lambda x: {D2: Ran({('nmse_fr', None): does(lambda v: .2 + v, x), ('sketch_error', None): .2})}, .1, -.1, (-.1, .2)),
    'IG3b': (more(D2, way(D2, 'only memory'), 'nmse_fr'), .1, -.1, (-.1, .2)),
    'IG3e': (lambda x: {D1: Ran({('nmse_fr', None): does(lambda v: .2 - v, x), ('sketch_error', None): .2})}, .1, -.1, (-.1, .15)),
    'IG3f': (more(way(D1, 'only memory'), D1, 'nmse_fr'), .1, -.1, (-.1, .15)),
    'IG3c': (lambda x: {CIFAR: self_more_codes(x)[D2]}, .1, -.1, (-.1, .2)), 'IG3d': (more(CIFAR, way(CIFAR, 'only memory'), 'nmse_fr'), .1, -.1, (-.1, .2)),
    'IG4a': (times(way(D2, 'noise'), D2, 'nmse_fr'), .3, .9, (.2, .9)), 'IG4b': (times(way(D1, 'noise'), D1, 'nmse_fr'), .7, 1.1, (.7, 1.1)), 'IG4c': (times(way(CIFAR, 'noise'), CIFAR, 'nmse_fr'), .3, .9, (.2, .9)),
    'IG4d': (more(way(D2, 'noise'), D2, 'guidance_gain'), .1, -.2, (-.1, .1)), 'IG4e': (more(way(D1, 'noise'), D1, 'guidance_gain'), .1, -.2, (-.1, .1)),
    'IG5a': (times(D1, way(D1, 'no memory'), 'nmse_fr'), .5, 1.1, (.5, 1.1)), 'IG5b': (times(D2, way(D2, 'no memory'), 'nmse_fr'), .5, 1.1, (.5, 1.1)),
    'IG7a': (self_more(D1, 'w_mem', 'early', None), .3, 0., (0., .3)), 'IG7b': (self_more(D2, 'w_mem', 'early', None), .3, 0., (0., .3)),
    'IG8a': (more(way(D1, 'frozen projection'), D1, 'nmse_fr'), .002, .1, (-.03, .03)), 'IG8b': (more(way(D1, 'frozen projection'), D1, 'w_mem'), .01, .3, (-.2, .2)),
    'IG8c': (more(way(NARROW, 'frozen projection'), NARROW, 'nmse_fr'), .002, .1, (-.03, .03)), 'IG8d': (more(way(NARROW, 'frozen projection'), NARROW, 'w_mem'), .01, .3, (-.2, .2)),
    'IG10a': (more(way(D1, 'linear'), D1, 'nmse_fr'), .002, .1, (-.05, .05)), 'IG10b': (more(way(D1, 'linear and normed'), D1, 'nmse_fr'), .002, .1, (-.05, .05)),
    'IG10c': (self_more(D1, 'nmse_fr', 'normed at inference', None), .1, -.1, (-.1, .2)),
    'IG11a': (self_times(D1, 'fd_probe', 'sampled', None), 2., 1., (1., 2.)),
    'IG12a': (ranked(way(D1, 'memory dropped')), 6, 0, None), 'IG12b': (dials(way(D1, 'memory dropped')), .6, .1, (.1, .6)),
    'IG12c': (ranked(way(CIFAR, 'memory dropped')), 6, 0, None), 'IG12d': (dials(way(CIFAR, 'memory dropped')), .6, .1, (.1, .6)),
    'IG13a': (lambda x: {D1: Ran({('outside', 's_y 2'): does(lambda v: .1 * v, x), ('outside', None): .1})}, 5., 1., (1., 4.)), 'IG13b': (self_more(D1, 'w_mem', None, 's_y 2'), .2, -.1, (-.1, .2)),
    'IG15': (more(f'VAE: {BASE}', f'VAE, column: {BASE}', 'agreement'), .3, 0., (0., .3)),
}
for letter, a, b in zip('abcde', ('only memory', BASE, 'input', 'last', BASE), (BASE, 'input', 'last', FULL, 'last')): SCENES[f'IG6{letter}'] = more(way(D1, a), way(D1, b), 'w_mem'), .3, -.1, (-.1, .3)
for letter, a in (('f', 'last'), ('g', FULL)): SCENES[f'IG6{letter}'] = (lambda a: lambda x: {way(D1, a): Ran({('w_mem', None): .2, ('w_cls', None): does(lambda v: .2 + v, x)})})(a), .3, -.1, (-.1, .3)
for letter, a, b in (('a', FULL, CAUSAL), ('b', BASE, FULL), ('c', BASE, CAUSAL)): SCENES[f'IG9{letter}'] = more(way(D1, a), way(D1, b), 'swap_agreement'), .3, -.1, (-.1, .3)
for letters, name in (('bc', 'wrong codes'), ('de', "the prior's codes")):
    SCENES |= {f'IG11{letters[0]}': (recovers(name), .9, .1, (.1, .9)), f'IG11{letters[1]}': (more(way(D1, name), D1, 'guidance_gain'), .1, -.2, (-.1, .1))}
for letters, head in (('cd', 'mixture'), ('ef', 'diffusion')): SCENES |= {f'IG13{letters[0]}': (pushed(head, 'outside'), .2, -.1, (-.1, .2)), f'IG13{letters[1]}': (pushed(head, 'w_mem'), .2, -.1, (-.1, .2))}
for letters, head in (('ab', 'mixture'), ('cd', 'diffusion')): SCENES |= {f'IG14{letters[0]}': (one(way(D1, head), 'variety'), .6, .1, (.1, .6)), f'IG14{letters[1]}': (times(way(D1, head), D1, 'fd_probe'), .9, 1.5, (.8, 1.5))}
CASES = [(claim, verdict, i) for claim in CLAIMS for i, verdict in enumerate(('supported', 'refuted', 'inconclusive'), 1)]


def scene(claim, i=1):
    make, *effects = SCENES[claim]
    return make(5 if effects[i - 1] is None else list(effects[i - 1]) * 3 if isinstance(effects[i - 1], tuple) else effects[i - 1])


def decide(claim, arms): return judge(CLAIMS[claim], *tables(arms), 'cpu')


def test_every_claim_has_its_scene(): assert set(SCENES) == set(CLAIMS)


@pytest.mark.parametrize('claim, verdict, i', CASES)
def test_verdict(claim, verdict, i):
    runs, records = tables(scene(claim, i))
    assert judge(CLAIMS[claim], runs, records, 'cpu').verdict == verdict
    assert judge(CLAIMS[claim], runs, records, 'quick').verdict == 'inconclusive'
    assert set(names_of(CLAIMS[claim], runs)) == set(scene(claim))


@pytest.mark.parametrize('claim', SCENES)
def test_what_is_missing_or_has_learned_nothing_decides_nothing(claim):
    arms = scene(claim)
    runs, records = tables(arms)
    for arm in arms:
        assert judge(CLAIMS[claim], *without(runs, records, arm), 'cpu').verdict == 'inconclusive'
        assert 'seed 1' in judge(CLAIMS[claim], *diverged(runs, records, arm, seed=1), 'cpu').note
    if claim == 'IG2a': return   # its effect is what a gate would read
    found = decide(claim, {a: replace(ran, tf=.95) for a, ran in arms.items()})
    assert found.verdict == 'inconclusive' and 'no model does the task: 0 of 6' in found.note


@pytest.mark.parametrize('claim', ['IG11b', 'IG11d'])
def test_where_sampling_costs_nothing_nothing_is_recovered(claim):
    arms = scene(claim)
    arms[D1] = Ran({('fd_probe', None): 10., ('fd_probe', 'sampled'): 10.5})
    found = decide(claim, arms)
    assert found.verdict == 'inconclusive' and '0 of 6 make worse pictures from sampled codes' in found.note


def test_a_dial_that_stands_still_does_not_rise():
    arm = way(D1, 'memory dropped')
    assert (study.rises(tables({arm: Ran({('w_mem', f's_m {s:g}'): .5 for s in DIAL})})[1], arm) == 0).all()


def test_the_last_quarter_is_that_of_positions():
    records = tables({D2: Ran(at={None: .7})})[1]
    assert study.last_quarter(records, D2).tolist() == pytest.approx([.7] * SEEDS)
    with pytest.raises(Missing): study.last_quarter(records, D2, 'early')


# -- arms -------------------------------------------------------------------------------------------------------------

@cache
def plan(preset): return {a.name: (a, seeds) for a, seeds in study.study.presets[preset]().plan}


def test_claims_ask_for_arms_that_are_planned_with_their_seeds():
    for claim in CLAIMS.values():
        for name in claim.arms:
            assert len(plan('gpu')[name][1]) >= claim.seeds, f'{claim.id}: {name}'
            assert name.startswith('CIFAR') or name in plan('cpu')


def test_claims_find_what_their_arms_measure():
    "By metric and item, without a run: items that a claim asks for are asked of its arms."
    items = {name: {m.item for m in a.measures if hasattr(m, 'item')} for name, (a, _) in plan('gpu').items()}
    asked = {D1: {'early', 'sampled', 'noised', 's_y 2', 'normed at inference', 'only memory at inference', 'zero memory', 'shuffled memory'}, D2: {'early'}, way(D1, 'noise'): {'early'}, way(D2, 'noise'): {'early'},
             way(D1, 'memory dropped'): {f's_m {s:g}' for s in DIAL}, way(CIFAR, 'memory dropped'): {f's_m {s:g}' for s in DIAL}, way(D1, 'mixture'): {'s_y 2'}, way(D1, 'diffusion'): {'s_y 2'},
             way(D1, 'wrong codes'): {'sampled', 'noised'}, way(D1, "the prior's codes"): {'sampled', 'noised'}}
    for name, want in asked.items(): assert want <= items[name], name


def test_arms_of_a_rig_read_the_same_batches_for_as_long():
    for rig in ('D1', 'D2'):
        mine = [a for n, (a, _) in plan('cpu').items() if n.startswith(f'{rig}:')]
        assert len({(a.task, a.train.steps, a.train.optimizer, a.train.schedule) for a in mine}) == 1
        for step in (0, 40): assert all(torch.equal(x, y) for x, y in zip(mine[0].task.batches(3)(step), mine[-1].task.batches(3)(step)))


def config(a): return getattr(a.model, 'model', a.model)


def test_arms_differ_from_every_block_in_what_their_name_says():
    base = plan('cpu')[D1][0]
    differ = lambda a: {f.name for f in fields(config(a)) if getattr(config(a), f.name) != getattr(config(base), f.name)}
    loss = lambda a: {f.name for f in fields(a.train.objective) if getattr(a.train.objective, f.name) != f.default}
    want = {n: (set(f), set()) for n, f in study.WAYS.items()} | {n: (set(), set(f)) for n, f in (study.CURES | study.CODES).items()} | {
        'mixture': ({'head'}, set()), 'diffusion': ({'head'}, set()), 'frozen projection': ({'frozen'}, set()), 'memory dropped': ({'memory_drop'}, set())}
    found = {n.removeprefix('D1: '): (differ(a), loss(a)) for n, (a, _) in plan('cpu').items() if n.startswith('D1:') and n != D1}
    assert found == want


def test_the_column_is_a_defect_of_the_task_alone():
    grid, column = (plan('cpu')[f'{n}: {BASE}'][0] for n in ('VAE', 'VAE, column'))
    assert replace(column.task, column=False) == grid.task and column.task != grid.task
    assert (column.model, column.train) == (grid.model, grid.train)


def test_every_claim_says_what_it_comes_to_either_way():
    invented.say_either_way(CLAIMS.values())


# -- the page ---------------------------------------------------------------------------------------------------------

STUDY = 'image_memory'
claim = partial(pages.claim, STUDY)


@cache
def seeds(metric, arm, item=None):
    "What the committed runs of an arm end with, by seed."
    return study.at_end(pages.records(STUDY), metric, arm, item)


def level(metric, arm, item=None): return seeds(metric, arm, item).median()
def levels(metric, base, *names, item=None): return [level(metric, way(base, n), item) for n in names]
def early(metric, *arms): return [level(metric, a, item) for a in arms for item in ('early', None)]
def dialled(metric, scale): return level(metric, way(D1, 'memory dropped'), f's_m {scale:g}')
def pushes(metric, arm): return [level(metric, arm), level(metric, arm, 's_y 2')]
def range_of(values): return [values.min(), values.max()]
def head_start(): return seeds('w_mem', way(D1, FULL)) - seeds('w_mem', way(D1, CAUSAL))


def copied():
    "How often pictures that are their sketch show its class, not that of the label."
    task = plan('cpu')[D1][0].task
    some = task.part('test')[:PICTURES]
    return conflict_of(probe_of(task).classify(task.tokenizer().decode(some.m[partner := other_class(some.labels)])), some.labels, partner).memory


def real_copies():
    "How many real pictures lie nearer to one of training than that one's own neighbour."
    task = plan('cpu')[D1][0].task
    return copy_rate(task.part('test').z[:PICTURES], task.part('train').z)


def planned(preset):
    "Steps and rows of a batch on D1 and on D2."
    return [n for rig in (D1, D2) for n in (plan(preset)[rig][0].train.steps, plan(preset)[rig][0].task.rows)]


def millions(): return sum(p.numel() for p in plan('cpu')[way(D1, 'noise')][0].model.build(0).parameters()) / 1e6


PICTURES = study.Sizes.test
SAID = {   # words of the page -> what their numbers are; None: set, not measured
    'The codes as they are would err by .27 on': lambda: [level('sketch_error', D1)],
    '31 times the error on own pictures': lambda: [claim('IG1a', 'said')],
    '4 codes: a sketch that leaves .27 of the variance': lambda: [plan('cpu')[D1][0].task.codes, level('sketch_error', D1)],
    '2 codes: a sketch that leaves .22,': lambda: [plan('cpu')[D2][0].task.codes, level('sketch_error', D2)],
    'a model errs .006 on D2, and .19 on D1': lambda: [level('nmse_tf', way(base, 'no memory')) for base in (D2, D1)],
    'errs .31 of the variance on its own pictures and .008 with true contexts, 39 times as much (33 to 44)': lambda: [level('nmse_fr', D2), level('nmse_tf', D2), claim('IG1a'), claim('IG1a', 'ci_low'), claim('IG1a', 'ci_high')],
    'falls from .093 to .008, that on own pictures *rises* from .21 to .31': lambda: early('nmse_tf', D2) + early('nmse_fr', D2),
    'both fall (own: .25 to .17) and the ratio is 1.4': lambda: early('nmse_fr', D1) + [level('gap', D1)],
    'falls too (.15 to .10)': lambda: early('nmse_fr', way(D2, 'noise')),
    'grows 1.3 times (1.1 to 1.6), which is open, since 1.3 was to matter': lambda: [claim('IG1b', f) for f in ('effect', 'ci_low', 'ci_high', 'least')],
    '39 divides by a very small error': lambda: [claim('IG1a')],
    'the rise from .21 to .31 does not depend on that': lambda: early('nmse_fr', D2),
    'errs .31 of the variance on its own pictures, more than the codes as they are (.22) and three times as much as a model that sees nothing but the memory (.11)': lambda: [level('nmse_fr', D2), level('sketch_error', D2), *levels('nmse_fr', D2, 'only memory')],
    'brings it to .10, own predictions to .15': lambda: levels('nmse_fr', D2, 'noise', 'own predictions'),
    '.17 with context, .20 without, .27 for the codes; noise takes it to .156': lambda: [*levels('nmse_fr', D1, BASE, 'only memory'), level('sketch_error', D1), *levels('nmse_fr', D1, 'noise')],
    'the error is .57 on D2 and .39 on D1': lambda: [level('nmse_fr', way(base, 'no memory')) for base in (D2, D1)],
    'from .20 to .96 on D2 and from .94 to .99 on D1': lambda: [g for base in (D2, D1) for g in levels('guidance_gain', base, BASE, 'noise')],
    'FD falls from 45 to 2.1 (training pictures: .36)': lambda: [*levels('fd_probe', D2, BASE, 'noise'), level('fd_floor', D2)],
    '.99 of pictures show their class where .50 did': lambda: levels('class_accuracy', D2, 'noise', BASE),
    '(.056 for .008)': lambda: levels('nmse_tf', D2, 'noise', BASE),
    "the sketch's class in .82 of pictures where there is only memory (a copy of the sketch: .77)": lambda: [*levels('w_mem', D1, 'only memory'), copied()],
    'in .69 with a prefix, .68 before the norm, .60 at the input; in .49 (linear) to .59 (normed)': lambda: levels('w_mem', D1, 'prefix', 'before the norm', 'input', 'linear', 'normed'),
    '.54 in every block; in .50 with full and .41 with causal cross-attention after the last block, and in .37 added there': lambda: levels('w_mem', D1, BASE, FULL, CAUSAL, 'last'),
    'ahead of every block (by .08), and full cross-attention of the last block (by .13)': lambda: [-claim('IG6b'), -claim('IG6d')],
    'raises it by .018 (open, since .02 was to matter), and W_mem from .54 to .73': lambda: [claim('IG10c'), claim('IG10c', 'least'), level('w_mem', D1), level('w_mem', D1, 'normed at inference')],
    'by .08 in the mean, and from −.02 to .19 between seeds': lambda: [head_start().mean(), *range_of(head_start())],
    'is above .94 for every way that has one': lambda: [('>', *levels('swap_agreement', D1, BASE, *(n for n in study.WAYS if n != 'no memory')))],
    'On D2 .62 of the pictures of every block show neither class, and .61 without memory': lambda: levels('neither', D2, BASE, 'no memory'),
    '(.36 and 1.4 times a swapped context)': lambda: [level('causal_use', D2), level('causal_use', D1)],
    'changes the error by .001 and W_mem by .01': lambda: [abs(claim('IG8a')), abs(claim('IG8b'))],
    'lower agreement by .044': lambda: [claim('IG15')],
    'raise the distance 1.5 times (.9 to 2.1, open: with true codes it goes from .9 to 2.1 between seeds alone)': lambda: [claim('IG11a'), claim('IG11a', 'ci_low'), claim('IG11a', 'ci_high'), *range_of(seeds('fd_probe', D1))],
    'also with true codes (3.3 for 1.3), and their *G* is .48 in the place of .94, where a loss of .02 was allowed': lambda: [*levels('fd_probe', D1, 'wrong codes', BASE), *levels('guidance_gain', D1, 'wrong codes', BASE), -claim('IG11c', 'least')],
    'drawn by the prior it is 2.5 and .61': lambda: [level(m, way(D1, "the prior's codes")) for m in ('fd_probe', 'guidance_gain')],
    'leads in .06 and .19 of pictures': lambda: levels('w_mem', D1, 'wrong codes', "the prior's codes"),
    '(error on own pictures .23 and .21, for .17)': lambda: levels('nmse_fr', D1, 'wrong codes', "the prior's codes", BASE),
    'is taken between 300 pictures and has a floor': lambda: [PICTURES],
    'to 2 memory goes from none of the pictures to .71 of them': lambda: [DIAL[-1], dialled('w_mem', 2)],
    'at 1 class and memory have .37 each': lambda: [None, (dialled('w_cls', 1), dialled('w_mem', 1))],
    'at a scale of 1 (W_mem .37 for .54, *G* .84 for .94) and errs as much (.173 for .170)': lambda: [None] + [x for m in ('w_mem', 'guidance_gain', 'nmse_fr') for x in levels(m, D1, 'memory dropped', BASE)],
    'Past 1 latents leave the range of the training data: .12 of them at 1.5, .32 at 2': lambda: [None, dialled('outside', 1.5), None, dialled('outside', 2), DIAL[-1]],
    'A prefix has .69 without any dial': lambda: levels('w_mem', D1, 'prefix'),
    'A scale of 2 for the class puts eleven times as many regressed latents out of range (.014 to .15) and takes .22 of the pictures': lambda: [None, *pushes('outside', D1), claim('IG13b')],
    'A mixture (.20 to .21) and a diffusion head (.28 to .32)': lambda: [x for head in ('mixture', 'diffusion') for x in pushes('outside', way(D1, head))],
    'the diffusion head 1.5 times (open)': lambda: [claim('IG14d')],
    'neighbour are .40 of the real test pictures and .41 of those of a mean': lambda: [real_copies(), level('copy_rate', D1)],
    'it is .60, and of those of the heads .01 and .06': lambda: levels('copy_rate', D1, 'no memory', 'mixture', 'diffusion'),
    '(an error of .156 and, as a prefix, .158), and own predictions as much (.157), with the lowest FD (1.0)': lambda: [*levels('nmse_fr', D1, 'noise', 'prefix', 'own predictions'), min(levels('fd_probe', D1, BASE, *study.WAYS, *study.CURES, *study.CODES))],
    'has an FD of 3.1': lambda: levels('fd_probe', D1, 'only memory'),
    'a low FD (training pictures: .36)': lambda: [level('fd_floor', D1)],
    'halves the guidance by memory (*G* .94 to .48)': lambda: levels('guidance_gain', D1, BASE, 'wrong codes'),
    'has .75 on D1 and .82 on D2': lambda: [level('agreement', way(base, 'no memory')) for base in (D1, D2)],
    'Digits of 8 × 8 pixels, a transformer of 0.2 M weights, 800 steps': lambda: [None, None, millions(), plan('cpu')[D1][0].train.steps],
    '39 on D2, 1.4 on D1, and no general size': lambda: [claim('IG1a'), level('gap', D1)],
    'is taken between 300 pictures, and between seeds of one model it goes from .9 to 2.1': lambda: [PICTURES, *range_of(seeds('fd_probe', D1))],
    'in claim 2 a tenth of TF and .02 of the variance': lambda: [None, claim('IG2c', 'least')],
    'in 3, .03 against only memory and, where the order is reversed, .03 against the codes and .01 against only memory': lambda: [None, *(claim(f'IG3{x}', 'least') for x in 'bef')],
    'in 6, .03 between two ways of its order (which allows them to be equal) and .05 for': lambda: [None, claim('IG6a', 'least'), claim('IG6f', 'least')],
    'in 9, .02 for "neither reaches"': lambda: [None, claim('IG9b', 'least')],
    'in 13, .05 of W_mem, and .01 of latents and .03 of pictures for': lambda: [None, *(claim(f'IG13{x}', 'least') for x in 'bcd')],
    'in 4 and 11, .02 for "not lower"': lambda: [None, None, -claim('IG4d', 'least')],
    '(800 steps of 32 pictures for D1 and of 16 for D2, in the place of 1,500 and 1,200 of 64)': lambda: [*planned('cpu')[:2], planned('cpu')[3], planned('gpu')[0], *planned('gpu')[2:]],
    'A claim reads models that beat the mean: TF below .8': lambda: [None],
    "Scale: 0.2 M weights, scikit-learn's digits, 5 seeds": lambda: [millions(), len(plan('cpu')[D1][1])],
}


@pytest.mark.parametrize('words', SAID)
def test_the_text_says_what_was_measured(words): pages.check(STUDY, words, SAID[words])


def test_no_other_measurement_is_typed(): assert pages.untested(STUDY, SAID) == []
