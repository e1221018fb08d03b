"What every test gets: one torch thread, checked shapes in memlab, the text of this Python, and the optional data folder beside the tree."
import shutil
import sys
from pathlib import Path

import pytest
import shapes
import torch
from groups import pytest_collection_modifyitems, pytest_xdist_make_scheduler  # noqa: F401

SHAPED = ["memlab.data.tokens", "memlab.data.recall", "memlab.data.samples", "memlab.data.digits", "memlab.data.cifar", "memlab.data.patches", "memlab.data.vae", "memlab.data.image_task", "memlab.data.ordered", "memlab.data.facts", "memlab.data.rolling", "memlab.data.previous", "memlab.data.sentences", "memlab.data.coupling", "memlab.data.strings", "memlab.nn", "memlab.train", "memlab.eval"]  # where shapes stand in signatures
shapes.install(SHAPED)  # before any test imports memlab
torch.set_num_threads(1)
sys.modules.setdefault("rfc3987_syntax", None)  # a grammar of web addresses that jsonschema would build for nbformat, for two seconds, and never ask


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    "Real data kept beside the tree (`../shared/data`); tests that need it skip where it is absent."
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir(): pytest.skip("no ../shared/data here")
    return folder


@pytest.fixture(scope="session")
def lend_text():
    "Give another tree what this one has read of Python's own text; to read it anew takes seconds, and tests of the data and of the wheel do."
    from memlab.core.files import home
    from memlab.data.corpus import load_corpus
    load_corpus("stdlib-docs")
    kept = list((home() / "build" / "corpus").glob("stdlib-docs-*"))
    def lend(tree: Path) -> Path:
        (tree / "build" / "corpus").mkdir(parents=True)
        for f in kept: shutil.copy(f, tree / "build" / "corpus")
        return tree
    return lend


def pytest_addoption(parser):
    parser.addoption("--many", action="store_true", help="a thousand changed files a kind in test_fuzz.py, instead of sixty")
    parser.addoption("--slow", action="store_true", help="also what takes minutes: layers compiled with inductor in test_compiled.py")
