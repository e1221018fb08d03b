"""What a study promises about its runs: each computed once, whole or not at all, and the same wherever it is computed."""
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import toy
from filelock import FileLock

import memlab.lab.study as study_module
from memlab.core.files import read_json, write_json
from memlab.lab.records import RECORDS, RUNS, read_table, results_folder, runs_folder, write_table
from memlab.lab.rules import Less
from memlab.lab.runs import Run, compute
from memlab.lab.study import Preset, Study, find_study
from memlab.lab.values import at_end
from memlab.lab.work import RunFailed
from memlab.studies.mqar import Sizes


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('MEMLAB_HOME', str(tmp_path))
    return tmp_path


def executed(home):
    "How often each run was executed."
    lines = (home/'log.txt').read_text().splitlines() if (home/'log.txt').exists() else []
    return {l: lines.count(l) for l in lines if len(l.split()) == 2}


def tables(study, preset='cpu'):
    "The bytes that must not depend on how runs were computed, and the runs without their times."
    where = study.results(preset)
    return (where/'records.parquet').read_bytes(), (where/'arms.json').read_bytes(), study.load(preset)[0].drop(columns='seconds').to_csv()


def test_runs_are_computed_once(home):
    study = toy.make()
    runs, records = study.run('cpu', progress=False)
    assert runs.status.tolist() == ['finished']*4 and len(records) == 4*8*2
    assert read_json(study.results('cpu')/'arms.json')['fast']['rate'] == .5
    before = tables(study)
    study.run('cpu', progress=False)
    assert executed(home) == {'slow 0': 1, 'fast 0': 1, 'slow 1': 1, 'fast 1': 1} and tables(study) == before
    study.run('cpu', fresh=True, progress=False)
    assert set(executed(home).values()) == {2} and tables(study) == before


def test_seeds_come_one_after_the_other(home):
    toy.make().run('cpu', progress=False)
    assert [l for l in (home/'log.txt').read_text().splitlines()] == ['slow 0', 'fast 0', 'slow 1', 'fast 1']


def test_committed_tables_count_as_finished(home):
    study = toy.make(seeds=(1, 2))
    study.run('cpu', progress=False)
    shutil.rmtree(home/'build')
    wider = toy.make(seeds=(0, 1, 2))
    runs, records = wider.run('cpu', progress=False)      # another machine computes the first seed
    assert executed(home) == {f'{a} {s}': 1 for a in ('slow', 'fast') for s in (0, 1, 2)}
    assert len(runs) == 6 and records.groupby('run_id').size().eq(16).all()
    assert wider.tally('cpu') == dict(planned=6, finished=6, committed=6)
    piecewise = tables(wider)
    wider.run('cpu', fresh=True, progress=False)
    assert tables(wider) == piecewise                     # the same bytes as all at once


def test_rows_outside_the_plan_are_dropped(home):
    toy.make().run('cpu', progress=False)
    runs, records = toy.make(seeds=(1,)).collect('cpu')
    assert set(runs.seed) == set(records.seed) == {1}
    moved = toy.make()
    moved.corpus = lambda arm: 'text2'                    # other text, other runs
    assert not moved.finished('cpu') and moved.collect('cpu')[0].empty


def staged(*trials, rate=None):
    "Two trials; the one that ends lowest, or an arm of another rate, runs with two more seeds."
    def then(runs, records):
        last = records[records.metric == 'loss'].groupby('arm').value.last()
        return ((replace(next(a for a in trials if a.name == last.idxmin()), name='best') if rate is None else toy.Arm('best', rate), (1, 2)),)
    study = toy.make()
    study.presets = dict(cpu=lambda: Preset(tuple((a, (0,)) for a in trials), then=then))
    return study


