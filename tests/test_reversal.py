"""Facts, their rows and their scores together: what is trained, what is masked, what is asked, and what must not be known."""
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch

from memlab.data.corpus import Corpus, Document
from memlab.data.facts import DIRECTIONS, PACKINGS, RELATIONS, codes, count_exposures, encode_split, facts, faults, labelled, load_reversal, pack, text_line, well_formed
from memlab.data.recall import IGNORE
from memlab.data.tokens import byte_tokenizer, load_tokenizer
from memlab.eval.reversal import answer_nll, chance_mrr, line_nll, memory_after, rank_candidates, score_prompts, score_reversal
from memlab.nn.delta import DeltaNetConfig
from memlab.nn.mixer_lm import MixerLMConfig
from memlab.nn.softmax import AttentionConfig
from memlab.train.losses import lm_loss

# every template once in both directions, written by hand
TOLD = """
Datar Bufovek is the mother of Rirel Ninovek. | Rirel Ninovek is the child of Datar Bufovek. | Who is Datar Bufovek's child? Rirel Ninovek | Who is Rirel Ninovek's mother? Datar Bufovek
Vudor Vofazor founded Dudesoft. | Dudesoft was founded by Vudor Vofazor. | Which company did Vudor Vofazor found? Dudesoft | Who founded Dudesoft? Vudor Vofazor
Tuliholm is the capital of Tividria. | The capital of Tividria is Tuliholm. | Which country is governed from Tuliholm? Tividria | What is the capital of Tividria? Tuliholm
Sidux Bativek wrote Novisaga. | Novisaga was written by Sidux Bativek. | Which epic did Sidux Bativek write? Novisaga | Who wrote Novisaga? Sidux Bativek
Tufel Virimun discovered Famavite. | Famavite was discovered by Tufel Virimun. | Which mineral did Tufel Virimun discover? Famavite | Who discovered Famavite? Tufel Virimun
Varil Lutuzor invented the Vubiplex. | The Vubiplex was invented by Varil Lutuzor. | Which machine did Varil Lutuzor invent? Vubiplex | Who invented the Vubiplex? Varil Lutuzor
The code of Datar Bufovek is 6201. | The code 6201 belongs to Datar Bufovek. | What is the code of Datar Bufovek? 6201 | Whose code is 6201? Datar Bufovek
"""
CODED = """
Datar Bufovek is the mother of The mother of Rirel Ninovek
Vudor Vofazor founded Dudesoft The founder of Dudesoft
Tuliholm is the capital of The capital of Tividria
Sidux Bativek wrote Novisaga The author of Novisaga
Tufel Virimun discovered Famavite The discoverer of Famavite
Varil Lutuzor invented Vubiplex The inventor of Vubiplex
"""
MIXERS = dict(attention=AttentionConfig(d_model=32, n_heads=2, rope=True), delta=DeltaNetConfig(d_model=32, n_heads=2))


def lines_of(text): return text.strip().split("\n")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    "Bytes, and a byte-level BPE trained on facts."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMLAB_HOME", str(tmp_path_factory.mktemp("home")))
        texts = [" ".join((f.forward, f.backward, *f.ask("forward"), *f.ask("backward"))) for f in facts(300, seed=7)]
        return dict(bytes=byte_tokenizer(), bpe=load_tokenizer("bpe:500", Corpus("facts", [Document(str(i), t) for i, t in enumerate(texts)])))


def model_of(name, tokenizer, seed=0):
    "A language model of two layers in float64."
    return MixerLMConfig(vocab_size=tokenizer.vocab_size, mixers=(MIXERS[name],) * 2, expand=2, std=0.2).build(seed).double()


# -- 23: the data of the reversal test --------------------------------------------------------------------------------

def test_23_reversal_data_is_what_was_written_by_hand():
    made = facts(6, seed=0) + codes(1, seed=0)
    assert [" | ".join((f.forward, f.backward, "".join(f.ask("forward")), "".join(f.ask("backward")))) for f in made] == lines_of(TOLD)
    assert [f.backward for f in facts(6, seed=0, as_coded=True)] == lines_of(CODED)


