"""Ratios of our times to a peer's, measured in one process: interleaved, medians of 7. `make bench` runs this."""
import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import nn

from memlab.core import files
from memlab.core.files import home, save_tensors
from memlab.data.digits import Digits
from memlab.data.recall import RecallConfig, recall_batch
from memlab.data.text import Windows
from memlab.data.turns import InTurn, Replayed
from memlab.data.visits import Revisits
from memlab.eval.exits import exit_point, usual_rules, writing_times
from memlab.eval.revisits import DocumentLosses, row_losses
from memlab.lab import records
from memlab.lab.arm import Arm, execute, learner_of
from memlab.lab.records import RECORDS, RUNS, read_table, write_table
from memlab.lab.renew import REHEARSALS
from memlab.lab.study import find_study
from memlab.nn.cells import GRU, ContextCell, Feedback
from memlab.nn.checks import error_ratio
from memlab.nn.components import DeepMLPConfig
from memlab.nn.continuous import ContinuousConfig
from memlab.nn.delta import DeltaNetConfig, delta_chunked, delta_recurrent
from memlab.nn.exit import AtLayer
from memlab.nn.feedback import FeedbackConfig
from memlab.nn.image import ImageConfig, generate_latents
from memlab.nn.infini import InfiniConfig
from memlab.nn.init import init_parameters
from memlab.nn.linear import linear_chunked, linear_recurrent
from memlab.nn.lm import ResidualLMConfig, residual_lm
from memlab.nn.memory import load_memory, memory_bytes, save_memory
from memlab.nn.mixer import precise
from memlab.nn.mixer_lm import MIXERS, MixerLMConfig, mixer_config
from memlab.nn.models import create_model
from memlab.nn.pythia import PythiaAttention, PythiaConfig, PythiaLayer
from memlab.nn.recurrence import previous, sequential
from memlab.nn.recurrence import stacked as stack_of
from memlab.nn.softmax import AttentionConfig
from memlab.nn.variants import vanilla
from memlab.train.components import EWC, SI, Apart, Guard, Guarded
from memlab.train.directions import Recorder, update_cosine
from memlab.train.lagged import LaggedCache, lagged
from memlab.train.learner import Learner
from memlab.train.loop import FitConfig, FitResult, resume_run, save_run, train_step
from memlab.train.losses import lm_loss, recall_loss, token_loss
from memlab.train.newton import newton, scan, scan_loop
from memlab.train.objectives import ClassLoss, TokenLoss
from memlab.train.optim import AdamWConfig, GroupedAdamWConfig, SGDConfig
from memlab.train.recurrent import LaggedLoss
from memlab.train.schedule import Constant
from peers import nanogpt, plain_recall, plain_recurrence

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
    optimizer = config.optimizer.build(model)
    def loss(model, ids): return lm_loss(model, ids[:, :-1], ids[:, 1:], placement)
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


def in_turn(recorded):
    "A step of one of two optimizers that take turns on a 4x256 model; recorded, with the update cosine after each."
    config, model = FitConfig(steps=1), residual_lm(vanilla(n_layers=4, d_model=256, n_heads=4, kernel='fused'), 4096, 256)
    optimizers = [config.optimizer.build(model) for _ in range(2)]
    recorders = [Recorder(o) for o in optimizers] if recorded else []
    def loss(model, ids): return lm_loss(model, ids[:, :-1], ids[:, 1:])
    def step(ids):
        train_step(model, optimizers[0], ids, loss, config)
        optimizers.reverse()
        if recorded: update_cosine(*recorders)
    return step


def update_cosines():
    "What it costs of a training step to record displacements and their cosine at every step."
    ids = torch.randint(4096, (16, 257), generator=torch.Generator().manual_seed(0))
    plain, recorded = in_turn(False), in_turn(True)
    a, b = interleaved(lambda: plain(ids), lambda: recorded(ids))
    yield report(f'4x256, T 256, batch 16, V 4096, two optimizers in turn: step with update cosine/step ({1e3 * (b - a):.0f} ms of {1e3 * a:.0f})', b / a, 1.05, 'at most')


def rated_step(layers, width, length, vocab, optimizer):
    "A training step of a model under an optimizer, and that optimizer's step alone."
    config = FitConfig(steps=1, optimizer=optimizer)
    model = residual_lm(vanilla(n_layers=layers, d_model=width, n_heads=2), vocab, length)
    built = config.optimizer.build(model)
    def loss(model, ids): return lm_loss(model, ids[:, :-1], ids[:, 1:])
    def alone():
        for p in model.parameters(): p.grad = p.detach() if p.grad is None else p.grad
        built.step()
    return lambda ids: train_step(model, built, ids, loss, config), alone


