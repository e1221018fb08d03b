"""Tables of runs that never ran, for tests of what claims make of them."""
import re

import pyarrow as pa

from memlab.lab.board import finding_of
from memlab.lab.records import RECORDS, RUNS, frame, record_table


def of(value, seed):
    "A number, or the one for a seed."
    return value[seed % len(value)] if isinstance(value, (list, tuple)) else value


def tables(arms, rows):
    "Runs and records, as `Study.load` gives them: `arms` by name, each with `seeds`; `rows(arm, seed)` are the records of one run."
    todo = [(f'{name} {seed}', name, arm, seed) for name, arm in arms.items() for seed in range(arm.seeds)]
    runs = [dict(run_id=i, arm=name, seed=seed, status='finished') for i, name, _, seed in todo]
    records = pa.concat_tables([RECORDS.empty_table()] + [record_table(list(rows(arm, seed)), i, name, seed) for i, name, arm, seed in todo])
    return frame(pa.Table.from_pylist(runs, RUNS)), frame(records)


def without(runs, records, arm, seed=None):
    "Tables that lack an arm, or one seed of it."
    gone = lambda t: (t.arm == arm) & (True if seed is None else t.seed == seed)
    return runs[~gone(runs)], records[~gone(records)]


def diverged(runs, records, arm, seed):
    "Tables in which one run came to a bad end."
    runs = runs.copy()
    runs.loc[(runs.arm == arm) & (runs.seed == seed), ['status', 'diverged_at']] = 'diverged', 40
    return runs, records


def say_either_way(claims):
    "Every claim has a sentence of its own for being supported and for being refuted, whole and with its size; some say what to do."
    row = dict(effect=2., ci_low=1., ci_high=3., unit='times as soon')
    for claim in claims: assert {'supported', 'refuted'} <= set(claim.findings), claim.id
    said = [finding_of(claim, row | dict(verdict=verdict)) for claim in claims for verdict in claim.findings]
    assert len({says for says, _ in said}) == len(said) and any(so_what for _, so_what in said)
    for says, so_what in said:
        assert re.search(r'2\.0 \[-?\d\.0, -?\d\.0\] times as soon', says) and says.endswith('.') and not re.search(r"[{}]|  ", says), says
        assert not so_what or so_what.endswith('.'), so_what