def test_a_changed_trial_leaves_what_follows_in_the_tables(home):
    "A stage is dropped when the trials decide otherwise, not while they are computed."
    staged(*toy.ARMS).run('cpu', progress=False)
    shutil.rmtree(home/'build')
    other = staged(toy.Arm('slow', .07), toy.ARMS[1])
    assert sorted(other.collect('cpu')[0].arm) == ['best', 'best', 'fast']
    assert set(read_json(other.results('cpu')/'arms.json')) == {'best', 'fast', 'slow'}
    assert other.load('cpu')[0].arm.tolist() == other.load('cpu')[1].arm.unique().tolist() == ['fast'] and other.stale('cpu') == []
    assert other.tally('cpu') == dict(planned=2, finished=1, committed=1) and other.verdicts('cpu').note.str.endswith('1 of 2 runs computed').all()
    other.run('cpu', progress=False)
    assert executed(home) == {'slow 0': 2, 'fast 0': 1, 'best 1': 1, 'best 2': 1}
    runs, _ = staged(toy.Arm('slow', .06), toy.ARMS[1], rate=.6).run('cpu', progress=False)
    assert executed(home) == {'slow 0': 3, 'fast 0': 1, 'best 1': 2, 'best 2': 2} and sorted(runs.arm) == ['best', 'best', 'fast', 'slow']


def test_a_trial_that_is_gone_decides_nothing(home):
    "What waits in the tables is no trial, however low it ended."
    staged(*toy.ARMS).run('cpu', progress=False)
    runs, _ = staged(toy.ARMS[0], toy.Arm('mid', .3)).run('cpu', progress=False)
    assert sorted(runs.arm) == ['best', 'best', 'mid', 'slow']


def test_trials_that_another_process_finishes_take_nothing_away(home, monkeypatch):
    "Which rows stay is decided while the tables are held."
    staged(*toy.ARMS).run('cpu', progress=False)
    changed, other = (staged(toy.Arm('slow', .07), toy.ARMS[1]) for _ in range(2))
    def late(folder, lock=study_module.table_lock):
        monkeypatch.setattr(study_module, 'table_lock', lock)
        other.run('cpu', progress=False)
        return lock(folder)
    monkeypatch.setattr(study_module, 'table_lock', late)
    assert sorted(changed.collect('cpu')[0].arm) == ['best', 'best', 'fast', 'slow']


@dataclass(frozen=True)
class Reader(toy.Arm):
    "An arm that reads a text."
    corpus: str = 'text'

    def on(self, corpus): return replace(self, corpus=corpus)


def test_another_corpus_has_a_second_stage_too(home):
    study = staged(Reader('slow', .1), Reader('fast', .5))
    study.corpus = lambda arm: arm.corpus
    study.run('cpu', progress=False)
    runs, _ = study.run('cpu@other', progress=False)
    assert sorted(runs.arm) == ['best', 'best', 'fast', 'slow'] and set(runs.corpus) == {'other'}


def test_more_seeds_of_a_trial_wait_only_as_what_they_were(home):
    "Rows of a trial's arm with later seeds wait while another trial changes, and not when that arm does."
    def grown(*trials):
        study = toy.make()
        study.presets = dict(cpu=lambda: Preset(tuple((a, (0,)) for a in trials), then=lambda runs, records: ((trials[1], (1, 2)),)))
        return study
    grown(*toy.ARMS).run('cpu', progress=False)
    assert len(grown(toy.Arm('slow', .07), toy.ARMS[1]).waiting('cpu')) == 2
    assert not grown(toy.ARMS[0], toy.Arm('fast', .4)).waiting('cpu')
    assert not grown(*toy.ARMS).waiting('cpu')


def test_quick_stays_under_build(home):
    study = toy.make()
    study.run('quick', progress=False)
    assert study.verdicts('quick').verdict.tolist() == ['inconclusive']
    assert {p.name for p in home.iterdir()} == {'build', 'log.txt'}


def test_jobs_give_the_same_bytes(home, monkeypatch):
    arms = (*toy.ARMS, toy.Arm('wild', 3.))
    study = toy.make(*arms)
    study.run('cpu', jobs=1, progress=False)
    alone = tables(study)
    monkeypatch.setenv('MEMLAB_HOME', str(home/'two'))
    (home/'two').mkdir()
    study.run('cpu', jobs=2, progress=False)
    assert tables(study) == alone
    assert executed(home/'two') == executed(home)


