"""How a language model is scored: labels, protocols, splits, guards, weights, and what training and scoring share."""
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from memlab.data.corpus import Corpus, load_corpus, split
from memlab.data.ordered import OrderedStream, stream_labels
from memlab.data.recall import IGNORE
from memlab.data.tokens import Batch, ByteTokenizer, TokenStore, held_out_windows, shift, streams, windows
from memlab.eval.floors import frequencies
from memlab.eval.perplexity import (Perplexity, chunk_split, counting_text, guard_gap, memory_of, oracle, parity, places, recombined, shared_ngrams,
                                    shares_document, weights_checksum)
from memlab.nn.init import init_parameters
from memlab.nn.lm import TransformerLM
from memlab.nn.mixer_lm import MIXERS, MixerLMConfig, mixer_config
from memlab.train.losses import lm_loss
from memlab.train.loop import FitConfig, fit_model
from memlab.train.optim import AdamWConfig
from memlab.train.schedule import Constant

PROTOCOLS = dict(document=Perplexity(length=16), reset=Perplexity(length=16, memory='reset'), segment=Perplexity(protocol='segment', length=16),
                 sliding=Perplexity(protocol='sliding', length=16, stride=5))
each_protocol = pytest.mark.parametrize('p', PROTOCOLS.values(), ids=PROTOCOLS)


def store_of(*documents, vocab=256):
    "Documents given as lists of ids or as bytes; 0 ends each."
    ids = [[*d, 0] for d in documents]
    return TokenStore(np.concatenate(ids).astype(np.uint16), np.cumsum([0, *map(len, ids)]), 'by hand', vocab, 0, str(len(ids)))


def random_text(*sizes, vocab=32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return store_of(*(torch.randint(1, vocab, (n,), generator=g).tolist() for n in sizes), vocab=vocab)


def small_lm(*mixers, vocab=32, seed=0, std=.5):
    "A random language model in float64."
    sizes = {name: dict(dk=4) if name not in ('baseconv',) else {} for name in mixers}
    configs = [mixer_config(name, d_model=8, **(dict(n_heads=2) | sizes[name] if sizes[name] else {})) for name in mixers]
    return MixerLMConfig(vocab_size=vocab, mixers=tuple(configs), std=std).build(seed).double()


@pytest.fixture(scope='module')
def english():
    "Some chapters of the language reference, as a corpus."
    return Corpus('chapters', [d for d in load_corpus('stdlib-docs').documents if d.title.startswith('topics/') and d.text.isascii() and len(d.text) < 4000])


def as_store(documents):
    return store_of(*(d.text.encode() for d in documents))


class Pairs:
    "Counts of which token followed which in a training text, smoothed as in `eval.floors`."
    def __init__(self, ids, vocab=256):
        n = np.zeros((vocab, vocab))
        np.add.at(n, (ids[:-1].astype(int), ids[1:].astype(int)), 1)
        self.logits = torch.from_numpy(np.log((n + frequencies(ids, vocab)) / (n.sum(1, keepdims=True) + 1)))

    def __call__(self, ids): return self.logits[ids]


# -- labels -----------------------------------------------------------------------------------------------------------

def test_10_label_contract():
    "On a text that counts, whatever loader it comes from, each label is its input plus 1."
    text = counting_text(200, 77, 131, 40, vocab_size=1000)
    loaded = [shift(windows(text, 4, 16, seed=0, step=s).ids) for s in range(5)] + [shift(held_out_windows(text, 5, 16).ids)]
    loaded += [shift(part.ids) for part in chunk_split(text, 16, seed=0)]
    loaded = [(x, y) for x, y in loaded] + [stream_labels(OrderedStream(text, 2, 16, seed=0).batch(s)) for s in range(40)] + [stream_labels(b) for b in streams(text, 2, 16)]
    for inputs, labels in loaded:
        counts = (labels != IGNORE) & (labels != 1)                 # a document begins with 1, whatever was before it
        assert counts.any() and torch.equal(labels[counts], inputs[counts] + 1)


@each_protocol
@pytest.mark.parametrize('by', [1, 2])
def test_10_a_model_that_counts_reaches_perplexity_one(p, by):
    text = counting_text(100, 16, 17, 1, 33, vocab_size=40)
    nll = {ahead: replace(p, labels_by=by, guard=False).score(oracle(40, ahead), text).nll for ahead in (0, 1, 2, 3)}
    assert nll.pop(by) < 1e-6 and min(nll.values()) > 99


@each_protocol
def test_10_a_foreign_model_gets_unshifted_tokens(p):
    "Its own loss, from labels it shifts itself, is ours on a text it reads whole; labels that were shifted before are another loss."
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, initializer_range=.5, max_position_embeddings=64)
    model = transformers.GPTNeoXForCausalLM(config).eval()
    text = Batch(torch.randint(0, 32, (6, 17), generator=torch.Generator().manual_seed(0)), torch.arange(6))
    with torch.no_grad(): own, twice = model(text.ids, labels=text.ids).loss.item(), model(text.ids[:, :-1], labels=text.ids[:, 1:]).loss.item()
    got = replace(p, guard=False).score(lambda ids: model(ids).logits, text).nll
    assert abs(got - own) < 1e-4 and abs(twice - own) > 1e-2
    assert abs(replace(p, guard=False, labels_by=2).score(lambda ids: model(ids).logits, text).nll - twice) < .2   # the same defect, up to the last place of each row


