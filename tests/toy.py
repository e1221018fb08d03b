"""A study small enough for tests: sums of step numbers, with a checkpoint, a log of what was executed, and some ways to fail."""
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from memlab.lab.rules import More
from memlab.lab.runs import Outcome
from memlab.lab.study import Preset, Study
from memlab.lab.values import paired


@dataclass(frozen=True)
class Arm:
    name: str
    rate: float
    steps: int = 8
    pause: float = 0.0   # seconds a step
    fault: str = ''      # 'raise', 'diverge', 'interrupt' (once) or nothing
    quiet: bool = False  # leaves no line in the log

    @property
    def tokens(self): return 10*self.steps

    def rehearsal(self): return replace(self, steps=4, pause=0., quiet=True)


def execute(arm, seed, folder, progress=True, stop=None):
    "x <- x - rate*x, written down after each step."
    if not arm.quiet: log(f'{arm.name} {seed}')
    place = folder/'place.json'
    step, x, records = json.loads(place.read_text()) if place.exists() else (0, 1 + seed/7, [])
    if step and not arm.quiet: log(f'goes on after step {step}')
    while step < min(stop or arm.steps, arm.steps):
        time.sleep(arm.pause)
        x, step = x - arm.rate*x, step + 1
        records.append(dict(step=step, metric='loss', value=x*x))
        records.append(dict(step=step, metric='rms', layer=1, position='rest', value=abs(x)))
        place.with_suffix('.tmp').write_text(json.dumps([step, x, records]))
        os.replace(place.with_suffix('.tmp'), place)
        if step == 4 and arm.fault == 'raise': raise ArithmeticError('the fourth step is too steep')
        if step == 4 and arm.fault == 'diverge': return Outcome('diverged', step, 10*step, 3, records)
        if step == 4 and arm.fault == 'interrupt' and log('interrupted') == 1: raise KeyboardInterrupt
    return Outcome('finished', None, 10*step, 3, records)


def log(line):
    "Append a line to the log; returns how often it is there."
    file = Path(os.environ['MEMLAB_HOME'])/'log.txt'
    with open(file, 'a') as f: f.write(line + '\n')
    return file.read_text().splitlines().count(line)


ARMS = Arm('slow', .1), Arm('fast', .5)


def make(*arms, seeds=(0, 1), name='toy'):
    "A study of some arms, with a claim."
    arms = arms or ARMS
    plan = lambda *some: lambda: Preset(tuple((a, some) for a in arms))
    study = Study(name, 'Is fast better than slow?', dict(quick=plan(*seeds), cpu=plan(*seeds), wide=plan(*seeds, 9)), execute, lambda arm: 'text1')

    @study.claim('T1', 'fast ends lower', source='tests', measured='loss of slow minus fast', rule=More(least=.02), arms=('slow', 'fast'))
    def lower(runs, records): return paired(records, 'loss', 'slow', 'fast')

    return study


study = make()

if __name__ == '__main__':   # tests/toy.py PAUSE: waits until two of its kind are there, then runs preset cpu
    log('ready')
    while log('look') and Path(os.environ['MEMLAB_HOME'], 'log.txt').read_text().split().count('ready') < int(sys.argv[2]): time.sleep(.01)
    runs, _ = make(*(Arm(a.name, a.rate, pause=float(sys.argv[1])) for a in ARMS)).run('cpu', progress=False)
    assert len(runs) == 4, 'returned before the other process had finished'
