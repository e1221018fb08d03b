"Rehearsals: shrunken copies of every arm, and evaluators on planted answers, as records with the code and the environment that made them."
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import torch
from joblib import Parallel, delayed, parallel_config

from memlab.data.facts import facts
from memlab.data.recall import RecallConfig, recall_batch
from memlab.data.tokens import load_tokenizer
from memlab.eval.perplexity import Perplexity, counting_text, oracle
from memlab.eval.recall import score_answers, score_recall
from memlab.eval.reversal import score_reversal
from memlab.lab.records import RECORDS, record_table, write_table
from memlab.lab.runs import environment, one_thread
from memlab.lab.study import find_study
from memlab.train.loop import fit, record

STEPS, EVERY = 20, 5
fit.__kwdefaults__['save_every'] = EVERY
SCHEMA = pa.schema([f for f in RECORDS if f.name != 'run_id'] + [pa.field('code', pa.string()), pa.field('env', pa.string())])


def shrunken(arm):
    "Twenty steps, with warmup and schedule to match; arms without training are rehearsed whole."
    if not hasattr(arm, 'fit'): return arm
    n = min(STEPS, arm.fit.steps)
    share = lambda k: max(1, round(k * n / arm.fit.steps)) if k else 0
    more = dict(marks=(n,), evals=(0, EVERY, n)) if hasattr(arm, 'marks') else {}
    return replace(arm, fit=replace(arm.fit, steps=n, warmup=share(arm.fit.warmup), log_every=EVERY), **more)


def rehearse(study, arm, code):
    "Half of the steps, then, resumed, the rest and the whole evaluation."
    short, began = shrunken(arm), time.perf_counter()
    with tempfile.TemporaryDirectory() as d, one_thread():
        if hasattr(arm, 'fit'): study.execute(short, 0, Path(d), progress=False, stop=short.fit.steps // 2)
        out = study.execute(short, 0, Path(d), progress=False)
    rows = out.records + [record(0, 'parameters', out.params)]
    print(f'{arm.name:45s} {len(rows):6d} {time.perf_counter() - began:6.1f}', flush=True)
    return table(arm.name, rows, code, environment(arm))


def table(name, rows, code, env):
    t = record_table(rows, '', name, 0).drop_columns('run_id')
    for k, v in dict(code=code, env=env).items(): t = t.append_column(k, pa.array([v] * len(t)))
    return t.cast(SCHEMA)


def planted_recall():
    "Right answers, old values and wrong ones in turn."
    b = recall_batch(RecallConfig(vocab_size=64, length=96, pairs=12, updates=5), 32, seed=0, split='test')
    turn = torch.arange(12) % 3
    answers = b.answers.where(turn != 1, b.stale.clamp(min=0)).where(turn != 2, b.answers.roll(1, 1))
    s = score_answers(b, answers, 'planted')
    asked = score_recall(lambda ids: torch.zeros(*ids.shape, 64).scatter_(2, planted_next(ids, b.at, answers)[..., None], 1.), b)
    flat = lambda s, item: [record(0, n, getattr(s, n), item=item) for n in ('accuracy', 'untouched', 'updated', 'stale', 'in_row')]
    by = [record(0, f'accuracy_{n}', v, position=str(at)) for n in ('by_slot', 'by_age', 'by_pair') for at, v in getattr(s, n).items()]
    return flat(s, 'answers') + flat(asked, 'model') + by + [record(0, 'floor', v, item=k) for k, v in s.floors.items()]


def planted_next(ids, at, answers):
    "The token to say at each place: the answer where a query is."
    return torch.zeros_like(ids).scatter(1, at, answers)


def planted_text():
    "A model that counts right, one that is a token ahead, and one in between, on text that counts."
    text, half = counting_text(40, 7, 100, vocab_size=16), lambda ids: (oracle(16)(ids) + oracle(16, 2)(ids)) / 50
    ways = dict(document=Perplexity(length=16, guard=False), sliding=Perplexity(protocol='sliding', length=16, stride=4, guard=False),
                segment=Perplexity(protocol='segment', length=16, guard=False), twice=Perplexity(protocol='segment', length=16, labels_by=2, guard=False))
    out = []
    for name, p in ways.items():
        for who, model in dict(right=oracle(16), ahead=oracle(16, 2), half=half).items():
            s = p.score(model, text)
            out += [record(0, 'nll', s.nll, item=f'{name}, {who}'), record(0, 'unigram', s.unigram, item=f'{name}, {who}')]
            out += [record(0, f'nll_by_{n}', q.nll, position=str(q.start), item=f'{name}, {who}') for n in ('position', 'segment') for q in getattr(s, f'by_{n}')]
    return out


def planted_facts():
    "A model that has two facts of three by heart."
    tokenizer, told, out = load_tokenizer('bytes', []), facts(24, 0), []
    for relation in dict.fromkeys(f.relation for f in told):
        mine = [f for f in told if f.relation == relation]
        lines = [[tokenizer.separator, *map(int, tokenizer.encode(f.sentence(d)))] for i, f in enumerate(mine) if i % 3 for d in ('forward', 'backward')]
        after = {tuple(line[at:i]): line[i] for line in lines for at in (0, 1) for i in range(at + 1, len(line))}
        def model(ids):
            y = torch.zeros(*ids.shape, tokenizer.vocab_size)
            for b, row in enumerate(ids.tolist()):
                for t in range(len(row)):
                    if (nxt := after.get(tuple(row[:t + 1]))) is not None: y[b, t, nxt] = 6.
            return y
        for d in ('forward', 'backward'):
            s = score_reversal(model, mine, tokenizer, d)
            out += [record(0, n, getattr(s, n), item=f'{relation.name}, {d}') for n in ('nll', 'total', 'mrr', 'hit', 'chance', 'sentence_perplexity')]
    return out


PLANTED = dict(recall=planted_recall, text=planted_text, facts=planted_facts)
OF = dict(residual_growth=('text',), mqar=('recall',), infini_memory=('recall', 'text', 'facts'))


if __name__ == '__main__':
    name, preset = sys.argv[1:3]
    study = find_study(name)
    arms = list({r.arm.name: r.arm for r in study.runs(preset)}.values())
    codes, began = study.codes(arms), time.perf_counter()
    with parallel_config(backend='loky', inner_max_num_threads=1):
        parts = Parallel(2, batch_size=1)(delayed(rehearse)(study, a, codes[a.name]) for a in arms)
    parts += [table(f'planted {n}', PLANTED[n](), '', 'python3.11-torch2.13.0-cpu-float32') for n in OF[name]]
    where = study.results(preset)/'rehearsals.parquet'
    write_table(pa.concat_tables(parts), where)
    print(name, len(arms), 'arms', sum(map(len, parts)), 'records', where.stat().st_size, 'bytes', round(time.perf_counter() - began), 's')
