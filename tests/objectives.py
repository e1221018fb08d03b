"Every objective with models and a batch it can be asked of, whose rows have unevenly many labels; a new one is missed until it stands here."
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pkgutil import iter_modules
from types import SimpleNamespace

import memlab.train
import torch
from memlab.data.recall import IGNORE
from memlab.data.visits import Visits
from memlab.nn.blocks import BlockConfig
from memlab.nn.continuous import ContinuousConfig
from memlab.nn.image import CodePriorConfig, ImageConfig
from memlab.nn.lm import residual_lm
from memlab.nn.mixer_lm import MixerLMConfig, mixer_config
from memlab.nn.mlp import MLPConfig
from memlab.nn.pythia import PythiaConfig
from memlab.nn.selective import SelectiveConfig
from memlab.train.alternate import Alternating
from memlab.train.by_loop import ByLoop
from memlab.train.components import EWC, Guarded, Kept
from memlab.train.conflicts import Jointly
from memlab.train.exits import ExitLoss
from memlab.train.idempotence import IdempotenceLoss
from memlab.train.image import CodeLoss, ImageLoss, SeededObjective, WithCodebook, WithPrior
from memlab.train.learner import Learner
from memlab.train.loop import FitConfig
from memlab.train.losses import EXIT_LOSSES
from memlab.train.objectives import ClassLoss, EachItsOwn, LayerLoss, Objective, RecallLoss, StreamLoss, TokenLoss
from memlab.train.optim import SGDConfig
from memlab.train.previous import TwoPassLoss
from memlab.train.recurrent import CachedLoss, LaggedLoss, NewtonLoss, SequentialLoss, StateLoss, TruncatedLoss
from memlab.train.schedule import Constant
from memlab.train.selective import GATES, SelectiveLoss
from memlab.train.settled import SettledLoss

V, ROWS, LENGTH, CODES = 11, 8, 8, 5
BASES = {Objective, StateLoss, CachedLoss, SeededObjective}   # which find no states, or have no loss
CONFIG = FitConfig(steps=2, optimizer=SGDConfig(lr=.1), schedule=Constant(warmup=0), clip=None)


def every_objective():
    "All that memlab.train defines."
    for m in iter_modules(memlab.train.__path__): import_module(f'memlab.train.{m.name}')
    below = lambda c: {c}.union(*map(below, c.__subclasses__()))
    return {c for c in below(Objective) if c.__module__.startswith('memlab.train.')} - BASES


def text(seed=0):
    "Tokens and labels: rows ask more and more, one asks nothing."
    r = torch.Generator().manual_seed(seed)
    ids, labels = torch.randint(V, (2, ROWS, LENGTH), generator=r)
    asks = torch.rand(ROWS, LENGTH, generator=r) < torch.linspace(.1, 1, ROWS)[:, None]
    asks[1] = False
    return ids, labels.where(asks, IGNORE)


def classes(seed=0):
    "Vectors and their classes; most of the first half have none."
    r = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, 4, generator=r).double(), torch.tensor([IGNORE, 3, IGNORE, IGNORE, 0, 4, 2, 1])


def pictures():
    "Latents, codes, what these stand for, and classes."
    r = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, 9, 3, generator=r).double(), torch.randint(CODES, (ROWS, 9), generator=r), torch.randn(ROWS, 9, 2, generator=r).double(), torch.arange(ROWS)


@dataclass(frozen=True, kw_only=True)
class Loops(Visits):
    "A loop a step."
    def at(self, seed, step): return SimpleNamespace(loop=step % 2)
    def turns(self, seed, step): return step > 0


@dataclass
class Case:
    objective: Objective
    models: Callable
    batch: Callable = text
    task: object = None
    carry: Callable | None = None   # of a model; None: the objective's own
    cut: str = ''                   # why it is not taken in parts; '': it is
    spread: str = ''                # nor on several processes, if for another reason

    def refusal(self, parts, processes): return self.spread if processes > 1 and self.spread else self.cut if parts * processes > 1 else ''

    def step(self, parts):
        "Losses and weights of two steps in float64, or the refusal."
        models = {n: m.double() for n, m in self.models().items()}
        first, config, o = next(iter(models.values())), replace(CONFIG, accumulate=parts), self.objective
        try:
            take = o.step(config)
            learner = Learner(models, o.optimizers(models, config), self.carry(first) if self.carry else o.carry(first, self.task, 0))
            losses = [take(learner, self.batch(), i).item() for i in (0, 1)]
        except ValueError as e: return str(e)
        return losses, torch.cat([p.detach().flatten() for _, p in learner.parameters()])


