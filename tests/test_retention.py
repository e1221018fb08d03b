"What is read from loss matrices and margins, on tables made by hand; the traps; the closed form of the linear toy; and a run that is measured after every visit."
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from memlab.data.episodes import Episodes, Massed
from memlab.data.loops import MemoryLoops
from memlab.data.orders import Cyclic, Palindromic, Shuffled, SlotLocked, visits
from memlab.data.questions import Quiz
from memlab.data.recall import IGNORE
from memlab.data.visits import Revisits
from memlab.eval import revisits
from memlab.eval.measure import Trial
from memlab.eval.phase import amplitude, lock, phase_lock, shifted
from memlab.eval.recovery import LossMatrix, excess_recovery, fit_after, loss_matrix, prequential, recovery, shift_curve
from memlab.eval.retention import drift_corrected, fit_decay, guessing, interference, latent_rise, margin
from memlab.eval.revisits import DocumentLosses, FactScores, PairMargins, answer_scores, pair_scores, row_losses, series
from memlab.lab.arm import Arm, execute, learner_of
from memlab.nn.lm import ResidualLMConfig
from memlab.nn.shared_bias import LinearTasks, closed_losses, mode_losses, takes, trained_losses
from memlab.nn.variants import vanilla
from memlab.train.learner import Learner
from memlab.train.loop import FitConfig, fit
from memlab.train.objectives import TokenLoss
from memlab.train.optim import AdamWConfig, SGDConfig
from memlab.train.schedule import Constant

EXACT = dict(rtol=0, atol=1e-12)
MODEL = ResidualLMConfig(block=vanilla(d_model=16, n_layers=1, n_heads=2), max_len=64)


def by_hand(m, i):
    "Recovery scores by the definition, in plain Python."
    out, at = [], [v for v, d in enumerate(m.visited.tolist()) if d == i]
    for first, then in zip(at, at[1:]):
        gap = [m.loss[t, i].item() for t in range(first + 1, then + 1)]
        top = max(gap)
        out.append((top - gap[-1]) / (top - gap[0]) if top - gap[0] >= .1 and gap[0] <= .3 else math.nan)
    return out


def drawn(order=Shuffled(), n=7, passes=4, seed=0, scale=1.):
    "A loss matrix of random numbers."
    seen = visits(order, n, passes, seed).flatten()
    return LossMatrix(scale * torch.rand(len(seen) + 1, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), seen)


# -- the loss matrix --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('order', [Cyclic(), Shuffled(), Palindromic()], ids=str)
def test_recovery_is_its_definition(order):
    for seed in range(5):
        m = drawn(order, seed=seed)
        torch.testing.assert_close(recovery(m), torch.tensor([by_hand(m, i) for i in range(7)], dtype=torch.float64), equal_nan=True, **EXACT)
    assert recovery(m).isfinite().any() and recovery(m).isnan().any()


def test_known_recoveries():
    curve = torch.tensor([5, .25, 1.25, 2.25, 1.25, .2, .2], dtype=torch.float64)[:, None]
    m = LossMatrix(curve, torch.tensor([0, 9, 9, 9, 0, 9]))
    assert recovery(m).tolist() == [[.5]] and m.gaps(0) == [(1, 4)]
    assert shift_curve(m, 0).tolist() == [.25] and prequential(m) == 1.25 and fit_after(m) == .2
    assert recovery(LossMatrix(curve.flip(0)[:5] * 0 + .2, m.visited[:4])).numel() == 0


@pytest.mark.parametrize('first, top, last, wanted', [(.3, 1.3, .8, .5), (.31, 1.31, .8, None), (.2, .29, .25, None), (.1, .35, .1, 1.), (.1, 1.1, 1.1, 0.)])
def test_guards(first, top, last, wanted):
    m = LossMatrix(torch.tensor([[9.], [first], [top], [last], [0.]], dtype=torch.float64), torch.tensor([0, 9, 9, 0]))
    score = recovery(m).item()
    assert math.isnan(score) if wanted is None else score == pytest.approx(wanted)