def test_an_interrupted_run_goes_on(home):
    study = toy.make(toy.ARMS[0], toy.Arm('fast', .5, fault='interrupt'))
    with pytest.raises(KeyboardInterrupt): study.run('cpu', progress=False)
    assert study.load('cpu')[0].arm.tolist() == ['slow']                         # what was finished is in the tables
    part, = study.folder('cpu').glob('*.part')
    assert json.loads((part/'place.json').read_text())[0] == 4
    runs, records = study.run('cpu', progress=False)
    whole = records.query("arm == 'fast' and seed == 0 and metric == 'loss'")
    assert whole.step.tolist() == list(range(1, 9)) and executed(home)['fast 0'] == 2
    assert 'goes on after step 4' in (home/'log.txt').read_text()
    assert not list(study.folder('cpu').glob('*.part'))


def test_a_killed_process_leaves_nothing_half_done(home):
    environment = os.environ | dict(MEMLAB_HOME=str(home/'killed'))
    (home/'killed').mkdir()
    process = subprocess.Popen([sys.executable, toy.__file__, '0.1', '1'], env=environment)
    runs = home/'killed'/'build'/'runs'/'toy'/'cpu'
    wait_for(lambda: any(json.loads(p.read_text())[0] >= 3 for p in runs.glob('*.part/place.json')))
    process.send_signal(signal.SIGKILL); process.wait()
    assert len(list(runs.glob('*.part'))) == 1
    arms = [toy.Arm(a.name, a.rate, pause=.1) for a in toy.ARMS]
    toy.make(*arms).run('cpu', progress=False)
    unharmed = tables(toy.make(*arms))
    os.environ['MEMLAB_HOME'] = str(home/'killed')
    toy.make(*arms).run('cpu', progress=False)
    assert tables(toy.make(*arms)) == unharmed and executed(home/'killed')['slow 0'] == 2
    assert 'goes on after step' in (home/'killed'/'log.txt').read_text()


def wait_for(condition, seconds=300):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, 'waited too long'
        time.sleep(.01)


def test_two_processes_share_the_work(home):
    both = [subprocess.Popen([sys.executable, toy.__file__, '0.05', '2']) for _ in range(2)]
    assert [p.wait(300) for p in both] == [0, 0]
    assert executed(home) == {'slow 0': 1, 'fast 0': 1, 'slow 1': 1, 'fast 1': 1}
    study = toy.make(*(toy.Arm(a.name, a.rate, pause=.05) for a in toy.ARMS))
    assert len(study.load('cpu')[0]) == 4 and len(study.load('cpu')[1]) == 64


def test_a_failing_run_is_named_and_the_others_finish(home):
    study = toy.make(toy.Arm('bad', .1, fault='raise'), toy.ARMS[1])
    with pytest.raises(RunFailed, match=r'(?s)2 runs failed: bad seed 0, bad seed 1.*the fourth step is too steep'): study.run('cpu', progress=False)
    assert study.load('cpu')[0].arm.tolist() == ['fast', 'fast']
    evidence = study.verdicts('cpu').iloc[0]
    assert evidence.verdict == 'inconclusive' and 'slow (no run)' in evidence.note and '2 of 4 runs computed' in evidence.note


def test_a_claim_is_open_until_the_seeds_it_was_planned_for_are_there(home):
    "However clear they are: one who looks after every seed finds something."
    study = toy.make(seeds=range(7))
    study.claims[0] = replace(study.claims[0], seeds=6)
    study.run('cpu', progress=False)
    assert study.verdicts('cpu').verdict[0] == 'supported'
    runs, records = study.load('cpu')
    study.load = lambda preset: (runs[(runs.arm != 'slow') | (runs.seed < 5)], records[(records.arm != 'slow') | (records.seed < 5)])
    waiting = study.verdicts('cpu').iloc[0]
    assert (waiting.verdict, waiting['size'], waiting.n_seeds) == ('inconclusive', '', 5) and '5 of 6 planned seeds computed; 12 of 14 runs computed' in waiting.note


