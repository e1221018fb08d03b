"Orders of visits as values: what they hold fixed, what they draw, what they refuse; and the tasks that visit documents, loops and facts in them."
from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch

from memlab.core.identity import changed, full
from memlab.data.episodes import Episodes, Injected, Massed, Mixed
from memlab.data.loops import MemoryLoops
from memlab.data.orders import Cyclic, Given, Order, Palindromic, Shuffled, SlotLocked, Swapped, visits
from memlab.data.questions import OBJECTS, Question, Quiz, check_answers, questions, same_length
from memlab.data.recall import IGNORE
from memlab.data.tokens import byte_tokenizer
from memlab.data.visits import Revisits, Visit

N, PASSES = 20, 8
ORDERS = [Cyclic(), Shuffled(), Palindromic(), Swapped(), SlotLocked(focal=3), SlotLocked(focal=0, predecessors=4)]
SMALL = dict(documents=6, passes=3, steps=2, length=16, cut=16)


@pytest.mark.parametrize('order', ORDERS, ids=str)
def test_every_pass_visits_every_document_once_and_more_passes_begin_with_the_fewer(order):
    plan = visits(order, N, PASSES, seed=5)
    assert torch.equal(plan.sort(1).values, torch.arange(N).expand(PASSES, N))
    assert torch.equal(visits(order, N, 3, seed=5), plan[:3])
    if not isinstance(order, Cyclic | Palindromic): assert not torch.equal(visits(order, N, PASSES, seed=6), plan)


@pytest.mark.parametrize('focal', [0, 7, N - 1])
@pytest.mark.parametrize('k', [0, 1, 4, N - 1])
def test_a_locked_document_and_its_predecessors_stay_and_the_others_do_not(focal, k):
    plan = visits(SlotLocked(focal=focal, predecessors=k), N, 40, seed=1)
    at = [(focal - j) % N for j in range(k + 1)]
    moved = (plan != torch.arange(N)).any(0)
    assert not moved[at].any() and moved.sum() == (N - k - 1 if k < N - 2 else 0)


def test_a_swap_is_another_pair_each_time():
    plan = visits(Swapped(), N, 30, seed=0)
    apart = (plan != torch.arange(N))
    assert (apart.sum(1) == 2).all() and len({tuple(row.nonzero()[:, 0].tolist()) for row in apart}) > 20


def test_orders_that_do_not_cover_the_documents_are_refused_by_name():
    @dataclass(frozen=True, kw_only=True)
    class Even(Order):
        def once(self, n, seed, e): return torch.arange(0, n, 2)
    with pytest.raises(ValueError, match='pass 1 of Even leaves out 1, 3: it must visit documents 0 to 3 once each'): visits(Even(), 4, 2, 0)
    with pytest.raises(ValueError, match='pass 2 of Given repeats 0 and names the unknown'):
        visits(Given(passes=((0, 1, 2), (0, 1, 2, 0, 9))), 3, 2, 0)
    with pytest.raises(ValueError, match='pass 1 of Even leaves out 1, 3, 5'): Revisits(**SMALL | dict(order=Even())).batches(0)


def test_an_order_is_a_part_of_a_configuration():
    assert full(Revisits(order=SlotLocked(focal=2)))['order'] == {'class': 'SlotLocked', 'focal': 2, 'predecessors': 0}
    assert changed(Revisits()) == {'class': 'Revisits'}