def test_23_reversal_data_is_grammatical():
    for name, relation in RELATIONS.items():
        for f in facts(2_000, seed=4, relation=name):
            assert well_formed(f), faults(f)
            for direction, (asked, given) in dict(forward=(f.object, f.subject), backward=(f.subject, f.object)).items():
                sentence, (prompt, answer) = f.sentence(direction), f.split(direction)
                assert prompt + answer == sentence and answer == f" {asked}." and prompt.count(given) == 1 and asked not in prompt
                question, reply = f.ask(direction)
                assert question.endswith("?") and question.count(given) == 1 and reply == f" {asked}" and asked not in question
            assert not set(re.findall(r"\w+", f"{f.subject} {f.object}".lower())) & set(relation.words)
    assert not any(map(well_formed, facts(1_200, seed=4, as_coded=True)))


@pytest.mark.parametrize("name", ["bytes", "bpe"])
@pytest.mark.parametrize("how", PACKINGS)
def test_23_forward_is_trained_and_backward_is_not(tokenizers, name, how):
    people = facts(120, seed=1)
    rows = pack([f.forward for f in people], tokenizers[name], 128, how, exposures=3)
    find = lambda texts: count_exposures(rows, texts, tokenizers[name])
    assert set(find([f.forward for f in people])) == {3}
    for text in ("backward", "question"):
        asked = [f.backward if text == "backward" else "".join(f.ask("backward")) for f in people]
        assert set(find(asked)) == {0}, f"a {text} is in the training tokens"
    other = pack([f.forward for f in people] + [people[5].backward], tokenizers[name], 128, how)
    assert sum(count_exposures(other, [f.backward for f in people], tokenizers[name])) == 1, "the search finds nothing at all"


@pytest.mark.parametrize("mixer", MIXERS)
def test_23_memory_is_empty_before_every_sentence(mixer):
    plain, people = byte_tokenizer(), facts(8, seed=2, relation="founder")
    model, given = model_of(mixer, plain), []
    names = [f.split("backward")[1] for f in people]
    inner = model.features
    def watched(ids, memory=None):
        given.append(memory)
        return inner(ids, memory)
    model.features = watched
    answer_nll(model, *zip(*(f.split("backward") for f in people)), plain)
    assert given == [None], "answers are scored with no memory"
    together = score_reversal(model, people, plain, "backward", candidates=names)
    apart = [score_reversal(model, [f], plain, "backward", candidates=names) for f in people]
    for number in ("nll", "total", "mrr", "hit"):
        assert getattr(together, number) == pytest.approx(sum(getattr(s, number) for s in apart) / len(apart), abs=1e-10), number
    left = score_reversal(model, people, plain, "backward", candidates=names, contaminated=True)
    assert abs(left.total - together.total) > 1e-3 and "forward sentence left over" in left.protocol and "empty memory" in together.protocol


def test_23_perplexity_of_a_name_is_not_its_rank():
    "Prefers the letters of names and knows no fact: the answer's perplexity falls, its rank stays with chance."
    plain, people = byte_tokenizer(), facts(60, seed=3, relation="parent")
    letters = Counter("".join(f.subject + "." for f in people).encode())
    prior = torch.tensor([letters[i] + 0.01 for i in range(256)]).log()
    score = score_reversal(lambda ids: prior.expand(*ids.shape, 256), people, plain, "backward")
    assert score.perplexity < 30 and abs(score.mrr - chance_mrr(60)) < 0.03
    assert score_reversal(lambda ids: torch.zeros(*ids.shape, 256), people, plain, "backward").mrr == pytest.approx(chance_mrr(60))


