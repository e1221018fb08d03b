"""The site: every notebook with its outputs, the studies as papermill executed them, and the API.

usage: build.py [PAGE ...]      with pages, such as studies/mqar: these alone with the API of their modules, the home page as it is stored, and links that leave them unchecked
The pages come to build/html; MEMLAB_SITE names another folder than build/.
Studies come from build/notebooks, the largest preset first, else with the outputs stored in nbs/; library notebooks carry their outputs; the home page is executed here.
"""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from base64 import b64decode
from collections import Counter, defaultdict
from copy import deepcopy
from html import escape
from html.parser import HTMLParser
from io import BytesIO
from itertools import chain, takewhile
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pandas as pd
from docutils.nodes import make_id
from PIL import Image

from memlab.lab.board import board, finding_of, table_of, unsaid
from memlab.lab.claims import read_claims
from memlab.lab.explore import FRAMES
from memlab.lab.report import earlier, verdict_table
from memlab.lab.runner import WIDGET
from memlab.lab.study import find_study, study_names

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tools")]
import assets  # noqa: E402
from conf import cfg  # noqa: E402
from readme import INDEX, LINK, executed  # noqa: E402

NBS, PLACE = ROOT / "nbs", Path(os.environ.get("MEMLAB_SITE", ROOT / "build"))
SOURCE, OUT = PLACE / "site", PLACE / "html"
PRESETS = ["full", "gpu", "cpu", "quick"]
FOLDERS = {"tutorials": "Tutorials", "core": "Core", "data": "Data", "nn": "Layers and models", "train": "Training", "eval": "Evaluation", "lab": "Laboratory", "studies": "Studies"}
READING = {  # the order of pages, where it is not that of the alphabet; pages not named come last. Tutorials and studies have that of the front page
    "core": "files record draw identity",
    "data": "corpus tokens ordered recall facts text documents recall_task relay samples digits turns lessons orders visits questions loops episodes cifar patches vae image_task rolling previous sentences coupling strings",
    "nn": "state init packing finite frozen attention router blocks variants lm exit feedback mixer checks softmax linear delta titans ttt baseconv mixer_lm infini segment pythia generate memory saved selective cells recurrence continuous models mlp components shared_bias grid sketch heads image",
    "train": "losses schedule optim learner loop log objectives idempotence directions steering conflicts moments alternate components previous by_loop pretrained selective lagged newton recurrent image settled exits",
    "lab": "arm code records runs work ranks renew cost study tuning values rules claims stages report board known explore runner single new_study",
}
HOME = 1_000_000  # bytes that the home page may weigh
syms = __import__("memlab._modidx", fromlist=["d"]).d["syms"]
FULL_NAMES = defaultdict(list)
for module, names in syms.items():
    for name in names: FULL_NAMES[name.removeprefix(module + ".")].append(name)
