"The script that pages with formulas need, MathJax, fetched once with npm into .cache/site."
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / ".cache" / "site"
MATHJAX = "mathjax/tex-mml-chtml.js"
WANTED = {  # npm package: the files to keep; what follows the first slash goes to the folder named last
    "mathjax@3.2.2": (r"es5/(tex-mml-chtml\.js|output/chtml/fonts/.*)", "mathjax"),
}


def unpack(archive: Path, keep: str, into: Path):
    "Write the files of an npm `archive` whose names match `keep` under `into`."
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            if not (found := re.fullmatch(f"package/{keep}", member.name)): continue
            target = into / found[1]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(tar.extractfile(member).read())


def fetch():
    "Make the script available, or say aloud what the site will lack."
    if (FOLDER / MATHJAX).exists(): return
    lacking = "formulas will be shown as TeX source; install npm and run `make docs` again"
    if not shutil.which("npm"): return print(f"NOTICE: npm is not installed: {lacking}")
    with tempfile.TemporaryDirectory() as tmp:
        for package, (keep, name) in WANTED.items():
            done = subprocess.run(["npm", "pack", "--json", "--loglevel=error", package], cwd=tmp, capture_output=True, text=True)
            if done.returncode: return print(f"NOTICE: npm could not fetch {package}: {lacking}\n{done.stderr}")
            unpack(Path(tmp) / json.loads(done.stdout)[0]["filename"], keep, FOLDER / name)
