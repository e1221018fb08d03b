"A wheel built from the tree works in an empty folder, with nothing of the tree in sight."
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ["settings.ini", "setup.py", "README.md", "LICENSE", "MANIFEST.in", "memlab"]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def run(*command, **options) -> str:
    "Standard output of a command that must succeed."
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    "A folder that holds memlab as its wheel installs it."
    tmp = tmp_path_factory.mktemp("wheel")
    (tmp / "tree").mkdir()
    for name in SOURCES:
        if (ROOT / name).is_file(): shutil.copy(ROOT / name, tmp / "tree" / name)
        else: shutil.copytree(ROOT / name, tmp / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))  # other tests write there meanwhile
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp), ".", cwd=tmp / "tree")
    run(*PIP, "install", "--no-deps", "--target", str(tmp / "site"), *map(str, tmp.glob("*.whl")))
    return tmp / "site"


@pytest.fixture
def python(installed, tmp_path):
    "Run Python in an empty folder where only the installed memlab can be found."
    hidden = {name: value for name, value in os.environ.items() if name != "MEMLAB_HOME"}
    return lambda *args: run(sys.executable, *args, cwd=tmp_path, env=hidden | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"})


def test_wheel_holds_the_package_and_nothing_else(installed):
    assert (installed / "memlab" / "py.typed").exists()
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "memlab").rglob("*.py")}
    assert modules == {p.relative_to(installed).as_posix() for p in installed.rglob("*.py")}


def test_import_is_the_installed_one(python, installed):
    assert Path(python("-c", "import memlab; print(memlab.__file__)").strip()).is_relative_to(installed)


def test_list_names_every_study(python, tmp_path, lend_text):
    lend_text(tmp_path)
    listed = python("-m", "memlab.cli", "list")
    for study in [p.stem for p in (ROOT / "nbs" / "studies").glob("[!_]*.ipynb")] or ["no studies"]: assert study in listed


def test_run_says_at_once_that_there_is_no_notebook(python, tmp_path):
    said = python("-c", "from click.testing import CliRunner\nfrom memlab.cli import main\nr = CliRunner().invoke(main, ['run', 'residual_growth'])\nprint(r.exit_code, r.output)")
    assert said.startswith("2 ") and "add --no-notebook" in said and not any(tmp_path.iterdir())


TRAIN = """
from memlab.data.corpus import load_corpus
from memlab.data.tokens import TokenStore, byte_tokenizer, shift, windows
from memlab.nn.blocks import BlockConfig
from memlab.nn.lm import residual_lm
from memlab.train.loop import FitConfig, fit_model
from memlab.train.optim import AdamWConfig
from memlab.train.schedule import Constant
from memlab.train.losses import lm_loss

def loss(model, ids): return lm_loss(model, *shift(ids))

store = TokenStore.build(load_corpus('stdlib-docs'), byte_tokenizer())
model = residual_lm(BlockConfig(n_layers=2, d_model=32), store.vocab_size, max_len=32)
config = FitConfig(steps=5, optimizer=AdamWConfig(lr=1e-2), schedule=Constant(warmup=0))
result = fit_model(model, lambda step: windows(store, batch=8, length=32, seed=0, step=step).ids, loss, config)
losses = [r['value'] for r in result.records if r['metric'] == 'loss']
print(result.status, len(losses), losses[-1] < losses[0] - 0.5)
"""


def test_five_steps_of_training_on_real_text(python):
    assert python("-c", TRAIN).split() == ["finished", "5", "True"]
