"What the figures of study pages say above themselves, on invented numbers: complete ones, some, and none."
import re
from dataclasses import dataclass
from pathlib import Path

import invented
import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from memlab.lab.study import find_study

STUDIES = Path(__file__).parents[1]/'nbs'/'studies'


@pytest.fixture(autouse=True)
def house_style():
    "The style of a page ends with its test."
    with plt.rc_context({'backend': 'agg'}): yield
    plt.close('all')


def page(study, /, *marks, **names):
    "Names defined by the cells of a page that hold these words, behind its imports; no other cell is run."
    sources = [c.source for c in nbformat.read(STUDIES/f'{study}.ipynb', 4).cells if c.cell_type == 'code']
    for mark in ('from memlab.lab.report import', *marks):
        [source] = [s for s in sources if mark in s]
        exec(re.sub('^%.*', '', source, flags=re.M), names)
    return names


@dataclass(frozen=True)
class Ended:
    "Runs that ended at some accuracy, one for each seed."
    at: tuple
    bytes: int = 0

    @property
    def seeds(self): return len(self.at)


def rows(ran, seed):
    row = lambda step, metric, value, item=None: dict(step=step, metric=metric, value=value, item=item)
    return [row(0, 'accuracy', 0.), row(3000, 'accuracy', ran.at[seed]), row(0, 'state_bytes', float(ran.bytes)), row(0, 'floor', .125, 'row')]


def drawn(draw, **arms):
    "Axes with some arms."
    ax = plt.figure().subplots()
    draw(ax, invented.tables(arms, rows)[1])
    return ax


def named(ax): return {line.get_label() for line in ax.get_lines() if not line.get_label().startswith('_')}


def test_rates_are_counted_by_their_middle_seed():
    draw = page('mqar', 'def draw_rates(')['draw_rates']
    ax = drawn(draw, **{'attention rate 0.01': Ended((1., 1., .2)), 'attention rate 0.1': Ended((1., .2, .2)), 'gla rate 0.01': Ended((1.,)), 'delta once trial 0.01': Ended((1.,))})
    assert ax.get_title(loc='left') == 'Rates that let recall: attention 1 of 2, GLA 1 of 1' and named(ax) == {'attention', 'GLA'}
    assert not drawn(draw).has_data() and not drawn(draw).get_title(loc='left')


def test_states_are_drawn_of_families_that_have_run():
    found = page('mqar', 'def draw_states(')
    arms = {f'delta holds {n}': Ended((.5, .6), 4 * n) for n in (64, 256)}
    ax = drawn(found['draw_states'], **arms, **{'delta holds 64 trial 0.01': Ended((1.,), 256)})
    assert named(ax) == {'delta rule'} and ax.get_xscale() == 'log'
    assert not found['holders'](invented.tables({'delta holds 64 trial 0.01': Ended((1.,))}, rows)[1])
    assert not drawn(found['draw_states']).has_data()


GAPS = dict(better=[-.05, -.04, -.06, -.05, -.04], worse=[.05, .04, .06, .05, .04], level=[.001, -.001, .002, 0., .001], undecided=[.1, -.1, .05, 0., .02], few=[.05, .04, .06])


@pytest.mark.parametrize('rows, said', [
    (dict(a='worse', b='worse'), ': worse'), (dict(a='level', b='worse'), ': worse with b; level with a'),
    (dict(a='better', b='worse', c='better', d='better'), ': worse with b; better elsewhere'), (dict(a='undecided'), ': undecided'), (dict(a='few'), ': worse so far'), ({}, '')])
def test_a_forest_says_what_most_rows_say_and_which_do_not(rows, said):
    names = page('residual_growth', 'def in_short(', study=find_study('residual_growth'), preset='quick')
    runs = pd.DataFrame([(arm, 'finished') for label in rows for arm in (label, 'base')] + [('gone', 'diverged'), ('gone', 'finished')], columns=['arm', 'status'])
    names |= dict(runs=runs, here=set(runs.arm), records=None, loss_gap=lambda records, arm, base, step: pd.Series(GAPS[rows[arm]]))
    pairs = {label: (label, 'base') for label in rows} | dict(gone=('gone', 'base'), never=('never', 'base'))
    assert names['in_short'](pairs) == said
    assert names['in_the_end']('never', 'base') == names['in_the_end']('gone', 'base') == 'not computed yet'
    a_bit = pd.Series([-.03, -.02, -.01, -.015, -.02])   # surely below .02, and not surely below -.02
    assert [names['outcome'](a_bit, costs=costs) for costs in (True, False)] == ['not worse', 'undecided']
    if 'a' in rows: assert names['in_the_end']('a', 'base') == f'{pd.Series(GAPS[rows["a"]]).mean():+.2f} nats'.replace('-', '−')
