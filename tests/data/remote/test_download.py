# SPDX-License-Identifier: Apache-2.0
"""Downloads over a loopback socket, broken on purpose."""

import concurrent.futures
import functools
import hashlib
import http.server
import pathlib
import threading

import pytest

from dsbs_jax import contract
from dsbs_jax.data.remote import download
from dsbs_jax.data.source import archive
from dsbs_jax.data.vocabulary import vocabularies
from tests.data import small_prepared

CONTENT = bytes(range(256)) * 4096  # 1 MiB


class Handler(http.server.BaseHTTPRequestHandler):
  """Serves one file by the settings of its server object."""

  def do_GET(self):
    server = self.server
    server.requests.append(dict(self.headers))
    if server.refusals:
      self.send_error(server.refusals.pop(0))
      return
    data, etag = server.content, server.etag
    begin, asked = 0, self.headers.get('Range')
    fresh = self.headers.get('If-Range') in (None, etag)
    if asked and server.ranges and fresh:
      begin = int(asked.removeprefix('bytes=').removesuffix('-'))
      if begin >= len(data):
        self.send_response(416)
        self.send_header('Content-Range', f'bytes */{len(data)}')
        self.end_headers()
        return
      self.send_response(206)
      self.send_header(
        'Content-Range', f'bytes {begin}-{len(data) - 1}/{len(data)}'
      )
    else:
      self.send_response(200)
    if server.chunked:
      self.send_header('Transfer-Encoding', 'chunked')
    else:
      self.send_header('Content-Length', str(len(data) - begin))
    if etag:
      self.send_header('ETag', etag)
    self.end_headers()
    stop = server.cuts.pop(0) if server.cuts else len(data)
    if server.chunked:
      self.wfile.write(b'%x\r\n' % (len(data) - begin))
    self.wfile.write(data[begin : begin + stop])
    if server.chunked and begin + stop >= len(data):
      self.wfile.write(b'\r\n0\r\n\r\n')

  def log_message(self, *args):
    """Keeps the test's output clean."""


@pytest.fixture
def server():
  found = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  found.content, found.etag, found.ranges = CONTENT, '"v1"', True
  found.chunked = False
  found.requests, found.refusals, found.cuts = [], [], []
  found.url = f'http://127.0.0.1:{found.server_port}/sets/data.zip?x=1'
  thread = threading.Thread(target=found.serve_forever, args=(0.01,))
  thread.start()
  yield found
  found.shutdown()
  thread.join()
  found.server_close()


fetch = functools.partial(download.fetch, wait=lambda seconds: None)


def test_a_download_is_whole_and_tells_its_progress(server, tmp_path):
  told = []
  path = fetch(
    server.url,
    tmp_path,
    progress=lambda done, total: told.append((done, total)),
  )
  assert path == tmp_path / 'data.zip' and path.read_bytes() == CONTENT
  assert told[-1] == (len(CONTENT), len(CONTENT)) and len(told) > 2
  assert told == sorted(told)
  assert [p.name for p in tmp_path.iterdir()] == ['data.zip']
  fetch(server.url, tmp_path)
  assert len(server.requests) == 1, 'a whole file is not asked for again'


def test_a_broken_connection_goes_on_where_it_was(server, tmp_path):
  server.cuts = [1000, 500_000]
  path = fetch(server.url, tmp_path)
  assert path.read_bytes() == CONTENT
  asked = [request.get('Range') for request in server.requests]
  assert asked == [None, 'bytes=1000-', 'bytes=501000-']


def test_a_new_process_goes_on_where_the_old_one_was(server, tmp_path):
  server.cuts = [3000] + [0] * download.NUM_TRIES
  with pytest.raises(
    contract.UserError, match='3,000 bytes that came are kept'
  ):
    fetch(server.url, tmp_path)
  server.cuts = []
  assert fetch(server.url, tmp_path).read_bytes() == CONTENT
  assert server.requests[-1]['Range'] == 'bytes=3000-'


def test_a_changed_file_is_not_glued_to_the_old_one(server, tmp_path):
  server.cuts = [3000] + [0] * download.NUM_TRIES
  with pytest.raises(contract.UserError):
    fetch(server.url, tmp_path)
  server.cuts, server.content, server.etag = [], CONTENT[::-1], '"v2"'
  assert fetch(server.url, tmp_path).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize('setting', [{'ranges': False}, {'etag': None}])
def test_a_server_that_cannot_resume_starts_over(server, tmp_path, setting):
  for name, value in setting.items():
    setattr(server, name, value)
  server.cuts = [1000]
  assert fetch(server.url, tmp_path).read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_begun_again(server, tmp_path):
  (tmp_path / 'data.zip.part').write_bytes(CONTENT + b'more')
  (tmp_path / 'data.zip.part.etag').write_text('"v1"')
  assert fetch(server.url, tmp_path).read_bytes() == CONTENT
  assert [p.name for p in tmp_path.iterdir()] == ['data.zip']


