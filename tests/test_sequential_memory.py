"""The claims of the study of sequential memory on invented numbers, and what its arms must share and may differ in."""
from dataclasses import dataclass, replace
from functools import cache

import invented
import pytest
import torch
from invented import diverged, of, without
from memlab.lab.arm import check_factors
from memlab.lab.board import finding_of, in_words
from memlab.lab.claims import judge, names_of
from memlab.lab.rules import error_rates, wrong
from memlab.studies import sequential_memory as study

CLAIMS, SEEDS = {c.id: c for c in study.study.claims}, 6


@dataclass(frozen=True)
class Ran:
    "What the runs of an arm measured: (metric, item, position, step) -> a number, or one for every seed."
    found: dict
    seeds: int = SEEDS

    def __or__(self, more): return replace(self, found=self.found | more)


def rows(ran, seed):
    "Records of one run."
    for (metric, item, position, step), value in ran.found.items(): yield dict(step=step, metric=metric, value=float(of(value, seed)), item=item, position=position)


def tables(arms): return invented.tables(arms, rows)
def split(low, high): return [low, high] * 3
def one(metric, value, item=None, position=None, step=100): return {(metric, item, position, step): value}


def block(a=0., near=0., inside=-.5):
    return Ran(one('forward_minus_backward', a, 'block 0', '9') | one('change_inside', inside, 'block 0', '9') | one('change', near, position='-1') | one('change', near, position='1'))


def asked(gain): return Ran({k: v for lag in (1, 8) for step, x in ((10, 9.), (60, gain), (100, gain)) for k, v in one('recall_gain', x, f'lag {lag}', step=step).items()})
def left(x): return Ran(one('one_step_retention', x, step=50) | one('one_step_retention', x))
def words(gain): return Ran(one('token_nll', 5., 'unread', '1') | one('token_nll', [5. - g for g in gain] if isinstance(gain, list) else 5. - gain, 'lag 1-8', '1'))
def scored(**shares): return Ran({k: v for name, x in shares.items() for lag in ('lag 1-8', 'lag 33-128', 'unread') for k, v in one(name, x.get(lag, 0.) if isinstance(x, dict) else x, lag).items()})
def copies(before, after): return Ran(one('copied', before, step=0) | one('copied', after))
def context(masked=.5, low=.9, start=.9): return Ran(one('answered', masked, 'masked') | one('context_fraction', 1., step=50) | one('context_fraction', .5) | one('answered_as_trained', start, step=50) | one('answered_as_trained', low))
def string(bits): return Ran(one('bits_per_parameter', bits))


def turns(forgets, new=.5):
    "Two tasks, two turns: what the first loses in the turn of the second, whose loss is `new` then."
    return Ran(one('task_loss', 1.5, 'task 1', step=0) | one('task_loss', 1.5, 'task 2', step=0) | one('task_loss', .5, 'task 1', step=50) | one('task_loss', 1.5, 'task 2', step=50)
               | one('task_loss', [.5 + f for f in forgets] if isinstance(forgets, list) else .5 + forgets, 'task 1') | one('task_loss', new, 'task 2'))


def at_scales(prefix, make, by, draws, ours, theirs):
    "One rate and groups, best at scale 1, where these are their numbers."
    arms = {f'{prefix}, one rate × {s:g}': make(theirs if s == 1 else .001) for s in study.SCALES}
    return arms | {f'{prefix}, {study.grouped(by, "mean", s, k)[0]}': make(ours if s == 1 else .001) for s in study.SCALES for k in range(draws)}


def drawn(spread): return {f'pairs, {name}': left([.2 + s * (-1) ** i for s in (spread if isinstance(spread, list) else [spread])]) for i, name in enumerate(study.ASSIGNED)}
def guard(kind, name, ours, plain=1., new=.5): return {f'{kind}, {g}, {order}': turns(x, n) for g, x, n in ((name, ours, new), ('alternation', plain, .5)) for order in ('forth', 'back')}
def held(best, other=.5, **ways): return {f'{load} load, {way}': string(x if load == 'heavy' else other) for way, x in (ways or dict([best])).items() for load in study.LOADS}


