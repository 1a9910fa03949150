"""Every section of every notebook is a test: its cells run in order, as a reader would run them.

A section takes the name of its heading. The notebooks of `nbs/run` are executed whole by papermill, with the defaults of their
parameter cells, since that is how they are used."""
import os
import re
import signal
import tempfile

os.environ.setdefault('OMP_NUM_THREADS', '1')  # the tests are small, and run in two processes

import pytest
from execnb.shell import CaptureShell
from fastcore.xtras import working_directory
from nbdev.config import get_config
from nbdev.process import NBProcessor
from nbdev.test import nb_test_cells

from sag.runs.papermill import RunError, run

def pytest_addoption(parser):
    parser.addoption('--flags', default='', help="directives whose cells are to run too, such as 'slow gpu'")

def pytest_configure():
    "Processes that tests start are to obey signals, even if `nohup` or a shell's `&` has told this one to ignore them."
    for number in signal.SIGINT, signal.SIGHUP:
        if signal.getsignal(number) is signal.SIG_IGN: signal.signal(number, signal.SIG_DFL)

def pytest_collect_file(file_path, parent):
    if file_path.suffix == '.ipynb' and file_path.name[0] not in '._': return Notebook.from_parent(parent, path=file_path)


class CellError(Exception):
    "A cell raised; the message is the notebook's own traceback"


class Notebook(pytest.File):
    "A shell and the sections that run in it; cells with a directive of `tst_flags` are left out unless `--flags` names it"
    def collect(self):
        if self.path.parent.name == 'run': return [Run.from_parent(self, name='with its defaults')]
        left_out, wanted = get_config(self.path).tst_flags.split(), self.config.getoption('--flags').split()
        self.todo = nb_test_cells(self.path, left_out, wanted)
        tests, chosen = ({c.idx_ for c in o} for o in (nb_test_cells(self.path), self.todo))
        title, sections = self.path.stem, {}
        for c in NBProcessor(self.path, rm_directives=False, process=True).nb.cells:
            if c.cell_type == 'markdown' and (m := re.match('#+ +(.+)', c.source)):
                title = m[1] if m[1] not in sections else f'{m[1]} (cell {c.idx_})'
            elif c.idx_ in tests: sections.setdefault(title, []).append(c.idx_)
        return [Section.from_parent(self, name=title, end=cells[-1], flagged=not chosen & {*cells}) for title, cells in sections.items()]

    def setup(self):
        os.environ['IN_TEST'] = '1' # nbdev's sign to notebooks
        self.shell, self.failed = CaptureShell(self.path, mpl_format='png'), None

    def teardown(self):
        del os.environ['IN_TEST']
        self.shell.run("import matplotlib.pyplot; matplotlib.pyplot.close('all')")
        self.shell.close()


class Section(pytest.Item):
    "The cells under one heading; run alone, it first runs those above it"
    def __init__(self, *, end, flagged, **kwargs):
        super().__init__(**kwargs)
        self.end = end
        if flagged: self.add_marker(pytest.mark.skip(reason='needs --flags'))

    def runtest(self):
        nb = self.parent
        if nb.failed: pytest.skip(f"its section '{nb.failed}' failed")
        with working_directory(self.path.parent):
            while nb.todo and nb.todo[0].idx_ <= self.end:
                nb.shell.cell(nb.todo.pop(0))
                if nb.shell.exc:
                    nb.failed = self.name
                    raise CellError(nb.shell.prettytb(self.path))

    def repr_failure(self, excinfo):
        return str(excinfo.value) if excinfo.errisinstance(CellError) else super().repr_failure(excinfo)

    def reportinfo(self): return self.path, 0, self.name  # a line, or pytest cannot report a skip


class Run(pytest.Item):
    "A notebook of `nbs/run`, executed as `sag.runs.papermill.run` does it"
    def runtest(self):
        with tempfile.TemporaryDirectory() as dest, working_directory(self.path.parent): run(self.path, dest)

    def repr_failure(self, excinfo):
        return f'{excinfo.value}\n{excinfo.value.__context__}' if excinfo.errisinstance(RunError) else super().repr_failure(excinfo)

    def reportinfo(self): return self.path, 0, self.name  # a line, or pytest cannot report a skip