OFF_SITE = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>|@import\s+url\([\"']?(?:https?:)?//[^)]*\)")


def executed_study(name: str) -> nbformat.NotebookNode:
    "The executed notebook of a study at its largest preset, else the one in nbs/ with its stored outputs."
    found = [f for preset in PRESETS if (f := ROOT / "build" / "notebooks" / name / f"{preset}.ipynb").exists()]
    return nbformat.read((found + [NBS / "studies" / f"{name}.ipynb"])[0], 4)


def target(name: str, module: str) -> str | None:
    "The full name that `name` has on the page of a module: its own first. A plain word such as `quick` is no name on other pages, nor is one that several modules define."
    found = FULL_NAMES.get(name, [])
    if (own := f"{module}.{name}") in found: return own
    return found[0] if len(found) == 1 and not re.fullmatch("[a-z]+", name) else None


def prose(text: str, path: Path) -> str:
    "Links that leave nbs/ go to the repository; `names` that the package knows go to the API; a displayed equation becomes a paragraph of its own, without which its dollars pair with others."
    module = "memlab." + ".".join(path.relative_to(NBS).with_suffix("").parts)
    def link(match):
        there = os.path.relpath(path.parent / match[1], ROOT)
        return match[0] if there.startswith("nbs/") else f"]({cfg['git_url']}/blob/{cfg['branch']}/{there})"
    def name(match):
        return f"{{py:obj}}`{match[1]} <{full}>`" if (full := target(match[1], module)) else match[0]
    parts = re.split(r"(^```.*?^```$)", LINK.sub(link, text), flags=re.M | re.S)
    apart = lambda part: re.sub(r"^(\$\$(?:(?!\$\$).)+\$\$)$", r"\n\1\n", part, flags=re.M | re.S)
    return "".join(part if i % 2 else re.sub(r"(?<!`)`([\w.]+)`(?!`)", name, apart(part)) for i, part in enumerate(parts))


def shown(text: str, path: Path) -> str:
    "Markdown that a cell of `path` put out: its links start at the root of the tree; those that lead nowhere become plain text."
    up = os.path.relpath(NBS, path.parent)
    def link(match):
        return f"{match[1]}[{match[2]}]({up}/{match[3].removeprefix('nbs/')})" if (ROOT / match[3]).exists() else match[2]
    return re.sub(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)", link, text)


def only_imports(source: str) -> bool:
    return all(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(source).body)


def headings(nb: nbformat.NotebookNode) -> set[str]:
    "The anchors that a page's headings have."
    found = (line for cell in nb.cells if cell.cell_type == "markdown" for line in re.findall(r"^#+ +(.*)$", cell.source, re.M))
    return {make_id(line) for line in found}


def anchors_of(cell: nbformat.NotebookNode, path: Path) -> list[str]:
    "Where `_modidx` says that the names defined in a cell stand: fragments of this page's address."
    page, module = path.relative_to(NBS).with_suffix(".html").as_posix(), ".".join(["memlab", *path.relative_to(NBS).with_suffix("").parts])
    names = set(re.findall(r"^(?:class|def|async def) (\w+)", cell.source, re.M))
    places = {name: where for name, (where, _) in syms.get(module, {}).items() if name.removeprefix(f"{module}.").split(".")[0] in names}
    return [where.removeprefix(f"{page}#") for where in dict.fromkeys(places.values())]


def picture_in_words(source: str, said: str) -> str:
    "What a cell's figures show: their captions, else the first sentence of the prose before the cell."
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("finish", "caption") and node.args]
    texts = [[part.value for part in ast.walk(call.args[-1]) if isinstance(part, ast.Constant) and isinstance(part.value, str)] for call in calls]
    plain = re.sub(r"\{py:obj\}`(.*?) <.*?>`", r"\1", re.sub(r"\]\(.*?\)", "", re.sub(r"^(#|>|\||```).*$", "", said, flags=re.M)))
    words = " ".join(" … ".join(text) for text in texts if text) or re.split(r"(?<=[.:!?])\s", re.sub(r"[*`\[$]", "", plain).strip())[0]
    return " ".join(words.split())


KERNEL = "*Here stand controls that need a kernel: open this page in JupyterLab (`make lab`) and run it to move them.*"


def explorer(drawn: dict, path: Path, place: str) -> str:
    "Controls over pictures that were drawn beforehand; their files go to a folder `place` beside the page's source."
    folder = SOURCE / "frames" / path.stem
    folder.mkdir(parents=True, exist_ok=True)
    for i, frame in enumerate(drawn["frames"]):
        if not (png := frame.pop("png")): continue
        Image.open(BytesIO(b64decode(png))).convert("RGB").quantize(64, Image.Quantize.MAXCOVERAGE).save(folder / f"{place}-{i}.png", optimize=True)
        frame["src"] = f"../frames/{path.stem}/{place}-{i}.png"
    drawn["about"] = drawn["about"].replace(", as PNG bytes", "")
    first = next((frame for frame in drawn["frames"] if "src" in frame), None)
    if not first: return ""
    note = "" if drawn["whole"] else "One control moves at a time, and the others go back. "
    return (f'<div class="explorer" data-drawn="{escape(json.dumps(drawn, separators=(",", ":")))}"><form></form><p role="status"></p>'
            f'<img src="{first["src"]}" alt="{escape(drawn["about"])}"><p class="note">{note}Drawn beforehand; JupyterLab (<code>make lab</code>) draws every setting.</p></div>')


