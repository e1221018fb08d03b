"What it takes to add a study: arms, a claim, and nothing else."
import json
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from memlab.cli import main
from memlab.lab.new_study import new_study

STUDY = '''
from memlab.data.recall import RecallConfig
from memlab.data.recall_task import RecallTask
from memlab.eval.planted import planted_recall
from memlab.eval.recall_measures import Recalled, RecallSizes
from memlab.lab.arm import Arm, factors
from memlab.lab.rules import More
from memlab.lab.study import Preset, Study
from memlab.lab.values import paired
from memlab.nn.mixer_lm import MixerLMConfig, mixer_config
from memlab.train.loop import FitConfig
from memlab.train.objectives import RecallLoss
from memlab.train.schedule import Cosine


def arm(mixer: str, steps: int) -> Arm:
    "One kind of memory on one task."
    task = RecallTask(configs=(RecallConfig(vocab_size=64, length=32, pairs=4),), rows=16)
    model = MixerLMConfig(vocab_size=64, mixers=(mixer_config(mixer, d_model=16, n_heads=1, conv=4),))
    train = FitConfig(steps=steps, schedule=Cosine(warmup=2), objective=RecallLoss(), log_every=steps)
    return Arm(name=mixer, task=task, model=model, train=train, measures=(RecallSizes(), Recalled(rows=32)), factors=factors(memory=mixer))


def preset(steps: int, seeds: tuple[int, ...]) -> Preset:
    "A delta rule and a linear memory."
    return Preset(tuple((arm(mixer, steps), seeds) for mixer in ('delta', 'linear')))


study = Study('replace', 'Does a memory that replaces recall more than one that adds?', dict(quick=lambda: preset(4, (0,)), cpu=lambda: preset(8, (0, 1, 2, 3, 4))),
              planted=dict(recall=planted_recall))


@study.claim('R1', 'A memory that replaces recalls more than one that adds.', source='this test', measured='accuracy of delta minus linear', rule=More(least=.02, bounds=(-1, 1)), arms=('delta', 'linear'), unit='accuracy')
def replaces(runs, records): return paired(records, 'accuracy', 'delta', 'linear', item=None)
'''

USE = '''
import sys
sys.path.insert(0, sys.argv[1])
from replace_study import study
from memlab.lab.renew import renew
study.run('cpu', progress=False)
print(study.verdicts('cpu').iloc[0].id, len(study.load('cpu')[0]), study.stale('cpu'), list(renew(study, 'cpu')))
'''


def test_a_study_is_sixty_lines(tmp_path, monkeypatch):
    "Two arms and a claim run, are collected, judged and rehearsed."
    assert len([line for line in STUDY.splitlines() if line.strip()]) <= 60
    (tmp_path/'replace_study.py').write_text(STUDY)
    monkeypatch.setenv('MEMLAB_HOME', str(tmp_path))
    done = subprocess.run([sys.executable, '-c', USE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == 'R1 10 [] []'
    where = Path(tmp_path)/'data'/'results'/'replace'/'cpu'
    assert {f.name for f in where.iterdir()} == {'arms.json', 'claims.json', 'records.parquet', 'rehearsals.parquet', 'runs.parquet'}


# -- what `memlab new-study` writes -----------------------------------------------------------------------------------

PAGE = '''
import json, re, sys
from pathlib import Path
import matplotlib; matplotlib.use('Agg')
import memlab.studies
memlab.studies.__path__.append(sys.argv[1])
scope = dict(__name__='__main__', display=print)
for cell in json.loads(Path(sys.argv[2]).read_text())['cells']:
    if cell['cell_type'] == 'code': exec(re.sub('^%.*$', '', ''.join(cell['source']), flags=re.M), scope)
print(scope['preset'], len(scope['runs']), list(scope['verdicts'].id), scope['score'].accuracy > .4)
'''


def test_a_new_study_runs_at_quick_as_it_stands(tmp_path, monkeypatch):
    "The notebook is written by the command, exported, and executed cell by cell; its figure is drawn."
    (tmp_path/'nbs'/'studies').mkdir(parents=True)
    (tmp_path/'settings.ini').write_text('[DEFAULT]\n')
    monkeypatch.setenv('MEMLAB_HOME', str(tmp_path))
    done = CliRunner().invoke(main, ['new-study', 'slow_forgetting'])
    file = tmp_path/'nbs'/'studies'/'slow_forgetting.ipynb'
    assert done.exit_code == 0 and done.output == f'notebook: {file}\nnext: nbdev_export && memlab run slow_forgetting\n'
    cells = [''.join(c['source']) for c in json.loads(file.read_text())['cells'] if c['cell_type'] == 'code']
    (tmp_path/'studies').mkdir()
    (tmp_path/'studies'/'slow_forgetting.py').write_text('\n'.join(c for c in cells if c.startswith('#| export')))
    done = subprocess.run([sys.executable, '-c', PAGE, str(tmp_path/'studies'), str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "quick 2 ['SF1'] True"
    assert (tmp_path/'build'/'figures'/'slow_forgetting'/'quick'/'sf1_accuracy.svg').stat().st_size > 5000


def test_it_keeps_the_rules_of_the_house(tmp_path, monkeypatch):
    "nbdev would change nothing in it, and the checks of every study pass."
    import test_house as house
    monkeypatch.setenv('MEMLAB_HOME', str(tmp_path))
    (tmp_path/'nbs'/'studies').mkdir(parents=True)
    file = new_study('slow_forgetting')
    before = file.read_bytes()
    subprocess.run([Path(sys.executable).with_name('nbdev_clean'), '--fname', file], cwd=house.ROOT, check=True)
    assert file.read_bytes() == before
    for check in (house.test_notebook_form, house.test_no_widget_that_hangs_headless_runs, house.test_no_place_of_one_machine, house.test_study_has_one_cell_of_plain_parameters): check(file)
    assert max(map(len, file.read_text().splitlines())) < 320


def test_a_name_that_exists_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv('MEMLAB_HOME', str(tmp_path))
    done = CliRunner().invoke(main, ['new-study', 'mine'])
    assert done.exit_code == 2 and 'run this inside the repository' in ' '.join(done.output.split())
    (tmp_path/'nbs'/'studies').mkdir(parents=True)
    for name in ('mqar', 'mine', 'mine'): done = CliRunner().invoke(main, ['new-study', name])
    assert done.exit_code == 2 and "there is a study 'mine' already" in done.output