READ, EVEN = study.READER, f'pairs, {study.EVEN}'
SCENES = {   # claim -> arms for which it is supported; for which it is refuted; for which it is open
    **{f'SM20{x}': tuple({f'ordered, read {times}': block(a), f'shuffled, read {times}': block()} for a in (-.1, .02, split(-.2, .1))) for x, times in zip('ab', study.PASSES)},
    'SM20c': tuple({'ordered, read five times': block(near=x), 'shuffled, read five times': block()} for x in (-.1, .02, split(-.2, .1))),
    **{f'SM2{x}': tuple({'texts asked for later': asked(g)} for g in (.3, -.1, split(-.3, .5))) for x in 'ab'},
    'SM16a': tuple({EVEN: left(x), 'pairs, one rate × 1': left(.1)} for x in (.3, .1, split(0., .4))),
    'SM16d': tuple(drawn(x) for x in (.2, .01, split(.01, .12))),
    **{f'SM16{x}': tuple(at_scales('pairs', left, by, n, ours, .2) for ours in (.4, .2, split(.1, .5))) for x, by, n in (('b', 'element', 1), ('c', 'tensor', 4))},
    **{f'SM16{x}': tuple(at_scales('sentences', words, by, n, ours, .2) for ours in (.4, .2, split(.1, .5))) for x, by, n in (('e', 'element', 1), ('f', 'tensor', 2))},
    **{f'SM16{x}': tuple(at_scales('sentences', words, by, n, ours, .2) for ours in (.4, .2, split(.1, .5))) for x, by, n in (('g', 'element', 1), ('h', 'tensor', 2))},
    'SM17a': tuple({READ: scored(full=x, one_token=.2)} for x in (.5, .2, split(.1, .5))),
    'SM17b': tuple({READ: scored(last_token=x, one_token_of_single=.5)} for x in (.8, .5, split(.3, .9))),
    'SM17c': tuple({READ: scored(last_token=dict({'lag 1-8': x, 'unread': .3}), one_token_of_single=dict({'lag 1-8': .5, 'unread': .2}))} for x in (.9, .6, split(.4, 1.))),
    'SM17d': tuple({READ: scored(full=dict({'lag 1-8': x, 'lag 33-128': .3}))} for x in (.6, .3, split(.1, .7))),
    'SM18a': tuple({'copying, no repeats': copies(.9, x)} for x in (.3, .85, split(.3, .9))),
    'SM18b': tuple({'copying, no repeats': copies(.9, .3), 'copying, a fifth repeated': copies(.9, x)} for x in (.9, .35, split(.3, .8))),
    'SM19a': tuple({'context, slowest': context(x), 'context, at once': context(.3)} for x in (.6, .3, split(.2, .7))),
    'SM19b': tuple({'context, slowest': context(low=x)} for x in (.88, .5, split(.5, .9))),
    'SM19c': tuple({'context, at once': context(x), 'context, stays': context(.1)} for x in (.5, .1, split(0., .6))),
    **{claim: tuple(guard(kind, name, x) for x in (.2, 1., split(.3, 1.4))) for kind, letters in zip(study.KINDS, ('abcdef', 'ghijkl')) for claim, name in zip((f'SM23{x}' for x in letters), study.WAYS)},
    'SM24a': tuple(held(('many times', x)) for x in (2., 1., split(1., 2.))),
    'SM24b': tuple(held(('few times', x)) for x in (1., 2., split(1., 2.))),
    'SM24c': tuple(held(None, **{'many times': x, 'stopped early': .6}) for x in (1.5, .6, split(.3, 1.3))),
}
CASES = [(claim, verdict, i) for claim in CLAIMS for i, verdict in enumerate(('supported', 'refuted', 'inconclusive'))]


def decide(claim, arms): return judge(CLAIMS[claim], *tables(arms), 'cpu')


def test_every_claim_has_its_scenes(): assert set(SCENES) == set(CLAIMS)


@pytest.mark.parametrize('claim, verdict, i', CASES)
def test_verdict(claim, verdict, i):
    runs, records = tables(SCENES[claim][i])
    assert judge(CLAIMS[claim], runs, records, 'cpu').verdict == verdict
    assert judge(CLAIMS[claim], runs, records, 'quick').verdict == 'inconclusive'
    assert set(names_of(CLAIMS[claim], runs)) == set(SCENES[claim][0])