def test_a_claim_too_large_for_a_preset_says_which_one_computes_it(home):
    study = toy.make()
    study.presets['gpu'] = lambda: Preset(tuple((arm, (0, 1)) for arm in (*toy.ARMS, toy.Arm('steep', .9))))
    @study.claim('T9', 'Steep ends low.', source='a toy', measured='loss', rule=Less(most=1.), arms=('slow', 'steep'), seeds=5)
    def read(runs, records): return at_end(records, 'loss', 'steep')
    study.run('cpu', progress=False)
    found = study.verdicts('cpu').set_index('id')
    assert found.loc['T9', 'verdict'] == 'inconclusive' and found.loc['T9', 'note'] == 'too large for preset cpu: preset gpu computes what it reads'
    assert len(found) > 1 and not found.note.drop('T9').str.contains('too large').any()
    study.run('gpu', progress=False)
    assert not study.verdicts('gpu').note.str.contains('too large').any()


def test_a_diverged_run_is_a_result(home):
    study = toy.make(toy.ARMS[0], toy.Arm('fast', .5, fault='diverge'))
    runs, records = study.run('cpu', progress=False)
    wild = runs[runs.arm == 'fast']
    assert wild.status.tolist() == ['diverged']*2 and wild.diverged_at.tolist() == [4, 4] and wild.tokens.tolist() == [40, 40]
    assert 'fast (seed 0 diverged)' in study.verdicts('cpu').note[0]
    study.run('cpu', progress=False)
    assert set(executed(home).values()) == {1}


def test_a_damaged_file_is_named(home):
    study = toy.make()
    study.run('cpu', progress=False)
    file = study.folder('cpu')/study.runs('cpu')[0].run_id/'records.parquet'
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=f'{file} cannot be read'): study.collect('cpu')


def without(file, schema, run):
    "Take a run out of a table, which stays whole otherwise."
    table = read_table(file, schema)
    write_table(table.filter(pc.not_equal(table['run_id'], run)), file)


def test_runs_without_their_records_are_named(home):
    study = toy.make()
    study.run('cpu', progress=False)
    lost, where = study.runs('cpu')[0], study.results('cpu')
    without(where/'records.parquet', RECORDS, lost.run_id)
    for call in (study.load, study.verdicts, study.open):
        with pytest.raises(ValueError, match=f'tables of different runs .1 differ, such as {lost.run_id} of {lost.arm.name}, seed {lost.seed}.: restore runs.parquet and records.parquet together'): call('cpu')
    shutil.rmtree(study.folder('cpu'))
    with pytest.raises(ValueError, match='tables of different runs'): study.run('cpu', progress=False)
    for f in where.iterdir(): f.unlink()
    assert len(study.run('cpu', progress=False)[0]) == 4


def test_records_of_no_run_count_for_nothing(home):
    study = toy.make()
    before = study.run('cpu', progress=False) and tables(study)
    lost = study.runs('cpu')[0]
    without(study.results('cpu')/'runs.parquet', RUNS, lost.run_id)
    runs, records = study.load('cpu')
    assert len(runs) == 3 and lost.run_id not in set(records.run_id) and '3 of 4 runs computed' in study.verdicts('cpu').note[0]
    study.run('cpu', progress=False)
    assert tables(study) == before


def test_rows_of_another_name_and_rows_twice_are_named(home):
    study = toy.make()
    study.run('cpu', progress=False)
    file = study.results('cpu')/'runs.parquet'
    rows = read_table(file, RUNS)
    write_table(rows.set_column(2, RUNS.field('seed'), pc.add(rows['seed'], 1).cast('int32')), file)
    with pytest.raises(ValueError, match='tables of different runs .4 differ'): study.load('cpu')
    write_table(pa.concat_tables([rows, rows.slice(0, 1)]), file)
    with pytest.raises(ValueError, match='has 5 rows of 4 runs: restore it'): study.load('cpu')


