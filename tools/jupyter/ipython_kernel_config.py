"""Installed into .venv/etc/ipython by `make setup`: headless kernels say nothing but errors, and a kernel that starts outside of any tree works in the one of its .venv.

So `papermill /path/to/nbs/studies/x.ipynb out.ipynb` finds tables and notebooks from every folder.
"""
import os
import sys
from pathlib import Path

here, tree = Path.cwd(), Path(sys.prefix).parent
if (tree / "nbs").is_dir() and not any((p / "settings.ini").is_file() for p in (here, *here.parents)): os.environ.setdefault("MEMLAB_HOME", str(tree))
c.Application.log_level = 40  # noqa: F821 (IPython provides `c`)