def rate_groups():
    "A training step with five learning rates, mixed element by element, against plain AdamW."
    for layers, width, length, batch, vocab in ((4, 256, 256, 16, 4096), (4, 128, 64, 16, 256), (2, 64, 64, 1, 256)):
        ids = torch.randint(vocab, (batch, length + 1), generator=torch.Generator().manual_seed(0))
        (plain, step), (grouped, grouped_step) = (rated_step(layers, width, length, vocab, o) for o in (AdamWConfig(), GroupedAdamWConfig(by='element')))
        a, b = interleaved(lambda: plain(ids), lambda: grouped(ids), inner=10 if layers * width < 1000 else 1)
        c, d = interleaved(step, grouped_step, inner=20)
        yield report(f'{layers}x{width}, T {length}, batch {batch}, V {vocab}, five learning rates by element: step/plain step (optimizer alone {d / c:.2f})', b / a, 1.25, 'at most')


def guarded_steps(task, model, loss, guard):
    "Five steps in the middle of a second turn under a guard, data and all; and the last step of that turn."
    objective = Guarded(loss=loss, guard=guard)
    arm = Arm(name='guarded', task=task, model=model, train=FitConfig(steps=2 * task.each, objective=objective, schedule=Constant(warmup=0)))
    learner, step, batch = learner_of(arm, 0), objective.step(arm.train), task.batches(0)
    def take(*steps):
        for i in steps: step(learner, batch(i), i)
    take(0, task.each - 1, task.each)
    return lambda: take(*range(task.each + 50, task.each + 55)), lambda: take(2 * task.each - 1)


def guards():
    "What protecting earlier tasks costs of a step, beside plain alternation, in the middle of a turn; and what the end of a turn costs, in steps."
    digits = tuple(Digits(samples=600, rows=20, classes=c) for c in ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9)))
    texts = tuple(Windows(corpus=c, length=64, rows=20) for c in ('stdlib-docs', 'stdlib-code'))
    nano = ResidualLMConfig(block=vanilla(n_layers=2, d_model=64, n_heads=2), max_len=64)
    for what, tasks, model, loss, own in (('digits, 64-128-128-10, batch 20', digits, DeepMLPConfig(), ClassLoss(), 'between.'), ('text, 2x64, T 64, batch 20', texts, nano, TokenLoss(), 'layers.1.')):
        kinds = dict(alternation=(Guard(), {}), EWC=(EWC(), {}), SI=(SI(), {}), apart=(Apart(own=(own,)), {}), **{f'replay {share:.0%}': (Guard(), dict(share=share)) for share in (.01, .05)})
        found = [guarded_steps((Replayed if more else InTurn)(tasks=tasks, each=100, **more), model, loss, guard) for guard, more in kinds.values()]
        middle, ends = interleaved(*(f for f, _ in found)), interleaved(*(f for _, f in found))
        print(f'     {what}: plain alternation {1e3 * middle[0] / 5:.2f} ms a step; beside it ' + ', '.join(f'{name} {s / middle[0]:.2f}' for name, s in zip(kinds, middle)), flush=True)
        steps = {name: 5 * s / middle[0] - 1 for name, s in zip(kinds, ends)}
        print(f'     {what}: the end of a turn, in steps: ' + ', '.join(f'{name} {n:.1f}' for name, n in steps.items()), flush=True)
        yield report(f'{what}: the dearest guard/plain alternation', max(middle) / middle[0], 1.5, 'at most')
        yield report(f'{what}: the dearest end of a turn, in steps', max(steps.values()), 20., 'at most')  # EWC looks at 20 rows one by one


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


def delta_inputs(t, d=64, batch=4, heads=4, dtype=torch.float32):
    "Queries, unit keys, values, rates and an empty memory."
    r = torch.Generator().manual_seed(0)
    n = lambda *s: torch.randn(*s, generator=r, dtype=torch.float64).to(dtype)
    q, k, v, beta = n(batch, t, heads, d), F.normalize(n(batch, t, heads, d), dim=-1), n(batch, t, heads, d), n(batch, t, heads).sigmoid()
    return [u.requires_grad_() for u in (q, k, v, beta)] + [None, torch.zeros(batch, heads, d, d, dtype=dtype)]


def both_ways(form, inputs):
    "Forward and backward of a form."
    o, S = form(*inputs)
    (o.sum() + S.sum()).backward()