@pytest.mark.parametrize('claim', CLAIMS)
def test_every_verdict_has_its_sentence_with_the_effect(claim):
    assert set(CLAIMS[claim].findings) == {'supported', 'refuted'}
    said = {}
    for i, verdict in ((0, 'supported'), (1, 'refuted')):
        row = vars(judge(CLAIMS[claim], *tables(SCENES[claim][i]), 'cpu')) | dict(unit=CLAIMS[claim].unit)
        said[row['verdict']] = finding_of(CLAIMS[claim], row)[0]
        assert in_words(row) in said[verdict] and said[verdict].endswith('.')
    assert len(set(said.values())) == 2


def test_the_answer_is_short_whatever_it_is():
    "With what to do, and the scale."
    of = lambda id, verdict: finding_of(CLAIMS[id], dict(verdict=verdict, effect=.1, ci_low=.1, ci_high=.1, unit=CLAIMS[id].unit))
    longest = [max(len(' '.join(of(id, v)).split()) for v in ('supported', 'refuted', 'inconclusive')) for id in ('SM20b', 'SM20c', 'SM23a')]
    assert sum(longest) + len('Do: Scale: two layers, width 64, minutes of training.'.split()) <= 120


@pytest.mark.parametrize('claim', SCENES)
def test_what_is_missing_decides_nothing(claim):
    runs, records = tables(SCENES[claim][0])
    for arm in list(SCENES[claim][0])[:4]:
        assert judge(CLAIMS[claim], *without(runs, records, arm), 'cpu').verdict == 'inconclusive'
        assert 'seed 1' in judge(CLAIMS[claim], *diverged(runs, records, arm, seed=1), 'cpu').note


def test_the_best_way_is_chosen_by_the_other_seeds():
    "A way that is best on one seed alone is taken for no seed: not for this one, and the others do not need it."
    import pandas as pd
    table = pd.DataFrame({'steady': [.5, .5, .5], 'lucky': [1., .1, .1]})
    assert study.best(table).tolist() == [.5, .1, .1]        # seeds 1 and 2 see luck on seed 0, and pay for it
    assert study.best(table[:1]).tolist() == [.5]


@pytest.mark.parametrize('claim', ['SM20a', 'SM20b', 'SM20c'])
def test_blocks_that_were_not_learned_decide_nothing(claim):
    found = decide(claim, {a: ran | one('change_inside', -.01, 'block 0', '9') for a, ran in SCENES[claim][0].items()})
    assert found.verdict == 'inconclusive' and '0 of 6 learn .1 nats of a block' in found.note


@pytest.mark.parametrize('preset', ['cpu', 'gpu'])
def test_at_every_look_there_are_sentences_of_all_ages(preset):
    "Sentences still to come among them, which the end of a stream does not have."
    arm = next(a for a, _ in study.study.preset(preset).plan if a.name == study.READER)
    for step in arm.measures[0].at:
        assert {study.JUST, 'unread'} <= set(arm.measures[0].groups(arm.task, step))
    assert {study.JUST, 'lag 33-128', 'unread'} <= set(arm.measures[0].groups(arm.task, arm.measures[0].at[-1]))
    read = [n for k in range(arm.measures[0].at[-1]) for n in arm.task.numbers(k)]
    assert {read.count(i) for i in arm.measures[0].groups(arm.task, arm.measures[0].at[-1])[study.JUST]} == {arm.task.window}   # all equally often


@pytest.mark.parametrize('claim', ['SM16e', 'SM16f'])
def test_harm_to_sentences_to_come_is_no_gain(claim):
    scene = SCENES[claim][0]
    harmed = {a: ran | one('token_nll', 6., 'unread', '1') if 'one rate' not in a else ran for a, ran in scene.items()}
    found = decide(claim, harmed)
    assert found.verdict == 'inconclusive' and '0 of 6 lose at most .1 nats more' in found.note


@pytest.mark.parametrize('claim', ['SM18a', 'SM18b'])
def test_what_never_copied_has_nothing_to_lose(claim):
    found = decide(claim, {a: ran | one('copied', .1, step=0) for a, ran in SCENES[claim][0].items()})
    assert found.verdict == 'inconclusive' and '0 of 6 copy more than .4' in found.note


def test_a_context_that_was_never_used_cannot_go_smoothly():
    assert '0 of 6 answer half of the facts' in decide('SM19b', {'context, slowest': context(low=.1, start=.1)}).note


