"""Execute notebooks from top to bottom and keep what they show, those of the studies apart: `memlab run STUDY --draw --store` keeps theirs.

usage: outputs.py [NOTEBOOK...]      every notebook of the library, the tutorials and the front page when none is named
"""
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from memlab.core.files import write_atomic
from memlab.lab.runner import clean_outputs

ROOT = Path(__file__).resolve().parents[1]


def executed(path: Path) -> nbformat.NotebookNode:
    "The notebook at `path`, run in its own folder, with the outputs that are worth keeping."
    nb = nbformat.read(path, 4)
    for cell in nb.cells:
        if "#| eval: false" in cell.source: cell.metadata.setdefault("tags", []).append("skip-execution")  # as nbdev's own runner does
    client = NotebookClient(nb, timeout=1200, kernel_name="python3", record_timing=False, store_widget_state=False, resources={"metadata": {"path": str(path.parent)}})
    try: client.execute()
    except CellExecutionError as error: raise RuntimeError(f"{path.name} failed: {error}") from None
    for cell in nb.cells:
        if cell.cell_type == "code": cell.outputs, cell.execution_count = [nbformat.from_dict(o) for o in clean_outputs(cell.outputs)], None
    return nb


def keep(path: Path, ran: nbformat.NotebookNode) -> None:
    "Put the outputs of an execution into the notebook at `path`; nothing else of it changes."
    nb = nbformat.read(path, 4)
    if [(c.id, c.source) for c in nb.cells] != [(c.id, c.source) for c in ran.cells]: raise ValueError(f"{path.name} has changed since it was executed: run it again")
    for cell, new in zip(nb.cells, ran.cells):
        if cell.cell_type == "code": cell.outputs, cell.execution_count = new.outputs, None
    write_atomic(path, (nbformat.writes(nb, indent=1).rstrip("\n") + "\n").encode())


def renew(path: Path) -> None:
    "Execute a notebook, and keep what it shows."
    keep(path, executed(path))
    print(path.relative_to(ROOT), flush=True)


if __name__ == "__main__":
    named = [Path(arg).resolve() for arg in sys.argv[1:]]
    paths = named or [p for p in sorted((ROOT / "nbs").rglob("[!_.]*.ipynb")) if p.parent.name != "studies" and not p.parent.name.startswith(".")]
    with ThreadPoolExecutor(os.cpu_count()) as pool: list(pool.map(renew, paths))
