"""Downloads from servers that misbehave: nothing but the web is followed, no more is taken than was announced, and every leftover can be recovered from."""
import io
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from sag.data.download import Corrupt, DownloadError, Gone, Source, fetch
from sag.predict import as_photo

QUIET = dict(bar=False, wait=0, tries=1, timeout=5)


def a_zip():
    with zipfile.ZipFile(data := io.BytesIO(), 'w') as z: z.writestr('photos/a', np.random.default_rng(0).bytes(200_000))
    return data.getvalue()


@pytest.fixture(scope='module')
def server():
    "Gives `data` under any path, or an answer made by `act`."
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.server.act: return self.server.act(self)
            self.send_response(200)
            self.send_header('Content-Length', str(len(self.server.data)))
            self.end_headers()
            self.wfile.write(self.server.data)

        def log_message(self, *args): pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.data, server.act, server.url = a_zip(), None, f'http://127.0.0.1:{server.server_port}/x.zip'
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.01), daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def serve(server, monkeypatch):
    "The server with another way to answer."
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    def serve(act=None):
        monkeypatch.setattr(server, 'act', act)
        return server.url
    return serve


def redirect(to):
    def act(request):
        request.send_response(302)
        request.send_header('Location', to)
        request.send_header('Content-Length', '0')
        request.end_headers()
    return act


@pytest.mark.parametrize('to', ['ftp://127.0.0.1/x.zip', 'file:///etc/passwd'])
def test_only_the_web_is_followed(serve, tmp_path, to):
    with pytest.raises(OSError, match=r'not followed|not allowed') as e: fetch(serve(redirect(to)), tmp_path/'x.zip', **QUIET)
    assert isinstance(e.value, DownloadError)
    with pytest.raises(ValueError, match='cannot be fetched'): as_photo(serve(redirect(to)), urls=True)
    with pytest.raises(Gone, match='only http and https'): fetch(Source('x.zip', to), tmp_path/'x.zip', **QUIET)
    assert not list(tmp_path.iterdir())


def endless(length):
    "An answer that goes on for 100 MB, whatever it announced."
    def act(request):
        request.send_response(200)
        if length: request.send_header('Content-Length', str(length))
        request.end_headers()
        try:
            for _ in range(100): request.wfile.write(bytes(1 << 20))
        except OSError: pass
    return act


@pytest.mark.parametrize('announced', [0, 5_000_000, 10**12])
def test_no_more_is_taken_than_was_stated(serve, server, tmp_path, announced):
    most = []
    source = Source('x.zip', serve(endless(announced)), len(server.data))
    with pytest.raises(Corrupt, match=f'expected {len(server.data)} bytes'): fetch(source, tmp_path/'x.zip', progress=lambda n, _: most.append(n), **QUIET)
    assert max(most, default=0) <= len(server.data) and not list(tmp_path.iterdir())


@pytest.mark.parametrize('note', [
    '', '{"url": ', '[]', 'null', '{}', '{"url": 5, "total": [], "mark": null}', b'\xff\xfe', 'total -5', 'total 0', 'total true', 'mark 5'])
def test_any_leftover_is_recovered_from(serve, server, tmp_path, note):
    url = serve()
    if isinstance(note, str) and note.startswith(('total', 'mark')):
        key, value = note.split()
        note = json.dumps(dict(url=url, total=len(server.data), mark='') | {key: json.loads(value)})
    (tmp_path/'x.zip.part').write_bytes(b'damaged')
    (tmp_path/'x.zip.part.json').write_bytes(note if isinstance(note, bytes) else note.encode())
    assert fetch(url, tmp_path/'x.zip', **QUIET).read_bytes() == server.data
    assert [p.name for p in tmp_path.iterdir()] == ['x.zip']


def test_a_damaged_zip_without_a_checksum_is_fetched_anew(serve, server, tmp_path):
    url = serve()
    spoilt = bytearray(server.data)
    spoilt[1000] ^= 1
    (tmp_path/'x.zip.part').write_bytes(spoilt)  # all of it is here, only the rename is missing
    (tmp_path/'x.zip.part.json').write_text(json.dumps(dict(url=url, total=len(spoilt), mark='')))
    with pytest.raises(Corrupt, match='CRC in the zip.* The file was removed; try again'): fetch(url, tmp_path/'x.zip', **QUIET)
    assert fetch(url, tmp_path/'x.zip', **QUIET).read_bytes() == server.data


@pytest.mark.parametrize('name', ['x.zip.part', 'x.zip.part.json'])
def test_a_folder_where_a_leftover_would_lie_is_named(serve, tmp_path, name):
    (tmp_path/name).mkdir()
    with pytest.raises(OSError, match='x.zip.part'): fetch(serve(), tmp_path/'x.zip', **QUIET)
