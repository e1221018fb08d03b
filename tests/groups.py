"Which tests a worker runs together under pytest-xdist: a file, so that what its tests share is trained once; of the pages that are reproduced, each by itself."
import pytest

# what begins: the pages, then the files that take longest
LONGEST = ["test_reproduce", "test_infini", "test_infini_memory", "test_compiled", "test_mqar", "test_renew", "test_residual_growth", "test_resume", "test_parallel", "test_processes", "test_torchrun", "test_site", "test_study", "test_reversal", "test_wheel", "test_cli"]


def group(nodeid: str) -> str:
    "Named by the file, and for a page by its study, as it stands in brackets."
    file, _, test = nodeid.partition("::")
    return file + test[test.find("["):] if file.endswith("test_reproduce.py") else file


def pytest_collection_modifyitems(items):
    "The longest first, so that two workers end together."
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "Marks that name groups reach no scheduler of pytest-xdist 3.8 under pytest 9.2, which keeps a test's name elsewhere; so `--dist loadfile` is this one."
    if config.getvalue("dist") != "loadfile": return None
    from xdist.scheduler import LoadScopeScheduling
    class Grouped(LoadScopeScheduling):
        def _split_scope(self, nodeid): return group(nodeid)
    return Grouped(config, log)
