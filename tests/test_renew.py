"Code that changes is tried before evidence is believed: what renewal stamps, what it leaves, and that the committed rows are what the code gives."
import subprocess
from dataclasses import replace
from statistics import median

import pyarrow as pa
import pytest
import toy

from memlab.core.files import home
from memlab.core.identity import digest
from memlab.core.record import record
from memlab.lab.records import made_by, read_table, write_table
from memlab.lab.renew import (REHEARSALS, compare, environment, past_rehearsals, planted_findings, read_rehearsals, rehearsals_file, rehearse, renew, stale_arms,
                              vouched)
from memlab.lab.study import find_study, study_names

COMMITTED = [(name, preset) for name in study_names() for preset in find_study(name).presets
             if preset != 'quick' and (find_study(name).results(preset)/'rehearsals.parquet').exists()]
each_table = pytest.mark.parametrize('name, preset', COMMITTED, ids=lambda x: x)


# -- the committed evidence -------------------------------------------------------------------------------------------

@each_table
def test_an_arm_is_what_its_rows_say(name, preset):
    "A stale one first, and another whenever code changes, of those that read least; a deviation is a failure only where a row claims today's code, and not beside older code on another processor."
    study = find_study(name)
    known, stale = read_rehearsals(study, preset), stale_arms(study, preset)
    arms = {r.arm.name: r.arm for r in study.runs(preset)}
    codes, runs = study.codes(arms.values()), study.load(preset)[0]
    elsewhere = set(runs.arm[runs.renewed_by.fillna('').str.contains(' since ')])
    size = {a: arms[a].rehearsal().tokens for a in (arms.keys() & known.keys()) - elsewhere}
    chosen = sorted(size, key=lambda a: (a not in stale, size[a] > median(size.values()), digest(a + codes[a])))[:1]
    if not chosen: pytest.skip('another Python carries other text')
    for a in chosen:
        if set(known[a].env) != {environment(arms[a])}: pytest.skip(f'rehearsed with {", ".join(set(known[a].env))}')
        deviation, differs = compare(known[a], rehearse(study.execute, arms[a]))
        assert not differs or a in stale, f'{a}: {differs}'


@each_table
def test_evaluators_say_of_planted_answers_what_they_said(name, preset):
    study = find_study(name)
    found = planted_findings(study, read_rehearsals(study, preset))
    assert {f.arm for f in found} == {f'planted {n}' for n in study.planted} and not [f for f in found if f.differs]


@each_table
def test_every_arm_has_a_rehearsal_of_one_code(name, preset):
    study = find_study(name)
    known = read_rehearsals(study, preset)
    assert set(study.load(preset)[0].arm) <= set(known) and all(rows.code.nunique() == 1 for rows in known.values())
    assert (study.results(preset)/'rehearsals.parquet').stat().st_size < 1e6


# -- what renewal does ------------------------------------------------------------------------------------------------

@pytest.fixture
def study(tmp_path, monkeypatch):
    "A study whose two runs an arm are in the tables."
    monkeypatch.setenv('MEMLAB_HOME', str(tmp_path))
    made = toy.make()
    made.run('cpu', progress=False)
    return made


def code(monkeypatch, hash_): monkeypatch.setattr('memlab.lab.study.code_hash', lambda execute, configs: hash_)


def test_rows_whose_numbers_stayed_are_stamped(study, monkeypatch):
    before = study.load('cpu')
    judges = made_by(before[0].iloc[0]).partition('.')[2]
    code(monkeypatch, f'new.{judges}')
    found = list(renew(study, 'cpu'))
    runs, records = study.load('cpu')
    assert [f.differs for f in found] == ['', ''] and not [f for f in found if f.whole] and study.stale('cpu') == []
    assert set(runs.renewed_by) == {f'new.{judges}'} and set(runs.deviation) == {0.} and records.equals(before[1])
    assert runs.drop(columns=['renewed_by', 'deviation']).equals(before[0].drop(columns=['renewed_by', 'deviation']))


