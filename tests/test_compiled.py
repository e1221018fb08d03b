"""Mixers with a state passed in, and models with documents in their rows, are one graph to `torch.compile` and give what they give without: a mixer of each module; `--slow` compiles every mixer, with inductor too."""
import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize('backend', ['aot_eager', 'inductor'])
def test_layers_and_models_are_one_graph(backend, request):
    slow = request.config.getoption('--slow')
    if backend == 'inductor' and not slow: pytest.skip('inductor takes minutes: ask for it with --slow')
    done = subprocess.run([sys.executable, Path(__file__).with_name('compiled.py'), backend, *['all'] * slow], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout)
    assert len(errors) == (26 if slow else 8) and not {name: said for name, said in errors.items() if isinstance(said, str) or not said < 1e-5}
