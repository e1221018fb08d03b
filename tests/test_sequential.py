"""What a stream leaves in the weights: learning-rate groups, blocks read again, sentences, earlier texts, contexts that go, guards of tasks, bits; each against a plain loop or a closed form."""
import math
from copy import deepcopy
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from memlab.core.identity import changed, full
from memlab.data.coupling import CoupledFacts, Fade
from memlab.data.digits import Digits
from memlab.data.previous import PreviousTexts, TextAndPrevious, recall_line
from memlab.data.questions import Quiz
from memlab.data.recall import IGNORE
from memlab.data.rolling import Rolling, blocks
from memlab.data.sentences import FORMS, WORDS, SentenceStream, Words, cut, sentences
from memlab.data.strings import RandomStrings
from memlab.data.turns import InTurn, Replayed, turn_of
from memlab.eval.capacity import StringBits, bits_held
from memlab.eval.coupling import CopyProbe, CoupledRecall
from memlab.eval.forgetting import TaskScores, counterbalanced, scores
from memlab.eval.measure import Trial
from memlab.eval.previous import OneStepRetention, RecallOfPrevious
from memlab.eval.rolling import BlockGains
from memlab.eval.revisits import row_losses
from memlab.eval.sentences import SentenceRecall
from memlab.lab.arm import Arm, execute
from memlab.nn.components import DeepMLPConfig
from memlab.nn.lm import ResidualLMConfig, TransformerLM
from memlab.nn.mlp import MLPConfig
from memlab.nn.variants import vanilla
from memlab.train.components import EWC, SI, Apart, Frozen, Guard, Guarded, Kept, now_at
from memlab.train.directions import Recorder
from memlab.train.learner import Learner
from memlab.train.loop import FitConfig, fit
from memlab.train.losses import Summed, token_loss
from memlab.train.objectives import ClassLoss, Objective, TokenLoss
from memlab.train.optim import AdamWConfig, GroupedAdamWConfig, SGDConfig, drawn_groups, given_groups, learning
from memlab.train.previous import TwoPassLoss
from memlab.train.schedule import Constant, Cosine, Patience

ADAM, NOW = AdamWConfig(lr=1e-2, weight_decay=0.), Constant(warmup=0)
FIVE = GroupedAdamWConfig(lr=2e-3, shares=(.05, .05, .15, .25, .5), by='element', match='rms', draw=3)


def nano(length, width=32):
    return ResidualLMConfig(block=vanilla(d_model=width, n_layers=1, n_heads=2), max_len=length)


def config(steps, objective=TokenLoss(), optimizer=ADAM, **kw):
    return FitConfig(steps=steps, objective=objective, optimizer=optimizer, **dict(schedule=NOW, clip=None, log_every=steps) | kw)


def records(arm, folder, **kw):
    return execute(arm, 0, folder, progress=False, **kw).records


def values(records, metric, item=None):
    return [r['value'] for r in records if r['metric'] == metric and item in (None, r['item'])]


# -- learning-rate groups ---------------------------------------------------------------------------------------------

def trained(optimizer, model, folder=None, stop=None):
    "Weights after some steps on digits, with a schedule that moves the rates."
    c = config(12, ClassLoss(), optimizer, schedule=Cosine(warmup=3), log_every=4)
    rows = Digits(samples=600, rows=20).batches(0)
    learner = Learner(model, c.optimizer.build(model))
    fit(learner, lambda i: (rows(i)[0].double(), rows(i)[1]), c.objective.step(c), c, folder=folder, stop=stop)
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def test_every_element_moves_as_under_an_adamw_of_its_own_rate():
    "The rule written out, a rate for each element, with decay of matrices and a schedule, on a model with real gradients."
    model = MLPConfig(hidden=8).build(0).double()
    groups = drawn_groups(model, FIVE.shares, FIVE.by, FIVE.draw)
    rates = FIVE.rates_of(groups)
    twin, rows, moments = deepcopy(model), Digits(samples=600, rows=20).batches(0), {}
    for i in range(12):
        x, y = rows(i)
        F.cross_entropy(twin(x.double()), y).backward()
        for n, p in twin.named_parameters():
            lr = rates[groups[n]] * Cosine(warmup=3).at(1., i, 12)
            m, v = moments.get(n, (0., 0.))
            m, v = .9 * m + .1 * p.grad, .95 * v + .05 * p.grad ** 2
            moments[n] = m, v
            step = m / (1 - .9 ** (i + 1)) / ((v / (1 - .95 ** (i + 1))).sqrt() + 1e-8)
            p.data = p.data - lr * (FIVE.weight_decay * (p.ndim >= 2) * p.data + step)
            p.grad = None
    for n, p in trained(FIVE, model).items(): torch.testing.assert_close(p, dict(twin.named_parameters())[n].data, rtol=1e-10, atol=1e-12)


