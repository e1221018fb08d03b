"""What every claim has read: data/results/<study>/<preset>/history.json from the versions of claims.json in the repository.

`tools/history.py` writes the files, `tools/history.py --check` fails where one is not what the repository tells.
"""
import json
import subprocess
import sys

from memlab.core.files import home, read_json, write_json
from memlab.lab.claims import turns


def git(*words): return subprocess.run(['git', *words], cwd=home(), capture_output=True, text=True, check=True).stdout


def versions(path):
    "Every committed `claims.json` of a folder, the oldest first, and the one that lies there."
    for commit in git('log', '--reverse', '--format=%H', '--', path).split():
        if not git('ls-tree', commit, '--', path): continue
        rows = json.loads(git('show', f'{commit}:{path}'))
        yield rows['content'] if isinstance(rows, dict) else rows   # early ones have no digest
    yield read_json(home()/path)


def main(check):
    bad = []
    for file in sorted(home().glob('data/results/*/*/claims.json')):
        told, there = turns(versions(file.relative_to(home()).as_posix())), file.parent/'history.json'
        if check: bad += [there] if not there.exists() or read_json(there) != told else []
        else: write_json(there, told)
    if bad: sys.exit(f'{", ".join(map(str, bad))}: not what the versions of claims.json tell; write it with tools/history.py')


if __name__ == '__main__':
    if git('rev-parse', '--is-shallow-repository').strip() == 'true': sys.exit('this clone has no history: fetch it whole')
    main('--check' in sys.argv[1:])