@pytest.mark.parametrize('note', [b'', b'"v', b'"v1"\n', b'\xff'])
def test_a_note_that_a_kill_cut_short_does_not_stop_a_download(
  server, tmp_path, note
):
  (tmp_path / 'data.zip.part').write_bytes(CONTENT[:1000])
  (tmp_path / 'data.zip.part.etag').write_bytes(note)
  assert fetch(server.url, tmp_path).read_bytes() == CONTENT
  assert 'If-Range' not in server.requests[-1]


def test_a_body_that_ends_early_is_gone_on_with(server, tmp_path):
  server.chunked, server.cuts = True, [1000, 2000]
  assert fetch(server.url, tmp_path).read_bytes() == CONTENT
  assert len(server.requests) == 3


def test_another_file_than_was_asked_for_is_not_kept(
  server, tmp_path, monkeypatch
):
  server.content = b'<html>Please log in</html>'
  with pytest.raises(contract.UserError, match='neither a folder.*removed'):
    fetch(server.url, tmp_path, check=archive.open_archive)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setenv(
    'STORAGE_EMULATOR_HOST', f'http://127.0.0.1:{server.server_port}'
  )
  with pytest.raises(contract.UserError, match='no SentencePiece model'):
    vocabularies.load('gs://bucket/some.model')
  assert not [path for path in tmp_path.rglob('*') if path.is_file()]


def test_two_at_once_download_it_once(server, tmp_path):
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    paths = list(pool.map(lambda _: fetch(server.url, tmp_path), range(2)))
  assert len(server.requests) == 1
  assert [path.read_bytes() for path in paths] == [CONTENT] * 2


def test_a_busy_server_is_asked_again_and_a_refusal_is_not(server, tmp_path):
  server.refusals = [503, 429, 500]
  assert fetch(server.url, tmp_path).read_bytes() == CONTENT
  server.refusals = [404]
  with pytest.raises(contract.UserError, match='answers 404'):
    fetch(server.url, tmp_path / 'other')
  assert len(server.requests) == 5


def test_checksums_are_held_to(server, tmp_path):
  right = 'sha256:' + hashlib.sha256(CONTENT).hexdigest()
  header = b'blob %d\0' % len(CONTENT)
  blob = 'git:' + hashlib.sha1(header + CONTENT).hexdigest()
  for folder, checksum in (('a', right), ('b', blob)):
    fetch(server.url, tmp_path / folder, checksum=checksum)
  with pytest.raises(contract.UserError, match='the sha256 checksum is'):
    fetch(server.url, tmp_path / 'c', checksum='sha256:' + '0' * 64)
  assert not list((tmp_path / 'c').iterdir())
  (tmp_path / 'a/data.zip').write_bytes(b'changed')
  with pytest.raises(contract.UserError, match='came as another file'):
    fetch(server.url, tmp_path / 'a', checksum=right)


def test_a_git_checksum_is_what_git_calls_the_contents(server, tmp_path):
  server.content = b'hello\n'
  blob = 'git:ce013625030ba8dba906f756967f9e9ca394464a'
  path = fetch(server.url, tmp_path, checksum=blob)
  assert path.read_bytes() == b'hello\n'


def test_a_file_that_is_too_large_is_refused(server, tmp_path, monkeypatch):
  monkeypatch.setattr(download, 'MAX_BYTES', 1000)
  with pytest.raises(contract.UserError, match='expected at most 1,000'):
    fetch(server.url, tmp_path)


@pytest.mark.parametrize(
  'url', ['file:///etc/passwd', 'ftp://host/x', 'http:///x', 'http://host/']
)
def test_only_http_urls_of_files_are_fetched(url, tmp_path):
  with pytest.raises(contract.UserError, match=r'expected http\(s\)://host'):
    fetch(url, tmp_path)


def test_a_vocabulary_in_a_bucket_is_fetched_once(
  server, tmp_path, monkeypatch
):
  path = small_prepared.vocabulary(tmp_path)
  server.content = pathlib.Path(path).read_bytes()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setenv(
    'STORAGE_EMULATOR_HOST', f'http://127.0.0.1:{server.server_port}'
  )
  for _ in range(2):
    found = vocabularies.load('gs://bucket/some/sums.model')
    assert found.fingerprint == vocabularies.load(path).fingerprint
  assert len(server.requests) == 1
  server.cuts = [1000]  # a short body
  again = vocabularies.load('gs://bucket/again/sums.model')
  assert again.fingerprint == found.fingerprint
  server.refusals = [503]
  with pytest.raises(contract.UserError, match='bucket/other.*--train_vocab'):
    vocabularies.load('gs://bucket/other.model')


def test_the_published_archive_is_pinned():
  assert download.CHECKSUMS[download.PUBLISHED].startswith('git:')
  assert '/raw/' in download.PUBLISHED and 'main' not in download.PUBLISHED