def test_grouped_rates_go_on_where_they_were_stopped(tmp_path):
    make = lambda: MLPConfig(hidden=8).build(0).double()
    trained(FIVE, make(), tmp_path, stop=7)
    for (n, a), b in zip(trained(FIVE, make(), tmp_path).items(), trained(FIVE, make()).values()): assert torch.equal(a, b), n


@pytest.mark.parametrize('by', ['tensor', 'element'])
@pytest.mark.parametrize('match', ['mean', 'rms', 'max'])
def test_rates_of_a_real_model_match_the_single_one(by, match):
    "Over all parameters one by one, whatever was drawn."
    model, c = nano(8).build(0, 64), replace(FIVE, by=by, match=match, lr=1e-3)
    groups = drawn_groups(model, c.shares, by, c.draw)
    each = torch.cat([c.rates_of(groups)[g].flatten() for g in groups.values()])
    assert len(each) == sum(p.numel() for p in model.parameters())
    assert abs(dict(mean=each.mean(), rms=each.square().mean().sqrt(), max=each.max())[match] - 1e-3) < 1e-15
    if by == 'element': assert abs((each == each.min()).double().mean() - .5) < .02        # the last group is half of all
    else: assert all(len(g.unique()) == 1 for g in groups.values())
    assert any(not torch.equal(a, b) for a, b in zip(groups.values(), drawn_groups(model, c.shares, by, c.draw + 1).values()))


def test_a_recorder_sees_the_steps_of_groups():
    model = MLPConfig(hidden=4).build(0).double()
    optimizer = FIVE.build(model)
    with Recorder(optimizer) as seen:
        before = nn.utils.parameters_to_vector([p for g in optimizer.param_groups for p in g['params']]).detach().clone()
        F.cross_entropy(model(torch.rand(5, 64, dtype=torch.float64)), torch.arange(5)).backward()
        optimizer.step()
        after = nn.utils.parameters_to_vector([p for g in optimizer.param_groups for p in g['params']]).detach()
    assert torch.equal(seen.last.displacement.flat, after - before) and (after - before).abs().min() < 1e-3 * (after - before).abs().max()


def test_a_partition_leaves_nothing_out_and_takes_nothing_twice():
    model = MLPConfig(hidden=4).build(0)
    drawn = drawn_groups(model, (.3, .3, .4), 'element', 1)
    masks = [{n: g == k for n, g in drawn.items()} for k in range(3)]
    for n, g in given_groups(model, masks).items(): assert torch.equal(g, drawn[n])
    for broken, words in ((masks[:2], '[1-9][0-9]* of its 256 elements are in no group and 0 in several'), (masks + masks[:1], '0 of its 256 elements are in no group and [1-9][0-9]* in several')):
        with pytest.raises(ValueError, match=f'into.weight: {words}; put each into exactly one'): given_groups(model, broken)
    model.out.requires_grad_(False)                                                        # what does not learn is in no group
    assert set(drawn_groups(model, (.5, .5), 'element', 0)) == {'into.weight', 'into.bias'} == set(learning(model))


# -- a block read again -----------------------------------------------------------------------------------------------

