"A wheel built from the tree works in an empty folder, with nothing of the tree in sight."
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from memlab import EXTRAS

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ["settings.ini", "setup.py", "README.md", "LICENSE", "MANIFEST.in", "memlab"]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def run(*command, **options) -> str:
    "Standard output of a command that must succeed."
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copied(names, to: Path) -> Path:
    "Some files and folders of the tree in another place; other tests write into the tree meanwhile."
    to.mkdir()
    for name in names:
        if (ROOT / name).is_file(): shutil.copy(ROOT / name, to / name)
        else: shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    return to


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    "The wheel of this tree."
    tmp = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp), ".", cwd=copied(SOURCES, tmp / "tree"))
    return next(tmp.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    "A folder that holds memlab as its wheel installs it."
    site = tmp_path_factory.mktemp("installed")
    run(*PIP, "install", "--no-deps", "--target", str(site), str(wheel))
    return site


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
    listed = python("-m", "memlab", "list")
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


# -- the core install -------------------------------------------------------------------------------------------------

def needed(names) -> dict:
    "Distributions that some requirements bring, by name; what only an extra asks for is not among them."
    found, todo = {}, list(map(Requirement, names))
    while todo:
        r = todo.pop()
        if r.name in found or r.marker and not r.marker.evaluate(dict(extra="")): continue
        found[r.name] = importlib.metadata.distribution(r.name)
        todo += map(Requirement, found[r.name].requires or [])
    return found


@pytest.fixture(scope="module")
def core(installed, tmp_path_factory) -> Path:
    "A folder that holds memlab and what its core requirements bring, as links; run Python with -S, and there is nothing else."
    ini, folder = ConfigParser(), tmp_path_factory.mktemp("core")
    ini.read(ROOT / "settings.ini")
    for d in needed(ini["DEFAULT"]["requirements"].split()).values():
        for top in {f.parts[0] for f in d.files} - {"..", "bin", "__pycache__"}: (folder / top).symlink_to(d.locate_file(top))
    (folder / "memlab").symlink_to(installed / "memlab")
    return folder


@pytest.fixture
def bare(core, tmp_path):
    "Run Python in an empty folder with the core install alone; returns the exit code and everything it said."
    def bare(*args):
        kept = {name: value for name, value in os.environ.items() if name not in ("MEMLAB_HOME", "PYTHONPATH")}
        done = subprocess.run([sys.executable, "-S", *args], cwd=tmp_path, env=kept | {"PYTHONPATH": str(core), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr
    return bare


CORE = """
import importlib.util, sys
from memlab.data.recall import RecallConfig
from memlab.data.recall_task import RecallTask
from memlab.nn.mixer_lm import MixerLMConfig, mixer_config
from memlab.nn.saved import MixerLM
from memlab.train.loop import FitConfig, fit_model
from memlab.train.losses import recall_loss
from memlab.train.optim import AdamWConfig

task = RecallTask(configs=(RecallConfig(vocab_size=32, length=16, pairs=2),), rows=16)
model = MixerLM(MixerLMConfig(vocab_size=32, mixers=(mixer_config('delta', d_model=16, n_heads=1),)))
result = fit_model(model, task.batches(0), recall_loss, FitConfig(steps=20, optimizer=AdamWConfig(lr=1e-2)))
losses = [r['value'] for r in result.records if r['metric'] == 'loss']
back = MixerLM.from_pretrained(model.save_pretrained('model'))
ids = task.test(4, 0).ids
print(result.status, losses[-1] < losses[0], back(ids)[0].equal(model(ids)[0]), back.generate(ids, 3).lengths.tolist())
print([name for name in ('pandas', 'pyarrow', 'scipy', 'click', 'joblib', 'tokenizers', 'sklearn') if importlib.util.find_spec(name)])
"""


LIGHT = """
import sys, time, torch
known, start = set(sys.modules), time.perf_counter()
import memlab.nn.delta
top = lambda modules: {m.partition('.')[0] for m in modules}
print(time.perf_counter() - start, *sorted(top(sys.modules) - top(known)))
"""


def test_the_core_install_trains_saves_and_reloads_a_model(bare):
    "A layer loads little beside torch: 0.3 s is what is asked, the limit here is for a busy machine; what it loads does not depend on that."
    code, said = bare("-c", LIGHT + CORE)
    (seconds, *loaded), rest = said.partition("\n")[0].split(), said.partition("\n")[2]
    assert code == 0 and rest == "finished True True [19, 19, 19, 19]\n[]\n", said
    assert float(seconds) < 3 and set(loaded) - set(sys.stdlib_module_names) <= {"memlab", "einops", "jaxtyping", "wadler_lindig"}, loaded


def test_what_an_extra_brings_is_named_where_it_is_missing(bare, tmp_path):
    for words in (["list"], ["run", "mqar", "--no-notebook"], ["train", "mqar"], ["--help"]):
        code, said = bare("-m", "memlab", *words)
        assert code == 1 and said == "memlab.cli needs click, which is missing: pip install 'memlab[run]'\n", said
    assert not any(tmp_path.iterdir())


def test_an_extra_is_named_for_what_is_missing_beside_click(bare, core, tmp_path):
    (tmp_path / "click").symlink_to(Path(importlib.util.find_spec("click").origin).parent)
    code, said = bare("-m", "memlab", "list")
    assert code == 1 and said.splitlines()[-1] == "Error: memlab.lab.study needs pandas, which is missing: pip install 'memlab[run]'", said
    assert bare("-m", "memlab", "--help")[0] == 0


EVERY = """
import importlib, pkgutil, memlab
for module in pkgutil.walk_packages(memlab.__path__, 'memlab.'):
    try: importlib.import_module(module.name)
    except (ImportError, SystemExit) as error: print(f'{module.name}: {error}')
try: importlib.import_module('memlab.data.tokens').FileTokenizer('', 'mine', 'mine.json')
except ImportError as error: print(f'asked later: {error}')
try: import pandas
except ImportError as error: print(f'asked by others: {error}')
"""


def test_every_module_that_needs_an_extra_names_it(bare):
    "With the core install alone, what it imports when it is imported and what it imports later."
    code, said = bare("-c", EVERY)
    lines = dict(line.split(": ", 1) for line in said.splitlines())
    assert code == 0 and lines.pop("asked by others") == "No module named 'pandas'", said
    assert lines.pop("asked later") == "memlab.data.tokens needs tokenizers, which is missing: pip install 'memlab[run]'"
    assert {"memlab.cli", "memlab.__main__", "memlab.lab.study", "memlab.lab.report", "memlab.studies.mqar"} <= lines.keys()
    for module, words in lines.items():
        package, extra = re.fullmatch(r"memlab\.[\w.]+ needs (\w+), which is missing: pip install 'memlab\[(\w+)\]'", words).groups()
        assert EXTRAS[package] == extra and module.split(".")[1] in ("lab", "studies", "cli", "__main__"), (module, words)


def test_the_package_knows_what_each_extra_brings():
    of, ini = importlib.metadata.packages_distributions(), ConfigParser()
    ini.read(ROOT / "settings.ini")
    brings = {name: {Requirement(word).name for word in ini["DEFAULT"][f"{name}_requirements"].split()} for name in {*EXTRAS.values()}}
    assert {m for m, name in EXTRAS.items() if m in of and not brings[name] & {d.lower().replace("_", "-") for d in of[m]}} <= {"IPython"}   # which ipykernel brings
    assert {d for m in EXTRAS for d in map(str.lower, of.get(m, ()))} >= brings["run"]


def distribution(installed) -> importlib.metadata.Distribution:
    "What the wheel says of itself."
    return importlib.metadata.Distribution.at(next(installed.glob("memlab-*.dist-info")))


def test_the_wheel_says_what_settings_say(installed, python):
    ini, said = ConfigParser(), distribution(installed)
    ini.read(ROOT / "settings.ini")
    cfg = ini["DEFAULT"]
    assert [said.metadata[n] for n in ("Name", "Version", "Requires-Python", "Summary")] == [cfg["lib_name"], cfg["version"], f">={cfg['min_python']}", cfg["description"]]
    assert said.metadata.get_payload().strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    assert {e.name: e.value for e in said.entry_points if e.group == "console_scripts"} == dict([cfg["console_scripts"].split("=")])
    assert python("-c", "import sys; from memlab.cli import main; main(['--version'])").strip() == f"memlab, version {cfg['version']}"


def test_extras_are_those_of_settings(installed):
    ini = ConfigParser()
    ini.read(ROOT / "settings.ini")
    said = distribution(installed).requires
    extra = lambda name: {Requirement(r).name for r in said if re.search(f"extra == .{name}.$", r)}
    assert extra("run") == {Requirement(word).name for word in ini["DEFAULT"]["run_requirements"].split()}
    assert extra("run") < extra("lab") and extra("run") < extra("cluster") and not extra("run") & extra("hub")
    assert {Requirement(r).name for r in said if "extra ==" not in r} == set("torch einops numpy safetensors jaxtyping fastcore tqdm xxhash".split())


def test_a_fresh_environment_needs_the_wheel_alone(wheel, tmp_path, request):
    "pip finds what the core needs, and nothing else is there."
    if not request.config.getoption("--slow"): pytest.skip("torch is installed anew, which takes minutes: --slow")
    run(sys.executable, "-m", "venv", str(tmp_path / "venv"))
    python = tmp_path / "venv" / "bin" / "python"
    run(str(python), "-m", "pip", "--quiet", "install", str(wheel))
    env = {name: value for name, value in os.environ.items() if name not in ("MEMLAB_HOME", "PYTHONPATH")}
    assert run(str(python), "-c", CORE, cwd=tmp_path, env=env).splitlines() == ["finished True True [19, 19, 19, 19]", "[]"]


# -- the source distribution ------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    "What is in the source distribution."
    tmp = tmp_path_factory.mktemp("sdist")
    tree = copied([*SOURCES, "constraints.txt", "CITATION.cff", "Makefile", "tests", "tools", "bench", "nbs"], tmp / "tree")
    run(sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", str(tmp), cwd=tree)
    shutil.unpack_archive(next(tmp.glob("*.tar.gz")), tmp / "out", filter="data")
    return next((tmp / "out").iterdir())


def test_the_source_distribution_holds_sources_and_tests(unpacked):
    files = lambda root: {p.relative_to(root).as_posix() for name in ("memlab", "nbs", "tests", "tools", "bench") for p in (root / name).rglob("*.*") if p.is_file()}
    ours = {f for f in files(ROOT) if "__pycache__" not in f and ".ipynb_checkpoints" not in f and ".last_checked" not in f}
    assert files(unpacked) == ours and {"settings.ini", "Makefile", "constraints.txt"} <= {p.name for p in unpacked.iterdir()}


def test_its_tests_collect(unpacked, request):
    if not request.config.getoption("--slow"): pytest.skip("collecting the whole suite takes half a minute: --slow")
    env = {name: value for name, value in os.environ.items() if name != "MEMLAB_HOME"} | {"PYTHONPATH": str(unpacked)}
    assert "error" not in run(sys.executable, "-m", "pytest", "-q", "--collect-only", "tests", cwd=unpacked, env=env).splitlines()[-1]
