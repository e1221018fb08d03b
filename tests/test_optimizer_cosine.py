"""The claims of the study of steered optimizers on invented numbers, and what its arms must share and may differ in."""
from dataclasses import dataclass, field, replace
from functools import cache

import invented
import pytest
import torch
from invented import diverged, of, without
from memlab.lab.claims import judge, names_of
from memlab.lab.rules import error_rates, wrong
from memlab.studies import optimizer_cosine as study

CLAIMS, SEEDS = {c.id: c for c in study.study.claims}, 6


@dataclass(frozen=True)
class Ran:
    "What the runs of an arm measured; each a number, or one for every seed."
    loss: object = 1.
    also: dict = field(default_factory=dict)   # (metric, item) -> value at the end
    forgets: float = .5                        # of task 1, in the last turn of task 2
    seeds: int = SEEDS


def rows(ran, seed):
    "Records of one run."
    row = lambda metric, value, item=None: dict(step=100, metric=metric, value=value, item=item)
    yield row('val_loss', of(ran.loss, seed))
    for (metric, item), value in ran.also.items(): yield row(metric, of(value, seed), item)
    if ('val_loss', 'task 1') in ran.also: yield row('val_loss', of(ran.also['val_loss', 'task 1'], seed) - ran.forgets, 'task 1') | dict(step=80)


def tables(arms): return invented.tables(arms, rows)
def cosine(x): return Ran(also={('update_cosine', 'second'): x, ('update_cosine', 'first'): .5})
def tasks(first, second): return Ran(also={('val_loss', 'task 1'): first, ('val_loss', 'task 2'): second})
def split(low, high): return [low, high] * 3


def swept(rule, gap):
    "Final losses with targets, and of controls that go as far; they differ at one target."
    return {f'{kind} to {s:g}': Ran(loss=1.) for s in study.WITHIN for kind in (rule, f'{rule}, length alone')} | {f'{rule} to 0.5': Ran(loss=[1 + g for g in gap])}


SCENES = {   # claim -> arms for which it is supported; then what refutes it, and what leaves it open
    'OC12': ({'Adam one optimizer, stored': cosine(.9), 'Adam not steered, stored': cosine(.8)}, {'Adam not steered, stored': cosine(.9)}, {'Adam not steered, stored': cosine(split(.7, 1.))}),
    'OC14b': ({a: Ran() for a in study.COSTS}, {'Adam to 0': Ran(loss=1.3)}, {'Adam to 0': Ran(loss=split(.8, 1.2))}),
}
for rule, (letters, *_) in study.SIGNS.items():
    published, right, none = (f'{rule} {m}, stored' for m in ('repulsion as published', 'repulsion', 'not steered'))
    SCENES |= {f'OC13{letters[0]}': ({published: cosine(.6), none: cosine(.5)}, {published: cosine(.4)}, {published: cosine(split(.3, .8))}),
               f'OC13{letters[1]}': ({none: cosine(.5), right: cosine(.3)}, {right: cosine(.6)}, {right: cosine(split(.2, .7))}),
               f'OC13{letters[2]}': ({published: Ran(loss=.9), none: Ran()}, {published: Ran(loss=1.1)}, {published: Ran(loss=split(.7, 1.2))}),
               f'OC13{letters[3]}': ({none: Ran(), right: Ran(loss=1.2)}, {right: Ran(loss=.9)}, {right: Ran(loss=split(.8, 1.3))})}
for rule, id in dict(SGD='OC14a', Adam='OC14d').items(): SCENES[id] = (swept(rule, [.01] * 6), swept(rule, [.2] * 6), swept(rule, split(.01, .12)))
for id, of_ in dict(OC14c='SGD halves', OC14e='Adam halves', OC14g='SGD permuted', OC14h='Adam permuted', OC14i='SGD shared outputs', OC14j='Adam shared outputs', OC14f='corpora').items():
    steered, plain = f'{of_}, steered to 0', f'{of_}, alternation'
    SCENES[id] = ({steered: tasks(1., .5), plain: tasks(1.4, .5)}, {steered: tasks(1.4, .5)}, {steered: tasks(split(.9, 1.7), .5)})
CASES = [(claim, verdict, i) for claim in CLAIMS for i, verdict in enumerate(('supported', 'refuted', 'inconclusive'))]


def scene(claim, i=0): return SCENES[claim][0] | (SCENES[claim][i] if i else {})
def decide(claim, arms): return judge(CLAIMS[claim], *tables(arms), 'cpu')


