"The types that a user's editor shows: a script that builds, trains, streams and saves runs, and a type checker finds nothing in it."
import json
import subprocess
import sys
from pathlib import Path

import pytest
import user_script

ROOT = Path(__file__).resolve().parents[1]


def pyright(*files):
    "What pyright says of some files, a line each."
    done = subprocess.run([sys.executable, '-m', 'pyright', '--outputjson', '--pythonpath', sys.executable, *map(str, files)], cwd=ROOT, capture_output=True, text=True)
    try: found = json.loads(done.stdout)
    except ValueError: pytest.skip(f'pyright is not to be had here (it is fetched with npm when it first runs): {done.stderr[-300:]}')
    assert found['summary']['filesAnalyzed'] == len(files)
    return [f"{Path(d['file']).name}:{d['range']['start']['line'] + 1}: {d['message']}" for d in found['generalDiagnostics']]


def test_the_script_of_a_user_runs(tmp_path):
    assert len(user_script.main(tmp_path)) > 0
    assert {'memory.safetensors', 'weights.pt', 'run'} == {f.name for f in tmp_path.iterdir()}


def test_nothing_in_it_puzzles_a_type_checker():
    assert pyright(ROOT/'tests'/'user_script.py') == []


def test_initial_weights_leave_a_model_its_type(tmp_path):
    (tmp_path/'told.py').write_text('from memlab.nn.delta import DeltaNetConfig\nfrom memlab.nn.init import init_parameters\n'
                                    'reveal_type(init_parameters(DeltaNetConfig(d_model=8).build(), 0))\n')
    told, = pyright(tmp_path/'told.py')
    assert told.endswith('is "DeltaNet"')
