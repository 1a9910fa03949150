"""A run started by a command: its interpreter, its lock, its signals, its output, and whose code it executes."""
import ast
import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from sag.files import hold, on_signals
from sag.runs.papermill import _Kernel, outcome, own_notebooks, parameters, resume, run

ROOT = str(Path(__file__).parent.parent)
META = dict(kernelspec=dict(name='python3', language='python', display_name='python3'))
TRAIN = """
import os, signal, sys, time
from pathlib import Path
from sag.checkpoint import Terminated, terminable
from sag.runs.papermill import record
with terminable() as asked:
    Path(dest, 'at work').touch()
    while wait and not (resume or asked()): time.sleep(.01)
    if asked(): raise Terminated(asked())
print('x'*100)
record(resumed=resume, changes=changes, python=sys.executable)
"""


@pytest.fixture
def notebook(tmp_path):
    cells = [new_code_cell("resume = False\nwait = False\nchanges = {}\ndest = ''\nlosses = ''", metadata=dict(tags=['parameters'])), new_code_cell(TRAIN)]
    path = tmp_path/'work.ipynb'
    nbformat.write(new_notebook(cells=cells, metadata=META), path)
    return path


def start(notebook, dest, before='', after='', **kwargs):
    code = f'from sag.runs.papermill import run; run({str(notebook)!r}, {str(dest)!r}, wait=True, changes=dict(lr=1, dim=2))'
    env = os.environ | dict(PYTHONPATH=ROOT) | kwargs.pop('env', {})
    return subprocess.Popen([sys.executable, '-c', before + code + after], env=env, **{'stdout': subprocess.DEVNULL, 'stderr': subprocess.PIPE} | kwargs)


def at_work(process, dest):
    while not (dest/'at work').exists():
        if process.poll() is not None: raise AssertionError(process.stderr.read())
        os.sched_yield()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_the_kernel_save_first(notebook, tmp_path, number):
    process = start(notebook, tmp_path/'run')
    at_work(process, tmp_path/'run')
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert sorted(o.name for o in (tmp_path/'run').glob('[!.]*')) == ['at work', 'work.parameters.json', 'work.running.ipynb']
    assert 'To exit' not in (tmp_path/'run'/'work.running.ipynb').read_text() + process.stderr.read().decode()
    row = outcome(resume(tmp_path/'run', notebook, changes=dict(lr=3)))
    assert (row['resumed'], row['changes']) == (True, dict(lr=3, dim=2))


def test_one_process_at_a_time_and_a_dead_one_does_not_count(notebook, tmp_path):
    process = start(notebook, tmp_path/'run')
    at_work(process, tmp_path/'run')
    for second in (lambda: run(notebook, tmp_path/'run'), lambda: resume(tmp_path/'run', notebook)):
        with pytest.raises(FileExistsError, match=f'in use by process {process.pid} on'): second()
    process.kill()
    process.wait()
    with hold(tmp_path/'run', '.run.lock'): pass


def test_the_interpreter_is_the_commands(notebook, tmp_path, monkeypatch):
    other = tmp_path/'share'/'kernels'/'python3'
    other.mkdir(parents=True)
    (other/'kernel.json').write_text(json.dumps(dict(argv=['/bin/false', '{connection_file}'], display_name='Python 3', language='python')))
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path/'share'))
    assert outcome(run(notebook, tmp_path/'run'))['python'] == sys.executable


@pytest.mark.parametrize('out', ['closed', 'full'])
def test_output_that_nobody_takes(notebook, tmp_path, out):
    read, write = os.pipe() if out == 'closed' else (None, os.open('/dev/full', os.O_WRONLY))
    code = ('import sys; from sag.files import Lenient; from sag.runs.papermill import run; '
            f'print(run({str(notebook)!r}, {str(tmp_path/"run")!r}), file=Lenient(sys.stdout))')
    if read: os.close(read)
    process = subprocess.run([sys.executable, '-c', code], env=os.environ | dict(PYTHONPATH=ROOT), stdout=write, stderr=subprocess.PIPE, timeout=100)
    assert process.returncode == 0, process.stderr
    assert (tmp_path/'run'/'work.ipynb').exists()


def test_a_folder_cannot_say_what_code_to_run(notebook, tmp_path):
    dest = tmp_path/'theirs'
    dest.mkdir()
    (dest/'work.parameters.json').write_text(json.dumps(dict(notebook=str(notebook), params={})))
    with pytest.raises(ValueError, match="not one of the package's own notebooks: name it"): resume(dest)
    (dest/'work.parameters.json').write_text(json.dumps(dict(notebook=str(notebook), params=dict(losses='theirs:code'))))
    with pytest.raises(ValueError, match=r"code of its own: name it again to run it \(losses='theirs:code'\)"): resume(dest, notebook)
    assert outcome(resume(dest, notebook, losses='mine:code'))['losses'] == 'mine:code'


def test_braces_in_a_path_are_braces(notebook, tmp_path):
    assert run(notebook, tmp_path/'brace {x}') == tmp_path/'brace {x}'/'work.ipynb'


@pytest.mark.parametrize('name', own_notebooks())
def test_every_assignment_of_the_parameter_cell_is_a_parameter(name, caplog):
    cells = nbformat.read(own_notebooks()[name], 4).cells
    tree = ast.parse(next(c.source for c in cells if 'parameters' in c.metadata.get('tags', [])))
    assert list(parameters(name)) == [target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    assert 'Unable to parse' not in caplog.text


def test_a_kernel_that_shuts_down_is_not_interrupted():
    kernel = _Kernel()
    with pytest.raises(RuntimeError, match='No kernel is running'): asyncio.run(kernel._async_interrupt_kernel())
    kernel.shutting_down = True
    asyncio.run(kernel._async_interrupt_kernel())


def test_a_system_without_a_signal_does_without_it(monkeypatch):
    monkeypatch.delattr(signal, 'SIGHUP')  # Windows
    with on_signals(lambda number, frame: None): pass
