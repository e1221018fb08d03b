"""README.md is nbs/index.ipynb, executed and written as markdown; its outputs are kept in the notebook, too.

usage: readme.py [--check]      --check writes nothing and exits 1 when README.md or the outputs are stale
"""
import difflib
import os
import re
import sys
from pathlib import Path

import nbformat
from outputs import ROOT, executed, keep

INDEX = ROOT / "nbs" / "index.ipynb"
README = ROOT / "README.md"
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s]+)\)")  # the target of a relative markdown link


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


def readme(nb: nbformat.NotebookNode) -> str:
    "The text of README.md."
    head = "<!-- Made by `make readme` from nbs/index.ipynb: edit that. -->"
    parts = [part.strip() for cell in nb.cells for part in cell_parts(cell)]
    return "\n\n".join([head, *filter(None, parts)]) + "\n"


def differences(old: str, new: str, name: str) -> str:
    "What is stale in `old`, line by line."
    return "\n".join(difflib.unified_diff(old.splitlines(), new.splitlines(), name, "nbs/index.ipynb, executed", n=1, lineterm=""))


if __name__ == "__main__":
    ran = executed(INDEX)
    if sys.argv[1:] != ["--check"]:
        README.write_text(readme(ran), encoding="utf-8")
        keep(INDEX, ran)
        sys.exit()
    old = {"README.md": README.read_text(encoding="utf-8") if README.exists() else "", "nbs/index.ipynb": readme(nbformat.read(INDEX, 4))}
    if stale := {name: said for name, text in old.items() if (said := differences(text, readme(ran), name))}:
        print(*stale.values(), sep="\n")
        sys.exit(f"stale: {', '.join(stale)}; run `make readme`")
    print("README.md is what nbs/index.ipynb says")
