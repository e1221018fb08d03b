"The rules of the house: what every notebook and every module of the tree must look like."
import ast
import importlib
import importlib.metadata
import re
import statistics
import subprocess
import sys
from collections import Counter
from configparser import ConfigParser
from pathlib import Path

import jaxtyping
import nbformat
import pytest
import torch
from packaging.version import Version

from memlab.lab.claims import power_table
from memlab.lab.study import find_study

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
from check import stale  # noqa: E402

LAYERS = ["core", "data", "nn", "train", "eval", "lab", "studies", "cli"]  # a module imports only from the left of itself
HEAVY = {"matplotlib", "pandas", "datasets", "IPython", "ipywidgets", "nbdev"}
HANGING = {"interact", "interact_manual", "interactive", "interactive_output", "Output"}  # these hang headless runs
TOLD = {"print", "display", "show", "finish", "box", "brief", "answer", "earlier", "verdict_table", "power_table", "error_rates", "round", "describe", "head"}  # what shows or returns something
PLACES = re.compile(r"(?<![\w.])/(work|root|home|Users|tmp)/\w|\b[A-Z]:\\\\?Users|pythonhosted|registry\.npm|\blocalhost\b|\b127\.0\.0\.1\b")

NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if not any(part.startswith((".", "_")) for part in p.relative_to(ROOT).parts))
STUDIES = [p for p in NOTEBOOKS if p.parent.name == "studies"]
TUTORIALS = [p for p in NOTEBOOKS if p.parent.name == "tutorials"]  # export nothing
LIBRARY = [p for p in NOTEBOOKS if p not in STUDIES + TUTORIALS and p.name != "index.ipynb"]
MODULES = sorted(p for p in (ROOT / "memlab").rglob("*.py") if not p.name.startswith("_"))
CALLED = {"main": "__main__", "package": "__init__"}  # notebooks whose modules have names that nbdev and Python keep for themselves


def each(paths, argument="path"):
    "One test a file, named after it."
    return pytest.mark.parametrize(argument, paths, ids=lambda p: p.relative_to(ROOT).as_posix())


def code_cells(path):
    return [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]


def directives(cell) -> dict[str, str]:
    "`#| eval: false` gives {'eval': 'false'}."
    found = re.findall(r"^\s*#\|\s*(\w+):?[ \t]*(.*)$", cell.source, re.M)
    return {name: value.strip() for name, value in found}


def tree_of(cell) -> ast.Module:
    "The cell as Python, without IPython's magics."
    return ast.parse(re.sub(r"^\s*[%!].*$", "", cell.source, flags=re.M))


def shows(cell) -> bool:
    "Does the cell end in a value that is there to be seen, or print one? Of calls, only those in `TOLD` are known to."
    *_, last = tree_of(cell).body or [None]
    if not isinstance(last, ast.Expr) or cell.source.rstrip().endswith(";") or "eval" in directives(cell) or "skip-execution" in cell.metadata.get("tags", []): return False
    told = isinstance(last.value, ast.Call) and ast.unparse(last.value.func).rpartition(".")[2] in TOLD
    return told or isinstance(last.value, (ast.Name, ast.Attribute, ast.Subscript, ast.Compare, ast.Dict, ast.List, ast.Tuple, ast.DictComp, ast.ListComp, ast.JoinedStr, ast.BinOp))


def default_exp(path):
    return next((d["default_exp"] for d in map(directives, code_cells(path)) if "default_exp" in d), None)


def exported(path) -> list[str]:
    "Sources of the exported cells, directives dropped."
    cells = [c for c in code_cells(path) if {"export", "exporti", "exports"} & directives(c).keys()]
    return [re.sub(r"^\s*#\|.*\n?", "", c.source, flags=re.M).strip() for c in cells]


def imported(path) -> set[str]:
    "Absolute names of the modules that the file at `path` imports anywhere, relative imports resolved."
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[:len(package) + 1 - node.level]) + "." if node.level else ""
            found.add((start + (node.module or "")).rstrip("."))
    return found


def test_the_front_page_leads_to_every_notebook():
    linked = set(re.findall(r"\]\(([\w/]+\.ipynb)\)", "".join(c.source for c in nbformat.read(ROOT / "nbs" / "index.ipynb", 4).cells)))
    assert {p.relative_to(ROOT / "nbs").as_posix() for p in LIBRARY + STUDIES + TUTORIALS} <= linked, "link it in nbs/index.ipynb, then `make readme`"


