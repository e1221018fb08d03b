"""Do the notebooks and the package agree? Everything happens in a copy: the tree is never touched.

Exits 1, with one line a file, when `nbdev_export` or `nbdev_clean` would change something.
"""
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

IGNORED = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", ".last_checked")


def contents(folder: Path) -> dict[str, bytes]:
    "Every file below `folder`, by relative path."
    skip = {"__pycache__", ".ipynb_checkpoints"}
    files = (f for f in folder.rglob("*") if f.is_file() and f.name != ".last_checked" and not skip & set(f.parts))
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in files}


def differences(before: dict, after: dict) -> list[str]:
    "Names that exist on one side only or hold something else."
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def nbdev(command: str, cwd: Path):
    "Run one nbdev command in `cwd`, quietly unless it fails."
    done = subprocess.run([Path(sys.executable).with_name(command)], cwd=cwd, capture_output=True, text=True)
    if done.returncode: raise SystemExit(f"{command} failed:\n{done.stdout}{done.stderr}")


def stale(root: Path) -> list[str]:
    "What is out of step in the tree at `root`, one sentence a file."
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp) / "tree"
        copy.mkdir()
        shutil.copy(root / "settings.ini", copy)
        shutil.copytree(root / "nbs", copy / "nbs", ignore=IGNORED)
        (copy / "memlab").mkdir()
        shutil.copy(root / "memlab" / "py.typed", copy / "memlab")
        nbdev("nbdev_export", copy)
        modules = differences(contents(root / "memlab"), contents(copy / "memlab"))
        nbdev("nbdev_clean", copy)
        notebooks = differences(contents(root / "nbs"), contents(copy / "nbs"))
    return ([f"memlab/{name}: not what the notebooks export; edit the notebook, then run nbdev_export" for name in modules]
            + [f"nbs/{name}: not clean; run nbdev_clean" for name in notebooks])


if __name__ == "__main__":
    found = stale(Path(__file__).resolve().parents[1])
    print(*found or ["notebooks and package agree"], sep="\n")
    sys.exit(bool(found))
