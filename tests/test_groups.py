"Two workers share tests by file and by page, not by test."
import shutil
import subprocess
import sys
from pathlib import Path

LIKE = '''
import os
import pytest

@pytest.mark.parametrize('study', ['a', 'b', 'c'])
def test_x(study): print(os.environ['PYTEST_XDIST_WORKER'], __name__, study)

@pytest.mark.parametrize('study', ['b'])
def test_y(study): print(os.environ['PYTEST_XDIST_WORKER'], __name__, study)
'''


def test_a_file_stays_on_one_worker_and_pages_are_shared(tmp_path):
    shutil.copy(Path(__file__).with_name('groups.py'), tmp_path/'conftest.py')
    for name in ('reproduce', 'more', 'other', 'third'): (tmp_path/f'test_{name}.py').write_text(LIKE)
    done = subprocess.run([sys.executable, '-m', 'pytest', '-rP', '-n', '2', '--dist', 'loadfile', '--no-loadscope-reorder', '-p', 'no:cacheprovider', '.'], cwd=tmp_path, capture_output=True, text=True)
    ran = {tuple(line.split()) for line in done.stdout.splitlines() if line.startswith('gw')}
    workers = lambda *words: {who for who, *what in ran if what[:len(words)] == [*words]}
    assert done.returncode == 0 and len(ran) == 12, done.stdout + done.stderr
    assert [len(workers(f'test_{name}')) for name in ('reproduce', 'more', 'other', 'third')] == [2, 1, 1, 1]
    assert [len(workers('test_reproduce', study)) for study in 'abc'] == [1, 1, 1]
