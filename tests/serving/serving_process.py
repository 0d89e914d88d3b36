# SPDX-License-Identifier: Apache-2.0
"""A server in a process of its own."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

# Nothing takes this long; a test that waits longer hangs.
_HANG_SECONDS = 300

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def command(*files, **macros):
  """The command line of a server of the built-in engine, at a free port."""
  macros = {'PORT': 0, **macros}
  return [
    *(sys.executable, '-m', 'dsbs_jax.serve'),
    f'--gin_search_paths={REPOSITORY}',
    *(f'--gin_file=gin/{name}.gin' for name in ('serve', *files)),
    *(f'--gin.{name}={value!r}' for name, value in macros.items()),
  ]


class Process:
  """A server; a context that ends it.

  Args:
    log: the file of its messages.
    files: gin files after the engine's.
    macros: what else is set.
  """

  def __init__(self, log, *files, **macros):
    self._log = pathlib.Path(log)
    with self._log.open('w') as file:
      self.process = subprocess.Popen(
        command(*files, **macros),
        stderr=file,
        cwd=REPOSITORY,
        env={**os.environ, 'PYTHONPATH': str(REPOSITORY)},
      )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.process.kill()
    self.process.wait()

  @property
  def log(self):
    """What it has said."""
    return self._log.read_text()

  def address(self):
    """Where it listens, as soon as it does."""
    address = r'http://[\d.]+:\d+'
    self.wait_until(lambda: re.search(address, self.log))
    return re.search(address, self.log)[0]

  def wait_until(self, condition):
    """Waits for something that it does."""
    while not condition():
      assert self.process.poll() is None, self.log
      time.sleep(0.02)

  def wait(self):
    """Waits until it answers."""
    self.wait_until(lambda: self.get('/healthz')[0] == 200)

  def get(self, path):
    return send(self.address() + path)

  def post(self, path, body):
    status, content = send(self.address() + path, json.dumps(body).encode())
    return status, json.loads(content)

  def stop(self, number=signal.SIGTERM):
    """Asks it to stop; the exit status."""
    self.process.send_signal(number)
    return self.process.wait(_HANG_SECONDS)


def send(address, data=None):
  """One request: status and body."""
  request = urllib.request.Request(
    address, data, {'Content-Type': 'application/json'}
  )
  try:
    with contextlib.closing(
      urllib.request.urlopen(request, timeout=_HANG_SECONDS)
    ) as got:
      return got.status, got.read()
  except urllib.error.HTTPError as error:
    with error:
      return error.code, error.read()
