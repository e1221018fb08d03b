"What the pages of studies say in prose and in their boxes, beside what was measured."
import ast
import json
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import pandas as pd

from memlab.core.files import read_json
from memlab.lab.claims import read_claims
from memlab.lab.records import RECORDS, RUNS, frame, read_table
from memlab.lab.values import rows_of

ROOT = Path(__file__).resolve().parents[1]
NUMBER = re.compile(r'(?<![\w.])[-−+]?(?:\d{1,3}(?:,\d{3})+|\d*\.?\d+)')
MEASURED = re.compile(r'(?<![\w.])[-−+]?\d*\.\d+(?!\w)|(?<![\w.])\d+(?= (?:%|times|of \d))')
# where numbers measure nothing: code, equations, addresses, headings, tables, ids of claims and papers, years
QUIET = re.compile(r'```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]*\$|\]\([^)]*\)|^#+ [^\n]*|^\|[^\n]*|\b[A-Z]{2}\d+[a-z]?\b|arXiv \d+\.\d+|\b(?:19|20)\d\d\b', re.M | re.S)


@cache
def cells(study: str) -> list[dict]: return json.loads((ROOT/'nbs'/'studies'/f'{study}.ipynb').read_text(encoding='utf-8'))['cells']


def sources(study: str, kind: str) -> list[str]: return [''.join(c['source']) for c in cells(study) if c['cell_type'] == kind]
def box_words(study: str) -> str: return next(''.join(c['outputs'][0]['data']['text/markdown']) for c in cells(study) if 'box(study' in ''.join(c['source']))


@cache
def prose(study: str) -> str:
    "The text of a page, its references left out."
    return '\n\n'.join(t for t in sources(study, 'markdown') if not t.startswith('## References'))


@cache
def boxed(study: str) -> str:
    "What is typed in the cells of a page's boxes, beside what their claims read: the strings, without what is filled in."
    return '\n\n'.join(w for s in sources(study, 'code') if 'box(study' in s for w in _strings(ast.parse(s)))


def _strings(node):
    if isinstance(node, ast.Constant): return [node.value] if isinstance(node.value, str) else []
    return [] if isinstance(node, ast.FormattedValue) else [w for inner in ast.iter_child_nodes(node) for w in _strings(inner)]


def results(study: str) -> Path: return ROOT/'data'/'results'/study/'cpu'   # the committed ones, whatever MEMLAB_HOME is


@cache
def records(study: str) -> pd.DataFrame: return frame(read_table(results(study)/'records.parquet', RECORDS))


@cache
def runs(study: str) -> pd.DataFrame: return frame(read_table(results(study)/'runs.parquet', RUNS))


@cache
def planned(study: str) -> dict[str, dict]: return read_json(results(study)/'arms.json')


@cache
def claims(study: str) -> dict[str, dict]: return {r['id']: r for r in read_claims(results(study)/'claims.json')}


@cache
def by_arm(study: str) -> dict[str, pd.DataFrame]: return dict(list(records(study).groupby('arm')))


@cache
def read(study: str, *metrics: str) -> pd.DataFrame: return records(study)[lambda r: r.metric.isin(metrics)]


def mean(study: str, metric: str, arm: str, **where) -> float: return rows_of(read(study, metric), metric, arm, **where).groupby('seed').value.mean().mean()
def claim(study: str, id: str, field: str = 'effect'): return claims(study)[id][field]
def percent(study: str, id: str) -> float: return float(re.search(r'(\d+) % interval', claim(study, id, 'rule'))[1])


def before(study: str, id: str, verdict: str) -> float:
    "The effect of a claim when it had that verdict."
    return next(r['effect'] for r in read_json(results(study)/'history.json') if (r['id'], r['verdict']) == (id, verdict))


def has(study: str, words: str) -> bool: return words in prose(study) or words in boxed(study)


def agrees(number: str, value) -> bool:
    "A typed number is that value, to the digits shown; that of each of a tuple; after '<' or '>', each of the rest is exactly below or above the number. None: it was set, not measured."
    digits = number.replace('−', '-').replace(',', '')
    said, (first, *more) = float(digits), value if isinstance(value, tuple) else (value,)
    if first in ('<', '>'): return more != [] and all(v < said if first == '<' else v > said for v in more)
    return all(v is None or abs(said - v) <= .5 * 10. ** -len(digits.partition('.')[2]) + 1e-6 for v in (first, *more))


def check(study: str, words: str, measured: Callable[[], list]):
    "The page has these words, and each of their numbers is what was measured."
    assert has(study, words), 'the page has no such words'
    for number, value in zip(NUMBER.findall(QUIET.sub(' ', words)), measured(), strict=True): assert agrees(number, value), (number, value)


def check_words(study: str, words: str, borne_out: Callable[[], bool]): assert has(study, words) and borne_out()


def untested(study: str, words: Iterable[str]) -> list[str]:
    "Numbers of a page that look measured (with a decimal point, in %, so many times, so many of so many; no other whole ones) and stand in none of these words, with what is around them."
    text = prose(study) + '\n\n' + boxed(study)
    for w in sorted(words, key=len, reverse=True): text = text.replace(w, ' ')
    text = QUIET.sub(' ', text)
    return [text[max(0, m.start() - 50):m.end() + 20].replace('\n', ' ') for m in MEASURED.finditer(text)]
