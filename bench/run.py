"""Ratios of our times to a peer's, measured in one process: interleaved, medians of 7. `make bench` runs this."""
import argparse
import statistics
import subprocess
import sys
import time

import torch

from memlab.nn.blocks import vanilla
from memlab.nn.lm import residual_lm
from memlab.train.loop import FitConfig, make_optimizer, train_step
from memlab.train.losses import lm_loss
from peers import nanogpt

REPEATS = 7


def interleaved(*fs, inner=1):
    "Median seconds of each function, called in turn."
    for f in fs: f()
    times = [[] for _ in fs]
    for _ in range(REPEATS):
        for f, seen in zip(fs, times):
            began = time.perf_counter()
            for _ in range(inner): f()
            seen.append((time.perf_counter() - began) / inner)
    return [statistics.median(t) for t in times]


def report(what, ratio, bound, better='at least'):
    "One line; True when the bound holds."
    ok = ratio >= bound if better == 'at least' else ratio <= bound
    print(f'{"ok  " if ok else "MISS"} {what}: {ratio:.2f} ({better} {bound})', flush=True)
    return ok


def our_step(vocab, length, layers, width, heads, precision, placement='single', kernel='explicit'):
    "One optimizer step of our model, as `fit` takes it."
    config = FitConfig(steps=1, precision=precision)
    model = residual_lm(vanilla(n_layers=layers, d_model=width, n_heads=heads, kernel=kernel), vocab, length)
    optimizer = make_optimizer(model, config)
    def loss(model, ids):
        total, each = lm_loss(model, ids[:, :-1], ids[:, 1:], placement)
        return total, each[-1]
    return lambda ids: train_step(model, optimizer, ids, loss, config)


def peak(dtype, n=1024):
    "Matrix products per second, in Gflop/s."
    a = torch.randn(n, n, dtype=dtype)
    return 2 * n ** 3 / interleaved(lambda: a @ a)[0] / 1e9


def steps():
    "Training steps against the peer."
    for layers, width, heads, length, batch, vocab, precision, bound in ((4, 256, 4, 256, 16, 4096, 'float32', 1.), (6, 128, 4, 128, 32, 256, 'bfloat16', 1.8), (6, 64, 4, 64, 64, 256, 'bfloat16', 2.5)):
        ids = torch.randint(vocab, (batch, length + 1), generator=torch.Generator().manual_seed(0))
        shape = vocab, length, layers, width, heads, precision
        ours, theirs = our_step(*shape, kernel='fused' if precision == 'float32' else 'explicit'), nanogpt.trainer(*shape)
        a, b = interleaved(lambda: ours(ids), lambda: theirs(ids))
        yield report(f'{layers}x{width}, T {length}, batch {batch}, V {vocab}, {precision}: peer/ours ({batch * length / a:,.0f} against {batch * length / b:,.0f} tokens/s)', b / a, bound)


def all_layers():
    "A loss at every layer against one at the last."
    ids = torch.randint(4096, (16, 257), generator=torch.Generator().manual_seed(0))
    single, every = (our_step(4096, 256, 12, 256, 4, 'float32', p, 'fused') for p in ('single', 'all'))
    a, b = interleaved(lambda: single(ids), lambda: every(ids))
    yield report('12x256, T 256, V 4096: all-layer/single', b / a, 2., 'at most')


def light_import():
    "Seconds that `import memlab.nn.lm` adds to `import torch`."
    run = lambda code: subprocess.run([sys.executable, '-c', code], check=True)
    with_us, torch_only = interleaved(lambda: run('import torch, memlab.nn.lm'), lambda: run('import torch'))
    yield report('import memlab.nn.lm, seconds beyond torch', with_us - torch_only, .5, 'at most')


BENCHES = dict(steps=steps, all_layers=all_layers, light_import=light_import)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('names', nargs='*', choices=[*BENCHES, []], help='which; default: all')
    names = parser.parse_args().names or list(BENCHES)
    print('matrix products, Gflop/s: ' + ', '.join(f'{str(d)[6:]} {peak(d):.0f}' for d in (torch.float32, torch.bfloat16)), flush=True)
    misses = sum(not ok for n in names for ok in BENCHES[n]())
    sys.exit(f'{misses} bound(s) missed' if misses else 0)