def test_without_guards_the_score_explodes():
    noise = torch.randn(81, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    m = LossMatrix(torch.linspace(4, 2, 81, dtype=torch.float64)[:, None] + .01 * noise, torch.arange(80) % 8)
    assert recovery(m, None, None).nan_to_num(0).max() > 3 and recovery(m).isnan().all()


def test_a_random_order_does_not_score_zero_but_nothing_exceeds_its_locked_control():
    def forgetful(order, seed):
        seen = visits(order, 12, 5, seed).flatten()
        L = 3 + .3 * torch.randn(61, 12, generator=torch.Generator().manual_seed(hash((str(order), seed)) % 2 ** 31), dtype=torch.float64)
        L[torch.arange(60) + 1, seen] = .05
        return LossMatrix(L, seen)
    random_ = torch.tensor([recovery(forgetful(Shuffled(), seed)).nanmean() for seed in range(6)])
    excess = torch.stack([excess_recovery(forgetful(Cyclic(), s), {i: forgetful(SlotLocked(focal=i), s) for i in range(12)}).nanmean() for s in range(6)])
    assert random_.min() > .05 and abs(excess.mean()) < 3 * excess.std() / 6 ** .5 + .02


def test_excess_is_the_difference_on_the_document_that_was_locked():
    m, run = drawn(Cyclic()), drawn(SlotLocked(focal=2), seed=1)
    free = dict(forgotten=None, fitted=None)
    torch.testing.assert_close(excess_recovery(m, {2: run}, **free)[0], recovery(m, **free)[2] - recovery(run, **free)[2], equal_nan=True, **EXACT)
    with pytest.raises(ValueError, match='document 3 was visited at .* in its slot-locked run'): excess_recovery(m, {3: run})
    with pytest.raises(ValueError, match='means nothing without its null'): excess_recovery(m, {})


def test_shift_curve_and_prequential_are_their_definitions():
    m = drawn(Cyclic(), n=5, passes=3)
    for e in range(2): torch.testing.assert_close(shift_curve(m, e), torch.stack([torch.stack([m.loss[5 * e + i + 1 + tau, i] for i in range(5)]).mean() for tau in range(5)]), **EXACT)
    assert shift_curve(m, 2)[0].item() == pytest.approx(torch.stack([m.loss[10 + i + 1, i] for i in range(5)]).mean().item())
    assert shift_curve(m, 2)[4].item() == m.loss[15, 0].item()
    m = drawn(Shuffled(), n=5, passes=3)
    before = [m.loss[v, d].item() for v, d in enumerate(m.visited.tolist()) if v >= 5]
    assert prequential(m) == pytest.approx(np.mean(before), abs=1e-12)


# -- facts ------------------------------------------------------------------------------------------------------------

def test_margins_rises_and_interference_by_hand():
    s, d = torch.tensor([-1., -3.]).double(), torch.tensor([[-2.] * 4 + [-4.] * 4, [-3.] * 8]).double()
    assert margin(s, d).tolist() == [2., 0.]
    m, c = torch.tensor([[0., 1.], [4., 4.], [3., 5.]]).double(), torch.tensor([[1., 0.], [2., 1.], [3., 4.]]).double()
    assert drift_corrected(m, c).tolist() == [[-.5, .5], [2.5, 2.5], [-.5, 1.5]]
    rise = latent_rise(m, c, last=1)
    assert rise.facts.tolist() == [-1., 1.] and rise.controls.tolist() == [1., 3.] and rise.excess == -2.
    assert latent_rise(torch.tensor([[0.], [3.], [1.], [2.5], [0.]]).double(), c[:2].repeat(3, 1)[:5], last=1, fallen=True).facts.tolist() == [1.5]
    assert interference(m, [(0,), (1,)]).tolist() == [[4., 3.], [-1., 1.]]


@pytest.mark.parametrize('h', [.5, 3., 40.])
def test_half_lives_are_found(h):
    tau = torch.arange(50).double()
    assert fit_decay(1.5 * torch.exp2(-tau / h)).half_life == pytest.approx(h, rel=1e-3)
    power = fit_decay(1.5 * (1 + tau) ** (-1 / math.log2(1 + h)), 'power')
    assert power.half_life == pytest.approx(h, rel=1e-3) and power.start == pytest.approx(1.5, rel=1e-3)
    assert fit_decay(torch.full((50,), 1.).double()).half_life == math.inf and fit_decay(1 - tau / 98).area == pytest.approx(49 * .75)


def test_a_guessable_fact_is_caught_and_fair_ones_are_not():
    r = torch.Generator().manual_seed(2)
    caught = alarms = 0
    for _ in range(40):
        pairs = torch.randn(50, generator=r).double() + torch.randn(50, 1, generator=r).double() + .2 * torch.randn(50, 50, generator=r).double()
        alarms += bool(guessing(pairs).guessed)
        pairs[11, 11] += 1.5
        caught += guessing(pairs).guessed == (11,)
    assert alarms <= 6 and caught >= 34
    own = torch.eye(50).double()
    assert not guessing(pairs * 0 + .2 * own).fair() and guessing(pairs * 0 + own).mean == pytest.approx(1.)


def test_no_answer_of_a_quiz_can_be_guessed_and_one_that_was_told_is_caught():
    "Of 100 controls none is known after the other facts were learned; a fact that was told stands out among them, once it is held well."
    task = Episodes(quiz=Quiz(facts=12, controls=100), reading=Massed(exposures=80), before=120, after=0, rows=8)
    train = FitConfig(steps=task.total, optimizer=AdamWConfig(lr=5e-3), schedule=Constant(warmup=10), objective=TokenLoss(), log_every=task.total)
    model = ResidualLMConfig(block=vanilla(d_model=32, n_layers=1, n_heads=2), max_len=64).build(0, 256)
    learner, batch, asked = Learner(model, train.optimizer.build(model)), task.batches(0), task.quiz.questions(0, task.tokenizer_)
    ask = lambda questions: guessing(pair_scores(model, questions, task.tokenizer_)[1])
    fit(learner, batch, train.objective.step(train), train, stop=145)
    assert ask(asked[1]).fair(), ask(asked[1])
    fit(learner, lambda step: batch(145 + step), train.objective.step(train), train, stop=55)
    assert ask(asked[1]).guessed == () and ask([asked[0][0], *asked[1][1:]]).guessed == (0,)


# -- phase ------------------------------------------------------------------------------------------------------------

def test_lock_and_amplitude_by_hand():
    loop = torch.tensor([0, 0, 1, 1] * 3)
    m = torch.where(loop[:, None] == torch.arange(2), 2., .5).double() + torch.tensor([7., -3.])
    assert lock(m, loop).item() == pytest.approx(1.5)
    t = torch.arange(12).double()[:, None]
    assert amplitude(.7 * torch.cos(2 * math.pi * t / 4 + 1.1).expand(12, 2) + 5, 4).item() == pytest.approx(.7)
    assert amplitude(.7 * torch.cos(2 * math.pi * t / 6).expand(12, 2), 4).item() == pytest.approx(0., abs=1e-12)


def test_shifts_turn_each_period_on_its_own():
    m = torch.arange(12).double()[:, None]
    draws = shifted(m, 4, 50, 0)[..., 0].view(50, 3, 4)
    assert all(sorted(p.tolist()) == list(range(4 * c, 4 * c + 4)) and ((p.diff() - 1) % 4 == 0).all() for d in draws for c, p in enumerate(d))
    assert len({tuple((d[:, 0] % 4).tolist()) for d in draws}) > 20


def test_a_lock_is_found_and_drift_is_none():
    loop, r = torch.arange(120) % 20 // 10, torch.Generator().manual_seed(0)
    own = torch.where(loop[:, None] == torch.arange(2), .15, -.15).double()
    found = [(phase_lock(d, loop, 20, shifts=199), phase_lock(d + own, loop, 20, shifts=199)) for d in (.05 * torch.randn(30, 120, 2, generator=r, dtype=torch.float64).cumsum(1))]
    assert sum(a.p_lock <= .05 for a, _ in found) <= 4 and sum(b.p_lock <= .05 for _, b in found) >= 24
    assert phase_lock(own, loop, 20).lock == pytest.approx(.3)


# -- the toy ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('config', [LinearTasks(tasks=5, inputs=8, outputs=3), LinearTasks(tasks=5, inputs=8, outputs=3, strength=.3, alike=.5, steps=4, lr=.1),
                                    LinearTasks(tasks=5, inputs=8, outputs=3, strength=0., orthogonal=True, steps=1)], ids=str)