# -- tools ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("package, below", [("nbdev", "3"), ("fastcore", "2"), ("execnb", "0.2")])
def test_the_pinned_line_of_nbdev_imports(package, below):
    importlib.import_module({"execnb": "execnb.nbio", "nbdev": "nbdev.export"}.get(package, package))
    assert Version(importlib.metadata.version(package)) < Version(below)


def test_export_and_clean_leave_no_difference():
    assert stale(ROOT) == []


def test_constraints_name_exact_public_versions():
    lines = (ROOT / "constraints.txt").read_text().split()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), [line for line in lines if "==" not in line or "+" in line]


def test_every_requirement_has_its_exact_version():
    ini = ConfigParser()
    ini.read(ROOT / "settings.ini")
    plain = lambda name: re.sub(r"[-_.]+", "-", name).lower()
    asked = {plain(re.match(r"[\w.-]+", word)[0]) for key, words in ini["DEFAULT"].items() if key.endswith("requirements") for word in words.split()}
    assert {"torch", "pytest-xdist", "furo"} <= asked
    assert asked <= {plain(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().split()}


def test_make_help_lists_every_target():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True)
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    assert done.returncode == 0 and sorted(re.findall(r"^make ([\w-]+) +\w", done.stdout, re.M)) == sorted(phony), done.stderr


def test_citation_says_what_settings_say():
    ini, cff = ConfigParser(), (ROOT / "CITATION.cff").read_text()
    ini.read(ROOT / "settings.ini")
    cfg = ini["DEFAULT"]
    for line in (f"version: {cfg['version']}", f"license: {cfg['license']}", f"repository-code: {cfg['git_url']}", f"url: {cfg['doc_host']}{cfg['doc_baseurl']}"):
        assert f"\n{line}\n" in cff, line
    assert re.search(r"^date-released: 20\d\d-\d\d-\d\d$", cff, re.M)


def test_shapes_are_checked_while_pytest_runs():
    from memlab.data.tokens import shift
    with pytest.raises(jaxtyping.TypeCheckError, match="b s"): shift(torch.zeros(2, 3, 4, dtype=torch.long))
    with pytest.raises(jaxtyping.TypeCheckError, match="b s"): shift(torch.zeros(2, 3))
    for _ in range(2): shift(torch.zeros(2, 3, dtype=torch.long))                           # the second is known, and others are not known by it
    with pytest.raises(jaxtyping.TypeCheckError, match="b s"): shift(torch.zeros(2, 3))


# -- notebooks and modules --------------------------------------------------------------------------------------------

def test_every_module_has_one_notebook():
    homes = Counter(default_exp(p) for p in LIBRARY + STUDIES)
    assert {name: n for name, n in homes.items() if n > 1} == {}, "two notebooks export to one module: the last one wins silently"
    assert all(name and all(part.isidentifier() for part in name.split(".")) for name in homes), homes
    modules = {".".join(p.relative_to(ROOT / "memlab").with_suffix("").parts) for p in MODULES}
    assert modules | set(CALLED.values()) == set(homes), "a module without a notebook, or a notebook never exported"


@each(LIBRARY + STUDIES)
def test_notebook_lies_where_its_module_does(path):
    name = ".".join(path.relative_to(ROOT / "nbs").with_suffix("").parts)
    assert default_exp(path) == CALLED.get(name, name)


@each(MODULES)
def test_module_imports_only_from_its_left(path):
    layer = LAYERS.index(path.relative_to(ROOT / "memlab").with_suffix("").parts[0])
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("memlab.")}
    assert not {name for name in ours if LAYERS.index(name) > layer}
    assert "nbdev" not in {name.split(".")[0] for name in imported(path)}, "exported code never imports nbdev"


@each([p for p in MODULES if p.parent.name in ("data", "nn", "train", "eval")])
def test_classes_stand_whole_in_their_modules(path):
    "No method is put into a class from outside, least of all from another module."
    marks = [ast.unparse(mark) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) for mark in getattr(node, "decorator_list", [])]
    assert not [mark for mark in marks if mark.startswith("patch")]


@pytest.mark.parametrize("name", ["IGNORE", "freeze", "unfreeze"])
def test_a_name_with_one_meaning_is_defined_once(name):
    def defines(path):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if getattr(node, "name", None) == name or name in [getattr(t, "id", None) for t in getattr(node, "targets", [])]: return True
        return False
    assert len(list(filter(defines, MODULES))) == 1