def test_gains_of_blocks_are_those_of_a_plain_loop(tmp_path):
    task, measure = Rolling(windows=40, length=16), BlockGains(size=3, reach=2, optimizer=ADAM)
    arm = Arm(name='ordered', task=task, model=nano(16), train=config(40), measures=(measure,))
    said = records(arm, tmp_path)
    model, (ids, labels) = nano(16).build(0, 256), task.table(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(.9, .95), weight_decay=0.)
    def step(model, optimizer, k):
        optimizer.zero_grad()
        F.cross_entropy(model(ids[k:k + 1])[0][0], labels[k]).backward()
        optimizer.step()
    for k in range(40): step(model, optimizer, k)
    losses = lambda m: torch.tensor([F.cross_entropy(m(ids[k:k + 1])[0][0], labels[k]).item() for k in range(40)])
    before = losses(model)
    for i, block in list(enumerate(blocks(40, 16, 3, 2, 0)))[:2]:
        copy = deepcopy(model)
        anew = torch.optim.AdamW(copy.parameters(), lr=1e-2, betas=(.9, .95), weight_decay=0.)
        for k in range(*block): step(copy, anew, k)
        change = losses(copy) - before
        a = (change[block.end] + change[block.end + 1] - change[block.start - 1] - change[block.start - 2]).item() / 2
        assert abs(values(said, 'forward_minus_backward', f'block {i}')[0] - a) < 2e-3
        assert abs(values(said, 'change_inside', f'block {i}')[0] - change[block.start:block.end].mean().item()) < 2e-3
    assert len(values(said, 'forward_minus_backward')) == 16
    assert {r['position'] for r in said if r['metric'] == 'change'} == {'-2', '-1', '1', '2'}


def test_overlapping_windows_are_refused_until_they_are_apart():
    task = Rolling(windows=40, length=16, stride=5)
    model = nano(16).build(0, 256)
    trial = Trial(task, config(1), 0, Learner(model, ADAM.build(model)))
    with pytest.raises(ValueError, match='3 on each side of a block share tokens with it, and apart=2 leaves 1 of them in; pass apart=3'): next(BlockGains(size=3, reach=2, apart=2).records(trial, 0))
    assert len(list(BlockGains(size=3, reach=2, apart=3).records(trial, 0))) == 16 * 2 + 4


# -- sentences --------------------------------------------------------------------------------------------------------

def test_thousands_of_sentences_are_all_different_and_of_all_forms():
    many = sentences(8000, 5)
    assert len(set(many)) == 8000
    kinds = [tuple(next(kind for kind, words in (('possessives', ('My', 'Our', 'Their', 'His', 'Her', 'Your')), *vars(WORDS).items()) if w in words) for w in text.split()) for text in many]
    assert sorted({k: kinds.count(k) for k in set(kinds)}.items()) == sorted({tuple(form): 2000 for form in FORMS}.items())
    assert all(before + word == text and word.count(' ') == 1 for text in many[:50] for before, word in [cut(text)])


def test_a_grammar_of_shared_words_still_gives_each_sentence_once():
    few = Words(('red', 'owl'), ('owl', 'red'), ('owl', 'ran'), ('red',))
    found = 0
    for n in range(1, 200):
        try: made = sentences(n, 0, few)
        except ValueError as e:
            assert 'the grammar has run out' in str(e)
            break
        assert len(set(made)) == n == found + 1
        found = n
    assert found >= 4 * 24 * .5                                                              # 24 of the smallest form, some of them twice


def test_a_stream_is_asked_by_lag(tmp_path):
    task = SentenceStream(sentences=20, window=2, length=64)
    arm = Arm(name='stream', task=task, model=nano(64), train=config(10), measures=(SentenceRecall(at=(5, 10), lags=((0, 0), (1, 4), (5, 99))),))
    said = records(arm, tmp_path)
    sizes = {(r['step'], r['item']): r['of'] for r in said if r['metric'] == 'full'}
    assert sizes == {(5, 'lag 0-0'): 2, (5, 'lag 1-4'): 4, (5, 'unread'): 14, (10, 'lag 0-0'): 2, (10, 'lag 1-4'): 4, (10, 'lag 5-99'): 5, (10, 'unread'): 9}
    for step, item in sizes:
        got = {m: [r['value'] for r in said if (r['step'], r['item'], r['metric']) == (step, item, m)][0] for m in ('one_token', 'single', 'full', 'last_token')}
        assert got['one_token'] <= min(got['single'], got['full']) and got['full'] <= got['last_token']


