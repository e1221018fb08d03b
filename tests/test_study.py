"""What a study promises about its runs: each computed once, whole or not at all, and the same wherever it is computed."""
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import toy
from filelock import FileLock

from memlab.core.files import read_json
from memlab.lab.renew import read_rehearsals, renew
from memlab.lab.study import Preset, Study, find_study
from memlab.lab.work import RunFailed


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
    study = toy.make(seeds=(0, 1, 2))
    study.run('cpu', progress=False)
    found = study.verdicts('cpu').iloc[0]
    assert found.verdict == 'supported' and found.effect < -.1 and found.n_seeds == 3
    written, = read_json(study.results('cpu')/'claims.json')
    assert (written['id'], written['unit']) == ('T1', 'nats a token')


def test_two_seeds_are_no_verdict(home):
    study = toy.make(seeds=(0, 1))
    study.run('cpu', progress=False)
    found = study.verdicts('cpu').iloc[0]
    assert (found.verdict, found.n_seeds, found.note) == ('inconclusive', 2, '2 seeds: a verdict needs at least 3') and found.effect < -.1


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
    assert len({(arm.task, arm.model) for arm in trained}) == len(trained) == 24 and sum(' trial ' in line for line in lines) == 72


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
