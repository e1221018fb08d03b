"`memlab train TASK`: any task by name, one device, a folder that somebody else can read."
import os
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from memlab.cli import MOST, main, train
from memlab.core.files import read_json, write_json
from memlab.lab.records import RUNS
from memlab.lab.runs import Run
from memlab.lab.single import TASKS
from memlab.nn.saved import MixerLM
from memlab.train.loop import CHECKPOINT

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


def test_options_reach_the_run(home):
    assert trained(*TINY, '--seed', '3', '--lr', '0.02', '--use-ffn', '--out', str(home/'out'))[0] == 0
    done = read_json(home/'out'/'done.json')
    train, model = done['config']['train'], done['config']['model']
    assert (done['seed'], train['optimizer']['lr'], train['steps'], train['log_every'], model['expand'], len(model['mixers'])) == (3, .02, 6, 6, 4, 1)
    there = next((home/'build').rglob(f"{done['run_id']}/records.parquet"))
    assert (home/'out'/'records.parquet').read_bytes() == there.read_bytes() and there.parent.parent.name == 'train'


def test_another_seed_is_another_model_and_the_same_one_the_same(home):
    weights = [MixerLM.from_pretrained(home/out).readout for out, seed, fresh in (('a', '0', ()), ('b', '1', ()), ('c', '0', ('--fresh',))) if trained(*TINY, '--seed', seed, '--out', str(home/out), *fresh)[0] == 0]
    assert len(weights) == 3 and torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[1])


def finished(home): return next((home/'build').rglob('done.json'))


def test_what_was_finished_is_computed_again_only_when_asked(home):
    trained(*TINY)
    before = finished(home).stat().st_ino, finished(home).stat().st_mtime_ns
    again = lambda *words: (trained(*TINY, *words)[0], (finished(home).stat().st_ino, finished(home).stat().st_mtime_ns) == before)
    assert again() == (0, True) and again('--fresh') == (0, False)


def test_a_model_of_other_code_or_another_place_is_told(home):
    assert 'computed earlier' not in trained(*TINY)[1]
    done = finished(home)
    content = read_json(done)
    write_json(done, content | dict(code='0' * 12))
    text = trained(*TINY)[1]
    assert "by other code than today's: --fresh computes it again" in text and 'elsewhere' not in text
    write_json(done, content | dict(env='python3.11-torch2.6-cuda-float32'))
    text = trained(*TINY)[1]
    assert 'computed earlier elsewhere (python3.11-torch2.6-cuda-float32): --fresh' in text and 'other code' not in text


def test_a_rate_that_is_too_high_ends_with_a_word(home):
    code, text = trained(*TINY, '--lr', '1e30', '--out', str(home/'out'))
    assert code == 1 and 'diverged at step' in text and 'try a smaller --lr' in text and not (home/'out').exists()


def test_it_says_how_it_ended_and_what_guessing_gives(home):
    code, text = trained('recall', 'vocab_size=32', 'length=16', 'pairs=2', 'rows=4', '--dim', '16', '--n-layers', '1', '--steps', '4', '--log-every', '2')
    said = next(line for line in text.splitlines() if 'accuracy' in line)
    assert code == 0 and ' at step 4 (guessing: ' in said and said.endswith(')') and f'records: {finished(home).parent/"records.parquet"}' in text


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
    (['strings', '--log-every', '0'], '0 is not in the range 1<=x<='),
    (['strings', '--seed', str(2 ** 31)], 'is not in the range 0<=x<=2147483647'),
    (['strings', '--out', '/proc/x'], 'nothing can be written to /proc/x'),
    (['strings', 'rows=4', 'facts=16', 'rows=8'], 'rows is said twice: say it once'),
    (['strings', 'mixer.n_heads=0'], 'n_heads=0: expected at least 1'),
    (['strings', 'mixer.dk=0'], 'dk=0: expected at least 1'),
    (['strings', 'mixer.temperature=nan'], 'temperature=nan: expected a finite number'),
    (['strings', '--mixer', 'gla', 'mixer.rank=-1'], 'rank=-1: expected at least 1'),
    (['recall', 'vocab_size=16', 'length=16', 'pairs=2', 'power=1e308'], 'the weights of 6 slots are too large for numbers, choose at most 335'),
    (['recall', 'vocab_size=16', 'length=16', 'pairs=2', 'rows=0'], 'rows=0: expected a whole number of at least 1'),
    (['recall', 'vocab_size=16', 'length=16', 'pairs=2', 'examples=0'], 'examples=(0,): expected 1 positive numbers'),
    (['topics', 'config.topics=0'], 'topics=0: expected a whole number of at least 1'),
    (['relay', 'vocab_size=-1'], 'vocab_size=-1'),
    (['windows', 'length=0', 'rows=1'], 'length=0: expected a whole number of at least 1'),
    (['samples', 'length=0', 'samples=64', 'rows=64'], 'length=0: expected a whole number of at least 1'),
    (['facts', 'told=0'], 'told=0: expected a whole number of at least 1'),
    (['facts', 'packing=zzz'], "packing='zzz': expected one of"),
    (['questions', 'pattern=-1', 'held_pairs=-1'], 'pattern=-1: expected a whole number of at least 0')])
def test_what_makes_no_sense_is_told_before_anything_is_computed(words, want, home):
    code, text = trained(*words)
    assert code == 2 and want in ' '.join(text.split()) and not (home/'build').exists()


@pytest.mark.parametrize('size', [10 ** 15, 10 ** 18, 10 ** 20])
def test_what_does_not_fit_into_memory_is_told_in_words(size, home):
    code, text = trained('recall', f'vocab_size={size}', 'length=16', 'pairs=2', '--dim', '16', '--n-layers', '1', '--steps', '1')
    assert code == 2 and 'there is not enough memory for this: take fewer or shorter rows' in ' '.join(text.split())


def test_an_error_that_is_not_of_memory_is_not_taken_for_one(home, monkeypatch):
    def fails(*args, **kw): raise RuntimeError('an illegal memory access')
    monkeypatch.setattr('memlab.lab.runs.compute', fails)
    with pytest.raises(RuntimeError, match='illegal memory access'): trained(*TINY)


def test_the_largest_seed_of_the_command_line_is_the_largest_that_tables_hold(home):
    assert trained(*TINY, '--seed', str(MOST))[0] == 0 and MOST == 2 ** (RUNS.field('seed').type.bit_width - 1) - 1
    for seed in (MOST + 1, -1, 1.5, True):
        with pytest.raises(ValueError, match='expected a whole number from 0 to 2147483647'): Run(None, seed, 'a1')


def test_a_place_that_cannot_be_written_to_is_told(tmp_path, monkeypatch):
    for name in 'ab': (tmp_path/f'{name}.txt').write_text(f'{name}, and some words. ' * 40)
    monkeypatch.setenv('MEMLAB_HOME', '/proc/nope')
    code, text = trained('windows', 'length=16', 'rows=4', f'corpus={tmp_path}', '--steps', '1')
    assert code == 2 and 'MEMLAB_HOME chooses another place' in ' '.join(text.split())


def test_a_model_that_is_gone_says_how_to_make_it_again(home):
    assert trained(*TINY)[0] == 0
    next((home/'build'/'runs').rglob(CHECKPOINT)).unlink()
    code, text = trained(*TINY, '--out', str(home/'out'))
    assert code == 1 and 'the model with it: compute the run again with --fresh' in ' '.join(text.split())
    assert trained(*TINY, '--out', str(home/'out'), '--fresh')[0] == 0 and (home/'out'/'model.safetensors').exists()


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
