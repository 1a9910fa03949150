"What several modules of tests share."
from pathlib import Path

import nbformat
import pytest
from execnb.shell import CaptureShell
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from sag.runs import papermill

@pytest.fixture
def in_process(monkeypatch):
    "Commands run their notebooks in this process: a kernel for each run would take minutes."
    def execute(notebook, out, params):
        plain = {k: str(v) if isinstance(v, Path) else v for k, v in params.items()}
        nb = parameterize_notebook(load_notebook_node(str(notebook)), plain, kernel_name='python3', language='python')
        shell = CaptureShell(mpl_format=None)
        for cell in nb.cells:
            if cell.cell_type == 'code': shell.run(cell.source)
            if shell.exc: raise shell.exc[1]
        nbformat.write(nb, out)
    monkeypatch.setattr(papermill, 'execute', execute)