def test_a_number_that_moved_is_named_and_its_rows_stay_stale(study, monkeypatch):
    moved = lambda arm, *a, **k: toy.execute(replace(arm, rate=arm.rate*1.01) if arm.name == 'fast' else arm, *a, **k)
    monkeypatch.setattr(study, 'execute', moved)
    found = {f.arm: f.differs for f in renew(study, 'cpu') if not f.whole}
    assert found['slow'] == '' and found['fast'].startswith('step 1, metric loss: ')
    assert stale_arms(study, 'cpu') == ['fast']


def test_a_changed_evaluation_asks_for_a_whole_run(study, monkeypatch):
    "What only the end of a run shows is seen, though no rehearsal gets there."
    code(monkeypatch, 'new.judge')
    late = lambda arm, *a, **k: (out := toy.execute(arm, *a, **k)) and replace(out, records=[r | dict(value=r['value'] + (r['step'] == 8)) for r in out.records])
    good = toy.execute
    monkeypatch.setattr(study, 'execute', late)
    found = list(renew(study, 'cpu'))
    assert [bool(f.differs) for f in found if f.whole] == [True] and not any(f.differs for f in found if not f.whole) and len(study.stale('cpu')) == 4
    monkeypatch.setattr(study, 'execute', good)
    assert len([f for f in renew(study, 'cpu') if f.whole]) == 1 and study.stale('cpu') == []
    assert not list(renew(study, 'cpu'))                       # nothing is left to look at


def test_more_whole_runs_can_be_asked_for(study, monkeypatch):
    code(monkeypatch, f"new.{made_by(study.load('cpu')[0].iloc[0]).partition('.')[2]}")
    assert len([f for f in renew(study, 'cpu', whole=3) if f.whole]) == 3


def test_evaluators_that_changed_their_mind_stamp_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv('MEMLAB_HOME', str(tmp_path))
    study, says = toy.make(), [1.]
    study.planted = dict(answers=lambda: [record(0, 'accuracy', says[0])])
    study.run('cpu', progress=False)
    code(monkeypatch, 'new.judge')
    says[0] = .5
    found, = renew(study, 'cpu')
    assert (found.arm, found.differs) == ('planted answers', 'step 0, metric accuracy: 1, now 0.5') and len(study.stale('cpu')) == 4


def test_rehearsals_change_only_with_the_runs(study, monkeypatch):
    file = study.results('cpu')/'rehearsals.parquet'
    before = file.read_bytes()
    code(monkeypatch, 'new.judge')
    list(renew(study, 'cpu')), study.run('cpu', progress=False)
    assert file.read_bytes() == before
    study.run('cpu', fresh=True, progress=False)
    assert {str(c) for rows in read_rehearsals(study, 'cpu').values() for c in rows.code} == {'new.judge'}


def test_another_arm_of_a_name_has_a_rehearsal_of_its_own(study, monkeypatch):
    before = read_rehearsals(study, 'cpu')
    other = toy.make(toy.ARMS[0], replace(toy.ARMS[1], rate=.6))
    other.run('cpu', progress=False)
    now = read_rehearsals(other, 'cpu')
    assert now['slow'].equals(before['slow']) and not now['fast'].value.equals(before['fast'].value)
    code(monkeypatch, 'new')
    list(renew(other, 'cpu'))
    assert other.stale('cpu') == []


def past(study, monkeypatch, hash_, moved=0.):
    "A revision of one hash whose rehearsals are those that are committed now, moved by some."
    told = {a: rows.assign(code=hash_, value=rows.value + moved) for a, rows in read_rehearsals(study, 'cpu').items()}
    monkeypatch.setattr('memlab.lab.renew.past_rehearsals', lambda name, preset, revision, arms, jobs: {a: told[a] for a in arms})


def spoil(study):
    "Commit rehearsals that no code gives here."
    t = read_table(rehearsals_file(study, 'cpu'), REHEARSALS)
    value = pa.array([v if a.startswith('planted') else v + 1 for a, v in zip(t['arm'].to_pylist(), t['value'].to_pylist())], t.schema.field('value').type)
    write_table(t.set_column(t.schema.get_field_index('value'), t.schema.field('value'), value), rehearsals_file(study, 'cpu'))


