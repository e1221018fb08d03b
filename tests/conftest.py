"What every test gets: one torch thread, checked shapes in memlab, and the optional data folder beside the tree."
from pathlib import Path

import jaxtyping
import pytest
import torch

SHAPED = ["memlab.data.tokens", "memlab.data.recall", "memlab.data.samples", "memlab.data.digits", "memlab.data.ordered", "memlab.data.facts", "memlab.nn", "memlab.train", "memlab.eval"]  # where shapes stand in signatures
jaxtyping.install_import_hook(SHAPED, "shapes.checked")  # before any test imports memlab
torch.set_num_threads(1)


LONGEST = ["test_reproduce", "test_site", "test_infini", "test_infini_memory", "test_mqar", "test_renew", "test_residual_growth", "test_resume", "test_reversal", "test_wheel"]


def pytest_collection_modifyitems(items):
    "The longest files first: two workers, each of which takes whole files (a fixture trains once), then end together."
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


def pytest_addoption(parser):
    parser.addoption("--many", action="store_true", help="a thousand changed files a kind in test_fuzz.py, instead of sixty")
    parser.addoption("--slow", action="store_true", help="also what takes minutes: layers compiled with inductor in test_compiled.py")
