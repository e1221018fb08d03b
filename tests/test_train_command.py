"`memlab train TASK`: any task by name, one device, a folder that somebody else can read."
import os
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from memlab.cli import main, train
from memlab.core.files import read_json
from memlab.lab.single import TASKS
from memlab.nn.saved import MixerLM

TINY = ['strings', 'facts=16', 'rows=4', '--dim', '16', '--n-layers', '1', '--steps', '6']


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    "An empty tree, and the devices of before afterwards."
    monkeypatch.setenv('MEMLAB_HOME', str(tmp_path))
    if 'CUDA_VISIBLE_DEVICES' in os.environ: monkeypatch.setenv('CUDA_VISIBLE_DEVICES', os.environ['CUDA_VISIBLE_DEVICES'])
    else: monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    return tmp_path


def trained(*words):
    "Exit code and everything that was printed."
    result = CliRunner().invoke(main, ['train', *words], prog_name='memlab')
    if result.exception and not isinstance(result.exception, SystemExit): raise result.exception
    return result.exit_code, result.output


def test_a_task_by_name_leaves_a_model_that_reads_back(home):
    code, text = trained(*TINY, '--log-every', '3', '--out', str(home/'out'))
    assert code == 0 and 'training loss' in text and f'model: {home/"out"}' in text
    done = read_json(home/'out'/'done.json')
    assert done['config']['task'] == dict({'class': 'RandomStrings'}, facts=16, alphabet=16, value=4, rows=4) and done['config']['train']['log_every'] == 3
    model, same = (MixerLM.from_pretrained(home/'out') for _ in range(2))
    ids = torch.zeros(1, 3, dtype=torch.long)
    assert torch.equal(model(ids)[0], same(ids)[0]) and not torch.equal(model.readout, MixerLM(model.config).readout)
    before = (home/'out'/'model.safetensors').read_bytes()
    (home/'out'/'model.safetensors').unlink()
    code, text = trained(*TINY, '--log-every', '3', '--out', str(home/'out'))              # finished before: handed out again, computed no more
    assert code == 0 and 'step/s' not in text and (home/'out'/'model.safetensors').read_bytes() == before


def test_settings_of_the_mixer_reach_the_model(home):
    assert trained(*TINY, 'mixer.conv=0', '--mixer', 'gated_delta', '--out', str(home/'out'))[0] == 0
    mixer = MixerLM.from_pretrained(home/'out').config.mixers[0]
    assert (type(mixer).__name__, mixer.conv) == ('GatedDeltaNetConfig', 0)


@pytest.mark.parametrize('words, want', [
    (['chess'], "No such command 'chess'"),
    (['windows', 'rows=2'], 'windows needs length: write length=...'),
    (['strings', 'colour=red'], "strings has no setting 'colour': it has facts, alphabet, value, rows"),
    (['strings', 'facts=many'], "facts=many: 'many' is no int"),
    (['strings', 'facts=10'], 'choose a number of rows that divides 10'),
    (['strings', 'facts'], "'facts': write NAME=VALUE"),
    (['strings', '--mixer', 'lstm'], "no mixer 'lstm': choose from attention"),
    (['strings', 'mixer.width=3'], "delta has no setting 'width'"),
    (['strings', '--device', 'tpu'], 'expected cpu, cuda, or cuda:N'),
    (['strings', '--log-every', '0'], '0 is not in the range x>=1')])
def test_what_makes_no_sense_is_told_before_anything_is_computed(words, want, home):
    code, text = trained(*words)
    assert code == 2 and want in ' '.join(text.split()) and not (home/'build').exists()


@pytest.mark.parametrize('name', TASKS)
def test_every_task_explains_itself(name):
    code, text = trained(name, '--help')
    assert code == 0 and 'Example:' in text and 'Settings:' in text and name in train.list_commands(None)


WHERE = '''
import sys, torch
from click.testing import CliRunner
from memlab.cli import main
done = CliRunner().invoke(main, ['train', 'strings', '--device', sys.argv[1], '--dim', '16', '--n-layers', '1', '--steps', '2'])
print(done.exit_code, torch.cuda.device_count(), 'records:' in done.output)
'''


def test_a_gpu_that_is_not_there_is_told():
    code, text = trained(*TINY, '--device', f'cuda:{torch.cuda.device_count()}')
    assert code == 2 and 'there is no such GPU here, leave --device out or say cpu' in ' '.join(text.split())


@pytest.mark.skipif(not torch.cuda.is_available(), reason='asks for a GPU')
def test_a_device_is_the_only_one_that_a_run_sees(home):
    for device, said, kind in (('cpu', '0 0 True', '-cpu-'), ('cuda', '0 1 True', '-cuda-')):
        done = subprocess.run([sys.executable, '-c', WHERE, device], capture_output=True, text=True, env=os.environ | dict(MEMLAB_HOME=str(home/device)))
        assert done.stdout.strip() == said, done.stderr
        assert kind in next((home/device).rglob('done.json')).read_text()
