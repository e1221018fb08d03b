"What a newcomer reads and copies: commands exist, links lead somewhere, configurations parse."
import json
import re
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

from memlab.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["CONTRIBUTING.md", "CHANGELOG.md", "README.md", ".github/PULL_REQUEST_TEMPLATE.md", *(f".github/ISSUE_TEMPLATE/{n}.md" for n in ("fault", "idea", "result"))]
CODE = re.compile(r"`([^`\n]+)`|^```sh\n(.*?)^```", re.M | re.S)


def commands(page: str) -> list[str]:
    "Everything that a page sets as code, line by line, without comments."
    lines = [line for inline, block in CODE.findall((ROOT / page).read_text(encoding="utf-8")) for line in (inline or block).splitlines()]
    return [part.strip() for line in lines for part in re.split(r"&&|  +#", line)]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_a_page_names_is_there(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    for words in map(str.split, commands(page)):
        if words[:1] == ["make"]: assert set(w for w in words[1:] if w.islower() and w.isalpha()) <= targets, words
        if words[:1] == ["memlab"] and words[1:]:
            command = main.commands.get(words[1]) or main.commands["train"].get_command(None, words[1])
            assert command, words
            if len(words) > 2 and hasattr(command, "get_command"): command = command.get_command(None, words[2]) if words[2].islower() and words[2][0] != "-" else command
            known = {o for p in command.params for o in p.opts + p.secondary_opts} | {"--help"}
            assert {w for w in words[2:] if w.startswith("--")} <= known, words
        for word in words:
            if re.fullmatch(r"(nbs|tests|tools|bench)/[\w/]+\.(ipynb|py)", word) and "slow_forgetting" not in word: assert (ROOT / word).exists(), word


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_of_a_page_leads_somewhere(page):
    for link in re.findall(r"\]\((?!\w+:|#)([^)\s#]+)", (ROOT / page).read_text(encoding="utf-8")): assert ((ROOT / page).parent / link).exists() or link.startswith("figures/"), link


def test_no_notebook_links_to_a_heading_of_its_own():
    "JupyterLab and the site name headings differently: such a link is dead in one of them."
    assert not [str(f.relative_to(ROOT)) for f in (ROOT / "nbs").rglob("[!.]*.ipynb") if "](#" in f.read_text(encoding="utf-8")]


def test_links_to_binder_and_colab_name_this_repository_and_a_notebook_of_it():
    text, ini = (ROOT / "nbs" / "cli.ipynb").read_text(encoding="utf-8"), ConfigParser()
    ini.read(ROOT / "settings.ini")
    cfg = ini["DEFAULT"]
    repo = cfg["git_url"].removeprefix("https://github.com/")
    binder = re.search(rf"mybinder\.org/v2/gh/{repo}/{cfg['branch']}\?labpath=([\w/.]+)", text)[1]
    colab = re.search(rf"colab\.research\.google\.com/github/{repo}/blob/{cfg['branch']}/([\w/.]+)", text)[1]
    assert (ROOT / binder).is_file() and (ROOT / colab).is_file()


def test_the_cell_for_colab_installs_this_tree_and_goes_where_the_page_lies():
    ini, page = ConfigParser(), "".join(line for c in json.loads((ROOT / "nbs" / "cli.ipynb").read_text(encoding="utf-8"))["cells"] for line in c["source"])
    ini.read(ROOT / "settings.ini")
    cfg = ini["DEFAULT"]
    install, enter, find = re.search(r"^```sh\n(!git clone.*?)^```", page, re.M | re.S)[1].splitlines()
    folder = cfg["git_url"].rpartition("/")[2]
    extra = re.fullmatch(rf'!git clone --quiet {re.escape(cfg["git_url"])} && pip install --quiet -e "{folder}\[(\w+)\]"', install)[1]
    assert {"papermill", "matplotlib"} <= set(re.findall(r"[\w-]+", cfg[f"{extra}_requirements"]))
    colab = re.search(r"colab\.research\.google\.com/github/[\w/]+/blob/\w+/([\w/.]+)", page)[1]
    assert ROOT / enter.removeprefix(f"%cd {folder}/") == (ROOT / colab).parent and find == f"import sys; sys.path.insert(0, '/content/{folder}')"


def test_binder_installs_this_tree_on_its_python():
    lines = (ROOT / ".binder" / "requirements.txt").read_text().splitlines()
    assert "-e .[run,lab]" in lines and (ROOT / ".binder" / next(w.split()[1] for w in lines if w.startswith("-c"))).resolve() == ROOT / "constraints.txt"
    pinned = re.search(r"^pinned_python = (\d+\.\d+)", (ROOT / "settings.ini").read_text(), re.M)[1]
    assert (ROOT / ".binder" / "runtime.txt").read_text() == f"python-{pinned}\n"
    said = subprocess.run([ROOT / ".binder" / "start", "sh", "-c", "echo $MEMLAB_HOME $OMP_NUM_THREADS"], cwd=ROOT, capture_output=True, text=True)
    assert said.stdout == f"{ROOT} 1\n"


def test_hooks_before_a_commit_are_those_of_set_up():
    hooks = {h["id"]: h for r in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"] for h in r["hooks"]}
    assert set(hooks) == {"nbdev-clean", "nbdev-export", "ruff-check"}
    assert all(hooks[n]["entry"] == f".venv/bin/{n.replace('-', '_')}" for n in ("nbdev-clean", "nbdev-export"))
    picked = lambda hook, name: re.search(hooks[hook]["files"], name) is not None
    assert [picked("ruff-check", n) for n in ("tests/toy.py", "tools/site/build.py", "bench/run.py", "memlab/cli.py")] == [True, True, True, False]
    assert picked("nbdev-export", "nbs/nn/delta.ipynb") and picked("nbdev-export", "memlab/nn/delta.py") and picked("nbdev-clean", "nbs/cli.ipynb")


@pytest.mark.parametrize("name", ["fault", "idea", "result"])
def test_templates_of_issues_have_a_name_and_a_use(name):
    _, head, body = (ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.md").read_text().split("---\n", 2)
    assert {"name", "about", "labels"} == set(yaml.safe_load(head)) and "**" in body