# -- protocols --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('mixer', MIXERS)
def test_11_evaluator_agreement(mixer):
    "On documents of one segment all protocols are one; everywhere each token is scored once and the parts recombine."
    model, short, long = small_lm(mixer, mixer), random_text(15, 3, 9, 0, 15), random_text(40, 15, 70, 1)
    scores = [replace(p, guard=False, edges=(0, 2, 7, 20)).score(model, short) for p in PROTOCOLS.values()]
    for s in scores[1:]:
        assert abs(s.nll - scores[0].nll) < 1e-10 and len(s.by_position) == 3
        for a, b in zip(s.by_position + s.by_segment, scores[0].by_position + scores[0].by_segment): assert a.start == b.start and a.tokens == b.tokens and abs(a.nll - b.nll) < 1e-10
    for p in PROTOCOLS.values():
        s = replace(p, guard=False).score(model, long)
        assert s.tokens == len(long) == sum(x.tokens for x in s.by_position) == sum(x.tokens for x in s.by_segment)
        assert max(abs(recombined(x) - s.nll) for x in (s.by_position, s.by_segment)) < 1e-10


@pytest.mark.parametrize('mixer', MIXERS)
def test_11_pieces_and_rows_change_nothing(mixer):
    "A carried memory makes pieces of any length the whole document, however many are read side by side."
    model, text = small_lm(mixer, mixer), random_text(20, 33, 5, 12)
    whole = Perplexity(guard=False).losses(lambda ids: model(ids)[0], text)[0].nll
    for length, rows in ((1, 16), (7, 3), (16, 1), (99, 2)):
        got = Perplexity(guard=False, length=length, rows=rows).losses(model, text)[0].nll
        assert (got - whole).abs().max() < 1e-9


# -- splits -----------------------------------------------------------------------------------------------------------

def test_12_split(english):
    "By document nothing is shared; by chunk every document is."
    r = np.random.PCG64(0)
    noise = [bytes((r.random_raw(600) % 90 + 33).astype(np.uint8)) for _ in range(30)]     # documents that repeat nothing
    corpus = Corpus('noise', [replace(english[0], title=str(i), text=d.decode()) for i, d in enumerate(noise)])
    train, held = split(corpus, held_out=.3)
    assert train.documents and held.documents and not {d.title for d in train} & {d.title for d in held}
    a, b, both = as_store(train), as_store(held), as_store(corpus)
    assert not shared_ngrams(a, b).any() and not shared_ngrams(b, a).any() and shared_ngrams(a, both).any()
    assert (both.ids == ByteTokenizer.separator).sum() == len(corpus)
    x, y = chunk_split(both, 32, seed=0)
    assert shares_document(both, x, y).all() and not {*x.sample.tolist()} & {*y.sample.tolist()}
    copied = store_of(noise[0][100:151], b'something else')
    assert shared_ngrams(a if noise[0].decode() in [d.text for d in train] else b, copied).sum() == 2      # 51 bytes hold two runs of 50


