"""The claims of the study of image memory on invented numbers, and what its arms must share and may differ in."""
import json
import re
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path

import invented
import pandas as pd
import pytest
import torch
from invented import diverged, of, without
from memlab.lab.claims import judge, names_of
from memlab.lab.rules import error_rates, wrong
from memlab.lab.values import Missing
from memlab.studies import image_memory as study
from memlab.studies.image_memory import BASE, CAUSAL, CIFAR, D1, D2, DIAL, FULL, NARROW

ROOT = Path(__file__).resolve().parents[1]
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


def test_no_rule_is_wrong_more_than_once_in_twenty():
    for c in {(type(c.rule), c.sd): c for c in CLAIMS.values()}.values(): assert wrong(error_rates(c.rule, c.sd, c.seeds, 2000), c.rule) <= .07, c.id   # and the noise of as many made-up studies


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

PAGE, OF = json.loads((ROOT/'nbs/studies/image_memory.ipynb').read_text(encoding='utf-8'))['cells'], lambda *ways, base=D1: [way(base, w) for w in ways]
EARLY, TWICE = ('early', None), (None, 's_y 2')
SAID = {   # words of the page -> what their numbers are: metric, arm, item
    'errs .31 of the variance on its own pictures and .008 with true contexts': [('nmse_fr', D2), ('nmse_tf', D2)],
    'falls from .093 to .008, that on own pictures *rises* from .21 to .31': [(m, D2, i) for m in ('nmse_tf', 'nmse_fr') for i in EARLY],
    'both fall (own: .25 to .17) and the ratio is 1.4': [('nmse_fr', D1, 'early'), ('nmse_fr', D1), ('gap', D1)],
    'falls too (.15 to .10)': [('nmse_fr', way(D2, 'noise'), i) for i in EARLY],
    'codes as they are (.22) and three times as much as a model that sees nothing but the memory (.11)': [('sketch_error', D2), ('nmse_fr', way(D2, 'only memory'))],
    'brings it to .10, own predictions to .15': [('nmse_fr', a) for a in OF('noise', 'own predictions', base=D2)],
    '.17 with context, .20 without, .27 for the codes; noise takes it to .156': [('nmse_fr', D1), ('nmse_fr', way(D1, 'only memory')), ('sketch_error', D1), ('nmse_fr', way(D1, 'noise'))],
    'the error is .57 on D2 and .39 on D1': [('nmse_fr', way(base, 'no memory')) for base in (D2, D1)],
    'from .20 to .96 on D2 and from .94 to .99 on D1': [('guidance_gain', a) for base in (D2, D1) for a in (base, way(base, 'noise'))],
    '(training pictures: .36)': [('fd_floor', D2)],
    'FD falls from 45 to 2.1': [('fd_probe', way(D2, 'noise'))],
    '.99 of pictures show their class where .50 did': [('class_accuracy', way(D2, 'noise')), ('class_accuracy', D2)],
    '(.056 for .008)': [('nmse_tf', way(D2, 'noise')), ('nmse_tf', D2)],
    'errs .006 on D2, and .19 on D1': [('nmse_tf', way(base, 'no memory')) for base in (D2, D1)],
    'in .69 with a prefix, .68 before the norm, .60 at the input; in .49 (linear) to .59 (normed)': [('w_mem', a) for a in OF('prefix', 'before the norm', 'input', 'linear', 'normed')],
    '.54 in every block; in .50 with full and .41 with causal cross-attention after the last block, and in .37 added there': [('w_mem', a) for a in OF(BASE, FULL, CAUSAL, 'last')],
    'W_mem from .54 to .73': [('w_mem', D1), ('w_mem', D1, 'normed at inference')],
    'On D2 .62 of the pictures of every block show neither class, and .61 without memory': [('neither', a) for a in OF(BASE, 'no memory', base=D2)],
    '(.36 and 1.4 times a swapped context)': [('causal_use', D2), ('causal_use', D1)],
    '(3.3 for 1.3), and their *G* is .48 in the place of .94': [('fd_probe', way(D1, 'wrong codes')), ('fd_probe', D1), ('guidance_gain', way(D1, 'wrong codes')), ('guidance_gain', D1)],
    'it is 2.5 and .61': [(m, way(D1, "the prior's codes")) for m in ('fd_probe', 'guidance_gain')],
    'leads in .06 and .19 of pictures': [('w_mem', a) for a in OF('wrong codes', "the prior's codes")],
    '(error on own pictures .23 and .21, for .17)': [('nmse_fr', a) for a in OF('wrong codes', "the prior's codes", BASE)],
    '(W_mem .37 for .54, *G* .84 for .94) and errs as much (.173 for .170)': [(m, a) for m in ('w_mem', 'guidance_gain', 'nmse_fr') for a in OF('memory dropped', BASE)],
    '.12 of them at 1.5, .32 at': [('outside', way(D1, 'memory dropped'), 's_m 1.5'), None, ('outside', way(D1, 'memory dropped'), 's_m 2')],
    'regressed latents out of range (.014 to .15)': [('outside', D1, i) for i in TWICE],
    'A mixture (.20 to .21) and a diffusion head (.28 to .32)': [('outside', a, i) for a in OF('mixture', 'diffusion') for i in TWICE],
    '.41 of those of a mean': [('copy_rate', D1)],
    'it is .60, and of those of the heads .01 and .06': [('copy_rate', a) for a in OF('no memory', 'mixture', 'diffusion')],
    '(an error of .156 and, as a prefix, .158), and own predictions as much (.157), with the lowest FD (1.0)': [('nmse_fr', a) for a in OF('noise', 'prefix', 'own predictions')] + [('fd_probe', way(D1, 'own predictions'))],
    'has an FD of 3.1': [('fd_probe', way(D1, 'only memory'))],
    'has .75 on D1 and .82 on D2': [('agreement', way(base, 'no memory')) for base in (D1, D2)],
}


@cache
def level(metric, arm, item=None):
    "The median over seeds of what the committed runs measured."
    records = pd.read_parquet(ROOT/'data/results/image_memory/cpu/records.parquet')
    mine = records[(records.metric == metric) & (records.arm == arm) & (records['item'].isna() if item is None else records['item'] == item)]
    return mine.sort_values('step').groupby('seed').value.last().astype(float).median()


@pytest.mark.parametrize('words', SAID)
def test_the_text_says_what_the_records_say(words):
    assert any(words in ''.join(c['source']) for c in PAGE if c['cell_type'] == 'markdown')
    numbers = re.findall(r'\d*\.\d+', words)
    assert len(numbers) == len(SAID[words])
    for n, ask in zip(numbers, SAID[words]):
        if ask: assert abs(float(n) - level(*ask)) <= .5 * 10. ** -len(n.partition('.')[2]) + 1e-6, (n, ask, level(*ask))


def test_the_answer_fits_its_box():
    said = next(c for c in PAGE if ''.join(c['source']).startswith('box(study'))
    assert len(''.join(said['outputs'][0]['data']['text/markdown']).split()) <= 120
