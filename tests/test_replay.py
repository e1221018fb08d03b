"""Committed numbers are still what the code gives: the first steps of two runs of every study are executed again."""
import pytest

from memlab.lab.study import find_study, study_names


def committed():
    "The first and the last run of every committed table."
    out = []
    for name in study_names():
        study = find_study(name)
        for preset in study.presets:
            if preset != 'quick' and (study.results(preset)/'runs.parquet').exists():
                ids = study.load(preset)[0].run_id
                out += [pytest.param(name, preset, i, id=f'{name}-{preset}-{i}') for i in dict.fromkeys((ids.iloc[0], ids.iloc[-1]))]
    return out or [pytest.param('', '', '', marks=pytest.mark.skip(reason='no committed tables yet'), id='none')]


@pytest.mark.parametrize('name, preset, run_id', committed())
def test_replay(name, preset, run_id):
    study = find_study(name)
    row = study.load(preset)[0].set_index('run_id').loc[run_id]
    if '-cpu-' not in row.env: pytest.skip(f'computed on {row.env}')
    if run_id in study.stale(preset): pytest.skip('stale: the code has changed since')
    if run_id not in {r.run_id for r in study.runs(preset)}: pytest.skip(f'computed on another text ({row.corpus}): another Python carries other text')
    both = study.replay(preset, run_id)
    assert len(both) and (both.stored - both.replayed).abs().max() <= 1e-4, both.to_string()