def test_the_closed_form_is_the_trained_model(config):
    x, y = config.draw(1)
    visited = visits(Shuffled(), 5, 3, 0).flatten()
    torch.testing.assert_close(closed_losses(config, x, y, visited), trained_losses(config, x, y, visited), rtol=1e-10, atol=1e-12)


def test_the_slowest_mode_predicts_recovery():
    said, found = [], []
    for tasks in (5, 10, 25, 50):
        config = LinearTasks(tasks=tasks)
        cycle = torch.arange(tasks).repeat(30)
        score = lambda L: recovery(LossMatrix(L, cycle[:len(L) - 1]), None, None)[:, -1].mean().item()
        said.append(score(mode_losses(takes(config, config.draw(0)[0]), 2)))
        found.append(score(closed_losses(config, *config.draw(0), cycle)))
    assert np.corrcoef(said, found)[0, 1] ** 2 > .9 and np.abs(np.subtract(said, found)).max() < .01 and max(found) > .8, (said, found)


# -- in a run ---------------------------------------------------------------------------------------------------------

def arm(task, *measures, lr=.1):
    "An arm that visits for all of its task's steps."
    train = FitConfig(steps=task.total, optimizer=SGDConfig(lr=lr), schedule=Constant(warmup=0), objective=TokenLoss(), log_every=50)
    return Arm(name='visits', task=task, model=MODEL, train=train, measures=measures)