def labelled(html: str) -> str:
    "An HTML table whose cells know their column's name, for narrow screens."
    heads = re.findall(r"<th\b[^>]*>(.*?)</th>", html.partition("</thead>")[0], re.S)
    def row(match):
        at = len(heads) - match[0].count("<td")                           # an index has cells of its own
        cell = lambda m: f'<td data-label="{heads[at + next(count)]}"{m[1]}>'
        count = iter(range(len(heads)))
        return re.sub(r"<td\b([^>]*)>", cell, match[0]) if 0 <= at else match[0]
    return re.sub(r"<tr.*?</tr>", row, html, flags=re.S)


def prepared(output: nbformat.NotebookNode, path: Path, place: str = "") -> nbformat.NotebookNode:
    "An output as the page shows it, of the cell called `place`."
    data = output.get("data", {})
    if FRAMES in data: return nbformat.v4.new_output("display_data", {"text/html": explorer(data[FRAMES], path, place)})
    if WIDGET in data: return nbformat.v4.new_output("display_data", {"text/markdown": KERNEL})
    if "text/markdown" in data: data["text/markdown"] = shown(data["text/markdown"], path)
    if "<table" in data.get("text/html", ""): data["text/html"] = labelled("".join(data["text/html"]))
    return output


def code(cell: nbformat.NotebookNode, path: Path, said: str = "") -> bool:
    "Prepare a code cell of the notebook at `path`, behind some prose; False when the page does without it."
    directives = set(re.findall(r"^#\|\s*(\w+)", cell.source, re.M))
    cell.source = re.sub(r"^(#\||%).*\n?", "", cell.source, flags=re.M).strip()
    if directives & {"hide", "default_exp"} or not cell.source: return False
    tags = set(cell.metadata.get("tags", []))
    if only_imports(cell.source) or "injected-parameters" in tags: tags.add("hide-input")
    cell.metadata = nbformat.from_dict({"tags": sorted(tags)})
    if any("image/png" in output.get("data", {}) for output in cell.outputs): cell.metadata["mystnb"] = {"image": {"alt": picture_in_words(cell.source, said)}}
    if any(FRAMES in output.get("data", {}) for output in cell.outputs): cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
    cell.outputs = [prepared(output, path, cell.id) for output in cell.outputs]
    if not cell.outputs and re.match(r"explorer\(", cell.source): cell.outputs = [nbformat.v4.new_output("display_data", {"text/markdown": KERNEL})]
    return True


def page(nb: nbformat.NotebookNode, path: Path):
    "Write the page for the notebook at `path` (in nbs/) into the source tree."
    for cell in nb.cells:
        if cell.cell_type == "markdown": cell.source = prose(cell.source, path)
    said, taken, cells = "", headings(nb), []
    for cell in nb.cells:
        if cell.cell_type == "markdown": said = cell.source
        else:
            anchors = [a for a in anchors_of(cell, path) if a not in taken]
            taken.update(anchors)
            if not code(cell, path, said): cell = None
            if anchors: cells.append(nbformat.v4.new_markdown_cell("".join(f'<a id="{a}"></a>' for a in anchors)))
        if cell: cells.append(cell)
    nb.cells, nb.metadata = cells, {k: v for k, v in nb.metadata.items() if k != "widgets"}
    file = SOURCE / path.relative_to(NBS)
    file.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, file)


# -- a page for each section of a study: its claims, with all that is known of them ------------------------------------