def delta_rule():
    "The delta rule in chunks against the loop, and against itself at twice the length."
    inputs = delta_inputs(1024)
    chunks, loop = interleaved(lambda: both_ways(delta_chunked, inputs), lambda: both_ways(delta_recurrent, inputs))
    yield report('delta rule, batch 4, 4 heads, d 64, T 1024: loop/chunks, forward and backward', loop / chunks, 10.)
    lengths = [1024 * 2 ** i for i in range(5)]
    times = interleaved(*(lambda x=delta_inputs(t, batch=1): both_ways(delta_chunked, x) for t in lengths))
    yield report(f'delta rule in chunks, T 1024 to 16384 ({", ".join(f"{s:.2f}" for s in times)} s): worst doubling', max(b / a for a, b in zip(times, times[1:])), 2.2, 'at most')
    small, large = (alone(f'added_peak({t})') for t in (4096, 16384))
    yield report(f'delta rule in chunks, memory at T 16384 ({large:.0f} MB) / four times T 4096 ({small:.0f} MB)', large / (4 * small), 1.1, 'at most')


def alone(call):
    "What a call of a function of this file returns in a process of its own."
    code = f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import json, run; print(json.dumps(run.{call}))'
    return json.loads(subprocess.run([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, check=True).stdout)


def high_water():
    "Most megabytes that this process has held at any moment so far (Linux)."
    return int(re.search('VmHWM: *(.*) kB', Path('/proc/self/status').read_text())[1]) / 1024


def added_peak(t):
    "Megabytes that forward and backward at a length add to the peak of this process."
    both_ways(delta_chunked, delta_inputs(64, batch=1))
    before = high_water()
    both_ways(delta_chunked, delta_inputs(t, batch=1))
    return high_water() - before


def streaming():
    "One token at a time: what it costs after 100,000 tokens against after 100."
    for name in (m for m in MIXERS if m not in ('attention', 'unified_kv')):
        layer, x = mixer_config(name, d_model=64).build(), torch.randn(1, 1000, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            early = layer(x[:, :100])[1]
            late = early
            for _ in range(100): late = layer(x, late)[1]
            def stream(state):
                for i in range(50): _, state = layer(x[:, i:i + 1], state)
            a, b = interleaved(lambda: stream(early), lambda: stream(late))
        yield report(f'{name}: a token after 100,000 / after 100', b / a, 1.2, 'at most')


def recall_steps():
    "Seconds of a training step on recall, logits at the queries only, and of a plain loop's with logits everywhere."
    batch = recall_batch(RecallConfig(vocab_size=2048, length=128, pairs=32), 64, seed=0)
    model, config = MixerLMConfig(vocab_size=2048, mixers=(AttentionConfig(d_model=64, n_heads=2, dk=48),) * 4).build(), FitConfig(steps=1)
    optimizer, plain = config.optimizer.build(model), plain_recall.trainer(2048, 64, 2, 48, 4)
    return interleaved(lambda: train_step(model, optimizer, (batch.ids, batch.at, batch.answers), recall_loss, config), lambda: plain(batch.ids, batch.labels))


def recall_step():
    "A training step on recall against one in a plain loop, in a process of its own: large products before it change how a process gets its memory, and it is a third slower."
    a, b = alone('recall_steps()')
    yield report('recall, 98,560 block parameters, batch 64, T 128, V 2048: plain/ours', b / a, 1.7)


def low_precision():
    "bfloat16 inputs in chunks against float64 in the loop."
    exact = delta_inputs(512, batch=2, heads=2, dtype=torch.float64)
    low = [None if u is None else u.detach().to(torch.bfloat16) for u in exact]
    yield report('delta rule, bfloat16 in chunks, T 512: relative error', error_ratio(precise(delta_chunked, *low)[0], delta_recurrent(*exact)[0]), .01, 'at most')
    gates = -torch.rand(2, 512, 2, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs = [*exact[:3], gates, exact[5]]
    low = [u.detach().to(torch.bfloat16) for u in inputs]
    yield report('gated linear attention, bfloat16 in chunks, T 512: relative error', error_ratio(precise(linear_chunked, *low)[0], linear_recurrent(*inputs)[0]), .01, 'at most')


def stacked():
    "Three seeds of a small model in one stacked step against one after the other: what decides how the recall study trains."
    task = RecallConfig(vocab_size=128, length=32, pairs=8)
    models = [MixerLMConfig(vocab_size=128, mixers=(DeltaNetConfig(d_model=32, chunk=32),) * 2).build(seed) for seed in range(3)]
    batches = [recall_batch(task, 64, seed=seed) for seed in range(3)]
    tensors = [torch.stack(t) for t in zip(*((b.ids, b.at, b.answers) for b in batches))]
    params, _ = torch.func.stack_module_state(models)
    def loss(p, ids, at, answers):
        h = torch.func.functional_call(Features(models[0]), {f'model.{n}': u for n, u in p.items()}, (ids,))
        asked = h.gather(1, at[..., None].expand(-1, -1, h.shape[-1])).flatten(0, 1)
        return F.cross_entropy(asked @ p['head.weight'].T, answers.flatten())
    step = torch.func.vmap(torch.func.grad(loss))
    def apart():
        for m, b in zip(models, batches): recall_loss(m, b.ids, b.at, b.answers).mean.backward()
    a, b = interleaved(lambda: step(params, *tensors), apart)
    print(f'     three seeds, gradients of a step: apart/stacked {b / a:.2f}', flush=True)
    yield True


class Features(torch.nn.Module):
    "A model's features as its forward, which is what `functional_call` calls."
    def __init__(self, model): super().__init__(); self.model = model
    def forward(self, ids): return self.model.features(ids)[0]


def infini_layer():
    "Forward and backward of a layer with a compressive memory, against one with attention that reads as many tokens in rows of one segment."
    x = torch.randn(4, 512, 512, generator=torch.Generator().manual_seed(0)).requires_grad_()
    heads = lambda credit: PythiaLayer(InfiniConfig(d_model=512, n_heads=8, segment=512, credit=credit).build(), 512, 2048)
    one_head = create_model('infini', PythiaConfig(vocab_size=256, n_layers=1), segment=512, credit=1).layers[0]
    def step(layer, segments=1): return lambda: layer(x.reshape(4 // segments, -1, 512))[0].square().mean().backward()
    attends, eight, one, unread = interleaved(step(PythiaLayer(PythiaAttention(512, 8), 512, 2048)), step(heads(1), 2), step(one_head, 2), step(heads(0)))
    what = 'a layer, S 512, D 512, forward and backward: infini/pythia'
    yield report(f'{what}, 8 heads, two segments, credit 1', eight / attends, 1.3, 'at most')
    yield report(f"{what}, the one head of create_model('infini'), two segments, credit 1", one / attends, 1.3, 'at most')
    print(f'     {what}, 8 heads, one segment, so that the memory is empty and no gradient passes a write: {unread / attends:.2f}', flush=True)


def memories(layers, width, segment=64):
    "A model of bytes whose every layer is a compressive memory."
    return PythiaConfig(vocab_size=256, d_model=width, n_layers=layers, intermediate=4 * width).build([InfiniConfig(d_model=width, segment=segment).build() for _ in range(layers)])


CYCLE = 20  # pieces of 1,990 tokens after which segments of 200 stand where they stood


def read_long():
    "A million bytes through two compressive memories of width 128, piece by piece: bytes held, megabytes of the peak and seconds after each."
    model, memory = memories(2, 128, segment=200), None
    ids = torch.randint(1, 256, (1, 1_000_000), generator=torch.Generator().manual_seed(0))
    held, peaks, clock = [], [], [time.perf_counter()]
    with torch.no_grad():
        for piece in ids.split(1990, 1):
            memory = model.features(piece, memory)[1]
            held.append(memory_bytes(memory)); peaks.append(high_water()); clock.append(time.perf_counter())
    return held, peaks, [b - a for a, b in zip(clock, clock[1:])]


def long_text():
    "What reading a million bytes costs at the end against at the start, in a process of its own; pieces end anywhere in a segment."
    held, peaks, seconds = alone('read_long()')
    n = len(seconds) // 4
    yield report(f'a million bytes: most memory held ({max(held):,} bytes) in the last {CYCLE} pieces / in the first', max(held[-CYCLE:]) / max(held[:CYCLE]), 1.05, 'at most')
    yield report(f'a million bytes: peak of the process at the end / after {CYCLE} pieces ({peaks[-1] - peaks[CYCLE - 1]:.1f} MB more)', peaks[-1] / peaks[CYCLE - 1], 1.05, 'at most')
    yield report('a million bytes: time a piece in the last quarter / in the first', statistics.median(seconds[-n:]) / statistics.median(seconds[:n]), 1.1, 'at most')


def save_and_load():
    "A memory to a file and back."
    model, file = memories(6, 512), Path(tempfile.mkdtemp())/'memory.safetensors'
    with torch.no_grad(): memory = model.features(torch.randint(1, 256, (1, 64)))[1]
    (seconds,) = interleaved(lambda: (save_memory(file, model, memory), load_memory(file, model)))
    yield report('saving and loading six memories of width 512, milliseconds', 1e3 * seconds, 50, 'at most')


def unchecked(f):
    "A function that writes and reads without digests."
    def call():
        with patch.object(records, 'table_digest', lambda table: '0'), patch.object(files, 'tensor_digest', lambda *tensors: '0'): f()
    return call


def tables():
    "The committed tables, read and written with their digests and without."
    paths, folder = sorted((home()/'data'/'results').glob('*/cpu/*.parquet')), Path(tempfile.mkdtemp())
    schemas = [dict(runs=RUNS, records=RECORDS, rehearsals=REHEARSALS)[p.stem] for p in paths]
    read = lambda: list(map(read_table, paths, schemas))
    held = read()
    def write():
        for i, table in enumerate(held):
            (folder/f'{i}.parquet').unlink(missing_ok=True)
            write_table(table, folder/f'{i}.parquet')
    loads, plainly = interleaved(read, lambda: [pq.read_table(p, partitioning=None) for p in paths])
    what = f'{len(paths)} committed tables, {sum(map(len, held)):,} rows'
    yield report(f'{what}: seconds to load them', loads, 1., 'at most')
    yield report(f'{what}: loading / as pyarrow reads them, unchecked', loads / plainly, 1.3, 'at most')
    saves, bare = interleaved(write, unchecked(write))
    yield report(f'{what}: saving / without digests', saves / bare, 1.3, 'at most')


def checkpoints():
    "A learner with its optimizer to a file and back, with a digest and without."
    for layers, width, vocab in ((6, 64, 256), (4, 256, 4096)):
        model = residual_lm(vanilla(n_layers=layers, d_model=width, n_heads=2), vocab, 64)
        learner, config, ids = Learner(model, FitConfig(steps=1).optimizer.build(model)), FitConfig(steps=1), torch.randint(vocab, (2, 33))
        train_step(model, next(iter(learner.optimizers.values())), ids, lambda m, x: lm_loss(m, x[:, :-1], x[:, 1:]), config)
        checked, plain = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
        def save(folder):
            result.step += 1    # what is there already would not be written
            save_run(folder, learner, result, {})
        result, long = FitResult(records=[dict(step=i, metric='val_loss', value=1.5) for i in range(500)]), replace(config, steps=10**6)
        a, b = interleaved(lambda: save(checked), unchecked(lambda: save(plain)))
        what = f'a checkpoint of {(checked/"checkpoint.safetensors").stat().st_size / 1e6:.0f} MB'
        yield report(f'{what}: saving / without a digest', a / b, 1.3, 'at most')
        a, b = interleaved(lambda: resume_run(checked, learner, long), unchecked(lambda: resume_run(plain, learner, long)))
        yield report(f'{what}: loading / without a digest', a / b, 1.3, 'at most')


def cell_of(name, width):
    "A cell with states and inputs of a width, and what stands between it and the state."
    layers = nn.ModuleList(PythiaLayer(PythiaAttention(width, 4), width, 4 * width) for _ in range(2 if name == 'attention' else 0))
    return init_parameters(nn.ModuleDict(dict(cell=dict(gru=GRU, context=ContextCell, attention=lambda width, _: Feedback(width))[name](width, width), layers=layers)), seed=0)


DENSE = 2**27  # numbers in the Jacobians of a batch, at most


def ways(name, width, batch, t):
    "Forward and backward of a recurrence, by how its states are found; those of the last visit are a little off."
    model, r = cell_of(name, width), torch.Generator().manual_seed(0)
    cell, options = model.cell, dict(stack=stack_of(model.layers)) if len(model.layers) else {}
    x, start = torch.randn(batch, t, width, generator=r), torch.zeros(width)
    with torch.no_grad(): last = (h := sequential(cell, cell.drive(x), start, **options)) + .001 * torch.randn(h.shape, generator=r)
    def both(find): return lambda: torch.autograd.grad(find(cell.drive(x)).square().mean(), list(model.parameters()))
    found = dict(loop=both(lambda u: sequential(cell, u, start, **options)), sweep=both(lambda u: lagged(cell, u, last, start, **options)))
    if not options: found['diagonal'] = both(lambda u: newton(cell, u, last, start, diagonal=True)[0])
    if not options and width <= 128 and batch * t * width * width <= DENSE: found['newton'] = both(lambda u: newton(cell, u, last, start)[0])
    return found


def table(widths, batches, lengths):
    "The loop against one sweep and one Newton step from states of the last visit, forward and backward."
    attention = [('attention', 128, b, t) for b in batches if b <= 8 for t in lengths if t <= 128]
    columns = 'loop', 'sweep', 'newton', 'diagonal'
    print('     states of a recurrence, forward and backward: milliseconds (times faster than the loop)')
    print('     cell       width batch    S' + ''.join(f'{c:>19}' for c in columns), flush=True)
    for name, width, batch, t in [*((n, w, b, t) for n in ('context', 'gru') for w in widths for b in batches for t in lengths), *attention]:
        found = ways(name, width, batch, t)
        seconds = dict(zip(found, interleaved(*found.values())))
        cells = [f'{1e3 * seconds[c]:10.1f} ({seconds["loop"] / seconds[c]:5.2f}x)' if c in seconds else '-' for c in columns]
        print(f'     {name:10} {width:5} {batch:5} {t:4}' + ''.join(f'{c:>19}' for c in cells), flush=True)
    yield True


def recurrences(): return table((32, 128), (1, 32), (32, 128))
def all_recurrences(): return table((32, 128, 512), (1, 8, 32), (32, 64, 128, 256))


def sequential_loop():
    "Our loop against a plain one, forward and backward; and PyTorch's own GRU, which has no Python in its loop."
    for name, (width, batch, t) in ((n, s) for n in ('context', 'gru') for s in ((128, 32, 128), (64, 8, 64))):
        cell, theirs, x = cell_of(name, width).cell, plain_recurrence.KINDS[name](width), torch.randn(batch, t, width, generator=torch.Generator().manual_seed(0))
        theirs.load_state_dict(cell.state_dict())
        run = dict(ours=lambda: sequential(cell, cell.drive(x), torch.zeros(width)), plain=lambda: theirs(x))
        assert error_ratio(run['ours'](), run['plain']()) < 1e-5
        if name == 'gru': run['torch'] = lambda unit=nn.GRU(width, width, batch_first=True): unit(x)[0]
        ours, plain, *torchs = interleaved(*(lambda f=f: f().square().mean().backward() for f in run.values()), inner=3)
        also = f' (ours/torch.nn.GRU: {ours / torchs[0]:.2f})' if torchs else ''
        yield report(f'loop over a cell, {name}, width {width}, batch {batch}, S {t}, forward and backward{also}: ours/plain', ours / plain, 1.1, 'at most')


def linear_scan():
    "The scan of Newton's method against its loop; in a large batch of diagonals a loop is what it does, on a processor."
    for batch, width in ((4, 8), (4, 32), (4, 128), (32, 128)):
        r = torch.Generator().manual_seed(0)
        u, diagonal, dense = torch.randn(batch, 256, width, generator=r), torch.rand(batch, 256, width, generator=r), torch.randn(batch, 256, width, width, generator=r) / (2 * width ** .5)
        with torch.no_grad(): (a, b), (c, d) = (interleaved(lambda: scan_loop(J, u), lambda: scan(J, u), inner=n) for J, n in ((diagonal, 10), (dense, 1)))
        what = f'linear scan, width {width}, batch {batch}, S 256'
        if batch == 4: yield report(f'{what}, diagonals: loop/scan', a / b, 5.)
        else: print(f'     {what}, diagonals: loop/scan {a / b:.2f}', flush=True)
        print(f'     {what}, whole Jacobians: loop/scan {c / d:.2f}', flush=True)


def lagged_learner(samples, t, width, cache=None):
    "A small recurrent model of bytes with stored states, and a step of its training on random samples."
    config, objective = FitConfig(steps=1), LaggedLoss(first='zeros')
    model = ContinuousConfig(vocab_size=256, d_model=width, cell='gru', inside=0).build()
    learner = Learner(model, config.optimizer.build(model), LaggedCache(samples, t, width) if cache is None else cache)
    ids, take = torch.randint(256, (samples, t + 1), generator=torch.Generator().manual_seed(0)), objective.step(config)
    return learner, lambda sample, i: take(learner, (ids[sample, :-1], ids[sample, 1:], sample), i)


def cache_overhead():
    "What reading, writing and shifting states costs of a step of lagged training."
    learner, step = lagged_learner(1024, 128, 128)
    sample, h, start = torch.randperm(1024, generator=torch.Generator().manual_seed(0))[:32], torch.randn(32, 128, 128), learner.model.hidden.start
    def cache():
        with torch.no_grad(): previous(learner.carry.read(sample), start)
        learner.carry.write(sample, h, 1)
    whole, part = interleaved(lambda: step(sample, 1), cache)
    yield report(f'stored states, width 128, batch 32, S 128: share of a lagged step of {1e3 * whole:.0f} ms', part / whole, .1, 'at most')


@contextmanager
def most_anonymous(seconds=.005):
    "Most megabytes of memory without a file that this process holds meanwhile, as a list of one (Linux)."
    held = lambda: int(re.search('RssAnon: *(.*) kB', Path('/proc/self/status').read_text())[1]) / 1024
    most, done = [held()], threading.Event()
    def watch():
        while not done.wait(seconds): most[0] = max(most[0], held())
    watcher = threading.Thread(target=watch)
    watcher.start()
    try: yield most
    finally: done.set(); watcher.join()


def train_in_a_file(samples, t, width):
    "Stored states that lie in a file: a few steps of training, every state read and written, a checkpoint of it. Gigabytes of states; most megabytes of other memory, in training and saving."
    learner, step = lagged_learner(samples, t, width)
    cache, peaks = learner.carry, []
    with most_anonymous() as most:
        for i, sample in enumerate(torch.randperm(samples, generator=torch.Generator().manual_seed(1))[:128].split(32)): step(sample, i)
        for sample in torch.arange(samples).split(256): cache.write(sample, cache.read(sample) + 1, 4)
    peaks += most
    with tempfile.TemporaryDirectory() as folder, most_anonymous() as most: save_tensors(Path(folder)/'checkpoint.safetensors', learner.pack(), {})
    return cache.states.nbytes / 1e9, *peaks, *most


def large_cache():
    "What of stored states that exceed their budget is held in memory, in a process of its own; twice their size is written to disk."
    size, training, saving = alone('train_in_a_file(100_000, 128, 128)')
    yield report(f'stored states of {size:.1f} GB in a file: anonymous memory of the process, GB ({training / 1e3:.2f} in training, {saving / 1e3:.2f} while they are saved)', max(training, saving) / 1e3, 2., 'at most')


def nano(documents):
    "Visits to documents, and an arm of the small model that is told their losses after each."
    task = Revisits(documents=documents)
    config = FitConfig(steps=task.total, optimizer=SGDConfig(lr=.1), schedule=Constant(warmup=0), objective=TokenLoss(), clip=None, log_every=task.total)
    return task, Arm(name='nano', task=task, model=ResidualLMConfig(block=vanilla(d_model=64, n_layers=2, n_heads=2), max_len=64), train=config, measures=(DocumentLosses(),))


def visit_and_ask():
    "Seconds of the ten steps of a visit, and of the losses of 25 documents after it."
    task, arm = nano(25)
    learner, step, batch, (ids, labels) = learner_of(arm, 0), arm.train.objective.step(arm.train), task.batches(0), task.table(0)
    def visit():
        for i in range(task.steps): step(learner, batch(i), i)
    return interleaved(visit, lambda: row_losses(learner.model, ids, labels))


def nano_run():
    "Seconds of a run of 20 documents: the median of three, the first of a process aside."
    _, arm = nano(20)
    def seconds():
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder: execute(arm, 0, Path(folder), progress=False)
        return time.perf_counter() - began
    return statistics.median([seconds() for _ in range(4)][1:])


def visiting():
    "Documents visited again: what the losses of 25 of them cost of the ten steps between two checkpoints, what a run costs, and whether eight seeds pay in one step."
    between, asked = alone('visit_and_ask()')   # large products before it would change how a process gets its memory, and the second by half
    yield report(f'25 documents after a visit of 10 steps ({1e3 * between:.1f} ms): share of the training time', asked / between, .3, 'at most')
    yield report('a run of 20 documents, 10 steps a visit, 5 passes, 2x64, with all its measures: seconds', alone('nano_run()'), 3., 'at most')
    task, arm = nano(25)
    model, batch = arm.model.build(0, 256), task.batches(0)
    params, _ = torch.func.stack_module_state([arm.model.build(seed, 256) for seed in range(8)])
    rows = [torch.stack([task.batches(seed)(0)[i] for seed in range(8)]) for i in (0, 1)]
    def loss(p, ids, labels):
        h = torch.func.functional_call(Features(model), {f'model.{n}': u for n, u in p.items()}, (ids,))
        return F.cross_entropy((h @ p['embed.weight'].T).flatten(0, 1), labels.flatten())
    stacked_step = torch.func.vmap(torch.func.grad(loss))
    def alone_step(): lm_loss(model, *batch(0)).mean.backward()
    eight, one = interleaved(lambda: stacked_step(params, *rows), alone_step, inner=5)
    yield report('gradients of eight seeds stacked / of one', eight / one, 4., 'at most')


def cached_images():
    "100 images of 64 positions, each slot read once, against all slots read anew for each."
    model = ImageConfig(grid=8, width=4, sketch_width=4).build(0)
    m, labels = torch.randn(100, 64, 4), torch.arange(100) % 10
    make = lambda cached: lambda: generate_latents(model, m, labels, cached=cached)
    anew, once = interleaved(make(False), make(True))
    yield report('images: all read anew / each slot once', anew / once, 5.)


def digits_arm():
    "Seconds that an arm on digits of 16 positions trains in the study of image memory, told from 20 of its steps."
    arm = next(a for a, _ in find_study('image_memory').preset('cpu').plan if a.name == 'D1: noise')
    learner, step, batch = learner_of(arm, 0), arm.train.objective.step(arm.train), arm.task.batches(0)
    (seconds,) = interleaved(lambda: step(learner, batch(0), 0), inner=20)
    yield report('an image arm on digits, seconds', arm.train.steps * seconds, 60., 'at most')


def read_everywhere(share, layers=12, width=128, steps=300):
    "A model of bytes that was trained to be read at every layer, and windows it has not seen."
    task, config = Windows(length=64, rows=16), FitConfig(steps=steps, optimizer=AdamWConfig(lr=1e-3))
    model = residual_lm(vanilla(n_layers=layers, d_model=width, n_heads=4, share=share, loss='all'), task.vocab_size, task.length)
    optimizer, batch = config.optimizer.build(model), task.batches(0)
    for i in range(steps): train_step(model, optimizer, batch(i), lambda m, ids, labels: lm_loss(m, ids, labels, 'all'), config)
    return model, *task.held_out(64)


def early_exit(**size):
    "Writing with 12 layers that were trained to be read: each rule where it loses at most .02 nat and goes least deep, against all layers."
    for share, what in (('all', 'one shared block'), ('none', 'independent layers')):
        model, ids, labels = read_everywhere(share, **size)
        layers = len(model.layers)
        (whole, *_), found = exit_point(model, ids, labels, AtLayer(layer=layers)), {}
        for rule in usual_rules(layers):
            p = exit_point(model, ids, labels, rule)
            if p.ce <= whole + .02 and (type(rule) not in found or p.depth < found[type(rule)][1].depth): found[type(rule)] = rule, p
        took = writing_times(model, ids[:1, :16], [rule for rule, _ in found.values()], 47)
        faster = {rule: took['all layers'] / took[str(rule)] for rule, _ in found.values()}
        print(f'     {layers} layers, {what}: loss {whole:.3f}, {1e3 * took["all layers"]:.1f} ms a token; ' + '; '.join(f'{rule}: loss {p.ce - whole:+.3f}, depth {p.depth:.1f}, {faster[rule]:.2f} times as fast' for rule, p in found.values()), flush=True)
        looking = {rule: f for rule, f in faster.items() if not isinstance(rule, AtLayer)}
        best = max(looking, key=looking.get, default=None)
        yield report(f'{layers} layers, {what}: writing, all layers/early exit by {best}', looking.get(best, 1.), 1.3)


def layer_feedback():
    "A training step of layers that read all layers of earlier tokens, one token after the other, against the ordinary step."
    ids, config = torch.randint(256, (32, 65), generator=torch.Generator().manual_seed(0)), FitConfig(steps=1)
    def stepper(model):
        optimizer = config.optimizer.build(model)
        return lambda: train_step(model, optimizer, ids, lambda m, x: token_loss(m, m.features(x[:, :-1])[0], x[:, 1:]), config)
    kinds = dict(layers={}, detached=dict(detach=True), mixed=dict(sees='mixed'), own=dict(sees='own'))
    ordinary, *others = interleaved(stepper(residual_lm(vanilla(n_layers=3, d_model=128, n_heads=4, share='qkv'), 256, 64)), *(stepper(FeedbackConfig(max_len=64, d_model=128, **kw).build(0, 256)) for kw in kinds.values()))
    print(f'     3x128, T 64, batch 32: ordinary step {1e3 * ordinary:.0f} ms; token by token, of that: ' + ', '.join(f'{name} {t / ordinary:.2f}' for name, t in zip(kinds, others)), flush=True)
    yield report('3x128, T 64, batch 32: step with layer feedback/ordinary step', others[0] / ordinary, 4., 'at most')


BENCHES = dict(steps=steps, update_cosines=update_cosines, rate_groups=rate_groups, guards=guards, all_layers=all_layers, light_import=light_import, delta_rule=delta_rule, streaming=streaming, recall_step=recall_step, low_precision=low_precision, stacked=stacked,
               infini_layer=infini_layer, long_text=long_text, save_and_load=save_and_load, tables=tables, checkpoints=checkpoints, recurrences=recurrences, sequential_loop=sequential_loop, linear_scan=linear_scan,
               cache_overhead=cache_overhead, large_cache=large_cache, visiting=visiting, cached_images=cached_images, digits_arm=digits_arm, early_exit=early_exit, layer_feedback=layer_feedback)
BY_NAME = dict(all_recurrences=all_recurrences)  # take longer

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('names', nargs='*', default=list(BENCHES), metavar='NAME', help=f'which; default: all of {", ".join(BENCHES)}; longer, and only by name: {", ".join(BY_NAME)}')
    names, known = parser.parse_args().names, BENCHES | BY_NAME
    if unknown := set(names) - set(known): parser.error(f'no benchmark {", ".join(sorted(unknown))}: choose from {", ".join(known)}')
    print('matrix products, Gflop/s: ' + ', '.join(f'{str(d)[6:]} {peak(d):.0f}' for d in (torch.float32, torch.bfloat16)), flush=True)
    misses = sum(not ok for n in names for ok in known[n]())
    sys.exit(f'{misses} bound(s) missed' if misses else 0)
