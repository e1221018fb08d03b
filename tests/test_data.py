"Corpora and tokens across processes, and on real files kept beside the tree."
import os
import platform
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from memlab.core.files import home
from memlab.core.identity import full
from memlab.data.corpus import RULES, Corpus, Document, load_corpus, split
from memlab.data.facts import facts
from memlab.data.ordered import OrderedStream
from memlab.data.recall import IGNORE, RecallConfig, recall_batch
from memlab.data.samples import Copy, Pairs, TextSamples, kept
from memlab.data.text import Windows
from memlab.data.tokens import _train_bpe, ByteTokenizer, TokenStore, byte_tokenizer, held_out_windows, load_tokenizer, streams, windows
from memlab.data.turns import InTurn
from memlab.lab.arm import Arm, text_of
from memlab.train.lagged import LaggedCache
from memlab.train.losses import check_labels
from memlab.train.loop import FitConfig
from memlab.train.objectives import TokenLoss

# a tokenizer that takes its time and writes down each document it encodes
BUILDER = """
import sys, time
from pathlib import Path
from memlab.data.corpus import load_corpus, split
from memlab.data.tokens import _train_bpe, ByteTokenizer, TokenStore
folder, pause = Path(sys.argv[1]), float(sys.argv[2])
class Slow(ByteTokenizer):
    name = "slow"
    def encode(self, text):
        with open(folder/"encoded.log", "a") as log: log.write(text[:6] + "\\n")
        time.sleep(pause)
        return super().encode(text)
corpus = load_corpus(folder/"texts")
(folder/f"ready.{sys.argv[3]}").touch()
while not (folder/"go").exists(): time.sleep(0.01)
store = TokenStore.build(corpus, Slow())
print(store.fingerprint, int(store.ids.sum()), len(store), split(corpus)[1].fingerprint)
"""


def wait_for(condition, seconds=60):
    "Wait until `condition` holds."
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def folder(tmp_path):
    "A folder of texts to build a store of, and a script that does so."
    (tmp_path / "texts").mkdir()
    for i in range(6): (tmp_path / "texts" / f"{i}.txt").write_text(f"text {i} " * 50)
    (tmp_path / "builder.py").write_text(BUILDER)
    return tmp_path