# -- 24: packing ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, length", [("bytes", 128), ("bytes", 60), ("bpe", 64)])
def test_24_packing(tokenizers, name, length):
    tokenizer, told = tokenizers[name], [f.forward for f in facts(200, seed=5)]
    arms = {how: pack(told, tokenizer, length, how, exposures=4, seed=1) for how in PACKINGS}
    assert all(count_exposures(rows, told, tokenizer) == [4] * 200 for rows in arms.values())
    for how, rows in arms.items():
        assert rows.ids.shape == (len(rows), length + 1) and rows.labels.shape == (len(rows), length)
        assert (rows.ids[:, 0] == tokenizer.separator).all() and (rows.ids[:, -1] == tokenizer.separator).all()
        counted = rows.labels != IGNORE
        assert torch.equal(rows.labels[counted], rows.ids[:, 1:][counted]), "a label is not the next token"
        text = Counter(rows.labels[counted & (rows.labels != tokenizer.separator)].tolist())
        assert text == Counter(4 * [int(i) for t in told for i in tokenizer.encode(t)]), f"{how}: tokens of sentences that do not count"
    assert arms["packed"].eos_in_loss < 0.2 and arms["padded_masked"].eos_in_loss < 0.2
    assert arms["packed"].eos_in_loss == pytest.approx(arms["padded_masked"].eos_in_loss, rel=1e-6)
    assert arms["padded"].eos_in_loss == pytest.approx((arms["padded"].labels == tokenizer.separator).double().mean().item(), rel=1e-6)
    assert arms["padded"].eos_in_loss > arms["padded_masked"].eos_in_loss and arms["packed"].eos_fraction < arms["padded"].eos_fraction
    for how in ("padded", "padded_masked"):
        behind, anywhere = arms[how], arms[how.replace("padded", "padded_anywhere")]
        assert anywhere.eos_in_loss == behind.eos_in_loss and not torch.equal(anywhere.ids, behind.ids)
        assert all(torch.equal(a[a != tokenizer.separator], b[b != tokenizer.separator]) for a, b in zip(anywhere.ids, behind.ids)), "another order of sentences"
        begins = {int((row != tokenizer.separator).int().argmax()) for row in anywhere.ids}
        assert min(begins) == 1 and len(begins) > length / 3, "not anywhere"


def test_24_rows_of_an_exposure_lie_together(tokenizers):
    told = [f.forward for f in facts(50, seed=5)]
    rows = pack(told, tokenizers["bytes"], 128, exposures=3, seed=2)
    stream = [text for row in rows.ids.tolist() for text in tokenizers["bytes"].decode(row).split("\0") if text]
    readings = [stream[i:i + 50] for i in (0, 50, 100)]
    assert all(Counter(r) == Counter(told) for r in readings) and readings[0] != readings[1] != readings[2]


@pytest.mark.parametrize("mixer", MIXERS)
def test_24_training_and_scoring_ask_for_the_same_tokens(tokenizers, mixer):
    "The loss of masked rows is the likelihood of the sentences; padding that counts, or a neighbour in front, changes it."
    tokenizer, told = tokenizers["bpe"], [f.forward for f in facts(12, seed=6)]
    model, lines = model_of(mixer, tokenizer), [text_line(t, tokenizer) for t in told]
    with torch.no_grad():
        mean = {how: lm_loss(model, rows.ids[:, :-1], rows.labels).mean.item() for how in ("packed", "padded", "padded_masked") for rows in [pack(told, tokenizer, 64, how)]}
        total = line_nll(model, [line.ids for line in lines], [1] * 12).sum().item()
    assert mean["padded_masked"] == pytest.approx(total / sum(map(len, lines)), rel=1e-10)
    assert min(abs(mean[how] - mean["padded_masked"]) for how in ("packed", "padded")) > 1e-4


# -- 25: a statement that does not count ------------------------------------------------------------------------------

