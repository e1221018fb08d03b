"Numbers that were typed into the text of a study's page are those that its claims read."
import json
import re
from functools import cache
from pathlib import Path

import pytest

from memlab.lab.claims import read_claims

ROOT = Path(__file__).resolve().parents[1]
E, LOW, HIGH, LESS = 'effect', 'ci_low', 'ci_high', -1
SAID = {   # words of a page -> what each of their numbers is, with LESS where words turn its sign; None: a level that no claim reads
    'residual_growth': {
        'and costs .04 with independent layers': [('RG10b', E)],
        'With independent layers it costs .04.': [('RG10b', E)],
        'halved attention is level from step 20 to step 200 and costs .03 in the end': [('RG11b', E)],
        'where it saves .07 nats here': [('RG17a', E)],
        '.03 at step 500 and .01 in the end': [None, ('RG17b', E)],
    },
    'memory_loops': {
        '(*ML6d*, added later): .25 nats [.09, .41]': [('ML6d', E), ('ML6d', LOW), ('ML6d', HIGH)],
        'a cycle ends .25 nats lower than the slot-locked shuffle': [('ML6d', E)],
        'Its interval, .09 to .41,': [('ML6d', LOW), ('ML6d', HIGH)],
        'beyond them it is .22 either way': [('ML1d', E)],
        'even the best later score is .07 below': [('ML1e', E, LESS)],
        'rises beyond controls (-.003)': [('ML2', E)],
        '(*ML1c*, refuted: .15 less without gradients)': [('ML1c', E, LESS)],
        '(*ML8a*, -.46 nats': [('ML8a', E)],
        'the own answer gains .74 nats': [('ML8d', E)],
        'it gains .65: probably as much (*ML8e*, open: .09 less, and up to .17)': [None, ('ML8e', E), ('ML8e', HIGH)],
        '(*ML8f*, .83 less)': [('ML8f', E)],
        '(*ML9a*, -.003)': [('ML9a', E)],
        'a lock of .13 [.08, .19]': [('ML9b', E), ('ML9b', LOW), ('ML9b', HIGH)],
        'an answer gains .26 nats on the other (*ML9f*': [('ML9f', E)],
        'grows by .16 where steps are turned against the other loop (*ML15f*, open), and shrinks by .11': [('ML15f', E), ('ML15h', E, LESS)],
        'is .36 nats (.71 against .34; *ML22e*': [('ML22e', E), None, None],
        'the .58 between them and spaced ones (*ML22c*)': [('ML22c', E)],
        'the others a little *better* (.016)': [('ML22d', E)],
        'it keeps them .8 times as long [.64, 1.0] (*ML21b*': [('ML21b', E), ('ML21b', LOW), ('ML21b', HIGH)],
    },
}


@cache
def known(study):
    "The text of a page, and what its claims read."
    cells = json.loads((ROOT/'nbs'/'studies'/f'{study}.ipynb').read_text(encoding='utf-8'))['cells']
    rows = read_claims(ROOT/'data'/'results'/study/'cpu'/'claims.json')
    return '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown'), {r['id']: r for r in rows}


@pytest.mark.parametrize('study, words', [(study, words) for study in SAID for words in SAID[study]])
def test_the_text_says_what_the_claims_read(study, words):
    text, rows = known(study)
    assert words in text
    numbers = re.findall(r'-?\d*\.\d+', words.replace('−', '-'))
    assert len(numbers) == len(SAID[study][words])
    for number, ask in zip(numbers, SAID[study][words]):
        if not ask: continue
        id, field, sign = (*ask, 1)[:3]
        assert abs(float(number) - sign * rows[id][field]) <= .5 * 10. ** -len(number.partition('.')[2]) + 1e-6, (number, ask, rows[id][field])