def start(folder, pause, number):
    "A process that builds the store as soon as the file `go` appears."
    env = dict(os.environ, MEMLAB_HOME=str(folder), PYTHONHASHSEED=str(number), OMP_NUM_THREADS="1")
    command = [sys.executable, folder / "builder.py", folder, str(pause), str(number)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def test_two_processes_build_one_store(folder):
    builders = [start(folder, 0.1, number) for number in (1, 2)]
    wait_for(lambda: len(list(folder.glob("ready.*"))) == 2)
    (folder / "go").touch()
    told = [b.communicate(timeout=300)[0] for b in builders]
    assert [b.returncode for b in builders] == [0, 0]
    assert told[0] == told[1] and told[0].split()[2] == str(6 * (7 * 50 + 1))
    assert len((folder / "encoded.log").read_text().splitlines()) == 6, "a document was encoded twice"
    assert not list((folder / "build" / "tokens").glob("*.part"))


def test_killed_build_leaves_no_store(folder):
    (folder / "go").touch()
    killed = start(folder, 0.5, 1)
    wait_for(lambda: (folder / "encoded.log").exists() and len((folder / "encoded.log").read_text().splitlines()) >= 3)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    left = [p.suffix for p in (folder / "build" / "tokens").iterdir() if p.is_dir()]
    assert left == [".part"], "the build was not interrupted, or a half store has its real name"
    second = start(folder, 0, 2)
    told = second.communicate(timeout=300)[0]
    assert second.returncode == 0 and told.split()[2] == str(6 * (7 * 50 + 1))
    assert not list((folder / "build" / "tokens").glob("*.part"))


def test_30_batches_do_not_know_what_time_it_is(monkeypatch):
    "Order is a function of store, seed and step: not of the clock, nor of any generator that others use."
    store = TokenStore.build(load_corpus("stdlib-docs"), byte_tokenizer())
    def drawn():
        stream = OrderedStream(store, 4, 64, 3)
        told = [f.sentence("forward") for f in facts(20, seed=3)]
        return [windows(store, 4, 64, 3, 7).ids, stream.batch(7).ids, recall_batch(RecallConfig(vocab_size=64, length=32, pairs=4), 4, seed=3, step=7).ids], told
    before, told = drawn()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    torch.manual_seed(99); np.random.seed(99); random.seed(99)
    after, again = drawn()
    assert all(map(torch.equal, before, after)) and told == again
    assert not torch.equal(before[0], windows(store, 4, 64, 4, 7).ids) and not torch.equal(before[0], windows(store, 4, 64, 3, 8).ids)


def test_30_kept_tokens_belong_to_a_text_and_a_tokenizer(tmp_path, monkeypatch):
    "Texts of one size and tokenizers of one vocabulary have stores of their own; the same again is found again."
    load_corpus("stdlib-docs")
    assert any(f"stdlib-docs-cpython-{platform.python_version()}-r{RULES}." in p.name for p in (home() / "build" / "corpus").iterdir()), "the text of another Python, or of other rules, would be taken for this one"
    monkeypatch.setenv("MEMLAB_HOME", str(tmp_path))
    class Flipped(ByteTokenizer):
        name = "flipped"
        def encode(self, text): return super().encode(text) ^ 1
    texts = [Corpus("one", [Document("a", text)]) for text in ("memory", "remove")]
    stores = [TokenStore.build(text, made) for text in texts for made in (byte_tokenizer(), Flipped())]
    folders = lambda: {p.name: p.stat().st_mtime_ns for p in (tmp_path / "build" / "tokens").iterdir() if p.is_dir()}
    kept = folders()
    assert len({s.fingerprint for s in stores}) == len(kept) == 4 and len({len(s) for s in stores}) == 1
    assert TokenStore.build(texts[0], byte_tokenizer()).fingerprint == stores[0].fingerprint and folders() == kept


def test_import_is_light():
    code = "import sys, memlab.data.tokens; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert {"torch", "numpy"} <= loaded
    assert not loaded & {"pandas", "pyarrow", "datasets", "tokenizers", "transformers", "matplotlib", "IPython", "ipywidgets", "nbdev", "beartype"}


def test_import_of_corpora_needs_only_python():
    code = "import sys, memlab.data.corpus; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["False", "False"]


def test_tiny_shakespeare(shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLAB_HOME", str(tmp_path))
    path = shared_data / "tinyshakespeare.txt"
    corpus = load_corpus(str(path))
    assert len(corpus) == 1 and corpus.nbytes == path.stat().st_size
    with pytest.raises(ValueError, match="has one title only"): split(corpus)
    tokens = byte_tokenizer()
    store = TokenStore.build(corpus, tokens)
    assert bytes(np.asarray(store.ids, np.uint8)) == path.read_bytes() + b"\0"
    text = corpus[0].text
    assert all(tokens.decode(row[:-1]) in text for row in windows(store, 4, 200, seed=0, step=0).ids)
    assert held_out_windows(store, 64, 1024).ids.shape == (64, 1025)


def test_pythia_tokenizer(shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLAB_HOME", str(tmp_path))
    pythia = load_tokenizer(shared_data / "pythia-tokenizer" / "tokenizer.json")
    assert (pythia.vocab_size, pythia.separator, pythia.decode([0])) == (50277, 0, "<|endoftext|>")
    assert pythia.encode("Hello world").tolist() == [12092, 1533]
    shakespeare = load_corpus(shared_data / "tinyshakespeare.txt")[0].text
    assert pythia.decode(pythia.encode(shakespeare)) == shakespeare
    spelt_out = "a <|endoftext|> inside a text"
    assert pythia.decode(pythia.encode(spelt_out)) == spelt_out and 0 not in pythia.encode(spelt_out)
    store = TokenStore.build(Corpus("two", [Document("a", spelt_out), Document("b", shakespeare[:999])]), pythia)
    assert store.ids.dtype == np.uint16 and (np.asarray(store.ids) == 0).sum() == 2
    assert sum(b.valid.sum().item() for b in streams(store, 2, 32)) == len(store)


def test_the_tokenizer_of_a_model_of_the_hub(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    file, asked = tmp_path / "tokenizer.json", []
    file.write_text(_train_bpe(Corpus("ants", [Document("ant", "An ant. " * 40)]), 257))
    monkeypatch.setattr(hub, "hf_hub_download", lambda *named: asked.append(named) or str(file))
    assert load_tokenizer("hub:EleutherAI/pythia-70m").name == load_tokenizer(file).name
    assert asked == [("EleutherAI/pythia-70m", "tokenizer.json")]


def test_files_without_a_text_field(shared_data):
    with pytest.raises(ValueError, match="p2d_prompts_test.jsonl, line 1 has no field 'text'; fields found: completion, prompt"):
        load_corpus(shared_data / "reversal_curse" / "p2d_prompts_test.jsonl")
    with pytest.raises(ValueError, match="test.parquet has no field 'text'; fields found: .*label"):
        load_corpus(shared_data / "cifar10" / "test.parquet")


SETS = [Copy(samples=12, rows=4, items=6, delay=2), Copy(samples=16, rows=4, symbols=2, items=5), Pairs(samples=12, rows=4, config=RecallConfig(vocab_size=32, length=24, pairs=4)),
        TextSamples(samples=12, rows=4, length=32)]
sets = pytest.mark.parametrize("task", SETS, ids=["copy", "short copy", "pairs", "text"])


@sets
def test_batches_of_a_fixed_set_are_functions_of_seed_and_step(task):
    "In any order of asking, whatever others draw, in a process that has kept nothing: the same inputs, labels and numbers; each sample once an epoch, with its number."
    steps = range(3 * task.steps_per_epoch)
    first = {step: task.batches(5)(step) for step in steps}
    torch.manual_seed(99); random.seed(99); kept.cache_clear()
    batch = task.batches(5)
    again = {step: batch(step) for step in reversed(steps)}
    assert all(torch.equal(x, y) for step in steps for x, y in zip(first[step], again[step]))
    ids, labels = task.training(5)
    for epoch in range(3):
        rows = [first[epoch * task.steps_per_epoch + i] for i in range(task.steps_per_epoch)]
        numbers = torch.cat([sample for _, _, sample in rows])
        assert sorted(numbers.tolist()) == list(range(task.samples))
        assert torch.equal(torch.cat([x for x, _, _ in rows]), ids[numbers]) and torch.equal(torch.cat([y for _, y, _ in rows]), labels[numbers])
    orders = {tuple(torch.cat([task.batches(seed)(e * task.steps_per_epoch + i)[2] for i in range(task.steps_per_epoch)]).tolist()) for seed in (5, 6) for e in range(3)}
    assert len(orders) == 6 and task.fingerprint(5) != task.fingerprint(6) and not torch.equal(ids, task.training(6)[0])


@sets
def test_no_row_of_a_fixed_set_is_held_out(task):
    for seed in range(5):
        trained, (ids, labels) = set(map(tuple, task.training(seed)[0].tolist())), task.held_out(8, seed)
        assert ids.shape == labels.shape == (8, task.length)
        assert not trained & set(map(tuple, ids.tolist()))


@sets
def test_labels_of_a_fixed_set(task):
    "Of text the next token; else what was read before it is asked for, and nothing where nothing is asked."
    asked = task.length if isinstance(task, TextSamples) else task.config.pairs if isinstance(task, Pairs) else task.items
    for ids, labels in (task.training(0), task.held_out(6, 0)):
        check_labels(labels.flatten(), task.vocab_size)
        if isinstance(task, TextSamples): assert torch.equal(labels[:, :-1], ids[:, 1:])
        else: assert all(label in row[:t] for row, want in zip(ids.tolist(), labels.tolist()) for t, label in enumerate(want) if label != IGNORE)
        assert (labels != IGNORE).sum(1).tolist() == [asked] * len(labels)


@sets
def test_a_store_keyed_by_sample_finds_what_it_stored(task):
    "And by the source's key, the place in the epoch, another sample."
    def wrong(task):
        cache, batch, found = LaggedCache(task.samples, task.length, 1, dtype=torch.float32), task.batches(0), 0
        for step in range(3 * task.steps_per_epoch):
            ids, _, sample = batch(step)
            if step >= task.steps_per_epoch: found += (cache.read(sample)[..., 0] != ids).any(1).sum().item()
            cache.write(sample, ids[..., None].float(), step)
        return found
    assert wrong(task) == wrong(replace(task, shuffled=False)) == wrong(replace(task, keyed_by="batch", shuffled=False)) == 0
    assert wrong(replace(task, keyed_by="batch")) > task.samples


def test_a_fixed_set_is_the_task_of_an_arm():
    "It says what it reads, has a name in identities, and holds out the windows of an ordinary run."
    arm = lambda task: Arm(name="one", task=task, train=FitConfig(steps=6, objective=TokenLoss()))
    copy, _, pairs, text = SETS
    assert [text_of(arm(task)) for task in (copy, pairs, text)] == ["generated", "generated", load_corpus("stdlib-docs").fingerprint]
    both = InTurn(tasks=(text, Windows(corpus="stdlib-code", length=8, rows=2), text))   # each text once
    assert text_of(arm(both)) == f'{load_corpus("stdlib-docs").fingerprint}+{load_corpus("stdlib-code").fingerprint}'
    assert [arm(task).tokens for task in (copy, pairs, text)] == [6 * 4 * n for n in (15, 24, 32)]
    assert len({str(full(arm(task))) for task in (*SETS, replace(copy, keyed_by="batch"), replace(copy, shuffled=False))}) == 6
    assert all(map(torch.equal, text.held_out(64), Windows(length=32, rows=4).held_out(64)))


def test_samples_of_a_file_that_changed_are_cut_anew(tmp_path):
    write = lambda word: [(tmp_path / f"{i}.txt").write_text(word * 40) for i in range(8)]
    write("memory ")
    task = TextSamples(corpus=str(tmp_path), samples=4, rows=2, length=16)
    before, ids = task.fingerprint(0), task.training(0)[0]
    assert task.training(0)[0] is ids, "made once"
    write("nothing at all ")
    assert task.fingerprint(0) != before and not torch.equal(task.training(0)[0], ids)