@pytest.mark.parametrize('window, stride, repeats', [(4, 1, 0.), (4, 2, 0.), (4, 4, 0.), (4, 1, .5), (3, 1, .34), (5, 1, .4)])
def test_lags_of_sentences_are_those_of_the_windows(window, stride, repeats):
    "Against a search in what the windows say; a sentence that a copy stands for is not read."
    task = SentenceStream(sentences=11, window=window, stride=stride, repeats=repeats, length=400, tokenizer='bytes')
    said = [task.tokenizer_.decode(line.ids[1:]).split('\n') for line in task.lines(0)]
    for steps in range(task.steps + 1):
        ago = {i: [steps - 1 - t for t in range(steps) if s in said[t]] for i, s in enumerate(task.known(0))}
        found = SentenceRecall(lags=((0, 0), (1, 2), (3, 99))).groups(task, steps)
        for name, (a, b) in {'lag 0-0': (0, 0), 'lag 1-2': (1, 2), 'lag 3-99': (3, 99)}.items(): assert sorted(found.get(name, [])) == [i for i, k in ago.items() if k and a <= min(k) <= b]
        assert found.get('unread', []) == [i for i, k in ago.items() if not k]


def test_windows_that_would_leave_sentences_out_are_refused():
    with pytest.raises(ValueError, match='stride=5: windows of 4 sentences would leave some out'): SentenceStream(window=4, stride=5)
    with pytest.raises(ValueError, match='repeats=0.5 with stride=2: some sentences would be overwritten in every window, set stride=1'): SentenceStream(window=4, stride=2, repeats=.5)


# -- the text before --------------------------------------------------------------------------------------------------

def test_the_loss_of_a_recalled_text_has_its_hand_value():
    "Three tokens of a vocabulary of five, asked of a table of bigrams: the marker, the separator and the current text count nothing."
    class Bigrams(TransformerLM):
        def __init__(self):
            super().__init__([], vocab_size=5, d_model=5)
            self.embed.weight = nn.Parameter(torch.eye(5, dtype=torch.float64))
            self.table = torch.tensor([[.1, .2, .3, .2, .2], [.4, .1, .1, .2, .2], [.25, .25, .2, .2, .1], [.2] * 5, [.5, .2, .1, .1, .1]], dtype=torch.float64).log()
        def features(self, ids, memory=None): return self.table[ids], None
    line = recall_line([2, 1, 0], [1, 0, 2], (3, 4), 0)
    loss = token_loss(Bigrams(), Bigrams().features(torch.tensor([line.ids[:-1]]))[0], torch.tensor([line.labels]))
    assert abs(loss.mean.item() + math.log(.2 * .4 * .3) / 3) < 1e-12 and int(loss.count) == 3    # p(1|recall) p(0|1) p(2|0)


def test_no_earlier_text_stands_in_its_context():
    task = PreviousTexts(texts=12, cut=8)
    texts, unread = task.stream(1)
    for step in range(task.steps):
        ids, labels = task.rows(1, step)
        for k, row, label in zip(task.lags, ids, labels):
            current, earlier = row[1:9].tolist(), [x for x in label.tolist()[8:] if x != IGNORE]
            assert earlier == texts[8 + step - k] and current == texts[8 + step] != earlier and earlier not in unread
            assert (label[:8] != IGNORE).all() == (k == 1) and row[10] == task.marker(k)[1]
    with pytest.raises(ValueError, match='lag 12 reaches beyond the stream of 12 texts'): replace(task, lags=(12,))


def test_behind_a_pass_one_more_text_is_new():
    "After all steps each lag asks for the text trained so many steps ago; in a second pass nothing is asked."
    task = PreviousTexts(texts=12, cut=8, lags=(1, 3))
    batch, (texts, unread) = task.batches(0), task.stream(0)
    trained = [batch(i)[0][0, 1:9].tolist() for i in range(task.steps)]
    ids, labels = task.rows(0, task.steps)
    for k, row, label in zip(task.lags, ids.tolist(), labels.tolist()):
        assert row[1:9] == texts[12] and row[1:9] not in [*trained, *texts[:12], *unread] and row[11:19] == label[10:18] == trained[-k]
    model = nano(19).build(0, task.vocab_size)
    trial = Trial(task, config(task.steps), 0, Learner(model, ADAM.build(model)))
    said = list(RecallOfPrevious(others=2).records(trial, task.steps))
    got = row_losses(model, *replace(task, reads=False).rows(0, task.steps)).tolist()
    assert values(said, 'recall_nll') == pytest.approx(got)
    with pytest.raises(ValueError, match='step 10: a pass has 9, and in a second one no text is new; ask earlier, or for more texts'): list(RecallOfPrevious().records(trial, task.steps + 1))


