"""The claims of the recall study on invented numbers, its presets, and the one thing its control must not be able to do."""
import re
from dataclasses import dataclass, field, replace
from functools import cache

import invented
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from invented import diverged, of, without
from memlab.cli import main
from memlab.core.files import read_json, write_json
from memlab.eval import recall_measures
from memlab.lab.arm import with_factors
from memlab.lab.claims import claim_row, judge
from memlab.lab.records import RECORDS, read_table
from memlab.nn.mixer_lm import count_block_parameters
from memlab.studies import mqar

CLAIMS = {c.id: c for c in mqar.study.claims}
STEPS = range(0, 3001, 100)
FLOORS = dict(vocabulary=1/64, row=1/8, position=.22)


@cache
def plan(preset):
    "Both stages of a preset, the second as if no trial had told anything."
    found = mqar.study.presets[preset]()
    first = [arm for arm, _ in found.plan]
    runs = with_factors(pd.DataFrame(dict(arm=[arm.name for arm in first])), first)
    return {arm.name: (arm, seeds) for arm, seeds in found.plan + found.then(runs, invented.tables({}, rows)[1])}


# -- invented numbers -------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Ran:
    "What the runs of an arm measured; each a number, or one for every seed."
    end: object = 1.                     # accuracy at the end
    solved: object = None                # step from which it is that; before, it rests at `rest`
    rest: float = .05
    also: dict = field(default_factory=dict)    # (metric, item) -> value at the end
    seeds: int = 3


def rows(ran, seed):
    "Records of one run."
    row = lambda step, metric, value, item=None: dict(step=step, metric=metric, value=value, item=item)
    for name, value in FLOORS.items(): yield row(0, 'floor', value, name)
    start = of(ran.solved, seed)
    for step in STEPS: yield row(step, 'accuracy', of(ran.end, seed) if step >= (3000 if start is None else start) else ran.rest)
    for (metric, item), value in ran.also.items(): yield row(0 if metric in ('difference', 'error', 'error_float32', 'state_bytes') else 3000, metric, of(value, seed), item)


def tables(arms):
    runs, records = invented.tables(arms, rows)
    return with_factors(runs, [arm for name in ('cpu', 'gpu') for arm, _ in plan(name).values()]), records


def changed(untouched, updated, stale): return Ran(also={('untouched', None): untouched, ('updated', None): updated, ('stale', None): stale})
def asked(many, more): return Ran(also={('accuracy', '32 pairs'): many, ('accuracy', '64 pairs'): more})
def carried(value): return Ran(also={('accuracy', 'carried'): value})
def loads(**by): return {f'{m} load {n}': Ran(end=e) for m, ends in by.items() for n, e in zip((8, 16, 32), ends)}
def rates(**by): return {f'{m} rate {r:g}': Ran(solved=500 if i < n else None, end=1. if i < n else .2) for m, n in by.items() for i, r in enumerate(mqar.FIVE_RATES)}
def holds(**by): return {f'{m} holds {f}': Ran(end=e, also={('state_bytes', None): 4 * f}) for m, ends in by.items() for f, e in zip((64, 128, 256, 512, 1024), ends)}


def widths(**by): return {f'{m} T {t} d {d}': Ran(end=1. if least and d >= least else .5) for m, each in by.items() for (t, _), least in zip(mqar.LENGTHS, each) for d in mqar.WIDTHS}


SHIFTED = {f'attention conv {n}': Ran(solved=300) for n in (1, 2)} | {f'attention learned {n}': Ran(end=.2) for n in (1, 2)}
BARE = {'attention bare': Ran(solved=1500, seeds=5), 'unified bare': Ran(solved=1500, seeds=5)}
def some(n): return Ran(solved=[1500 if s < n else None for s in range(5)], end=[1. if s < n else .2 for s in range(5)], seeds=5)


