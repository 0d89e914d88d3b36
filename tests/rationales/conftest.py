# SPDX-License-Identifier: Apache-2.0
"""The loopback server, and ways to run the command as a user would."""

import dataclasses
import json
import multiprocessing
import os
import pathlib
import urllib.request

import pytest

from tests.rationales import command, loopback, sums

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# Where the processes started here find the modules.
os.environ.setdefault('PYTHONPATH', str(REPOSITORY))


@dataclasses.dataclass
class Server:
  """The loopback server, seen from a test."""

  port: int

  @property
  def base_url(self) -> str:
    return f'http://127.0.0.1:{self.port}/v1'

  def configure(self, **behaviour) -> None:
    self._ask('/configure', behaviour)

  def change(self, **behaviour) -> None:
    """Changes some of the behaviour; what was counted stays."""
    self._ask('/change', behaviour)

  def teach(self, answers: dict[str, str]) -> None:
    self._ask('/answers', answers)

  def stats(self) -> dict:
    return self._ask('/stats')

  def wait(self, **counts: int) -> dict:
    """Returns once these counts are reached."""
    return self._ask('/wait', counts)

  def _ask(self, path: str, body=None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    address = f'http://127.0.0.1:{self.port}{path}'
    with urllib.request.urlopen(address, data, timeout=300) as response:
      return json.load(response)


@pytest.fixture(scope='session')
def server_process():
  with loopback.running() as port:
    yield Server(port)


@pytest.fixture
def server(server_process):
  """A server that behaves well and has counted nothing."""
  server_process.configure()
  server_process.teach({})
  return server_process


@pytest.fixture(scope='session')
def spawner():
  """Starts processes that have the command's modules loaded already."""
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(
    [
      'tests.rationales.command',
      command.MODULE,
      # What the client would import at its first request.
      'anyio._backends._asyncio',
      'httpcore2',
      'openai.resources.batches',
      'openai.resources.files',
    ]
  )
  return context


@pytest.fixture
def extract(server, spawner, tmp_path):
  """Runs the command on sums in a process of its own."""

  def run(num_rows=None, *flags, environment=None, wait=True):
    if num_rows is not None:
      sums.write(tmp_path, num_rows)
    arguments = [
      '--benchmark=sums',
      '--module=tests.rationales.sums',
      f'--source={tmp_path}',
      f'--prompt={tmp_path}/sums_prompt.json',
      f'--base_url={server.base_url}',
      '--model=teacher',
      f'--out={tmp_path}/out/train.jsonl',
      *flags,
    ]
    environment = {'OPENAI_API_KEY': command.KEY} | (environment or {})
    log = tmp_path / 'log.txt'
    running = command.start(spawner, arguments, log, environment)
    return running.wait() if wait else running

  return run


@pytest.fixture
def out(tmp_path) -> pathlib.Path:
  return tmp_path / 'out' / 'train.jsonl'
