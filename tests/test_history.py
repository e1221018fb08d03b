"What claims have read before is what the repository remembers, not what somebody wrote."
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
def git(where, *words): return subprocess.run(['git', *words], cwd=where, capture_output=True, text=True)
def tool(where, *words): return subprocess.run([sys.executable, str(ROOT/'tools'/'history.py'), *words], cwd=where, env=os.environ | dict(MEMLAB_HOME=str(where)), capture_output=True, text=True)


@pytest.mark.skipif(git(ROOT, 'rev-parse', '--is-shallow-repository').stdout.strip() != 'false', reason='needs the whole history')
def test_the_committed_histories_are_those_of_the_repository():
    done = tool(ROOT, '--check')
    assert done.returncode == 0, done.stderr


def test_a_history_is_read_off_the_versions(tmp_path):
    where = tmp_path/'data/results/toy/cpu'
    where.mkdir(parents=True)
    git(tmp_path, 'init'), git(tmp_path, 'config', 'user.email', 'a@b'), git(tmp_path, 'config', 'user.name', 'a')
    for verdict in ('inconclusive', 'inconclusive', 'supported', 'refuted'):
        (where/'claims.json').write_text(json.dumps([dict(id='T1', verdict=verdict, effect=.1, rule='by eye')]) if verdict != 'refuted' else (ROOT/'data/results/mqar/cpu/claims.json').read_text())
        if verdict != 'refuted': git(tmp_path, 'add', '.'), git(tmp_path, 'commit', '-m', 'x', '--allow-empty')
    assert 'not what the versions' in tool(tmp_path, '--check').stderr
    assert tool(tmp_path).returncode == 0 and tool(tmp_path, '--check').returncode == 0
    told = json.loads((where/'history.json').read_text())['content']
    assert [h['verdict'] for h in told if h['id'] == 'T1'] == ['inconclusive', 'supported'] and len(told) > 2
    told.pop(), (where/'history.json').write_text(json.dumps(told))
    assert tool(tmp_path, '--check').returncode
    shutil.rmtree(tmp_path/'.git')