def test_12_a_split_by_chunk_flatters_a_model_that_remembers(english):
    "What a model has seen of a document makes the rest of it easier; nothing of the kind remains where documents are kept whole."
    store, (train, held) = as_store(english), split(english, held_out=.2)
    a, b = chunk_split(store, 64, seed=0, held_out=.2)
    def nll(seen, text):
        tables, n = {}, 6
        for row in seen:
            for i in range(len(row) - n): tables.setdefault(tuple(row[i:i + n]), []).append(row[i + n])
        hits = [tables.get(tuple(row[i:i + n]), []).count(row[i + n]) / max(len(tables.get(tuple(row[i:i + n]), [])), 1) for row in text for i in range(len(row) - n)]
        return float(-np.log(.9 * np.array(hits) + .1 / 256).mean())
    rows = lambda t: [t.ids[i:j].tolist() for i, j in zip(t.starts, t.starts[1:])]
    assert nll(a.ids.tolist(), b.ids.tolist()) < nll(rows(as_store(train)), rows(as_store(held))) - .1


def test_12_without_order_a_model_is_at_the_unigram_level(english):
    "Pairs are worth much on text, and nothing on the same bytes shuffled."
    train, held = (as_store(c) for c in split(english, held_out=.2))
    mix = lambda t: replace(t, ids=t.ids[np.argsort(np.random.PCG64(1).random_raw(len(t)), kind='stable')])
    plain = Perplexity().score(Pairs(train.ids), held, train)
    shuffled = Perplexity().score(Pairs(mix(train).ids), mix(held), train)
    assert plain.nll < plain.unigram - .5
    assert 0 < shuffled.nll - shuffled.unigram < .2   # what 18,000 pairs leave to chance
    assert plain.uniform == math.log(256)


# -- guards -----------------------------------------------------------------------------------------------------------

@each_protocol
def test_13_guards(p, english):
    "What sees the future is refused, what knows nothing is told so, and an honest model passes in silence."
    text, p = as_store(english[:8]), replace(p, length=256, stride=p.stride and 128)
    def sees_the_future(ids): return 20. * F.one_hot(ids.roll(-1, 1), 256)
    with pytest.raises(ValueError, match='too good for text .* labels that are the input, a mask that shows the future'): p.score(sees_the_future, text)
    assert replace(p, guard=False).score(sees_the_future, text).perplexity < 5
    def confused(ids): return 20. * F.one_hot((ids + 17) % 256, 256)
    with pytest.warns(UserWarning, match='uniform guess over 256 tokens costs 5.55'): p.score(confused, text)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        s = p.score(Pairs(text.ids), text)
        assert s.nll < s.unigram < s.uniform
        replace(p, guard=False).score(confused, text)


def test_13_subwords_are_refused_below_five():
    "With a vocabulary of which counting reaches 1,500, the threshold is the rule of thumb."
    text = store_of(range(1, 1500), vocab=50_000)
    def as_good_as(perplexity): return lambda ids: torch.log((1 / perplexity - 1 / 1500) * F.one_hot((ids + 1) % 1500, 1500) + (1 - 1 / perplexity) / 1500 + 1 / 1500 ** 2)
    assert Perplexity().score(as_good_as(5.1), text).perplexity == pytest.approx(5.1, rel=.01)
    with pytest.raises(ValueError, match='perplexity 4.7.* is below 5'): Perplexity().score(as_good_as(4.7), text)


def test_13_held_out_text_is_not_easier(english):
    train, held = (as_store(c) for c in split(english, held_out=.2))
    a, b = (Perplexity().score(Pairs(train.ids), t, train) for t in (train, held))
    guard_gap(a, b)
    with pytest.raises(ValueError, match='held-out text has a lower loss'): guard_gap(b, replace(a, nll=.9 * b.nll))
    with pytest.raises(ValueError, match='scored with different labels_by'): guard_gap(a, Perplexity(labels_by=2, guard=False).score(Pairs(train.ids), held, train))


# -- weights ----------------------------------------------------------------------------------------------------------

def trained(text, by=1, steps=30):
    "A small model trained on a text with labels `by` tokens ahead."
    model = init_parameters(TransformerLM(list(small_lm('delta').layers), vocab_size=text.vocab_size, d_model=8, tied=False), 0, std=.3).float()
    fit_model(model, lambda step: shift(windows(text, 8, 24, 0, step).ids, by), lm_loss, FitConfig(steps=steps, optimizer=AdamWConfig(lr=.03, weight_decay=0.), schedule=Constant(warmup=5)))
    return model


