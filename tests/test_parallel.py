"""The same `fit` in two processes under torchrun: the weights of one process, kept in step, written by one of them."""
import os
import runpy
import subprocess
import sys

import pytest
import torch

from memlab.train.loop import CHECKPOINT

SCRIPT = '''
import sys
from dataclasses import replace
from pathlib import Path
import torch
import torch.distributed as dist
from memlab.nn.blocks import BlockConfig
from memlab.nn.lm import residual_lm
from memlab.core.record import record
from memlab.train.loop import FitConfig, fit_model, world
from memlab.train.optim import AdamWConfig
from memlab.train.schedule import Constant
from memlab.train.losses import lm_loss

CONFIG = FitConfig(steps=8, optimizer=AdamWConfig(lr=1e-2), schedule=Constant(warmup=3), clip=.5, log_every=4)

def train(folder, accumulate, rows=8, seen=None, **options):
    "Weights and records of a small model in float64."
    model = residual_lm(BlockConfig(n_layers=2, d_model=16, n_heads=2, loss='all'), 32, 12, seed=2).double()
    def batch(step): return torch.randint(32, (rows, 13), generator=torch.Generator().manual_seed(step))
    def loss(model, ids):
        if seen is not None: seen.append(ids)
        return lm_loss(model, ids[:, :-1], ids[:, 1:], 'all')
    def hook(learner, step): return [record(step, 'norm', float(sum(p.detach().norm() for p in model.parameters())))]
    result = fit_model(model, batch, loss, replace(CONFIG, accumulate=accumulate), hooks=[hook], folder=folder, save_every=3, **options)
    return dict(weights=model.state_dict(), records=result.records, status=result.status, step=result.step)

def refusal(rows):
    try: train(None, 2, rows)
    except ValueError as e: return str(e)

if __name__ == '__main__':
    dist.init_process_group('gloo')
    out, seen = Path(sys.argv[1]), []
    mine = out/f'rank{world()[0]}'
    mine.mkdir()
    stopped = train(mine, 2, seen=seen, stop=5)
    written = [p.name for p in mine.iterdir()]
    dist.barrier()
    resumed = train(out/'rank0', 2)   # both from what one of them wrote after step 3
    torch.save(dict(stopped=stopped, resumed=resumed, seen=seen, written=written, refusal=refusal(6)), out/f'{world()[0]}.pt')
    dist.destroy_process_group()
'''


@pytest.fixture(scope='module')
def both(tmp_path_factory):
    "What one process has, with whole batches; and what each of two has, with its rows in two parts."
    folder = tmp_path_factory.mktemp('parallel')
    script = folder/'train.py'
    script.write_text(SCRIPT)
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', str(script), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | dict(OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stderr
    here, seen = runpy.run_path(str(script)), []
    alone = dict(resumed=here['train'](None, 1, seen=seen), seen=seen, stopped=here['train'](None, 1, stop=5))
    return alone, [torch.load(folder/f'{rank}.pt') for rank in (0, 1)]


@pytest.mark.parametrize('run', ['stopped', 'resumed'])
def test_two_processes_end_where_one_does(both, run):
    alone, two = both
    for got in two:
        assert [got[run][k] for k in ('status', 'step')] == [alone[run][k] for k in ('status', 'step')]
        for name, want in alone[run]['weights'].items(): torch.testing.assert_close(got[run]['weights'][name], want, rtol=0, atol=1e-11, msg=name)   # 3e-14 seen


def test_the_losses_reported_are_those_of_the_whole_batch(both):
    values = lambda run: {(r['metric'], r['step']): r['value'] for r in run['records']}
    for got in both[1]: assert values(got['resumed']) == pytest.approx(values(both[0]['resumed']), rel=0, abs=2e-6)  # losses are summed in float32


def test_each_process_reads_rows_of_its_own(both):
    alone, two = both
    for i in range(5):
        parts = [torch.cat(got['seen'][2*i:2*i + 2]) for got in two]
        assert [len(p) for p in parts] == [4, 4] and torch.equal(torch.cat(parts), alone['seen'][i])


@pytest.mark.parametrize('run', ['stopped', 'resumed'])
def test_the_processes_stay_in_step(both, run):
    a, b = (got[run]['weights'] for got in both[1])
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_only_the_first_process_writes(both):
    assert [got['written'] for got in both[1]] == [[CHECKPOINT], []]


def test_a_batch_that_does_not_divide_is_refused(both):
    for got in both[1]: assert got['refusal'] == 'a batch of 6 rows does not divide into 2 parts on 2 processes: choose a multiple of 4'
