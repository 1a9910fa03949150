"A type checker and `help` see through the lazy front door."
import pydoc
import sys
from pathlib import Path

import pytest

import sag

USE = """
import sag
from sag.data import load
reveal_type(sag.SaGConfig().num_slots)
reveal_type(sag.load_refer)
reveal_type(sag.fit)
reveal_type(load)
reveal_type(sag.__version__)
"""


def test_package_is_marked_as_typed():
    assert (Path(sag.__file__).parent/'py.typed').exists()


def test_mypy_sees_the_lazy_names(tmp_path, monkeypatch):
    api = pytest.importorskip('mypy.api')
    root = Path(sag.__file__).parents[1]
    monkeypatch.chdir(root)
    (tmp_path/'use.py').write_text(USE)
    out, err, status = api.run(['--no-error-summary', str(tmp_path/'use.py')])
    assert status == 0, out + err
    types = [line.split('Revealed type is ')[1] for line in out.splitlines() if 'Revealed' in line]
    assert len(types) == 5 and 'Any"' not in types, types
    assert types[0] == '"int"' or types[0] == '"builtins.int"', types
    assert all('def (' in o for o in types[1:4]), types


@pytest.mark.parametrize('name', ['SaG', 'SaGConfig', 'load_refer', 'load_captions', 'segment', 'load_released', 'fit'])
def test_help_says_what_arguments_mean(name):
    text = pydoc.render_doc(getattr(sag, name), renderer=pydoc.plaintext)
    assert 'Parameters' in text and ' : ' in text, text


def test_an_unknown_name_is_named():
    with pytest.raises(AttributeError, match="no attribute 'segmnt'"): sag.segmnt  # noqa: B018
    assert sys.modules['sag'] is sag
