"What every test gets: one torch thread, checked shapes in memlab, the text of this Python, and the optional data folder beside the tree."
import shutil
from pathlib import Path

import pytest
import shapes
import torch

SHAPED = ["memlab.data.tokens", "memlab.data.recall", "memlab.data.samples", "memlab.data.digits", "memlab.data.cifar", "memlab.data.patches", "memlab.data.vae", "memlab.data.image_task", "memlab.data.ordered", "memlab.data.facts", "memlab.nn", "memlab.train", "memlab.eval"]  # where shapes stand in signatures
shapes.install(SHAPED)  # before any test imports memlab
torch.set_num_threads(1)


# which groups of tests begin: pages, one a worker at a time, then the files that take longest
LONGEST = ["test_reproduce", "test_infini", "test_infini_memory", "test_site", "test_mqar", "test_renew", "test_residual_growth", "test_resume", "test_compiled", "test_reversal", "test_wheel"]


@pytest.hookimpl(tryfirst=True)   # before xdist reads the groups
def pytest_collection_modifyitems(items):
    "A file is a group, whole on one worker (a fixture trains once), unless its tests name groups of their own; the longest first, so that two workers end together."
    for item in items:
        if not item.get_closest_marker("xdist_group"): item.add_marker(pytest.mark.xdist_group(item.path.stem))
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


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