@pytest.mark.parametrize('nth', range(4))
@pytest.mark.parametrize('arms', [toy.ARMS[:1], (*toy.ARMS, toy.Arm('steep', .9)), (toy.ARMS[0], toy.Arm('steep', .9)), (toy.Arm('steep', .9),)])
def test_a_kill_between_two_tables_loses_nothing(home, monkeypatch, arms, nth):
    "Arms go, come, or both; the process ends before it writes one more file."
    toy.make().run('cpu', progress=False)
    study, written = toy.make(*arms), []
    def until_killed(write):
        def one(*call):
            if len(written) == nth: raise KeyboardInterrupt
            written.append(write(*call))
        return one
    with monkeypatch.context() as m, suppress(KeyboardInterrupt):
        for name in ('write_table', 'write_json'): m.setattr(study_module, name, until_killed(getattr(study_module, name)))
        study.run('cpu', progress=False)
    assert len(written) == min(nth, 3 + (len(arms) < 3))
    left = toy.make().load('cpu')                                # whatever is there belongs together
    assert set(left[0].run_id) == set(left[1].run_id)
    assert len(study.run('cpu', progress=False)[0]) == 2 * len(arms) and set(executed(home).values()) == {1}
    assert read_json(study.results('cpu')/'arms.json').keys() == {a.name for a in arms}


def test_rows_whose_configuration_is_lost_are_named(home):
    study = toy.make()
    study.run('cpu', progress=False)
    shutil.rmtree(study.folder('cpu'))
    file = study.results('cpu')/'arms.json'
    write_json(file, {'fast': read_json(file)['fast']})
    with pytest.raises(ValueError, match='toy: arms.json does not say what slow meant when it ran: restore the file'): study.collect('cpu')
    study.run('cpu', fresh=True, progress=False)
    assert read_json(file).keys() == {'slow', 'fast'}


def test_changed_code_makes_results_stale(home, monkeypatch):
    study = toy.make()
    study.run('cpu', progress=False)
    assert study.stale('cpu') == []
    monkeypatch.setattr('memlab.lab.study.code_hash', lambda execute, configs: 'other.code')
    assert len(study.stale('cpu')) == 4
    study.run('cpu', progress=False)
    assert set(executed(home).values()) == {1}                                    # shown, not recomputed


def test_an_interrupted_run_of_other_code_is_kept(home, monkeypatch):
    study = toy.make(toy.Arm('fast', .5, fault='interrupt'), seeds=(0,))
    with pytest.raises(KeyboardInterrupt): study.run('cpu', progress=False)
    monkeypatch.setattr('memlab.lab.study.code_hash', lambda execute, configs: 'other.code')
    with pytest.raises(RunFailed, match='fast seed 0 was begun by other code.*--continue.*--fresh'): study.run('cpu', progress=False)
    part, = study.folder('cpu').glob('*.part')
    assert json.loads((part/'place.json').read_text())[0] == 4
    study.run('cpu', go_on=True, progress=False)
    assert 'goes on after step 4' in (home/'log.txt').read_text()


def test_verdicts_follow_the_numbers(home):
    study = toy.make(seeds=range(5))
    study.run('cpu', progress=False)
    found = study.verdicts('cpu').iloc[0]
    assert found.verdict == 'supported' and found.effect > .1 and found.n_seeds == 5
    written, = read_json(study.results('cpu')/'claims.json')
    assert (written['id'], written['unit']) == ('T1', 'nats a token')


def test_four_seeds_are_no_verdict(home):
    study = toy.make(seeds=range(4))
    study.run('cpu', progress=False)
    found = study.verdicts('cpu').iloc[0]
    assert (found.verdict, found.n_seeds, found.note) == ('inconclusive', 4, '4 seeds: a verdict needs at least 5') and found.effect > .1


def test_opening_says_what_is_opened(home, capsys):
    toy.make().open('cpu')
    assert capsys.readouterr().out.startswith('toy, preset cpu: 4 of 4 runs, 0 diverged')


