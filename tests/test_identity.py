"Names that evidence is filed under: they follow from what was chosen, and from nothing else."
from dataclasses import fields, is_dataclass, make_dataclass, replace

import pytest

from memlab.core.identity import changed, departures, full, tag_of
from memlab.lab.records import run_id
from memlab.lab.study import find_study, stored_configs, study_names

COMMITTED = [(name, preset) for name in study_names() for preset in find_study(name).presets
             if preset != 'quick' and (find_study(name).results(preset)/'runs.parquet').exists()]
each_table = pytest.mark.parametrize('name, preset', COMMITTED, ids=lambda x: x)


def grown(value):
    "The same configuration after every class in it got another name and a field more."
    if isinstance(value, (list, tuple)): return type(value)(map(grown, value))
    if not is_dataclass(value): return value
    cls = type(value)
    more = make_dataclass(f'{cls.__name__}OfTomorrow', [('added', int, 0)], bases=(cls,), frozen=True, kw_only=True, namespace=dict(tag=tag_of(cls)))
    new = object.__new__(more)
    for f in fields(cls): object.__setattr__(new, f.name, grown(getattr(value, f.name)))
    object.__setattr__(new, 'added', 0)
    return new


@each_table
def test_new_fields_and_new_names_of_classes_rename_nothing(name, preset):
    for run in find_study(name).runs(preset):
        if run.seed: continue
        assert run_id(name, grown(run.arm), 0, run.corpus) == run.run_id, run.arm.name


@each_table
def test_a_changed_value_does(name, preset):
    arms = [run.arm for run in find_study(name).runs(preset) if run.seed == 0]
    for arm in arms:
        more = grown(arm)
        object.__setattr__(more, 'added', 1)
        assert changed(more) != changed(arm) != changed(replace(arm, name='another'))
    assert len({str(changed(a)) for a in arms}) == len(arms)


@each_table
def test_a_committed_default_keeps_its_meaning(name, preset):
    "What is stored of every row's arm is what today's arm of that name says."
    study = find_study(name)
    stored, today = stored_configs(study.results(preset)), {r.arm.name: full(r.arm) for r in study.runs(preset)}
    rows = study.load(preset)[0]
    assert set(rows.arm) <= set(stored) and not {a: d for a in rows.arm.unique() if (d := departures(stored[a], today[a]))}


@each_table
def test_every_committed_row_is_in_the_plan(name, preset):
    "Its name, computed today, is the one it is filed under."
    study = find_study(name)
    rows, today = study.load(preset)[0], {(r.arm.name, r.seed): r for r in study.runs(preset)}
    if {r.corpus for r in today.values()} != set(rows.corpus): pytest.skip('another Python carries other text')
    assert {(r.arm, r.seed): r.run_id for r in rows.itertuples()} == {k: r.run_id for k, r in today.items() if k in set(zip(rows.arm, rows.seed))}