# claim: arms for which it is supported, and what changes the verdict to which
SCENES = {
    'MQ1': ({'parity': Ran(also={('difference', 'a'): 0, ('difference', 'b'): 0})}, [
        ('refuted', {'parity': Ran(also={('difference', 'a'): 0, ('difference', 'b'): 64})}),
        ('inconclusive', {'parity': Ran(also={('difference', 'a'): [0, 0, 1]})})]),
    'MQ2': ({'attention learned 2': Ran(end=.9, solved=2000, rest=.2)}, [
        ('refuted', {'attention learned 2': Ran(end=.9, solved=900, rest=.2)}),           # not for long
        ('refuted', {'attention learned 2': Ran(end=.9, solved=2000, rest=.13)}),         # at 1/n
        ('refuted', {'attention learned 2': Ran(end=.9, solved=2000, rest=.3)}),          # above the ceiling
        ('inconclusive', {'attention learned 2': Ran(end=.9, solved=[2000, 500, 2000], rest=.2)})]),
    'MQ3': (SHIFTED, [
        ('supported', {'attention learned 2': Ran(solved=1500)}),                         # five times as long
        ('refuted', {'attention learned 2': Ran(solved=1000)}),
        ('refuted', {'attention conv 1': Ran(end=.3)}),                                   # the convolution does not help
        ('inconclusive', {'attention learned 1': Ran(solved=[400, None, None], end=[1., .2, .2])})]),
    'MQ4a': ({'attention conv': Ran(solved=400), 'unified conv': Ran(solved=600)}, [
        ('refuted', {'unified conv': Ran(solved=700)}),                                   # slower
        ('refuted', {'unified conv': Ran(end=.9)}),
        ('inconclusive', {'unified conv': Ran(end=[1., 1., .9], solved=400)})]),
    'MQ4b': (BARE, [
        ('supported', {'attention bare': some(4)}),
        ('refuted', {'unified bare': some(3)}),
        ('inconclusive', {'unified bare': some(4)}),
        ('inconclusive', {'unified bare': some(0), 'attention bare': some(0)})]),
    'MQ5': (loads(delta=(.99, .9, .7), additive=(.98, .8, .5), **{'elu+1': (.5, .3, .1)}), [
        ('refuted', {'additive load 16': Ran(end=.95)}),
        ('refuted', {'additive load 32': Ran(end=.7)}),
        ('refuted', {'elu+1 load 32': Ran(end=.7)}),                                      # the better of the two counts
        ('refuted', {'elu+1 load 16': Ran(end=.7)}),                                      # the denominator does no harm
        ('refuted', {'additive load 8': Ran(end=.5)}),                                    # the gap shrinks
        ('inconclusive', {'delta load 16': Ran(end=[.9, .9, .81])})]),
    'MQ6': ({'delta overwrite': changed(.97, .99, .01), 'additive overwrite': changed(.92, .5, .4), 'attention overwrite': changed(1., .6, .3)}, [
        ('refuted', {'delta overwrite': changed(.97, .9, .01)}),
        ('refuted', {'delta overwrite': changed(.97, .99, .05)}),
        ('refuted', {'attention overwrite': changed(1., .9, .05)}),
        ('refuted', {'additive overwrite': changed(.5, .5, .4)}),
        ('inconclusive', {'additive overwrite': changed(.92, [.5, .5, .9], .4)})]),
    'MQ7': (holds(delta=(.5, .6, .7, .8, .9), gla=(.4, .5, .6, .7, .8), mamba2=(.3, .4, .5, .6, .7), window=(.1, .2, .3, .4, .5)), [
        ('supported', holds(gla=(.55, .56, .6, .7, .8))),                                 # out of order at one size only
        ('refuted', holds(gla=(.55, .65, .66, .7, .8))),
        ('refuted', holds(window=(.1, .3, .2, .05, .06))),                                # bytes do not predict
        ('inconclusive', holds(window=(.2,) * 5))]),                                      # one accuracy at every size
    'MQ8': (widths(baseconv=(64, 128, 256), attention=(32, 32, 32)), [
        ('supported', widths(baseconv=(64, 128, None))),                                  # no width is enough
        ('refuted', widths(baseconv=(64, 64, 128))),
        ('refuted', widths(attention=(32, 64, 128))),
        ('inconclusive', {'baseconv T 256 d 128': Ran(end=[1., .5, .5])})]),
    'MQ9': (rates(attention=4, delta=2), [
        ('refuted', rates(delta=4)),
        ('refuted', rates(attention=2, delta=1)),
        ('inconclusive', {'attention rate 0.003': Ran(solved=[500, None, None], end=[1., .2, .2]), 'attention rate 0.01': Ran(end=.2)})]),
    'MQ10': ({'equivalences': Ran(also={('error', 'a'): 1e-14, ('error_float32', 'a'): 1e-6})}, [
        ('refuted', {'equivalences': Ran(also={('error', 'a'): 1e-8, ('error_float32', 'a'): 1e-6})}),
        ('refuted', {'equivalences': Ran(also={('error', 'a'): 1e-14, ('error_float32', 'a'): 1e-3})}),
        ('inconclusive', {'equivalences': Ran(also={('error', 'a'): [1e-14, 1e-14, 1e-8], ('error_float32', 'a'): 1e-6})})]),
    'MQ11': ({'attention extrapolates': asked(.99, .95)} | {f'delta {k} extrapolates': asked(.02 * k, .01 * k) for k in (8, 16, 32)}, [
        ('refuted', {'attention extrapolates': asked(.99, .5)}),
        ('refuted', {'delta 8 extrapolates': asked(.5, .05)}),                            # the smallest is not the worst
        ('refuted', {'delta 32 extrapolates': asked(.5, .6)}),                            # it rises
        ('inconclusive', {'attention extrapolates': asked(.99, [.95, .95, .5])})]),
    'MQ12': ({'delta carried': carried(1.), 'gated_delta carried': carried(.99), 'attention carried': carried(.1)}, [
        ('refuted', {'delta carried': carried(.5)}),
        ('refuted', {'attention carried': carried(.9)}),
        ('inconclusive', {'gated_delta carried': carried([1., 1., .5])})]),
    'MQ14': ({'memory as feed-forward, even': Ran(end=.8), 'static feed-forward, even': Ran(end=.2), 'memory as feed-forward': Ran(end=.2)}, [
        ('refuted', {'memory as feed-forward, even': Ran(end=.3)}),
        ('refuted', {'static feed-forward, even': Ran(end=.4)}),
        ('inconclusive', {'memory as feed-forward, even': Ran(end=[.8, .8, .3])})]),
}
CASES = [(claim, verdict, changes) for claim, (_, cases) in SCENES.items() for verdict, changes in [('supported', {}), *cases]]