def test_dry_run_counts_what_is_missing(home, monkeypatch):
    study = toy.make(toy.Arm('slow', .1, steps=100), toy.ARMS[1])
    study.run('cpu', progress=False)
    assert '6 runs of 2 arms, 0 finished' in next(study.dry_run('wide')) and '4 finished, 0 to do' in next(study.dry_run('cpu'))
    monkeypatch.setattr('memlab.lab.study.measure', lambda execute, run, limit: (100., 5000))    # speed is measured in nbs/lab/cost.ipynb
    lines = list(study.dry_run('wide', jobs=2))
    assert [l.split() for l in lines[2:4]] == [['3', '3k', '100', '0:00:30', 'slow'], ['3', '240', '100', '0:00:02', 'fast']]
    assert lines[4] == '3.24k tokens, about 0:00:16 with jobs=2, 30kB of disk' and not study.folder('wide').exists()


def test_dry_run_gives_an_arm_as_soon_as_it_is_measured(home, monkeypatch):
    measured = []
    monkeypatch.setattr('memlab.lab.study.measure', lambda execute, run, limit: measured.append(run.arm.name) or (100., 5000))
    lines = toy.make().dry_run('cpu')
    assert '4 to do' in next(lines) and measured == []
    assert next(lines).split()[0] == 'runs' and next(lines).endswith('  slow') and measured == ['slow']
    assert next(lines).endswith('  fast') and 'with jobs=1' in next(lines)


def test_dry_run_of_slow_arms_ends(home):
    "Steps of minutes are not waited for: of their arm only the tokens are said."
    study = toy.make(toy.Arm('slow', .1, pause=1e4), toy.ARMS[1])
    lines = list(study.dry_run('cpu', limit=3))
    assert lines[2].split() == ['2', '160', '?', '?', 'slow'] and lines[3].split()[-1] == 'fast' and '?' not in lines[3]
    assert '(1 arms were too slow to be measured here) with jobs=1' in lines[-1] and not study.folder('cpu').exists()


def test_dry_run_measures_once_what_differs_in_rate_and_length_alone(home, monkeypatch):
    measured = []
    monkeypatch.setattr('memlab.lab.study.measure', lambda execute, run, limit: measured.append(run.arm) or (100., 5000))
    lines = list(find_study('mqar').dry_run('gpu'))
    trained = [arm for arm in measured if arm.train is not None]
    assert len({(arm.task, arm.model) for arm in trained}) == len(trained) == 24 and sum(' trial ' in line for line in lines) == 24 * len(Sizes(steps=1, loaded=1).rates)


def test_the_bar_is_cleared_at_the_end(home, capsys):
    "It moves with the time that has passed, whatever the size of a run, and leaves its line empty."
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv('TQDM_DISABLE', raising=False)
        toy.make(toy.Arm('slow', .1, pause=.05), toy.ARMS[1]).run('cpu')
    said = capsys.readouterr().err
    assert 'toy cpu' in said and said.endswith('\r') and not said.rpartition('toy cpu')[2].endswith('\n')


def test_bars_suit_a_terminal_and_a_notebook():
    import tqdm.auto
    from memlab.lab import study, work
    assert study.tqdm is work.tqdm is tqdm.auto.tqdm


def test_loky_needs_no_import_of_the_function(home):
    "A function defined on the spot travels to the other processes too."
    def local(arm, seed, folder, progress=True, stop=None): return toy.execute(arm, seed, folder)
    study = Study('local', '?', dict(cpu=lambda: Preset(tuple((a, (0,)) for a in toy.ARMS))), local, lambda arm: '')
    assert len(study.run('cpu', jobs=2, progress=False)[0]) == 2


def test_tables_are_written_by_one_at_a_time(home):
    study = toy.make()
    study.run('cpu', progress=False)
    with FileLock(study.folder('cpu')/'collect.lock'):
        collecting = threading.Thread(target=study.collect, args=['cpu'])
        collecting.start(); collecting.join(.5)
        assert collecting.is_alive()
    collecting.join(30)
    assert not collecting.is_alive()


