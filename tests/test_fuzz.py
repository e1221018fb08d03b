"""Files that were changed by a disk, a copy or an editor: each is refused by name, or says what was written. `--many` tries a thousand changes a kind."""
import random

import pytest
import torch
import toy

from memlab.core.files import load_tensors, read_json, save_tensors
from memlab.data import corpus as corpora
from memlab.data.corpus import Corpus, Document, load_corpus
from memlab.data.tokens import TokenStore, byte_tokenizer, load_tokenizer
from memlab.lab.claims import read_claims
from memlab.lab.records import RECORDS, RUNS, read_table
from memlab.lab.renew import REHEARSALS
from memlab.nn.memory import load_memory, save_memory
from memlab.nn.mixer_lm import MixerLMConfig, mixer_config
from memlab.train.learner import Learner
from memlab.train.loop import CHECKPOINT, FitConfig, fit_model
from memlab.train.optim import AdamWConfig

TRIES = 60


# -- changes ----------------------------------------------------------------------------------------------------------

def flip(data, r): i = r.randrange(8*len(data)); data[i // 8] ^= 1 << i % 8
def cut(data, r): del data[r.randrange(len(data)):]
def drop(data, r): i = r.randrange(len(data)); del data[i:i + r.randint(1, 16)]
def insert(data, r): i = r.randrange(len(data)); data[i:i] = r.randbytes(r.randint(1, 16))
def blank(data, r): i, n = r.randrange(len(data)), r.choice((1, 8, 64)); data[i:i + n] = bytes(len(data[i:i + n]))
def shift(data, r): i, j, n = r.randrange(len(data)), r.randrange(len(data)), r.choice((1, 8, 64)); data[i:i + n] = data[j:j + n]
def noise(data, r): i, n = r.randrange(len(data)), r.choice((1, 4, 16)); data[i:i + n] = r.randbytes(len(data[i:i + n]))


CHANGES = flip, flip, flip, cut, drop, insert, blank, shift, noise


def changed(data: bytes, seed) -> bytes:
    "The bytes after one change, drawn by a seed."
    r, out = random.Random(seed), bytearray(data)
    while bytes(out) == data: r.choice(CHANGES)(out, r)
    return bytes(out)


# -- kinds of file ----------------------------------------------------------------------------------------------------

def checkpoint(home):
    "A checkpoint, and the weights, moments and records in it."
    build = lambda: torch.nn.Linear(4, 2)
    def batch(step): return torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
    def loss(model, x): return (o := model(x).square().sum()), o.detach(), len(x)
    fit_model(build(), batch, loss, FitConfig(steps=4), folder=home)
    def read():
        tensors, header = load_tensors(home/CHECKPOINT)
        model = build()
        Learner(model, AdamWConfig().build(model)).unpack(tensors)
        return {n: u.tolist() for n, u in tensors.items()}, header
    return [home/CHECKPOINT], read


def tensors(home):
    "Tensors of several types with a header."
    save_tensors(home/'t', dict(a=torch.arange(5), b=torch.randn(3, 3).bfloat16(), c=torch.tensor(True)), dict(note='x'))
    return [home/'t'], lambda: ({n: u.tolist() for n, u in load_tensors(home/'t')[0].items()}, load_tensors(home/'t')[1])


def memory(home):
    "A memory file."
    model = MixerLMConfig(vocab_size=16, mixers=(mixer_config('delta', d_model=8), mixer_config('attention', d_model=8))).build()
    with torch.no_grad(): save_memory(home/'m', model, model.features(torch.arange(7)[None])[1])
    return [home/'m'], lambda: [u.tolist() for s in load_memory(home/'m', model) for u in s.tensors().values()]


def results(home):
    "Where a study of two arms has its results."
    study = toy.make()
    study.run('cpu', progress=False), study.verdicts('cpu')
    return study.results('cpu'), study


def table(name, schema):
    def kind(home):
        where, _ = results(home)
        return [where/name], lambda: read_table(where/name, schema).to_pylist()
    return kind


def verdicts(home):
    where, _ = results(home)
    return [where/'claims.json'], lambda: repr(read_claims(where/'claims.json'))


def configurations(home):
    where, _ = results(home)
    return [where/'arms.json'], lambda: read_json(where/'arms.json')


def summary(home):
    _, study = results(home)
    done = next(study.folder('cpu').glob('*/done.json'))
    return [done], lambda: read_json(done)


def corpus(home):
    "The cached text of an embedded corpus."
    found = lambda: [(d.title, d.text) for d in load_corpus('stdlib-docs').documents]
    found()
    return list((home/'build'/'corpus').glob('*.json')), found


def store(home):
    "The files of a token store."
    text = Corpus('c', [Document(f'text {i}', 'some words '*i) for i in range(1, 6)])
    def read():
        s = TokenStore.build(text, byte_tokenizer())
        return s.ids.tolist(), s.starts.tolist(), s.vocab_size, s.separator, s.fingerprint, s.tokenizer
    read()
    return [f for f in (home/'build'/'tokens').rglob('*') if f.is_file() and f.suffix != '.lock'], read


def bpe(home):
    "A tokenizer that was made from a text."
    text = Corpus('c', [Document('x', 'the cat sat on the mat '*9)])
    read = lambda: load_tokenizer('bpe:260', text).encode('the cat sat on another mat').tolist()
    read()
    return list((home/'build'/'tokenizers').glob('*.json')), read


KINDS = dict(checkpoint=checkpoint, tensors=tensors, memory=memory, runs=table('runs.parquet', RUNS), records=table('records.parquet', RECORDS), rehearsals=table('rehearsals.parquet', REHEARSALS),
             verdicts=verdicts, configurations=configurations, summary=summary, corpus=corpus, store=store, bpe=bpe)


# -- the trial --------------------------------------------------------------------------------------------------------

def reply(read, want, file) -> str:
    "What became of one changed file: 'noticed', 'silent', or the error that does not name it."
    try: got = read()
    except ValueError as error: return 'noticed' if file.name in str(error) or file.parent.name in str(error) else f'unnamed: {error!r}'
    except Exception as error: return f'unclear: {error!r}'
    return 'noticed' if got == want else 'silent'     # a change of nothing that is read


@pytest.mark.parametrize('kind', KINDS)
def test_no_changed_file_is_believed(kind, tmp_path, monkeypatch, request):
    "Whatever happens to a file, it is refused by a ValueError that names it, or reads as it was written."
    monkeypatch.setenv('MEMLAB_HOME', str(tmp_path))
    monkeypatch.setitem(corpora.EMBEDDED, 'stdlib-docs', lambda: [Document(f'f{i}', f'Returns {i}.') for i in range(9)])
    files, read = KINDS[kind](tmp_path)
    want, bad, tries = read(), [], 1000 if request.config.getoption('--many') else TRIES
    assert files
    for seed in range(tries):
        file = files[seed % len(files)]
        whole = file.read_bytes()
        file.write_bytes(changed(whole, seed))
        if (said := reply(read, want, file)) != 'noticed': bad.append((file.name, seed, said))
        file.write_bytes(whole)
    assert read() == want
    assert not bad, f'{len(bad)} of {tries}: {bad[:5]}'