def in_tables(cell: nbformat.NotebookNode) -> list[str]:
    "What may be ids of claims in the tables that a cell shows."
    return re.findall(r"<td[^>]*>([A-Z]+\d\w*)</td>", "".join(text for out in cell.get("outputs", []) for text in out.get("data", {}).get("text/html", "")))


def sections(nb: nbformat.NotebookNode) -> dict[str, list]:
    "The cells under each heading of a page."
    found, title = defaultdict(list), ""
    for cell in nb.cells:
        if cell.cell_type == "markdown": title = re.findall(r"^#+ +(.*)$", f"# {title}\n{cell.source}", re.M)[-1]
        found[title].append(cell)
    return found


def groups(nb: nbformat.NotebookNode, ids: list[str]) -> dict[str, list[str]]:
    "Claims of a study by the heading that first shows them, or another part of the same statement, in a table; the table of all claims, under *Verdicts*, does not count."
    parts, found, whole = sections(nb), {}, lambda id: re.sub("[a-z]+$", "", id)
    if ids and "Verdicts" not in parts: raise ValueError("the page of a study has no heading `### Verdicts` over the table of all its claims: give it one")
    for title in takewhile("Verdicts".__ne__, parts):
        for id in chain.from_iterable(map(in_tables, parts[title])): found = {whole(id): title, id: title} | found
    places = {id: found.get(id, found.get(whole(id))) for id in ids}
    return {title: mine for title in parts if (mine := [id for id in ids if places[id] == title])}


def results_of(name: str) -> Path | None:
    "The committed verdicts of a study, at its largest preset."
    places = [ROOT / "data" / "results" / name / preset for preset in PRESETS]
    return next((place for place in places if (place / "claims.json").exists()), None)


def claims_of(name: str) -> list[str]:
    "The claims of a study that were judged."
    return [r["id"] for r in read_claims(place / "claims.json")] if (place := results_of(name)) else []


def facts(row: dict, shown: dict, before: int) -> str:
    "What is known of a claim as a table: its numbers, its rule, where it comes from."
    bar = lambda key: f"{row[key]:.3g} {row['unit']}" if pd.notna(row[key]) else "not said"
    known = {label: shown[label] for label in ("verdict", "effect [interval]", "p", "q", "Holm", "seeds", "at", "measured", "rule")}
    known |= {"smallest effect that matters": bar("least"), "size said": bar("said"), "source": shown["source"], "note": shown["note"], "earlier readings": before or "none"}
    table = pd.DataFrame([(label, text) for label, text in known.items() if text != ""]).to_html(index=False, header=False, border=0, classes="facts")
    return "".join(line.strip() for line in table.splitlines())