@cache
def scene(claim):
    "Tables for which a claim is supported, for tests that take some away."
    return tables(SCENES[claim][0])


def test_every_claim_has_every_verdict():
    assert set(SCENES) == set(CLAIMS)
    assert {(c, v) for c, v, _ in CASES} == {(c, v) for c in CLAIMS for v in ('supported', 'refuted', 'inconclusive')}


@pytest.mark.parametrize('claim, verdict, changes', CASES, ids=[f'{c}-{v}-{"+".join(x)}' for c, v, x in CASES])
def test_verdict(claim, verdict, changes):
    runs, records = tables(SCENES[claim][0] | changes)
    assert judge(CLAIMS[claim], runs, records, 'cpu').verdict == verdict
    assert judge(CLAIMS[claim], runs, records, 'quick').verdict == 'inconclusive'


@pytest.mark.parametrize('claim, arm', [(c, a) for c, (base, _) in SCENES.items() for a in base])
def test_an_arm_may_have_fewer_seeds(claim, arm):
    "A table that is still being computed is read on the seeds that all arms have."
    base = SCENES[claim][0]
    more = tables({name: replace(ran, seeds=ran.seeds + 1) for name, ran in base.items()})
    found = judge(CLAIMS[claim], *without(*more, arm, seed=0), 'cpu')
    assert found.verdict == 'supported' and found.effect == found.effect, found
    assert found.n_seeds == min(r.seeds for r in base.values())