def test_the_text_before_is_the_one_just_trained_in_every_pass():
    task = TextAndPrevious(texts=5, cut=8)
    batch = task.batches(0)
    assert task.steps == 5 and len({tuple(batch(i)[0][0].tolist()) for i in range(5)}) == 5
    for i in range(11): assert torch.equal(batch(i + 1)[2], batch(i)[0]) and torch.equal(batch(i + 1)[3], batch(i)[1])


def test_retention_of_a_step_survives_an_interruption(tmp_path):
    arm = Arm(name='two passes', task=TextAndPrevious(texts=9, cut=12), model=nano(12), train=config(8, TwoPassLoss(), log_every=4), measures=(OneStepRetention(),))
    whole = values(records(arm, tmp_path/'whole'), 'one_step_retention')
    records(arm, tmp_path/'cut', stop=6)
    assert values(records(arm, tmp_path/'cut'), 'one_step_retention') == whole and len(whole) == 2


def test_texts_never_read_stand_in_the_same_place(tmp_path):
    "A row that is asked for another text differs there and nowhere else, and so do the losses that are compared."
    task = PreviousTexts(texts=12, cut=8, lags=(1, 2))
    (texts, unread), (ids, labels) = task.stream(0), task.rows(0, 6)
    other, told = task.rows(0, 6, [unread[4], unread[7]])
    assert torch.equal(other[:, :11], ids[:, :11]) and other[:, 11:].tolist() == [unread[4], unread[7]]                # [NOW], eight tokens, separator, [RECALL k]
    assert torch.equal(told[:, :10], labels[:, :10]) and told[:, 10:].tolist() == [[*unread[i], IGNORE] for i in (4, 7)] and (told[1, :10] == IGNORE).all()
    assert ids[:, 11:].tolist() == [texts[7], texts[6]] and not any(text in texts for text in unread)
    said = records(Arm(name='recall', task=task, model=nano(19), train=config(10), measures=(RecallOfPrevious(at=(0, 6), others=3),)), tmp_path)
    model, plain = nano(19).build(0, task.vocab_size), replace(task, reads=False)
    want = sum(row_losses(model, *plain.rows(0, 0, [unread[i]] * 2)) for i in range(3)) / 3
    for k, mean in zip((1, 2), want.tolist()):
        assert values(said, 'unread_nll', f'lag {k}')[0] == pytest.approx(mean)
        assert abs(values(said, 'recall_gain', f'lag {k}')[0]) < .1                              # an untrained model knows neither


# -- a context that goes ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('fall', [0, 10, None])
def test_facts_are_read_equally_often_however_the_context_goes(fall):
    task = CoupledFacts(quiz=Quiz(facts=8, controls=2), rows=4, fade=Fade(hold=4, fall=fall))
    batch, (given, labels), (masked, _) = task.batches(2), task.table(2, True), task.table(2, False)
    read = torch.zeros(8, 2)
    for t in range(20):
        for row, label in zip(*batch(t)):
            for helped, rows in enumerate((masked, given)):
                for i in ((rows == row).all(1) & (labels == label).all(1)).nonzero()[:, 0].tolist(): read[i, helped] += 1
    assert (read.sum(1) == 10).all()
    assert read[:, 1].sum() == {0: 16, None: 80}.get(fall, read[:, 1].sum()) and (fall != 10 or 16 < read[:, 1].sum() < 56)


def test_a_masked_answer_is_nowhere_in_the_context():
    task = CoupledFacts(quiz=Quiz(facts=8, controls=2), rows=4)
    for helped in (True, False):
        ids, labels = task.table(0, helped)
        for row, label, q in zip(ids, labels, task.quiz.questions(0, task.tokenizer_)[0]):
            before = task.tokenizer_.decode(row[:int((label != IGNORE).nonzero()[0]) + 1])
            assert before.count(q.answer) == helped and before.count(q.question) == 2
            assert task.tokenizer_.decode(label[label != IGNORE]) == q.answer