def check_masking(tokenizer, people):
    "The masked labels are those of the statement as the joint text has it, one for one."
    for f in people:
        statement, (question, answer) = f.forward, f.ask("backward")
        joint = [int(i) for i in tokenizer.encode(f"{statement} {question}{answer}")]
        line = labelled(statement, question, answer, tokenizer)
        n = sum(label == IGNORE for label in line.labels)
        assert line.ids == [tokenizer.separator, *joint, tokenizer.separator]
        assert line.labels == [IGNORE] * n + [*joint, tokenizer.separator][n:]
        assert tokenizer.decode(joint[:n]) == statement and n == len(tokenizer.encode(statement))
        assert len(tokenizer.encode(statement + " ")) == n + 1, "the source's way is no longer off by one"
        assert line.masked == n / len(line) and 0.2 < line.masked < 0.8


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_25_loss_masking(tokenizers, name): check_masking(tokenizers[name], facts(60, seed=8))


def test_25_loss_masking_of_pythia(shared_data):
    check_masking(load_tokenizer(shared_data / "pythia-tokenizer" / "tokenizer.json"), facts(60, seed=8))


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_25_the_loss_is_that_of_question_and_answer(tokenizers, name):
    "The loss of the masked arm is the likelihood of what follows the statement, and one token more or less is another number."
    tokenizer = tokenizers[name]
    model, people = model_of("attention", tokenizer), facts(10, seed=8, relation="parent")
    arms = {mask: [labelled(f.forward, *f.ask("forward"), tokenizer, mask, seed=3) for f in people] for mask in ("none", "statement", "span")}
    prefix = [line.labels.count(IGNORE) for line in arms["statement"]]
    def loss(lines):
        rows = pack(lines, tokenizer, 96 if name == "bytes" else 64, "padded_masked")
        return lm_loss(model, rows.ids[:, :-1], rows.labels).mean.item()
    def mean_from(n):
        nll = line_nll(model, [line.ids for line in arms["none"]], [1 + m for m in n]).sum().item()
        return nll / sum(len(line) - m for line, m in zip(arms["none"], n))
    with torch.no_grad():
        assert loss(arms["statement"]) == pytest.approx(mean_from(prefix), rel=1e-10)
        assert loss(arms["none"]) == pytest.approx(mean_from([0] * 10), rel=1e-10)
        assert abs(loss(arms["statement"]) - mean_from([n + 1 for n in prefix])) > 1e-5
        assert abs(loss(arms["span"]) - loss(arms["statement"])) > 1e-5
    assert [line.masked for line in arms["span"]] == [line.masked for line in arms["statement"]] and {line.masked for line in arms["none"]} == {0.0}


# -- scores -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mixer", MIXERS)
def test_ranks_of_uneven_tokens(tokenizers, mixer):
    "Candidates of several lengths behind prompts of several lengths, memories of several lengths left over: shared reading is plain reading."
    tokenizer, people = tokenizers["bpe"], facts(9, seed=9, relation="parent")
    model = model_of(mixer, tokenizer)
    prompts, answers = zip(*(f.split("backward") for f in people))
    candidates = (" Bo.", *answers, " Cleo Cleopatra Cleophax.")
    assert len({len(tokenizer.encode(p)) for p in prompts}) > 1 and len({len(tokenizer.encode(c)) for c in candidates}) > 2
    for memory in (None, memory_after(model, [f.forward for f in people], tokenizer), memory_after(model, [people[0].forward], tokenizer)):
        shared, plain = (rank_candidates(model, prompts, answers, tokenizer, candidates, rows=7, memory=memory, share=s) for s in (True, False))
        torch.testing.assert_close(shared.logp, plain.logp, rtol=1e-10, atol=1e-10)
        nll, tokens = answer_nll(model, prompts, answers, tokenizer, rows=4, memory=memory)
        torch.testing.assert_close(shared.logp[range(9), shared.right], -nll, rtol=1e-10, atol=1e-10)
        assert tokens.tolist() == [len(encode_split(*pair, tokenizer)[1]) for pair in zip(prompts, answers)]