@pytest.mark.parametrize('claim, arm', [(c, a) for c, (base, _) in SCENES.items() for a in base])
def test_a_missing_or_diverged_arm_leaves_its_claim_undecided(claim, arm):
    gone = judge(CLAIMS[claim], *without(*scene(claim), arm), 'cpu')
    assert gone.verdict == 'inconclusive' and gone.n_seeds == 0, gone
    found = judge(CLAIMS[claim], *diverged(*scene(claim), arm, seed=1), 'cpu')
    assert found.verdict == 'inconclusive' and arm in found.note and 'seed 1' in found.note


@pytest.mark.parametrize('claim, few', [(c, n) for c in SCENES for n in (1, 2)])
def test_one_seed_or_two_decide_nothing(claim, few):
    found = judge(CLAIMS[claim], *(table[table.seed.between(1, few)] for table in scene(claim)), 'cpu')
    assert found.verdict == 'inconclusive' and found.n_seeds == few and f'{few} seed{"s" * (few > 1)}: a verdict needs at least 3' in found.note


@pytest.mark.parametrize('claim, changes, unit', [('MQ4a', {}, 'accuracy'), ('MQ4a', {'unified conv': Ran(solved=700)}, 'ratio of steps'), ('MQ4a', {'unified conv': Ran(end=.9, solved=400)}, 'accuracy'),
                                                  ('MQ6', {}, 'accuracy'), ('MQ6', {'delta overwrite': changed(.97, .99, .05)}, 'share of answers'), ('MQ6', {'attention overwrite': changed(1., .6, .05)}, 'share of answers')])
def test_an_effect_has_the_unit_of_the_part_that_is_shown(claim, changes, unit):
    assert claim_row(CLAIMS[claim], judge(CLAIMS[claim], *tables(SCENES[claim][0] | changes), 'cpu'), 'cpu')['unit'] == unit


# -- presets ----------------------------------------------------------------------------------------------------------

def test_the_arms_of_every_claim_are_in_the_plan():
    for claim, (base, _) in SCENES.items(): assert base.keys() <= plan('gpu' if claim == 'MQ8' else 'cpu').keys()


def test_the_source_is_planned_at_its_own_size():
    counts = {n: count_block_parameters(plan('full')[f'{n} of the source'][0].model.build()) for n in ('attention', 'unified_kv', 'delta')}
    assert counts['attention'] == counts['unified_kv'] == 98_560 and counts['delta'] == pytest.approx(98_560, rel=.02)
    assert plan('full')['delta of the source'][0].tokens == 100 * 40_000 * 128


def test_matched_arms_are_matched():
    parameters = lambda name: count_block_parameters(plan('cpu')[name][0].model.build())
    for name in ('conv', 'bare'):
        assert parameters(f'unified {name}') == pytest.approx(parameters(f'attention {name}'), rel=.01)
        assert parameters(f'unified {name} equal width') < .8 * parameters(f'attention {name}')
        cache_of = lambda arm: plan('cpu')[arm][0].model.mixers[0].build().memory_size(100)
        assert cache_of(f'unified {name} equal cache') == cache_of(f'attention {name}')
        assert cache_of(f'unified {name}') == pytest.approx(2/3 * cache_of(f'attention {name}'), rel=.01)
    for weights in ('', ', even'): assert parameters(f'memory as feed-forward{weights}') == pytest.approx(parameters(f'static feed-forward{weights}'), rel=.02)
    for floats in mqar.FLOATS:
        sizes = {f: plan('cpu')[f'{f} holds {floats}'][0].model.mixers[0].build().memory_size(64) for f in mqar.FAMILIES}
        assert set(sizes.values()) == {floats}, sizes


def test_trials_and_families_share_rates():
    first = {a.name for a, _ in mqar.study.presets['cpu']().plan}
    assert {f'delta load 16 trial {r:g}' for r in (1e-3, 3e-3, 1e-2)} <= first and not any(n.startswith('delta load 8 ') for n in first)
    assert not {n for n in first if n.endswith('holds 64')}


