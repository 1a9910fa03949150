"""Pickles of others: what plain data needs is read, nothing else is resolved, and a damaged file is an error and no accident."""
import collections
import copyreg
import io
import os
import pickle
import random
import resource
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sag.files import UnsafePickle, _is_bounded, _Quick, _Unpickler, looks_like, safe_unpickle

@pytest.fixture(scope='module')
def path(tmp_path_factory): return tmp_path_factory.mktemp('pickles')/'refs(unc).p'


def read(path, data):
    path.write_bytes(data)
    return safe_unpickle(path)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda c: st.lists(c, max_size=4) | st.dictionaries(st.text(), c, max_size=4) | st.tuples(c, c), max_leaves=8)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(value=PLAIN, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_data_comes_back(path, value, protocol): assert read(path, pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_such_files_hold(path, protocol):
    containers = [collections.OrderedDict(a=np.int64(7)), collections.defaultdict(list, b=[np.float32(.5)])]
    value = [*containers, np.float64(2.5), np.bool_(True), np.str_('left'), b'bytes']
    want = [dict(a=7), dict(b=[.5]), 2.5, True, 'left', b'bytes']
    data = pickle.dumps(value, protocol)
    assert read(path, data) == want
    if protocol < 4: assert read(path, data.replace(b'numpy._core', b'numpy.core')) == want # as NumPy 1 spells it


def test_strings_of_python_2(path):
    assert read(path, b"(lp0\nS'caf\\xc3\\xa9'\naS'caf\\xe9'\na.") == ['café', 'café'] # UTF-8 and latin-1 in one file
    assert read(path, b'L7L\n.') == 7


@pytest.mark.parametrize('data, name', [
    (b"cos\nsystem\n(S'true'\ntR.", 'os.system'), (b"c__builtin__\neval\n(S'1'\ntR.", 'eval'), (b'c__builtin__\nbytearray\n(I9999999999\ntR.', 'bytearray'),
    (b'\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.', 'os.system'), (b"(S'true'\nios\nsystem\n.", 'os.system'),
    (b'\x80\x02cnumpy._core.multiarray\n_reconstruct\n)R.', 'numpy._core.multiarray._reconstruct')])
def test_nothing_else_is_resolved(path, data, name):
    with pytest.raises(UnsafePickle, match=name) as e: read(path, data)
    assert isinstance(e.value, ValueError) and str(path) in str(e.value) and '\n' not in str(e.value)


def test_the_extension_registry_is_no_way_round(path):
    copyreg.add_extension('os', 'getcwd', 240)
    try:
        with pytest.raises(UnsafePickle, match='os.getcwd'): read(path, b'\x80\x02\x82\xf0)R.')
    finally: copyreg.remove_extension('os', 'getcwd', 240)


def test_a_call_is_not_made(path):
    class Evil:
        def __reduce__(self): return os.mkdir, (str(path.parent/'made'),)
    with pytest.raises(UnsafePickle): read(path, pickle.dumps([Evil()]))
    assert not (path.parent/'made').exists()
    pickle.loads(pickle.dumps([Evil()])) # read plainly it is: the test can fail
    assert (path.parent/'made').exists()


@pytest.mark.parametrize('data', [
    b'\x80\x02]r' + struct.pack('<I', 2**29) + b'.', # a memo of 8 GB
    b'\x80\x05\x96' + struct.pack('<Q', 2**33) + b'x.', # a bytearray of 8 GB
    b'\x80\x04\x8e' + struct.pack('<Q', 2**33) + b'x.', # bytes of 8 GB
    b'\x80\x02]' + b'K\x00r' + struct.pack('<I', 2**28) + b'a' + b'K\x01a'*70_000 + b'.', # a memo of 4 GB in a larger file
    b'(lp99999999999\n.', # the same in text
    b'\x80\x02cnumpy\ndtype\n(X\x0b\x00\x00\x00V4294967296tR.',
    b"\x80\x02cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x0b\x00\x00\x00V2147483647K\x00K\x01tR)tR."])
def test_memory_is_bounded_by_the_file(path, data):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try: read(path, data)
    except ValueError as e: assert str(path) in str(e)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000 # kB


@pytest.mark.parametrize('data, kind', [(b'', 'an empty file'), (b'<!DOCTYPE html><html>', 'an HTML page'),
                                        (b'version https://git-lfs.github.com/spec/v1\n', 'LFS pointer'),
                                        (b'hello', 'a text file'), (pickle.dumps(list(range(1000)))[:-20], 'a pickle')])
def test_a_foreign_file_is_named(path, data, kind):
    with pytest.raises(ValueError, match=kind): read(path, data)
    assert kind in looks_like(path)


@pytest.mark.parametrize('protocol', (0, 2, 4))
def test_spoilt_bytes(path, protocol):
    refs = [dict(ref_id=i, ann_id=i, split='val', sentences=[dict(sent_id=i, sent='left dog', tokens=['left', 'dog'])]) for i in range(5)]
    data, rnd = pickle.dumps(refs, protocol), random.Random(protocol)
    for _ in range(150):
        b = bytearray(data)
        for _ in range(rnd.randint(1, 3)): b[rnd.randrange(len(b))] = rnd.randrange(256)
        if rnd.random() < .2: del b[rnd.randrange(len(b)):]
        try: found = read(path, bytes(b))
        except ValueError as e: assert str(path) in str(e) and '\n' not in str(e), e
        else: assert repr(found) == repr(_Unpickler(io.BytesIO(bytes(b))).load())  # C and Python agree


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_published_files_take_the_short_way(protocol):
    refs = [dict(ref_id=10**i, ann_id=-i, box=[.5, 2.], split='val', sentences=[dict(sent='left café', tokens=['left'], raw=f'{i}'*300)]) for i in range(300)]
    data = pickle.dumps(refs, protocol)
    assert _is_bounded(data) and _Quick(io.BytesIO(data), encoding='utf-8').load() == refs