def test_one_who_copies_passes_the_probe_and_no_other():
    class Copies(nn.Module):
        def __init__(self, back):
            super().__init__()
            self.back, self.w = back, nn.Parameter(torch.zeros(1))
        def forward(self, ids): return F.one_hot(torch.roll(ids, self.back, 1), 256).double(), None
    task = CoupledFacts(quiz=Quiz(facts=4, controls=0), rows=4)
    copied = lambda back: next(CopyProbe(n=12).records(Trial(task, None, 0, Learner(m := Copies(back), torch.optim.SGD(m.parameters(), lr=.1))), 0))['value']
    assert copied(11) == 1. and copied(10) < .2 and copied(0) < .2                           # the letter after that of 12 places ago
    m = Copies(11)
    assert next(CopyProbe(n=12).records(Trial(task, None, 0, Learner(m, torch.optim.SGD(m.parameters(), lr=.1))), 0))['of'] == 64 * 11    # the first letter of the repetition cannot be known


def test_recall_as_trained_is_between_both(tmp_path):
    arm = Arm(name='fade', task=CoupledFacts(quiz=Quiz(facts=4, controls=4), rows=4, fade=Fade(fall=20)), model=nano(128), train=config(10), measures=(CoupledRecall(),))
    said = records(arm, tmp_path)
    given, masked, f = values(said, 'answered', 'in context')[0], values(said, 'answered', 'masked')[0], values(said, 'context_fraction')[0]
    assert abs(values(said, 'answered_as_trained')[0] - (f * given + (1 - f) * masked)) < 1e-12 and abs(f - (1 - 11 / 20)) < 1e-12


# -- guards of earlier tasks ------------------------------------------------------------------------------------------

@dataclass(frozen=True, kw_only=True)
class Distance(Objective):
    "Half the squared distance of the only parameter to the rows, which are its log-likelihood but for a constant."
    def __call__(self, learner, rows):
        total = ((learner.model.w - rows) ** 2).sum() / 2
        return Summed(total, total.detach(), len(rows))


class Point(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))


A, B = torch.tensor([[1., 0.], [3., 1.]], dtype=torch.float64), torch.tensor([[-1., 2.], [-1., 4.]], dtype=torch.float64)


