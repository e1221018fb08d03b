"What it takes to add a study: arms, a claim, and nothing else."
import subprocess
import sys
from pathlib import Path

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