@pytest.mark.parametrize("module", ["memlab.nn.lm", "memlab.train.loop"])
def test_numeric_modules_import_light(module, tmp_path):
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


# -- the form of a notebook -------------------------------------------------------------------------------------------

@each(NOTEBOOKS)
def test_notebook_form(path):
    nb = nbformat.read(path, 4)
    assert nb.metadata.kernelspec.name == "python3"
    ids = Counter(c.id for c in nb.cells)
    assert [i for i, n in ids.items() if n > 1] == []


@each(NOTEBOOKS)
def test_no_widget_that_hangs_headless_runs(path):
    for cell in code_cells(path):
        names = {getattr(n, "id", getattr(n, "attr", getattr(n, "name", None))) for n in ast.walk(tree_of(cell))}
        assert not names & HANGING, cell.source


@each(NOTEBOOKS)
def test_no_place_of_one_machine(path):
    for cell in nbformat.read(path, 4).cells:
        texts = [cell.source] + [str(o.get("text", o.get("data", {}).get("text/plain", ""))) for o in cell.get("outputs", [])]
        for text in texts: assert not (hit := PLACES.search(text)), text[max(0, hit.start() - 80):hit.end() + 80]


@each(STUDIES)
def test_no_line_of_a_study_is_too_wide_to_read(path):
    assert not [line for cell in code_cells(path) for line in cell.source.splitlines() if len(line) > 120]


@each(STUDIES)
def test_study_has_one_cell_of_plain_parameters(path):
    cells = [c for c in nbformat.read(path, 4).cells if "parameters" in c.metadata.get("tags", [])]
    assert len(cells) == 1
    for node in tree_of(cells[0]).body:
        assert isinstance(node, ast.Assign), ast.unparse(node)
        ast.literal_eval(node.value)  # raises when it is more than a literal


@each(STUDIES)
def test_study_skips_for_papermill_what_it_skips_for_nbdev(path):
    ini = ConfigParser()
    ini.read(ROOT / "settings.ini")
    flags = set(ini["DEFAULT"]["tst_flags"].split())
    for cell in code_cells(path):
        found = directives(cell)
        if found.get("eval") == "false" or flags & found.keys():
            assert "skip-execution" in cell.metadata.get("tags", []), f"papermill ignores directives, tag this cell too: {cell.source}"


@each(STUDIES)
def test_what_a_study_types_is_compared_with_what_it_measured(path):
    tests = ROOT / "tests" / f"test_{path.stem}.py"
    assert tests.exists() and "pages.untested(" in tests.read_text(encoding="utf-8"), "give it a table of what its page says, as tests/test_depth.py has"


@each(STUDIES)
def test_no_rule_is_wrong_more_than_once_in_twenty(path):
    power = power_table(find_study(path.stem).claims)
    assert power.wrong.max() <= 0.053, power[power.wrong > 0.053]  # .05 and twice the error of 20,000 made-up studies


@each(STUDIES)
def test_every_answer_fits_its_box(path):
    boxes = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code" and "box(study" in c.source]
    said = ["".join(c.outputs[0].data["text/markdown"]) for c in boxes]
    assert said and all(len(words.split()) <= 120 and "{" not in words for words in said), [len(words.split()) for words in said]


@each(NOTEBOOKS)
def test_what_a_cell_shows_is_there(path):
    "A cell that was changed by a script, and not executed, shows nothing."
    blank = [cell.source.splitlines()[-1] for cell in code_cells(path) if shows(cell) and not cell.outputs]
    assert not blank, f"execute it, or `make outputs`: {blank}"


@each(LIBRARY)
def test_notebook_reads_well(path):
    cells = nbformat.read(path, 4).cells
    assert sum(c.cell_type == "markdown" for c in cells) >= 0.25 * len(cells), "a quarter of the cells is prose"
    lengths = [sum(map(bool, map(str.strip, source.splitlines()))) for source in exported(path)]
    assert statistics.median_low(lengths) <= 15, f"exported cells are small: {lengths}"


def test_a_folder_of_that_name_does_not_hide_the_package(tmp_path):
    "A script beside a checkout has such a folder, with another `data` in it, in front of everything else."
    (tmp_path / "memlab" / "data").mkdir(parents=True)
    done = subprocess.run([sys.executable, "-c", "import memlab.data.corpus"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