def settled(guard, turns, rate=.1, each=250, batch=lambda rows: (rows,)):
    "Where a point ends that is drawn to the rows A and B in turn, until it rests; and what its guard keeps."
    c = config(turns * each, Guarded(loss=Distance(), guard=guard), SGDConfig(lr=rate))
    model = Point()
    learner = Learner(model, c.optimizer.build(model), Kept(model, 2, each))
    take = c.objective.step(c)
    for i in range(c.steps): take(learner, batch((A, B)[i // each % 2]), i)
    return model.w.detach(), learner.carry


def test_elastic_weights_rest_where_the_closed_form_says():
    "Fisher of A at its mean: the mean square of its rows around it. Then w = (mean of B + λ F mean of A) / (1 + λ F); after a third turn the information is that of both."
    for strength in (.5, 1.5):
        first, f = A.mean(0), (A - A.mean(0)).square().mean(0)
        want = (B.mean(0) + strength * f * first) / (1 + strength * f)
        got, kept = settled(EWC(strength=strength), 2)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
        both = f + (B - want).square().mean(0)
        torch.testing.assert_close(kept.of('fisher')['w'], both, rtol=0, atol=1e-6)
        third = (A.mean(0) + strength * both * want) / (1 + strength * both)
        torch.testing.assert_close(settled(EWC(strength=strength), 3)[0], third, rtol=0, atol=1e-6)
    assert (settled(EWC(strength=4., fade=1.), 2)[1].of('fisher')['w'] - (B - settled(EWC(strength=4.), 2)[0]).square().mean(0)).abs().max() < 1e-6


def test_guards_see_the_rows_of_a_step_as_its_loss_does():
    "A batch that is one tensor is its rows, and rows are where the model is."
    (one, kept), (two, same) = (settled(EWC(strength=.5), 2, each=9, batch=batch) for batch in (lambda rows: (rows,), lambda rows: rows))
    assert torch.equal(one, two) and torch.equal(kept.of('fisher')['w'], same.of('fisher')['w'])
    model = Point().to('meta')
    learner = Learner(model, torch.optim.SGD(model.parameters(), lr=.1), Kept(model, 2, 9))
    assert [x.device.type for x in now_at(learner, (A, B), 0, learner.model.forward).rows] == ['meta'] * 2


def test_a_guard_knows_whose_turn_it_is():
    "Of three tasks with turns of two steps, by the digits that a batch shows; a task without turns is refused."
    task, seen = InTurn(tasks=tuple(Digits(samples=100, rows=5, classes=(d,)) for d in (3, 7, 1)), each=2), []
    class Watch(Guard):
        def look(self, now): seen.append((now.turn, now.task, now.place, now.left, now.rows[1].unique().tolist()))
    objective, model = Guarded(loss=ClassLoss(), guard=Watch()), MLPConfig(hidden=4).build(0)
    c = config(14, objective)
    learner = Learner(model, c.optimizer.build(model), objective.carry(model, task, 0))
    fit(learner, task.batches(0), objective.step(c), c)
    assert seen == [(i // 2, turn_of(i, 3, 2), i % 2, 1 - i % 2, [(3, 7, 1)[i // 2 % 3]]) for i in range(14)]
    with pytest.raises(ValueError, match='Digits knows no turns: under a guard tasks take turns, give memlab.data.turns.InTurn or Replayed'): objective.carry(model, task.tasks[0], 0)


def test_synaptic_intelligence_holds_what_the_path_paid():
    "Gradient descent with rate r pays (mean of A)² / (2 - r) on its way, half of its square when steps are tiny; Ω is that over the squared way."
    way = A.mean(0).square()
    paid = way / (2 - .05)
    omega = paid / (way + 1e-3)
    got, kept = settled(SI(strength=.7), 2, rate=.05, each=400)
    want = (B.mean(0) + 1.4 * omega * A.mean(0)) / (1 + 1.4 * omega)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    torch.testing.assert_close(settled(SI(), 1, rate=.05, each=400)[1].of('importance')['w'], omega, rtol=1e-6, atol=0)
    assert (kept.of('importance')['w'] >= 0).all()


HALVES = tuple(Digits(samples=600, rows=20, classes=c) for c in ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9)))


def turned(guard, task, steps, folder=None, model=DeepMLPConfig(hidden=8), **kw):
    arm = Arm(name='turns', task=task, model=model, train=config(steps, Guarded(loss=ClassLoss(), guard=guard)), measures=(TaskScores(),))
    return arm, records(arm, folder, **kw)


def test_a_model_all_of_which_is_apart_is_two_models(tmp_path):
    "Moments too: each task ends where it would have without the other."
    _, said = turned(Apart(own=('',)), InTurn(tasks=HALVES, each=5), 20, tmp_path)
    both = scores(said, 'task_loss')
    for j, half in enumerate(HALVES):
        model, c = DeepMLPConfig(hidden=8).build(0), config(10, ClassLoss())
        fit(Learner(model, c.optimizer.build(model)), half.batches(0), c.objective.step(c), c)
        held = half.held_out()
        assert abs(both[-1, j] + F.cross_entropy(model(held.pixels), held.labels).item()) < 1e-5


@pytest.mark.parametrize('guard', [Apart(own=('between.',)), Frozen(parts=('into.',)), EWC(), SI()], ids=lambda g: type(g).__name__)
def test_a_guarded_run_goes_on_where_it_stopped(guard, tmp_path):
    task = InTurn(tasks=HALVES, each=5)
    whole = turned(guard, task, 15, tmp_path/'whole')[1]
    turned(guard, task, 15, tmp_path/'cut', stop=8)
    arm, said = turned(guard, task, 15, tmp_path/'cut')
    assert torch.equal(scores(said, 'task_loss'), scores(whole, 'task_loss')) and scores(whole, 'task_loss').shape == (4, 2)
    assert changed(arm) != changed(replace(arm, train=replace(arm.train, objective=Guarded(loss=ClassLoss())))) and full(arm)


def test_both_orders_count_alike(tmp_path):
    forth, back = (scores(turned(Guard(), InTurn(tasks=t, each=5), 10, tmp_path/str(i))[1], 'task_accuracy') for i, t in enumerate((HALVES, HALVES[::-1])))
    both = counterbalanced(forth, back)
    assert both == counterbalanced(back, forth) and abs(both.bwt - ((forth[2, 0] - forth[1, 0]) + (back[2, 0] - back[1, 0])).item() / 2) < 1e-12


@dataclass(frozen=True, kw_only=True)
class Numbers:
    start: int
    tokens: int = 20
    vocab_size: int = 10
    def batches(self, seed): return lambda step: (self.start + self.tokens * step + torch.arange(self.tokens),)


@pytest.mark.parametrize('share', [.01, .05, .5])
def test_replay_has_its_share_and_only_what_was_shown(share):
    task = Replayed(tasks=(Numbers(start=0), Numbers(start=100_000)), each=50, share=share)
    batch, shown, old = task.batches(0), set(), 0
    for i in range(200):
        rows, new = batch(i)[0].tolist(), (i // 50) % 2
        again = [x for x in rows if (x >= 100_000) != bool(new)]
        assert set(again) <= shown and len(rows) == 20
        old, shown = old + len(again), shown | set(rows)
    assert old == round(150 * 20 * share)                                                     # the first turn has nothing to replay


def test_replay_leaves_batches_as_large_as_they_are():
    "Where an earlier batch shows fewer rows than are wanted, each comes again before any comes twice."
    task = Replayed(tasks=(Numbers(start=0, tokens=3), Numbers(start=100_000, tokens=12)), each=2, share=.5)
    batch = task.batches(0)
    for i in range(12):
        rows = batch(i)[0]
        assert len(rows) == (3, 12)[i // 2 % 2]
        old = rows[(rows >= 100_000) != bool(i // 2 % 2)]
        assert len(old) == (task.old_rows(i, len(rows)) if i > 1 else 0)
        if len(old): assert old.unique(return_counts=True)[1].max() <= -(-len(old) // len(old.unique()))
    with pytest.raises(ValueError, match='share=0.6: expected a number from 0 to .5'): replace(task, share=.6)
    with pytest.raises(ValueError, match='share=0.5 of batches of 1 row: one of them was old altogether'): [Replayed(tasks=(Numbers(start=0, tokens=1), Numbers(start=9, tokens=1)), each=2, share=.5).batches(0)(i) for i in range(40)]


# -- bits -------------------------------------------------------------------------------------------------------------

def test_bits_of_a_table_are_counted_by_hand(tmp_path):
    "One that gives the right symbol probability 1/2, and chance to strings it never saw, holds so many bits."
    class Half(TransformerLM):
        def __init__(self, labels):
            super().__init__([], vocab_size=8, d_model=8)
            self.right, self.embed.weight = labels.clamp(min=0), nn.Parameter(torch.eye(8, dtype=torch.float64))
        def features(self, ids, memory=None):
            p = torch.full((*ids.shape, 8), .5 / 7, dtype=torch.float64).scatter(2, self.right[:len(ids), :, None], .5)
            return p.log(), None
    task = RandomStrings(facts=6, alphabet=8, value=3, rows=6)
    ids, labels = task.table(0)
    assert abs(bits_held(Half(labels), ids, labels, 8) - 6 * 3 * (3 - 1)) < 1e-9 and task.bits == 54
    said = records(Arm(name='strings', task=task, model=nano(8), train=config(5), measures=(StringBits(at='log'),)), tmp_path)
    assert values(said, 'exposures') == [0., 5.] and values(said, 'bits')[1] > values(said, 'bits')[0]


def test_short_patience_ends_a_run_and_long_patience_does_not(tmp_path):
    arm = lambda times: Arm(name=f'patience {times}', task=RandomStrings(facts=16, alphabet=8, rows=16), model=nano(8), train=config(30, optimizer=AdamWConfig(lr=1e-9), log_every=1, solved=Patience(times=times)))
    ends = [execute(arm(times), 0, tmp_path/str(times), progress=False) for times in (3, 50)]
    assert [e.status for e in ends] == ['finished'] * 2 and [max(r['step'] for r in e.records) for e in ends] == [5, 30]
