"""The site in build/html: every notebook with its outputs, the studies as papermill executed them, and the API.

Studies come from build/notebooks, the largest preset first; library notebooks carry their outputs; the home page is executed here.
"""
import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tools")]
import assets  # noqa: E402
from conf import cfg  # noqa: E402
from readme import INDEX, LINK, executed  # noqa: E402

NBS, SOURCE, OUT = ROOT / "nbs", ROOT / "build" / "site", ROOT / "build" / "html"
PRESETS = ["full", "gpu", "cpu", "quick"]
SECTIONS = {"Studies": "studies", "Core": "core", "Data": "data", "Layers and models": "nn", "Training": "train", "Evaluation": "eval",
            "Laboratory": "lab", "Command line": "."}
READING = {  # the order of pages, where it is not that of the alphabet; pages not named come last
    "core": "files record draw identity",
    "data": "corpus tokens ordered recall facts text documents recall_task relay lessons",
    "nn": "state init packing finite attention blocks variants lm mixer checks softmax linear delta titans ttt baseconv mixer_lm infini segment pythia generate memory",
    "train": "losses schedule optim learner loop objectives",
    "lab": "arm code records runs work renew cost study tuning values rules claims report board known explore runner",
}
syms = __import__("memlab._modidx", fromlist=["d"]).d["syms"]
FULL_NAME = {name.removeprefix(module + "."): name for module, names in syms.items() for name in names}
OFF_SITE = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>|@import\s+url\([\"']?(?:https?:)?//[^)]*\)")


def executed_study(name: str) -> nbformat.NotebookNode:
    "The executed notebook of a study at its largest preset."
    found = [f for preset in PRESETS if (f := ROOT / "build" / "notebooks" / name / f"{preset}.ipynb").exists()]
    if not found: raise SystemExit(f"no executed notebook of {name}: run `make reproduce STUDY={name}` first")
    return nbformat.read(found[0], 4)


def prose(text: str, folder: Path) -> str:
    "Links that leave nbs/ go to the repository; `names` that the package knows go to the API."
    def link(match):
        path = os.path.relpath(folder / match[1], ROOT)
        return match[0] if path.startswith("nbs/") else f"]({cfg['git_url']}/blob/{cfg['branch']}/{path})"
    def name(match):
        return f"{{py:obj}}`{match[1]} <{FULL_NAME[match[1]]}>`" if match[1] in FULL_NAME else match[0]
    parts = re.split(r"(^```.*?^```$)", LINK.sub(link, text), flags=re.M | re.S)
    return "".join(part if i % 2 else re.sub(r"(?<!`)`([\w.]+)`(?!`)", name, part) for i, part in enumerate(parts))


def shown(text: str, path: Path) -> str:
    "Markdown that a cell of `path` put out: its links start at the root of the tree; those that lead nowhere become plain text."
    up = os.path.relpath(NBS, path.parent)
    def link(match):
        return f"{match[1]}[{match[2]}]({up}/{match[3]})" if (ROOT / match[3]).exists() else match[2]
    return re.sub(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)", link, text)


def only_imports(source: str) -> bool:
    return all(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(source).body)


def code(cell: nbformat.NotebookNode, path: Path) -> bool:
    "Prepare a code cell of the notebook at `path`; False when the page does without it."
    directives = set(re.findall(r"^#\|\s*(\w+)", cell.source, re.M))
    cell.source = re.sub(r"^(#\||%).*\n?", "", cell.source, flags=re.M).strip()
    if directives & {"hide", "default_exp"} or not cell.source: return False
    tags = set(cell.metadata.get("tags", []))
    if only_imports(cell.source) or "injected-parameters" in tags: tags.add("hide-input")
    cell.metadata = nbformat.from_dict({"tags": sorted(tags)})
    for output in cell.outputs:
        if "text/markdown" in output.get("data", {}): output.data["text/markdown"] = shown(output.data["text/markdown"], path)
    return True


def page(nb: nbformat.NotebookNode, path: Path):
    "Write the page for the notebook at `path` (in nbs/) into the source tree."
    for cell in nb.cells:
        if cell.cell_type == "markdown": cell.source = prose(cell.source, path.parent)
    nb.cells = [cell for cell in nb.cells if cell.cell_type == "markdown" or code(cell, path)]
    target = SOURCE / path.relative_to(NBS)
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, target)


def pages(folder: str) -> list[Path]:
    "The notebooks in a folder of nbs/, in reading order."
    order = READING.get(folder, "").split()
    found = [path for path in sorted((NBS / folder).glob("[!_.]*.ipynb")) if path != INDEX]
    return sorted(found, key=lambda path: order.index(path.stem) if path.stem in order else len(order))


def toctree(caption: str, entries: list[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *entries, "```"])


def sources():
    "The whole source tree of the site."
    shutil.rmtree(SOURCE, ignore_errors=True)
    (SOURCE / "api").mkdir(parents=True)
    if (ROOT / "figures").exists(): shutil.copytree(ROOT / "figures", SOURCE / "figures")
    index, trees = executed(INDEX), []
    for caption, folder in SECTIONS.items():
        paths = pages(folder)
        for path in paths: page(executed_study(path.stem) if folder == "studies" else nbformat.read(path, 4), path)
        if paths: trees.append(toctree(caption, [path.relative_to(NBS).with_suffix("").as_posix() for path in paths]))
    for module in syms: (SOURCE / "api" / f"{module}.md").write_text(f"# {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n```\n")
    trees.append(toctree("API", [f"api/{module}" for module in syms]))
    index.cells.append(nbformat.v4.new_markdown_cell("\n\n".join(trees)))
    page(index, INDEX)


def off_site() -> list[str]:
    "Scripts, styles, pictures and fonts that a page would fetch from elsewhere."
    return [f"{f.relative_to(OUT)}: {m[0]}" for f in sorted(OUT.rglob("*.*")) if f.suffix in {".html", ".css"}
            for m in OFF_SITE.finditer(f.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    assets.fetch()
    sources()
    shutil.rmtree(OUT, ignore_errors=True)
    sphinx = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-c", str(Path(__file__).parent)]
    built = subprocess.run([*sphinx, "-d", str(ROOT / "build" / "doctrees"), str(SOURCE), str(OUT)])
    if built.returncode: sys.exit(built.returncode)
    if found := off_site(): sys.exit("\n".join(["the site would fetch these from elsewhere:", *found]))
    print(f"the site is in {OUT.relative_to(ROOT)}/index.html")