GUARDS = [f'SM23{x}' for x in 'abcdefghijkl']

@pytest.mark.parametrize('claim', GUARDS[::3])
def test_guards_need_something_to_forget_and_must_learn(claim):
    kind, name, _ = CLAIMS[claim].arms[0].split(', ')
    for arms in (guard(kind, name, .01, plain=.05), guard(kind, name, .1, new=.8)):
        found = decide(claim, arms)
        assert found.verdict == 'inconclusive' and '0 of 6 learn the last task within .1 nats, where alternation forgets .1' in found.note


def test_the_better_load_is_the_capacity():
    assert abs(decide('SM24a', held(('many times', 2.), other=.5)).effect - 2) < 1e-9


def test_no_rule_is_wrong_more_than_once_in_twenty():
    for c in {type(c.rule): c for c in CLAIMS.values()}.values(): assert wrong(error_rates(c.rule, c.sd, c.seeds, 4000), c.rule) <= .06   # and the noise of as many made-up studies


# -- arms -------------------------------------------------------------------------------------------------------------

@cache
def plan(preset): return {a.name: (a, seeds) for a, seeds in study.study.presets[preset]().plan}


def test_claims_ask_for_arms_that_are_planned_with_their_seeds():
    check_factors([a for a, _ in plan('cpu').values()])
    for claim in CLAIMS.values():
        for name in claim.arms: assert len(plan('cpu')[name][1]) >= 12, f'{claim.id}: {name}'


def test_arms_of_a_question_differ_in_what_is_asked_alone():
    arms = [a for a, _ in plan('cpu').values()]
    for question in ('pairs', 'sentences'):
        mine = [a for a in arms if dict(a.factors)['question'] == question]
        assert len({a.task for a in mine}) == len({a.model for a in mine}) == 1
        assert len({replace(a.train, optimizer=mine[0].train.optimizer) for a in mine}) == 1
    contexts = [a for a in arms if dict(a.factors)['question'] == 'context']
    assert len({replace(a.task, fade=contexts[0].task.fade) for a in contexts}) == 1 and len({a.train.steps for a in contexts}) == 1
    ordered, shuffled = (plan('cpu')[f'{o}, read five times'][0] for o in ('ordered', 'shuffled'))
    assert replace(ordered.task, shuffled=True) == shuffled.task and ordered.train == shuffled.train


def test_readers_of_one_seed_read_the_same_windows():
    ordered, shuffled = (plan('quick')[f'{o}, read once'][0].task for o in ('ordered', 'shuffled'))
    every = [{tuple(t.batches(3)(i)[0][0].tolist()) for i in range(t.steps_per_pass)} for t in (ordered, shuffled)]
    assert every[0] == every[1] and not torch.equal(ordered.batches(3)(0)[0], shuffled.batches(3)(0)[0])


def test_arms_with_parts_of_their_own_train_as_many_numbers():
    for kind, classes, own in (('digits', 10, {'component': ('between',), 'low rank': ('0.up', '0.down')}), ('texts', 256, {'component': ('layers.1.mlp',), 'low rank': ('up.up', 'up.down')})):
        budget = study.trained(plan('cpu')[f'{kind}, alternation, forth'][0].model, classes)
        for name, parts in own.items():
            arm = plan('cpu')[f'{kind}, {name}, forth'][0]
            assert abs(study.trained(arm.model, classes, parts) / budget - 1) < .02
            assert study.trained(arm.model, classes, parts) > study.trained(arm.model, classes)     # its own parts are there


def test_both_orders_are_planned_and_mirror_each_other():
    for kind in study.KINDS:
        for name in ('alternation', *study.WAYS, 'replay 1 %', 'frozen bottom'):
            forth, back = (plan('cpu')[f'{kind}, {name}, {order}'][0] for order in ('forth', 'back'))
            assert forth.task.tasks == back.task.tasks[::-1] and forth.train == back.train and forth.model == back.model


def test_an_early_stop_differs_in_the_stop_alone():
    for load in study.LOADS:
        kept, stopped = (plan('cpu')[f'{load} load, {way}'][0] for way in ('many times', 'stopped early'))
        assert kept.task == stopped.task and kept.train == replace(stopped.train, solved=None) and stopped.train.solved is not None
