"""Every mixer with a state passed in, and models with documents in their rows, are one graph to `torch.compile` and give what they give without. `--slow` compiles with inductor too."""
import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize('backend', ['aot_eager', 'inductor'])
def test_layers_and_models_are_one_graph(backend, request):
    if backend == 'inductor' and not request.config.getoption('--slow'): pytest.skip('inductor takes minutes: ask for it with --slow')
    done = subprocess.run([sys.executable, Path(__file__).with_name('compiled.py'), backend], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout)
    assert len(errors) == 14 and not {name: said for name, said in errors.items() if isinstance(said, str) or not said < 1e-5}