def test_every_claim_has_its_scenes(): assert set(SCENES) == set(CLAIMS)


@pytest.mark.parametrize('claim, verdict, i', CASES)
def test_verdict(claim, verdict, i):
    runs, records = tables(scene(claim, i))
    assert judge(CLAIMS[claim], runs, records, 'cpu').verdict == verdict
    assert judge(CLAIMS[claim], runs, records, 'quick').verdict == 'inconclusive'
    assert set(names_of(CLAIMS[claim], runs)) == set(SCENES[claim][0])


@pytest.mark.parametrize('claim', SCENES)
def test_what_is_missing_decides_nothing(claim):
    runs, records = tables(scene(claim))
    for arm in list(SCENES[claim][0])[:4]:
        assert judge(CLAIMS[claim], *without(runs, records, arm), 'cpu').verdict == 'inconclusive'
        assert 'seed 1' in judge(CLAIMS[claim], *diverged(runs, records, arm, seed=1), 'cpu').note


@pytest.mark.parametrize('claim', ['OC13c', 'OC13d', 'OC13g', 'OC13h', 'OC14b'])
def test_losses_of_what_has_learned_nothing_decide_nothing(claim):
    found = decide(claim, {a: Ran(loss=2.2) for a in SCENES[claim][0]})
    assert found.verdict == 'inconclusive' and 'no model does the task: 0 of 6 have learned digits' in found.note


TWO_TASKS = [f'OC14{x}' for x in 'cefghij']

@pytest.mark.parametrize('claim', TWO_TASKS)
def test_where_alternation_forgets_nothing_nothing_is_kept(claim):
    found = decide(claim, {a: replace(ran, forgets=.02) for a, ran in scene(claim).items()})
    assert found.verdict == 'inconclusive' and '0 of 6 lose as little on the new task, where alternation forgets' in found.note


@pytest.mark.parametrize('claim', TWO_TASKS)
def test_what_learns_the_new_task_worse_keeps_nothing(claim):
    steered = SCENES[claim][0].keys() - {a for a in SCENES[claim][0] if 'alternation' in a}
    found = decide(claim, scene(claim) | {steered.pop(): tasks(1., .9)})
    assert found.verdict == 'inconclusive' and '0 of 6 lose as little on the new task' in found.note


def test_no_rule_is_wrong_more_than_once_in_twenty():
    for c in {type(c.rule): c for c in CLAIMS.values()}.values(): assert wrong(error_rates(c.rule, c.sd, c.seeds, 4000), c.rule) <= .06   # and the noise of as many made-up studies


# -- arms -------------------------------------------------------------------------------------------------------------

@cache
def plan(preset): return {a.name: (a, seeds) for a, seeds in study.study.presets[preset]().plan}


def test_claims_ask_for_arms_that_are_planned_with_their_seeds():
    for claim in CLAIMS.values():
        for name in claim.arms: assert len(plan('cpu')[name][1]) >= 12, f'{claim.id}: {name}'


def test_arms_of_a_seed_read_the_same_batches():
    stored = [a for a, _ in plan('cpu').values() if a.name.endswith(', stored') or dict(a.factors).get('question') == 'sweep']
    batches = [a.task.batches(3) for a in (stored[0], stored[7], stored[-1])]
    assert len({a.task for a in stored}) == 1
    for step in (0, 19, 20): assert all(torch.equal(x, y) for b in batches[1:] for x, y in zip(batches[0](step), b(step)))


def test_a_control_differs_in_its_steering_alone():
    for rule in ('SGD', 'Adam'):
        ours, control = (plan('cpu')[f'{kind} to 0.5'][0] for kind in (rule, f'{rule}, length alone'))
        steering = ours.train.objective.steering[0], control.train.objective.steering[0]
        assert steering[0].cosine == steering[1].cosine == .5 and type(steering[0]) is not type(steering[1])
        assert (ours.task, ours.model, ours.train.optimizer, ours.train.steps) == (control.task, control.model, control.train.optimizer, control.train.steps)


def test_published_and_corrected_signs_differ_in_the_defect_alone():
    for rule in ('SGD', 'Adam'):
        as_published, right = (plan('cpu')[f'{rule} {m}, stored'][0] for m in ('repulsion as published', 'repulsion'))
        steering = replace(right.train.objective, steering=(replace(right.train.objective.steering[0], as_published=True),))
        assert as_published.train == replace(right.train, objective=steering) and as_published.train != right.train
