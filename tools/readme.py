"""README.md is nbs/index.ipynb, executed and written as markdown.

usage: readme.py [--check]      --check writes nothing and exits 1 when README.md is stale
"""
import difflib
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
INDEX = ROOT / "nbs" / "index.ipynb"
README = ROOT / "README.md"
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s]+)\)")  # the target of a relative markdown link


def executed(path: Path) -> nbformat.NotebookNode:
    "The notebook at `path`, run from top to bottom in its own folder."
    nb = nbformat.read(path, 4)
    NotebookClient(nb, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    return nb


def relink(text: str) -> str:
    "Links written from nbs/, as seen from the root of the tree."
    return LINK.sub(lambda m: f"]({os.path.normpath(Path('nbs') / m[1])})", text)


def rendered(output: nbformat.NotebookNode) -> str:
    "One output of a cell as markdown; what is written for a person wins."
    if output.output_type == "stream":
        return f"```\n{output.text.rstrip()}\n```" if output.name == "stdout" else ""
    data = output.data
    return data["text/markdown"] if "text/markdown" in data else f"```\n{data['text/plain']}\n```"


def cell_parts(cell: nbformat.NotebookNode):
    "The pieces of README.md that one cell gives."
    if cell.cell_type == "markdown": yield relink(cell.source)
    elif not cell.source.startswith("#| hide"):
        if "remove-input" not in cell.metadata.get("tags", []): yield f"```python\n{cell.source}\n```"
        yield from map(rendered, cell.outputs)


def readme() -> str:
    "The text of README.md."
    head = "<!-- Made by `make readme` from nbs/index.ipynb: edit that. -->"
    parts = [part.strip() for cell in executed(INDEX).cells for part in cell_parts(cell)]
    return "\n\n".join([head, *filter(None, parts)]) + "\n"


if __name__ == "__main__":
    new, old = readme(), README.read_text(encoding="utf-8") if README.exists() else ""
    if sys.argv[1:] != ["--check"]: README.write_text(new, encoding="utf-8")
    elif new != old:
        print(*difflib.unified_diff(old.splitlines(), new.splitlines(), "README.md", "nbs/index.ipynb", n=1, lineterm=""), sep="\n")
        sys.exit("README.md is stale: run `make readme`")
    else: print("README.md is what nbs/index.ipynb says")
