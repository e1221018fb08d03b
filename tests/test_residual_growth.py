"""The claims of the study, decided on invented numbers: every verdict each of them can give, and what must leave it undecided.

And its arms: each differs from its base in what it is named after and in nothing else, on the same batches and from the same weights.
"""
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from math import exp, log

import numpy as np
import pyarrow as pa
import pytest
import torch

from memlab.lab.claims import judge
from memlab.lab.records import RUNS, frame, record_table
from memlab.nn.lm import residual_lm
from memlab.studies import residual_growth as rg
from memlab.train.loop import FitResult

CLAIMS = {c.id: c for c in rg.study.claims}
UNIGRAM, BIGRAM = 3., 1.3
DEVIATION = 0., 1., -1., .5, -.5   # of a seed, in units of the noise; none on average over 2 (nearly), 3 or 5 of them


# -- invented numbers -------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Arm:
    "What an arm measured; each a number, or a function of (seed, step) and for streams of (seed, step, layer)."
    gap: float | Callable = 0.   # held-out loss above the curve that all arms share
    rms: float | Callable = 1.   # of the stream after a layer
    cos: float | Callable = .5   # between the streams before and after a layer
    seconds: float = 10.         # a run takes


def said(value, *where): return value(*where) if callable(value) else value


def curve(seed, step): return 2 + 2*exp(-step/100) + seed/10   # seeds differ more than any effect here: only pairs tell


@cache
def plan(preset): return {arm.name: (arm, seeds) for arm, seeds in rg.study.presets[preset]().plan}


def rows(arm, fake, seed):
    "Records of one run, at the steps its preset measures."
    row = lambda step, metric, value, layer=None, position=None, item=None: dict(step=step, metric=metric, layer=layer, position=position, item=item, value=value)
    yield row(0, 'floor', UNIGRAM, item='unigram')
    if arm.tokenizer != 'bpe:50304': yield row(0, 'floor', BIGRAM, item='bigram')   # no table of that size
    for step in arm.evals: yield row(step, 'val_loss', curve(seed, step) + said(fake.gap, seed, step))
    for step in arm.marks:
        for layer in range(1, arm.block.n_layers + 1):
            for metric in ('rms', 'cos'): yield row(step, f'{metric}_stream', said(getattr(fake, metric), seed, step, layer), layer, 'rest')
            yield row(step, 'rms_stream', 1e3, layer, 'first')                      # a position apart, which no claim may read


def tables(arms: dict, preset='cpu', seeds=None):
    "Runs and records of some arms, as `study.load` gives them."
    todo = [(*plan(preset)[name], fake) for name, fake in arms.items()]
    todo = [(f'{arm.name} {seed}', arm, fake, seed) for arm, mine, fake in todo for seed in mine if seeds is None or seed in seeds]
    runs = [dict(run_id=i, arm=arm.name, seed=seed, status='finished', seconds=fake.seconds) for i, arm, fake, seed in todo]
    records = pa.concat_tables(record_table(list(rows(arm, fake, seed)), i, arm.name, seed) for i, arm, fake, seed in todo)
    return frame(pa.Table.from_pylist(runs, RUNS)), frame(records)


# values: `noise` around a number, `grows` and `line` for streams
def noise(mean, size): return lambda seed, *_: mean + size*DEVIATION[seed]
def grows(*gains, size=0.): return lambda seed, step, layer: exp(layer*(log(gains[(3*step - 1)//1500 % 3] if len(gains) > 1 else gains[0]) + size*DEVIATION[seed]))