one = lambda build: lambda: dict(model=build())
lm = one(lambda: residual_lm(BlockConfig(n_layers=2, d_model=16, n_heads=2), V, 16, std=.3))
mixer = lambda: MixerLMConfig(vocab_size=V, mixers=(mixer_config('linear', d_model=8),)).build()
mlp = one(lambda: MLPConfig(inputs=4, hidden=3).build(0, classes=5))
recurrence = one(lambda: ContinuousConfig(vocab_size=V, d_model=8, inside=0, std=.4).build())
image = lambda: ImageConfig(grid=3, width=3, sketch_width=2, n_layers=1, d_model=32, n_heads=2, dropout=0., class_drop=0.).build(0)   # which draws nothing
prior = lambda: CodePriorConfig(grid=3, codes=CODES, n_layers=1, d_model=32, n_heads=2, dropout=0., class_drop=0.).build(0)
selective = one(lambda: SelectiveConfig(model=PythiaConfig(vocab_size=V, d_model=16, n_layers=2, n_heads=2, intermediate=32, std=.3), hidden=8, std=.5).build(0, V))
numbered = lambda: (*text(), torch.arange(ROWS))
samples = SimpleNamespace(samples=ROWS, length=LENGTH, fingerprint=lambda seed: 'a text')
whole, alone = 'dispersion is of all states of a batch', 'each would store the states of its own rows'
seeded = lambda model: WithCodebook(0, lambda ids: ids)

CASES = dict(
    tokens=Case(TokenLoss(), lm), layers=Case(LayerLoss(placement='all'), lm), answers=Case(RecallLoss(), lm, lambda: (text()[0], torch.tensor([[0, 3, 7]]).expand(ROWS, -1), text()[1][:, [0, 3, 7]])),
    classes=Case(ClassLoss(), mlp, classes), several=Case(EachItsOwn(), lambda: dict(a=mixer(), b=mixer()), lambda: (*text(0), *text(1))),
    stream=Case(StreamLoss(), one(mixer), lambda: (*text(), torch.ones(ROWS, dtype=torch.bool)), SimpleNamespace(rows=ROWS), cut='read all rows in one part and one process'),
    two_passes=Case(TwoPassLoss(), lm, lambda: (*text(0), *text(1)), cut='one-step retention compares whole batches'),
    idempotence=Case(IdempotenceLoss(weight=.5), lm),
    loop=Case(SequentialLoss(), recurrence, numbered), remembering=Case(SequentialLoss(remember='float32'), recurrence, numbered, samples, spread=alone),
    slope=Case(SequentialLoss(slope=.1), recurrence, numbered, cut=whole), dispersion=Case(SequentialLoss(dispersion=.1), recurrence, numbered, cut=whole),
    truncated=Case(TruncatedLoss(tokens=2), recurrence, numbered), lagged=Case(LaggedLoss(dtype='float32'), recurrence, numbered, samples, spread=alone),
    newton=Case(NewtonLoss(dtype='float32'), recurrence, numbered, samples, spread=alone), settled=Case(SettledLoss(), recurrence, numbered, samples, cut=whole),
    image=Case(ImageLoss(), one(image), pictures, carry=seeded), codes=Case(CodeLoss(), one(prior), pictures, carry=seeded),
    pair=Case(WithPrior(), lambda: dict(model=image(), prior=prior()), pictures, carry=seeded),
    turns=Case(Alternating(loss=TokenLoss()), lm), loops=Case(ByLoop(loss=TokenLoss()), lm, task=Loops()), jointly=Case(Jointly(loss=TokenLoss()), lm, lambda: (*text(0), *text(1))),
    guarded=Case(Guarded(loss=TokenLoss(), guard=EWC(strength=.5)), lm, carry=lambda model: Kept(model, 2, 1)))
CASES |= {f'gate {g}': Case(SelectiveLoss(gate=g, calibration=.1), selective) for g in GATES}
CASES |= {f'exit {n}': Case(ExitLoss(name=n), lm, cut='needs the mean over a batch before its loss' if n in ('threshold', '2-test') else '') for n in EXIT_LOSSES}