def group_page(study, title: str, ids: list[str], nb: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "The page of a section of a study: its figures, and a heading for each of its claims."
    parts, log, rows = sections(nb), earlier(results_of(study.name)), {r["id"]: r for r in read_claims(results_of(study.name) / "claims.json")}
    known, shown = {c.id: c for c in study.claims}, {r["claim"]: r for r in verdict_table(list(rows.values())).to_dict("records")}
    there = lambda heading, words: f'<a href="../../studies/{study.name}.html#{make_id(heading)}">{words}</a>'
    changes = next(heading for heading, cells in parts.items() if any(cell.source.startswith("earlier(") for cell in cells))
    cells = [nbformat.v4.new_markdown_cell(f"# Claims: {title.lstrip('0123456789. ')}\n\nThe claims behind {there(title, 'this section')} of *{study.question}*, with rules and all numbers. "
                                           f"What they read before, and by which rules, stands in {there(changes, 'the log of changes')}.")]
    figures = [deepcopy(cell) for cell in parts[title] if any("image/png" in out.get("data", {}) for out in cell.get("outputs", []))]
    for cell in figures: cell.metadata["tags"] = ["remove-input"]
    for id in ids:
        said, advice = finding_of(known[id], rows[id])
        words = " ".join([said, *[f"**Do:** {advice}"] * bool(advice)])
        text = [f"## {id}", f"> {rows[id]['statement']}", words, facts(rows[id], shown[id], list(log.get("claim", ())).count(id))]
        cells.append(nbformat.v4.new_markdown_cell("\n\n".join(text)))
    return nbformat.v4.new_notebook(cells=cells[:1] + figures + cells[1:])


def study_pages(path: Path):
    "Write the page of a study, with a way from each of its sections to the page of their claims, and those pages."
    nb, study = executed_study(path.stem), find_study(path.stem)
    judged, entries = claims_of(study.name), []
    for title, ids in groups(nb, judged).items():
        place = f"claims/{study.name}/{make_id(title)}"
        page(group_page(study, title, ids, nb), NBS / f"{place}.ipynb")
        at = max(i for i, cell in enumerate(nb.cells) if cell in sections(nb)[title] and set(in_tables(cell)) & set(ids))
        nb.cells.insert(at + 1, nbformat.v4.new_markdown_cell(f"[Rules and all numbers of these claims](../{place}.ipynb)"))
        entries.append(f"/{place}")
    if entries: nb.cells.append(nbformat.v4.new_markdown_cell(toctree("", entries)))
    page(nb, path)


def on_front_page(folder: str) -> list[str]:
    "The notebooks of a folder in the order in which the front page's list of ways has them."
    ways = "\n".join(cell.source for cell in nbformat.read(INDEX, 4).cells if "**Studies**:" in cell.source)
    return re.findall(rf"\]\({folder}/(\w+)\.ipynb\)", ways)


def pages(folder: str) -> list[Path]:
    "The notebooks in a folder of nbs/, in reading order."
    order = READING[folder].split() if folder in READING else on_front_page(folder)
    found = [path for path in sorted((NBS / folder).glob("[!_.]*.ipynb")) if path != INDEX]
    return sorted(found, key=lambda path: order.index(path.stem) if path.stem in order else len(order))


def toctree(caption: str, entries: list[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", *[f":caption: {caption}"] * bool(caption), "", *entries, "```"])


def scoreboard() -> str:
    "The page of all verdicts, study by study."
    rows = board(ROOT)
    names = [path.stem for path in pages("studies")]
    parts = [f"## {find_study(name).question}\n\n[The study](studies/{name}.ipynb)\n\n{table_of(r for r in rows if r['study'] == name)}" for name in names]
    return "\n\n".join(["# Scoreboard\n\nEvery claim with its verdict, from the committed records. Rules, notes, p and q stand in the appendix of each study.", *parts])


def first_words(path: Path) -> tuple[str, str]:
    "A notebook's title, and what it says of itself in the line behind it."
    text = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    title, summary = (re.search(rf"^{mark} (.*)$", text, re.M) for mark in ("#", ">"))
    return title[1], re.sub(r"\[(.*?)\]\(.*?\)", r"\1", summary[1]) if summary else ""


def contents(place: str, title: str, lines: dict[str, str], said: str = "") -> str:
    "Write a page that lists others, a line for each document, and holds them in the navigation; its own document."
    (SOURCE / place).parent.mkdir(exist_ok=True)
    text = "\n".join([f"# {title}\n", *[f"{said}\n"] * bool(said), *(f"- {line}" for line in lines.values()), "", toctree("", [f"/{document}" for document in lines]), ""])
    (SOURCE / f"{place}.md").write_text(text, encoding="utf-8")
    return place


def document(path: Path) -> str:
    "What Sphinx calls the page of a notebook."
    return path.relative_to(NBS).with_suffix("").as_posix()


def listed(folder: str, paths: list[Path]) -> str:
    "The contents of a folder of notebooks."
    words = {path: first_words(path) for path in paths}
    return contents(f"library/{folder}", FOLDERS[folder], {document(path): f"[{title}](../{document(path)}.ipynb): {summary}" for path, (title, summary) in words.items()})


def reference(package: str, modules: list[str]) -> str:
    "The contents of the API of one package, whose pages are written here."
    titles = {module: first_words(NBS.joinpath(*module.split(".")[1:]).with_suffix(".ipynb"))[0] for module in modules}
    for module, title in titles.items():  # with the title, a search for its words finds the functions
        (SOURCE / "api" / f"{module}.md").write_text(f"# {module}: {title}\n\n```{{eval-rst}}\n.. automodule:: {module}\n```\n", encoding="utf-8")
    return contents(f"reference/{package}", f"memlab.{package}", {f"api/{module}": f"[{module}](../api/{module}.md): {title}" for module, title in titles.items()})


def without_finding(names: list[str]) -> list[str]:
    "Claims of some studies that read something and have no finding for it; a study that says no finding at all has its own answer box."
    studies = [study for study in map(find_study, names) if any(claim.findings for claim in study.claims)]
    files = [(study, f) for study in studies for f in sorted((ROOT / "data" / "results" / study.name).glob("*/claims.json"))]
    return [f"{study.name}, {f.parent.name}: {lack}" for study, f in files for lack in unsaid(study.claims, read_claims(f))]


def without_group(names: list[str]) -> list[str]:
    "Claims of some studies that no section of their page has in a table."
    lost = {name: set(ids).difference(*groups(executed_study(name), ids).values()) for name in names if (ids := claims_of(name))}
    return [f"{name}: no section of its page has {id} in a table: name it in a `brief`" for name, ids in lost.items() for id in sorted(ids)]


def without_records(names: list[str]) -> list[str]:
    "Studies of which nothing is committed, and whose page shows something all the same without a word about it."
    lost = [(name, executed_study(name)) for name in names if not list((ROOT / "data" / "results" / name).glob("*/runs.parquet"))]
    silent = [name for name, nb in lost if any(cell.get("outputs") for cell in nb.cells) and not re.search("no records yet|nothing was computed yet", nbformat.writes(nb), re.I)]
    return [f"{name}: there are no records of it in data/results, and its page does not say that there are no records yet" for name in silent]


def sources(wanted: list[str]):
    "The source tree of the site, or of some of its pages."
    shutil.rmtree(SOURCE, ignore_errors=True)
    (SOURCE / "api").mkdir(parents=True)
    if (ROOT / "figures").exists(): shutil.copytree(ROOT / "figures", SOURCE / "figures")
    index, trees = nbformat.read(INDEX, 4) if wanted else executed(INDEX), []
    modules = [module for module in syms if not wanted or module.removeprefix("memlab.").replace(".", "/") in wanted]
    found = {folder: [path for path in pages(folder) if not wanted or document(path) in wanted] for folder in (".", *FOLDERS)}
    for folder, paths in found.items():
        for path in paths: study_pages(path) if folder == "studies" else page(nbformat.read(path, 4), path)
    start = [document(path) for path in found.pop(".")]
    if not wanted or "scoreboard" in wanted:
        (SOURCE / "scoreboard.md").write_text(scoreboard(), encoding="utf-8")
        start.insert(0, "scoreboard")
    library = [listed(folder, paths) for folder, paths in found.items() if paths and folder not in ("tutorials", "studies")]
    parts = {folder: [module for module in modules if module.split(".")[1] == folder] for folder in (*FOLDERS, "cli")}
    api = {reference(folder, mine): f"[memlab.{folder}]({folder}.md): {FOLDERS.get(folder, 'the command line')}" for folder, mine in parts.items() if mine}
    if api: library.append(contents("reference/api", "All functions and classes", api, "Every name of the package, by module, with its arguments. What they are for stands in the notebooks."))
    ways = {"Start": start, **{FOLDERS[folder]: [document(path) for path in found[folder]] for folder in ("tutorials", "studies")}, "Reference": library}
    for caption, entries in ways.items():
        if entries: trees.append(toctree(caption, entries))
    index.cells.append(nbformat.v4.new_markdown_cell("\n\n".join(trees)))
    page(index, INDEX)


class Page(HTMLParser):
    "What a built page holds: the ids of its elements, where its links lead, its pictures, and all files that it shows or runs."
    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.pictures, self.parts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if "id" in found: self.ids.append(found["id"])
        if tag == "a" and "href" in found: self.links.append(found["href"])
        if tag in ("img", "script") and "src" in found: self.parts.append(found["src"])
        if tag == "link" and found.get("rel") == "stylesheet": self.parts.append(found["href"])
        if tag == "img": self.pictures.append((found.get("src", ""), found.get("alt", "")))


def off_site() -> list[str]:
    "Scripts, styles, pictures and fonts that a page would fetch from elsewhere."
    return [f"{f.relative_to(OUT)}: would fetch {m[0]} from elsewhere" for f in sorted(OUT.rglob("*.*")) if f.suffix in {".html", ".css"}
            for m in OFF_SITE.finditer(f.read_text(encoding="utf-8"))]


def dead(links: list[str], name: str, built: dict[str, Page]) -> list[str]:
    "Links of the page of a name that lead to no page, file or place in a page."
    out = []
    for link in links:
        path, _, place = unquote(link).partition("#")
        there = os.path.normpath(Path(name).parent / path) if path else name
        if re.match(r"\w+:", link) or (there in built and (not place or place in built[there].ids)): continue
        if there in built or not (OUT / there).is_file(): out.append(link)
    return out


def weight(name: str, page: Page) -> int:
    "Bytes that a reader of a page fetches: itself, its pictures, scripts and styles."
    there = {os.path.normpath(Path(name).parent / unquote(part.partition("?")[0])) for part in page.parts if not re.match(r"\w+:", part)}
    return sum((OUT / part).stat().st_size for part in {name, *there} if (OUT / part).is_file())


def faults(everything: bool) -> list[str]:
    "What a reader of the built pages would stumble over, a sentence each."
    built = {f.relative_to(OUT).as_posix(): Page(f.read_text(encoding="utf-8")) for f in sorted(OUT.rglob("*.html"))}
    out = off_site()
    if "index.html" in built and (bytes := weight("index.html", built["index.html"])) > HOME: out.append(f"index.html: weighs {bytes:,} bytes with all it shows, {HOME:,} at most")
    for name, page in built.items():
        out += [f"{name}: two places are called {i}" for i, n in Counter(page.ids).items() if n > 1]
        out += [f"{name}: {src} is described by no words" for src, alt in page.pictures if not alt or alt == src]
        if everything: out += [f"{name}: the link {link} leads nowhere" for link in dead(page.links, name, built)]
    places = [where for names in syms.values() for where, _ in names.values() if everything or where.partition("#")[0] in built]
    return out + [f"the package's index leads to {where}, which is not there" for where in dead(places, "index.html", built)]


if __name__ == "__main__":
    wanted = sys.argv[1:]
    studies = [name for name in study_names() if not wanted or f"studies/{name}" in wanted]
    if lacks := without_records(studies) + without_finding(studies) + without_group(studies): sys.exit("\n".join(lacks))
    assets.fetch()
    sources(wanted)
    shutil.rmtree(OUT, ignore_errors=True)
    sphinx = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-j", "2", "-b", "html", "-c", str(Path(__file__).parent)]
    part = ["-D", "suppress_warnings=myst,ref,mystnb.unknown_mime_type"] if wanted else []
    built = subprocess.run([*sphinx, *part, "-d", str(PLACE / "doctrees"), str(SOURCE), str(OUT)])
    if built.returncode: sys.exit(built.returncode)
    if (SOURCE / "frames").exists(): shutil.copytree(SOURCE / "frames", OUT / "frames")
    if found := faults(not wanted): sys.exit("\n".join(found))
    print(f"the site is in {os.path.relpath(OUT)}/index.html")
