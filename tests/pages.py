"What the pages of studies say in prose, beside what was measured."
import json
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from memlab.lab.claims import read_claims
from memlab.lab.records import frame

ROOT = Path(__file__).resolve().parents[1]
NUMBER = re.compile(r'(?<![\w.])[-−+]?(?:\d{1,3}(?:,\d{3})+|\d*\.?\d+)')
MEASURED = re.compile(r'(?<![\w.])[-−+]?\d*\.\d+|(?<![\w.])\d+(?= (?:%|times|of \d))')
# where numbers measure nothing: code, equations, addresses, headings, tables, ids of claims and papers, years
QUIET = re.compile(r'```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]*\$|\]\([^)]*\)|^#+ [^\n]*|^\|[^\n]*|\b[A-Z]{2}\d+[a-z]?\b|arXiv \d+\.\d+|\b(?:19|20)\d\d\b', re.M | re.S)


@cache
def sources(study: str, kind: str) -> list[str]:
    "The cells of a page, of one kind."
    cells = json.loads((ROOT/'nbs'/'studies'/f'{study}.ipynb').read_text(encoding='utf-8'))['cells']
    return [''.join(c['source']) for c in cells if c['cell_type'] == kind]


@cache
def prose(study: str) -> str:
    "The text of a page, its references left out."
    return '\n\n'.join(t for t in sources(study, 'markdown') if not t.startswith('## References'))


@cache
def boxed(study: str) -> str:
    "What is typed into the boxes of a page, beside what their claims read."
    return '\n\n'.join(s for s in sources(study, 'code') if s.startswith('box('))


@cache
def records(study: str) -> pd.DataFrame:
    "What the committed runs measured."
    return pd.read_parquet(ROOT/'data'/'results'/study/'cpu'/'records.parquet')


@cache
def runs(study: str) -> pd.DataFrame:
    "The committed runs, wherever results are looked for meanwhile."
    return frame(pq.read_table(ROOT/'data'/'results'/study/'cpu'/'runs.parquet'))


@cache
def claims(study: str) -> dict[str, dict]:
    "What the claims of the committed runs read, by their id."
    return {r['id']: r for r in read_claims(ROOT/'data'/'results'/study/'cpu'/'claims.json')}


def check(study: str, words: str, measured: Callable[[], list[float | None]]):
    "The page has these words, and each of their numbers is what was measured, to the digits shown. None: it was set, not measured."
    assert words in prose(study) or words in boxed(study), 'the page has no such words'
    said = NUMBER.findall(QUIET.sub(' ', words))
    for number, value in zip(said, measured(), strict=True):
        digits = number.replace('−', '-').replace(',', '')
        if value is not None: assert abs(float(digits) - value) <= .5 * 10. ** -len(digits.partition('.')[2]) + 1e-6, (number, value)


def untested(study: str, words: Iterable[str]) -> list[str]:
    "Numbers of a page that look measured (with a decimal point, in %, so many times) and stand in none of these words, with what is around them."
    text = prose(study)
    for w in sorted(words, key=len, reverse=True): text = text.replace(w, ' ')
    text = QUIET.sub(' ', text)
    return [text[max(0, m.start() - 50):m.end() + 20].replace('\n', ' ') for m in MEASURED.finditer(text)]