def test_14_trained_weights():
    "The weights that were trained are the ones that are scored, and stay as they are; a fresh model is at chance."
    text, p = counting_text(150, 150, 150, vocab_size=20), Perplexity(length=32, guard=False)
    model, fresh = trained(text), init_parameters(small_lm('delta', vocab=20), 1, std=.02)
    before, mode = {n: x.clone() for n, x in model.state_dict().items()}, model.training
    s = p.score(model, text)
    assert s.weights == weights_checksum(model) == p.score(model, text).weights and model.training == mode
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())
    assert s.perplexity < 1.5 and abs(p.score(fresh, text).perplexity - 20) < 1
    assert p.score(fresh, text).weights != s.weights
    with torch.no_grad(): model.readout[3, 1] += 1e-4
    assert weights_checksum(model) != s.weights


def test_14_a_model_of_the_token_after_next_is_found_out():
    "Trained on labels that were shifted twice, it looks good under the same labels and is worse than a guess under the right ones."
    text, p = counting_text(150, 150, 150, vocab_size=20), Perplexity(length=32, guard=False)
    twice = trained(text, by=2)
    assert replace(p, labels_by=2).score(twice, text).perplexity < 1.5
    with pytest.warns(UserWarning, match='compare labels_by=2'): assert replace(p, guard=True).score(twice, text).perplexity > 20


# -- training and scoring alike ---------------------------------------------------------------------------------------

STATEFUL = [name for name in MIXERS if name != 'baseconv']


@pytest.mark.parametrize('mixer', STATEFUL)
def test_15_parity(mixer):
    "On ordered documents a memory is scored carried and emptied; the two agree on the first segment and differ later, and the record says which is which."
    model, text = small_lm(mixer, std=1.), random_text(60, 45, 90)
    on, reset = (Perplexity(length=16, memory=m, guard=False).score(model, text) for m in ('on', 'reset'))
    foreign = Perplexity(length=16, memory='foreign', guard=False).score(model, text, foreign=memory_of(model, random_text(30, seed=1), 0))
    assert abs(on.by_segment[0].nll - reset.by_segment[0].nll) < 1e-10 and all(abs(a.nll - b.nll) > 1e-6 for a, b in zip(on.by_segment[1:], reset.by_segment[1:]))
    assert all(abs(a.nll - b.nll) > 1e-9 for a, b in zip(on.by_segment[:1], foreign.by_segment))
    how = dict(memory='on', length=16, labels_by=1)
    assert parity(how, on) == {} and parity(how, reset) == dict(memory=('on', 'reset')) and parity(how, foreign) == dict(memory=('on', 'foreign'))


@pytest.mark.parametrize('mixer', ['attention', 'delta'])
def test_15_training_on_ordered_streams_sees_what_the_evaluator_sees(mixer):
    "Pieces of an ordered stream, with rows reset where documents begin, lose exactly what the evaluator finds."
    model, text = small_lm(mixer, mixer), random_text(20, 33, 5, 12, 47)
    stream, memory, found = OrderedStream(text, 2, 8, seed=3), model.init_memory(2), []
    with torch.no_grad():
        for step in range(stream.steps):
            b = stream.batch(step)
            fresh = model.init_memory(1)
            memory = tuple(type(s).cat([f if r else s[[i]] for i, r in enumerate(b.reset)]) for s, f in zip(memory, fresh))
            inputs, labels = stream_labels(b)
            logits, memory = model(inputs, memory)
            nll = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction='none').view_as(labels)
            found += [(b.sample[r].item(), x) for r in range(2) for x in nll[r, :b.valid[r]].tolist()]
    scored = Perplexity(length=11, guard=False).losses(model, text)[0]
    for doc in range(len(places(text))): assert np.allclose([x for d, x in found if d == doc], scored.nll[scored.doc == doc].numpy(), atol=1e-9, rtol=0)


# -- answering only where one is sure -------------------------------------------------------------------------------------

@each_protocol
def test_26_a_model_that_skips_is_scored_on_everything(p):
    "Sure of itself after half of the tokens and silent after the others: both halves count."
    store = random_text(60, 45, 70)
    def gated(ids): return torch.where((ids % 2 == 0)[..., None], torch.zeros(32, dtype=torch.float64), 6. * F.one_hot((ids + 1) % 32, 32).double())
    score, silent = replace(p, guard=False).score(gated, store), replace(p, guard=False).score(lambda ids: torch.zeros(*ids.shape, 32, dtype=torch.float64), store)
    assert score.tokens == silent.tokens == places(store).sum()
    assert silent.nll == pytest.approx(math.log(32)) and silent.nll < score.nll < 6 + math.log(32)