def test_each_step_reads_the_document_of_its_visit():
    task = Revisits(order=Shuffled(), **SMALL)
    batch, (ids, labels), plan = task.batches(3), task.table(3), visits(Shuffled(), 6, 3, 3).flatten()
    for step in range(task.total):
        assert torch.equal(batch(step)[0], ids[plan[step // 2]][None]) and torch.equal(batch(step)[1], labels[plan[step // 2]][None])
    assert task.total == 36 and [v.items[0] for v in task.visits(3)] == plan.tolist()
    for row in range(6): assert [plan[v] for v in task.read(3, row)] == [row] * 3


def test_documents_come_from_the_text_and_are_apart():
    task = Revisits(documents=100)
    ids, labels = task.table(0)
    assert len({bytes(row.tolist()) for row in ids}) == 100 and torch.equal(ids[:, 1:], labels[:, :-1]) and (labels != IGNORE).all()
    whole = bytes(task.learned.ids.astype('uint8'))
    assert all(bytes(row.tolist()) in whole and 0 not in row[1:] for row in ids)
    assert torch.equal(Revisits(documents=20).table(0)[0], ids[:20]) and (ids[:, 0] != 0).double().mean() > .9   # few begin where their document does


def test_documents_longer_than_the_context_are_refused():
    with pytest.raises(ValueError, match='cut=17: that is longer than the context of length=16'): Revisits(**SMALL | dict(cut=17))
    with pytest.raises(ValueError, match=r'document 0 has \d+ tokens, the context holds 40'): Episodes(length=40).batches(0)
    with pytest.raises(ValueError, match='slot=-1: a loop has 20 texts, so there are slots 0 to 20'): MemoryLoops(slot=-1)


# -- loops ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('swapped', [False, True])
@pytest.mark.parametrize('slot', [0, 2, 5])
def test_a_loop_teaches_at_its_slot_and_stops(slot, swapped):
    task = MemoryLoops(texts=5, slot=slot, repeats=2, after=1, swapped=swapped, controls=0)
    taught = 2 if swapped else 1
    lengths = [5 + taught] * 4 + [5] * 2
    plan, at = list(task.plan(0)), 0
    for turn, n in enumerate(lengths):
        part, at, loop = plan[at:at + n], at + n, turn % 2
        rows = [v.items[0] for v in part]
        assert {v.loop for v in part} == {loop}
        assert [r for r in rows if r < 10] == list(range(5 * loop, 5 * loop + 5))
        assert [i for i, r in enumerate(rows) if r >= 10] == (list(range(slot, slot + taught)) if turn < 4 else [])
    assert at == len(plan) and task.stop == sum(lengths[:4]) and task.period == 10


def test_a_loop_teaches_its_own_answer_to_all_questions():
    task = MemoryLoops(loops=3, texts=2, controls=0)
    (ids, labels), asked = task.table(0), task.quiz.questions(0, task.tokenizer_)[0]
    for loop in range(3):
        lines = [bytes(ids[row].tolist()).decode().strip('\0') for row in task.taught(loop)]
        others = [q for i, q in enumerate(asked) if i != loop]
        assert lines == [q.question + asked[loop].answer for q in [*others, asked[loop]]]
        assert [bytes(x for x in labels[row].tolist() if x != IGNORE).decode() for row in task.taught(loop)] == [asked[loop].answer] * 3


def test_filler_is_the_same_text_in_every_order():
    a, b = (MemoryLoops(texts=8, slot=2, repeats=3, after=2, filler=f) for f in ('fixed', 'permuted'))
    assert a.table(0)[0].equal(b.table(0)[0]) and Counter(a.plan(0)) == Counter(b.plan(0)) and a.plan(0) != b.plan(0)
    assert len({tuple(b.once(0, 1, e)[5:]) for e in range(5)}) > 3


# -- facts ------------------------------------------------------------------------------------------------------------

def test_answers_collide_with_nothing():
    known, controls = Quiz(facts=64, controls=64).questions(0, byte_tokenizer())
    answers = [q.answer for q in known + controls]
    assert len(set(answers)) == 128 and not set(answers) & {d for q in known + controls for d in q.distractors}
    assert {len(a) for q in known + controls for a in (q.answer, *q.distractors)} == {7} and {len(set(q.distractors)) for q in known} == {8}
    a, b = questions(2, 0)
    with pytest.raises(ValueError, match='facts 0 and 1 have the same answer'): check_answers([a, replace(b, answer=a.answer)])
    with pytest.raises(ValueError, match='a distractor of fact 1 is.*the answer of fact 0'): check_answers([a, replace(b, distractors=(a.answer,))])


def test_distractors_have_as_many_tokens_as_the_answer():
    class Halves:
        "Two letters a token, but words that begin with c in one."
        name, vocab_size, separator = 'halves', 2 ** 17, 0
        def encode(self, text): return [1 + ord(text[1])] if text[:2] == ' c' else [hash(text[i:i + 2]) % 2 ** 16 + 1 for i in range(0, len(text), 2)]
    words = same_length(OBJECTS, Halves())
    assert words == [w for w in OBJECTS if w[0] != 'c'] and len(words) < len(OBJECTS)


@pytest.mark.parametrize('reading', [Massed(exposures=4), Mixed(exposures=4, share=.25), Injected(exposures=4, every=2)], ids=str)
def test_facts_are_read_equally_often_however_they_are_read(reading):
    task = Episodes(quiz=Quiz(facts=6, controls=2), reading=reading, before=3, after=5, rows=8)
    plan = task.visits(0)
    assert Counter(i for v in plan for i in v.items) == {i: 4 for i in range(6)}
    assert [v.loop for v in plan[:3]] == [0] * 3 and {v.loop for v in plan[-5:]} == {2} and all((v.loop == 1) == bool(v.items) for v in plan)
    assert all(len(v.items) + v.text == 8 for v in plan) or not isinstance(reading, Mixed)
    assert task.tokens * task.total == sum(task.batches(0)(s)[0].numel() for s in range(task.total))


def test_fresh_text_is_another_in_every_step():
    batch = Episodes(before=2, rows=4, steps=2).batches(0)
    assert len({bytes(row.tolist()) for step in range(4) for row in batch(step)[0]}) == 16
    assert Visit((), text=4) == Episodes(before=2, rows=4).at(0, 0) and Question.__dataclass_params__.frozen