def test_pads_do_not_count():
    model, r = MODEL.build(0, 256).double(), torch.Generator().manual_seed(0)
    ids = torch.randint(256, (4, 21), generator=r)
    labels = torch.stack([torch.where(torch.arange(20) < n, row[1:], IGNORE) for row, n in zip(ids, (20, 11, 1, 4))])
    alone = [F.cross_entropy(model(row[None, :n])[0][0], row[1:n + 1]).item() for row, n in zip(ids, (20, 11, 1, 4))]
    for rows in None, 1, 3, 4, 9: assert row_losses(model, ids[:, :-1], labels, rows).tolist() == pytest.approx(alone, abs=1e-12)


def test_documents_are_asked_in_even_parts_that_stay_in_a_cache(monkeypatch):
    seen, (model, ids) = [], (MODEL.build(0, 256), torch.zeros(25, 20, dtype=torch.int64))
    features = model.features
    monkeypatch.setattr(model, 'features', lambda x: seen.append(len(x)) or features(x))
    monkeypatch.setattr(revisits, 'IN_CACHE', 16 * 20 * 256)
    row_losses(model, ids, ids)
    assert seen == [13, 12]
    monkeypatch.setattr(revisits, 'IN_CACHE', 1)   # a row has more
    row_losses(model, ids[:2], ids[:2])
    assert seen[2:] == [1, 1]