# -- the control ------------------------------------------------------------------------------------------------------

def test_the_control_is_shuffled_and_nothing_else():
    control, plain = (plan('cpu')[n][0] for n in ('shuffled answers', 'attention learned 2'))
    assert control.task == replace(plain.task, shuffled=True) and control.measures == plain.measures


def test_arms_of_a_seed_read_the_same_rows():
    a, b = (plan('cpu')[n][0].task for n in ('attention conv 2', 'delta carried'))
    for x, y in zip(a.batches(1)(7), b.batches(1)(7)): assert torch.equal(x, y)


# -- the command line -------------------------------------------------------------------------------------------------

COMMAND = 'train mqar --mixer delta --dim 16 --dk 8 --n-heads 1 --n-layers 1 --batch-size 4 --vocab-size 64 --input-seq-len 16 --num-kv-pairs 2 --steps 300'.split()


def trained(home, monkeypatch, *more):
    "Exit code, output and records of the command in a tree of its own."
    monkeypatch.setenv('MEMLAB_HOME', str(home))
    done = CliRunner().invoke(main, [*COMMAND, *more])
    return done.exit_code, done.output, [read_table(f, RECORDS).to_pylist() for f in home.glob('build/runs/mqar/train/*/records.parquet')]


def test_a_model_is_trained_interrupted_and_trained_on(tmp_path, monkeypatch):
    code, said, whole = trained(tmp_path/'a', monkeypatch)
    assert code == 0 and 'at step 300 (guessing: ' in said and len(whole) == 1
    scored = recall_measures.score_records
    def stumble(step, *rest):
        if step == 200: raise KeyboardInterrupt
        return scored(step, *rest)
    with monkeypatch.context() as m:
        m.setattr(recall_measures, 'score_records', stumble)
        code, said, none = trained(tmp_path/'b', m)
        assert code == 130 and 'goes on' in said and none == []
    fresh = []
    monkeypatch.setattr(recall_measures, 'score_records', lambda step, *rest: fresh.append(step) or scored(step, *rest))
    code, _, again = trained(tmp_path/'b', monkeypatch)
    assert code == 0 and again == whole and fresh == [200, 300]                 # from the checkpoint of step 100
    done = next(tmp_path.joinpath('b').rglob('done.json'))
    assert 'by other code' not in trained(tmp_path/'b', monkeypatch)[1]
    write_json(done, read_json(done) | dict(code='of old'))
    assert 'by other code' in trained(tmp_path/'b', monkeypatch)[1]
    assert 'by other code' not in trained(tmp_path/'b', monkeypatch, '--fresh')[1] and fresh[-3:] == [100, 200, 300]


@pytest.mark.parametrize('words, told', [(['--mixer', 'lstm'], "no mixer 'lstm': choose from attention"), (['--num-kv-pairs', '9'], 'is too short'), (['--vocab-size', '63'], 'does not divide into 2 equal parts'),
                                         (['--input-seq-len', '15'], 'expected an even number'), (['--form', 'fast'], "form='fast'"), (['--mixer', 'baseconv', '--dk', '4'], 'its options are d_model')])
def test_bad_words_end_with_what_was_wanted(words, told, tmp_path, monkeypatch):
    monkeypatch.setenv('MEMLAB_HOME', str(tmp_path))
    done = CliRunner().invoke(main, COMMAND + words)
    assert done.exit_code == 2 and told in done.output, done.output


def test_a_run_that_blows_up_on_the_command_line_is_told(tmp_path, monkeypatch):
    "Exit code 1 and the step at which it diverged, the second time too, and no accuracy of a model that is lost."
    monkeypatch.setenv('MEMLAB_HOME', str(tmp_path))
    for _ in range(2):
        done = CliRunner().invoke(main, [*COMMAND, '--lr', '1e30'])
        assert done.exit_code == 1 and re.search(r'Error: diverged at step \d+: .*try a smaller --lr', done.output) and 'accuracy' not in done.output
