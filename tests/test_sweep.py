"""Sweeps that are killed, interrupted, run twice at once, or queued: nothing is lost and nothing runs twice."""
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from sag.runs.sweep import Point, sweep

BODY = """import time
from pathlib import Path
from IPython.display import display
notes = Path(dest).parent/'ran.txt'
with open(notes, 'a') as f: print(Path(dest).name, file=f)
while waits and not (notes.exists() and waits in notes.read_text().split()): time.sleep(.02)
assert x >= 0, 'x is negative'
display({'application/vnd.sag.result+json': dict(square=x**2)}, raw=True)"""

@pytest.fixture
def toy(tmp_path):
    "A notebook that notes in `ran.txt` that it started, and can wait for a word to appear there."
    path = tmp_path/'toy.ipynb'
    meta = dict(kernelspec=dict(name='python3', language='python', display_name='python3'))
    parameters = new_code_cell("x = 1.\nwaits = ''\ndest = ''", metadata=dict(tags=['parameters']))
    nbformat.write(new_notebook(metadata=meta, cells=[parameters, new_code_cell(BODY)]), path)
    return path

def ran(toy): return sorted((toy.parent/'sweep'/'ran.txt').read_text().split())

def elsewhere(toy, runs):
    "A sweep in another process, one run at a time."
    code = 'import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n'  # ignored in what a script starts in the background
    code += f'from sag.runs.sweep import sweep; sweep({runs!r}, {str(toy.parent/"sweep")!r}, {str(toy)!r}, jobs=1)'
    return subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

def until(true, seconds=90):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(.02)

def free(toy, name='a'): return Point(str(toy), str(toy.parent/'sweep'/name), {}).free


def test_killed_sweep_takes_its_runs_along_and_carries_on(toy):
    runs = {'a': dict(waits='go')}
    killed = elsewhere(toy, runs)
    until((toy.parent/'sweep'/'ran.txt').exists)
    assert not free(toy)
    killed.kill()
    until(lambda: free(toy))  # the run's process has ended too
    killed.communicate()
    with open(toy.parent/'sweep'/'ran.txt', 'a') as f: print('go', file=f)
    assert list(sweep(runs, toy.parent/'sweep', toy).status) == ['finished']
    assert ran(toy) == ['a', 'a', 'go']

def test_interrupted_sweep_waits_for_its_runs_to_end(toy):
    stopped = elsewhere(toy, {'a': dict(waits='never')})
    until((toy.parent/'sweep'/'ran.txt').exists)
    stopped.send_signal(signal.SIGINT)
    assert 'KeyboardInterrupt' in stopped.communicate(timeout=90)[1]
    assert stopped.returncode and free(toy)

def test_killed_run_is_tried_again(toy):
    import psutil
    runs = {'a': dict(waits='go')}
    own = elsewhere(toy, runs)
    until((toy.parent/'sweep'/'ran.txt').exists)
    run, = psutil.Process(own.pid).children()
    for kernel in run.children(): kernel.kill()
    run.kill()
    until(lambda: ran(toy) == ['a', 'a'])
    with open(toy.parent/'sweep'/'ran.txt', 'a') as f: print('go', file=f)
    said = own.communicate(timeout=90)[0]
    assert 'a: ended by SIGKILL; once more' in said and '1/1 a: finished' in said, said

def test_two_sweeps_share_the_work(toy):
    "Run `a` waits until `b` has started, so the sweep that finds `a` taken has to turn to `b`."
    runs = {'a': dict(waits='b'), 'b': dict(x=2)}
    both = [elsewhere(toy, runs) for _ in range(2)]
    said = [o.communicate(timeout=180)[0] for o in both]
    assert ran(toy) == ['a', 'b'] and sum(o.count('finished in') for o in said) == 2, said

@pytest.mark.skipif(not find_spec('submitit'), reason='needs submitit, the extra `slurm`')
def test_cluster(toy):
    "submitit's own stand-in for a cluster runs the jobs as local processes."
    slurm, dest = dict(cluster='local', timeout_min=5), toy.parent/'sweep'
    found = sweep({'a': dict(x=2), 'b': dict(x=-1)}, dest, toy, retries=0, slurm=slurm)
    assert list(found.status) == ['finished', 'failed'] and found.square['a'] == 4
    with pytest.raises(ValueError, match='partitoin'): sweep({'c': {}}, dest, toy, slurm=slurm | dict(slurm_partitoin='gpu'))
    with pytest.raises(ValueError, match='slurm: Could not detect'): sweep({'c': {}}, dest, toy, slurm={})