def test_a_run_measures_every_visit_and_goes_on_where_it_stopped(tmp_path: Path):
    one = arm(Revisits(documents=5, passes=3, steps=4, length=24, cut=20), DocumentLosses())
    whole, cut = tmp_path/'whole', tmp_path/'cut'
    out = execute(one, 0, whole, progress=False)
    m = loss_matrix(out.records)
    assert m.loss.shape == (16, 5) and m.visited.tolist() == [v.items[0] for v in one.task.visits(0)]
    assert (m.loss[1:].gather(1, m.visited[:, None])[:, 0] < m.loss[:-1].gather(1, m.visited[:, None])[:, 0]).all()
    execute(one, 0, cut, progress=False, stop=26)
    mine = lambda records: [r for r in records if r['metric'] in ('visited', 'doc_loss')]
    assert mine(execute(one, 0, cut, progress=False).records) == mine(out.records)
    assert [r['step'] for r in execute(one.rehearsal(), 0, tmp_path/'short', progress=False).records if r['metric'] == 'visited'] == [4, 8, 12, 16, 20]


def test_the_last_checkpoint_is_the_last_model(tmp_path):
    one = arm(Revisits(documents=3, passes=2, steps=2, length=16, cut=16), DocumentLosses(digits=12))
    m = loss_matrix(execute(one, 0, tmp_path, progress=False).records)
    learner = learner_of(one, 0)
    ids, labels = one.task.table(0)
    torch.testing.assert_close(m.loss[0], row_losses(learner.model, ids, labels), rtol=1e-6, atol=1e-6)
    fit(learner, one.task.batches(0), one.train.objective.step(one.train), one.train)
    torch.testing.assert_close(m.loss[-1], row_losses(learner.model, ids, labels), rtol=1e-6, atol=1e-6)
    assert list(DocumentLosses().records(Trial(one.task, one.train, 0, learner), 0))[0]['metric'] == 'doc_loss'


def test_answers_are_scored_as_whole_lines_are():
    model, quiz = MODEL.build(0, 256).double(), Quiz(facts=4, controls=1)
    task = Episodes(quiz=quiz)
    asked = sum(quiz.questions(0, task.tokenizer_), [])
    found = answer_scores(model, *zip(*(q.encoded(task.tokenizer_) for q in asked)))
    for i, q in enumerate(asked):
        for j, answer in enumerate((q.answer, *q.distractors)):
            line = torch.tensor([0, *(q.question + answer).encode()])
            logp = model(line[None, :-1])[0][0].log_softmax(1).gather(1, line[1:, None])[:, 0]
            assert found[i, j].item() == pytest.approx(logp[-len(answer):].mean().item(), abs=1e-12)
    margins, pairs = pair_scores(model, asked, task.tokenizer_)
    torch.testing.assert_close(margins.diagonal(), margin(found[:, 0], found[:, 1:]), **EXACT)
    torch.testing.assert_close(pairs.diagonal(), found[:, 0], **EXACT)


def test_facts_and_controls_are_recorded_alike(tmp_path):
    one = arm(Episodes(quiz=Quiz(facts=3, controls=2), reading=Massed(exposures=2), after=2, rows=2), FactScores(every=2), lr=.05)
    said = execute(one, 0, tmp_path, progress=False).records
    assert series(said, 'margin', 'fact').shape == (3, 3) and series(said, 'fact_score', 'control').shape == (3, 2)
    follow = replace(one.measures[0], follow_up=True).records(Trial(one.task, one.train, 0, learner_of(one, 0)), 0)
    assert series(follow, 'margin', 'fact')[0].tolist() != series(said, 'margin', 'fact')[0].tolist()


def test_loops_are_asked_for_every_pair(tmp_path):
    one = arm(MemoryLoops(texts=2, slot=1, repeats=1, after=1, controls=0), PairMargins())
    said = [r for r in execute(one, 0, tmp_path, progress=False).records if r['metric'] == 'margin']
    assert len(said) == 4 * (one.task.total + 1) and {r['item'] for r in said} == {f'question {i}, answer {j}' for i in (0, 1) for j in (0, 1)}