@pytest.fixture
def read_only(home, monkeypatch):
    "From when it is called, nothing can be written into the committed folders."
    real = os.replace
    def refusing(source, target):
        if str(target).startswith(str(home/'data')): raise OSError(30, 'Read-only file system')
        real(source, target)
    return lambda: monkeypatch.setattr(os, 'replace', refusing)


def test_nothing_to_do_writes_nothing(home, read_only):
    "Results that cannot be written are no trouble for a run that has nothing to add, also from a fresh checkout; what would change them is."
    study = toy.make(seeds=range(5))
    study.run('cpu', progress=False); study.verdicts('cpu')
    before = {f.name: (f.read_bytes(), f.stat().st_mtime_ns) for f in study.results('cpu').iterdir()}
    read_only()
    for _ in range(2):
        study.run('cpu', progress=False)
        assert study.verdicts('cpu').verdict.tolist() == ['supported']
        assert {f.name: (f.read_bytes(), f.stat().st_mtime_ns) for f in study.results('cpu').iterdir()} == before
        shutil.rmtree(home/'build')
    with pytest.raises(OSError, match='Read-only file system'): toy.make(seeds=range(6)).run('cpu', progress=False)


def test_a_table_of_another_writer_is_left_alone(home, read_only):
    "The same values in other bytes, as another version of Arrow writes them, are the same table."
    import pyarrow.parquet as pq
    study = toy.make()
    study.run('cpu', progress=False)
    file = study.results('cpu')/'records.parquet'
    pq.write_table(pq.read_table(file), file, compression='snappy')
    bytes_ = file.read_bytes()
    read_only()
    study.run('cpu', progress=False)
    assert file.read_bytes() == bytes_


@pytest.mark.parametrize('folder', [results_folder, runs_folder])
def test_no_two_presets_share_a_folder(folder):
    "Names that a path cannot hold are altered, and stay apart."
    names = ['cpu', 'cpu@stdlib-docs', 'cpu@/data/my text', 'cpu@/data/my-text', 'cpu@/data/my:text', 'cpu@-data-my-text', 'cpu@data/my text', 'gpu@hub:a/b', 'gpu@hub:a:b']
    assert len({folder('toy', n) for n in names}) == len(names)
    assert [folder('toy', n).name for n in names[:2]] == names[:2]


def busy(call, moment):
    "Calls in another thread, which gets as far as it can; what it raised, as a list, and the thread."
    raised = []
    def run():
        try: call()
        except BaseException as e: raised.append(e)
    thread = threading.Thread(target=run)
    thread.start(); thread.join(moment)
    return raised, thread


def test_a_run_is_replaced_behind_the_backs_of_readers(home, monkeypatch):
    "While one process computes runs anew, another one collects: it reads the old run or the new one."
    study = toy.make(seeds=(0,))
    study.run('cpu', progress=False)
    run, read, others = study.runs('cpu')[0], study._newest, []
    slow = lambda source, target, real=os.replace: (time.sleep(.3 if str(target).endswith(run.run_id) else 0), real(source, target))
    def newest(preset, runs):
        "The other process replaces a run, as slowly as it may, at the worst of moments."
        monkeypatch.setattr(os, 'replace', slow)
        others.append(busy(lambda: compute(study.execute, run, study.folder('cpu'), 'other.code', fresh=True), .2))
        return read(preset, runs)
    monkeypatch.setattr(study, '_newest', newest)
    assert len(study.collect('cpu')[0]) == 2
    for raised, thread in others:
        thread.join(60)
        assert raised == [] and not thread.is_alive()
    assert read_json(study.folder('cpu')/run.run_id/'done.json')['code'] == 'other.code'


class Killed(BaseException): "Nothing after it happens."


def dies(*args, **kwargs): raise Killed