def test_on_another_processor_old_code_is_compared_with_new_code(study, monkeypatch):
    made = made_by(study.load('cpu')[0].iloc[0])
    code(monkeypatch, 'new.' + made.partition('.')[2])
    past(study, monkeypatch, made)
    spoil(study)
    assert all(f.differs for f in renew(study, 'cpu')) and study.stale('cpu')
    assert not any(f.differs for f in renew(study, 'cpu', since='v1')) and study.stale('cpu') == []
    rows = study.load('cpu')[0]
    assert rows.renewed_by.str.endswith(' since v1').all() and set(map(made_by, rows.to_dict('records'))) == {'new.' + made.partition('.')[2]}


def test_only_the_code_that_rows_carry_vouches_for_them(study, monkeypatch):
    made = made_by(study.load('cpu')[0].iloc[0])
    code(monkeypatch, 'new.' + made.partition('.')[2])
    past(study, monkeypatch, 'another')
    assert vouched(study, 'cpu', 'v1', ['slow', 'fast']) == ({}, {})
    past(study, monkeypatch, made, moved=5e-5)
    study.rewrite('cpu', lambda r: r | dict(renewed_by=made, deviation=3e-5))
    assert not any(f.differs for f in renew(study, 'cpu', since='v1'))
    assert study.load('cpu')[0].deviation.to_numpy() == pytest.approx(8e-5, rel=1e-2)   # small movements add up in sight


def test_rows_of_today_need_nobody_to_vouch_for_them(study, monkeypatch):
    "An arm may have rows of today's code beside those that a revision stands behind."
    made = made_by(study.load('cpu')[0].iloc[0])
    code(monkeypatch, new := 'new.' + made.partition('.')[2])
    past(study, monkeypatch, made)
    study.rewrite('cpu', lambda r: r | dict(renewed_by=new, deviation=0.) if r['seed'] == 0 else r)
    assert set(study.load('cpu')[0].seed) > {0} and set(vouched(study, 'cpu', 'v1', ['slow', 'fast'])[0]) == {'slow', 'fast'}


def test_the_code_of_a_revision_is_asked_as_it_was():
    "Of the last commit: today's numbers, by the hash of today."
    if subprocess.run(['git', 'rev-parse', '--verify', 'HEAD'], cwd=home(), capture_output=True).returncode: pytest.skip('no history here')
    study = find_study('lagged_cache')
    arm = next(r.arm for r in study.runs('cpu') if r.arm.name == 'horizon, states alone')
    told = past_rehearsals(study.name, 'cpu', 'HEAD', [arm.name, 'unheard of'])
    assert set(told) == {arm.name} and told[arm.name].code.nunique() == 1
    assert compare(told[arm.name], rehearse(study.execute, arm)) == (0., '')
    with pytest.raises(ValueError, match='no revision'): past_rehearsals(study.name, 'cpu', 'never-made', [arm.name])


def test_only_the_stale_are_computed_again(study, monkeypatch):
    "After a renewal that could not stamp one arm, `stale` computes that arm's runs and makes its rehearsal, and leaves the other."
    before = study.load('cpu')[0].set_index('run_id')
    moved = lambda arm, *a, **k: toy.execute(replace(arm, rate=arm.rate*1.01) if arm.name == 'fast' else arm, *a, **k)
    code(monkeypatch, f"new.{made_by(before.iloc[0]).partition('.')[2]}")
    monkeypatch.setattr(study, 'execute', moved)
    list(renew(study, 'cpu'))
    assert '2 to do' in ' '.join(study.dry_run('cpu', stale=True)) and '0 to do' in ' '.join(study.dry_run('cpu'))
    study.run('cpu', stale=True, progress=False)
    runs = study.load('cpu')[0].set_index('run_id')
    again = runs.code != before.code
    assert set(runs.arm[again]) == {'fast'} and again.sum() == 2 and study.stale('cpu') == []
    assert not [f for f in renew(study, 'cpu') if f.differs] and len(set(read_rehearsals(study, 'cpu')['fast'].code) & set(runs.code[again])) == 1
    study.run('cpu', stale=True, progress=False)
    assert study.load('cpu')[0].set_index('run_id').equals(runs)   # nothing is stale, so nothing is computed


def test_a_preset_without_rehearsals_says_so(study):
    (study.results('cpu')/'rehearsals.parquet').unlink()
    with pytest.raises(ValueError, match='toy has no rehearsals at preset cpu: they are made when its runs are computed'): list(renew(study, 'cpu'))