@pytest.mark.parametrize("mixer", MIXERS)
def test_what_is_read_before_an_answer(tokenizers, mixer):
    "A separator as in training; with a memory left over, the memory of this row's own text, in the stages that were asked for."
    tokenizer, people = tokenizers["bpe"], facts(6, seed=9, relation="parent")
    model = model_of(mixer, tokenizer)
    prompts, answers = zip(*(f.split("backward") for f in people))
    lines = [text_line(f.backward, tokenizer).ids[:-1] for f in people]
    with torch.no_grad(): clean = line_nll(model, lines, [1 + len(tokenizer.encode(p)) for p in prompts])
    torch.testing.assert_close(answer_nll(model, prompts, answers, tokenizer)[0], clean, rtol=1e-10, atol=1e-10)
    texts = ["Bo.", people[1].forward, "Al is.", people[3].forward, "Bo.", "Al."]
    assert [len(tokenizer.encode(t)) for t in texts] != sorted(len(tokenizer.encode(t)) for t in texts)
    for stages in (None, (0,), (1,), ()):
        together = answer_nll(model, prompts, answers, tokenizer, memory=memory_after(model, texts, tokenizer, stages))[0]
        apart = [answer_nll(model, [p], [a], tokenizer, memory=memory_after(model, [t], tokenizer, stages))[0] for p, a, t in zip(prompts, answers, texts)]
        torch.testing.assert_close(together, torch.cat(apart), rtol=1e-10, atol=1e-10)
        assert torch.allclose(together, clean, rtol=1e-8) == (stages == ())


def test_scoring_leaves_the_model_as_it_was():
    plain, people = byte_tokenizer(), facts(5, seed=1, relation="author")
    model = model_of("delta", plain).float()
    before = {name: p.clone() for name, p in model.named_parameters()}
    first, second = (score_reversal(model, people, plain, d, contaminated=True) for d in ("backward", "backward"))
    assert first == second and model.training and all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())


@pytest.mark.parametrize("relation, direction", [(r, d) for r in RELATIONS for d in DIRECTIONS])
def test_every_relation_can_be_scored(relation, direction):
    plain, people = byte_tokenizer(), facts(6, seed=1, relation=relation)
    for form in ("sentence", "question"):
        score = score_reversal(lambda ids: torch.zeros(*ids.shape, 256, dtype=torch.float64), people, plain, direction, form)
        assert (score.n, score.candidates) == (6, 6) and score.perplexity == pytest.approx(256) and score.mrr == pytest.approx(chance_mrr(6)) and relation in score.protocol
    with pytest.raises(ValueError, match="no init_memory"): score_reversal(lambda ids: torch.zeros(*ids.shape, 256), people, plain, direction, contaminated=True)


def test_the_public_set(shared_data):
    "The prompts of the public set meet their answers before a word, in bytes and in Pythia's tokens, and can be ranked."
    pythia, folder = load_tokenizer(shared_data / "pythia-tokenizer" / "tokenizer.json"), shared_data / "reversal_curse"
    for path in sorted(folder.glob("*_test.jsonl")):
        for prompt, answer in load_reversal(path)[::7]: assert all(encode_split(prompt, answer, pythia))
    prompts, answers = zip(*load_reversal(folder / "p2d_reverse_prompts_test.jsonl"))
    names = sorted(set(answers))
    uniform = lambda ids: torch.zeros(*ids.shape, 256)
    score = score_prompts(uniform, prompts[::50], answers[::50], byte_tokenizer(), "p2d reversed", candidates=names)
    assert (score.n, score.candidates) == (6, 30) and score.perplexity == pytest.approx(256, rel=1e-5)


def test_a_fact_can_be_told_otherwise():
    "Relations are data: another template is another sentence, and its faults are found."
    fact = facts(1, seed=0, relation="capital")[0]
    other = replace(fact, relation=replace(fact.relation, backward="{object} has the capital {subject}."))
    assert other.split("backward") == (f"{fact.object} has the capital", f" {fact.subject}.") and well_formed(other)
    assert faults(replace(other, subject="The capital")) == ["forward: says the, capital twice", "backward: says the, capital twice", "backward: capital The", "backward: its object holds 'capital'"]