def test_a_kill_while_a_run_is_put_in_place_loses_nothing(home, monkeypatch):
    "A whole run is whole, whatever it is called and whoever looks at it next: it is put in place, not computed again."
    folder, run = home/'runs', Run(toy.ARMS[0], 0, 'a1b2')
    for replaced in (False, True):
        with monkeypatch.context() as m:
            m.setattr('memlab.lab.runs.os.replace', lambda source, target, real=os.replace: dies() if str(target).endswith('a1b2') else real(source, target))
            with pytest.raises(Killed): compute(toy.execute, run, folder, 'code1' if not replaced else 'code2', fresh=replaced)
        compute(toy.execute, run, folder, 'code3')
        assert executed(home) == {'slow 0': 1 + replaced} and read_json(folder/'a1b2'/'done.json')['code'] == ('code2' if replaced else 'code1')
    assert [p.name for p in folder.iterdir() if p.is_dir()] == ['a1b2']


def half_removed(folder, *rest, **how):
    "Some of a folder is gone when the power is."
    for name in ('code', 'records.parquet'): (folder/name).unlink(missing_ok=True)
    raise Killed


def test_a_kill_while_a_folder_is_removed_leaves_no_half_of_it(home, monkeypatch):
    "What was to be thrown away is never gone on with, and what was to be replaced is never read in halves."
    folder, run = home/'runs', Run(toy.Arm('slow', .1, fault='interrupt'), 0, 'a1b2')
    with pytest.raises(KeyboardInterrupt): compute(toy.execute, run, folder, 'code1')
    with monkeypatch.context() as m:
        m.setattr('memlab.lab.runs.shutil.rmtree', half_removed)
        with pytest.raises(Killed): compute(toy.execute, run, folder, 'code2', fresh=True)
    compute(toy.execute, run, folder, 'code2')
    assert 'goes on' not in (home/'log.txt').read_text()      # not from the checkpoint that code1 had left
    with monkeypatch.context() as m:
        m.setattr('memlab.lab.runs.shutil.rmtree', half_removed)
        with pytest.raises(Killed): compute(toy.execute, run, folder, 'code3', fresh=True)
    whole = {p.name for p in (folder/'a1b2').iterdir()} if (folder/'a1b2').exists() else None
    assert whole in (None, {'code', 'done.json', 'place.json', 'records.parquet'})
    compute(toy.execute, run, folder, 'code3')
    assert {p.name for p in folder.iterdir() if p.is_dir()} == {'a1b2'} and (folder/'a1b2'/'records.parquet').exists()


def test_who_has_a_run_is_told(home, capfd):
    "Whoever waits for a run is told which process has it, and since when."
    study = toy.make(toy.Arm('slow', .1, pause=.4), seeds=(0,))
    first = subprocess.Popen([sys.executable, '-c', "import toy; toy.make(toy.Arm('slow', .1, pause=.4), seeds=(0,)).run('cpu', progress=False)"], env=os.environ | dict(PYTHONPATH=os.pathsep.join(sys.path)))
    wait_for(lambda: (home/'log.txt').exists())
    study.run('cpu', progress=False)
    assert first.wait(60) == 0 and executed(home) == {'slow 0': 1}
    said = capfd.readouterr().err
    assert f'slow seed 0 is computed by process {first.pid}, since 20' in said and 'waiting for it' in said


def test_workers_end_with_the_process_that_started_them(home):
    "A killed study leaves no worker that goes on and holds its runs."
    arms = "*(toy.Arm(n, .1, pause=30.) for n in 'ab')"
    parent = subprocess.Popen([sys.executable, '-c', f"import toy; toy.make({arms}, seeds=(0,)).run('cpu', jobs=2, progress=False)"], env=os.environ | dict(PYTHONPATH=os.pathsep.join(sys.path)))
    wait_for(lambda: executed(home).keys() == {'a 0', 'b 0'})
    parent.kill(); parent.wait()
    locks = [FileLock(f) for f in toy.make().folder('cpu').glob('*.lock') if f.stem != 'collect']
    for lock in locks:
        with lock.acquire(timeout=15): pass
    assert len(locks) == 2
