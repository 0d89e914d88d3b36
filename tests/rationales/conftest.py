# SPDX-License-Identifier: Apache-2.0
"""The loopback server, and a way to run the command as a user would."""

import dataclasses
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import urllib.request

import pytest

from tests.rationales import command, sums

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


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

  def _ask(self, path: str, body=None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    address = f'http://127.0.0.1:{self.port}{path}'
    with urllib.request.urlopen(address, data, timeout=30) as response:
      return json.load(response)


@pytest.fixture(scope='session')
def server_process():
  process = subprocess.Popen(
    [sys.executable, '-m', 'tests.rationales.loopback'],
    cwd=REPOSITORY,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  yield Server(int(process.stdout.readline()))
  process.stdin.close()
  process.wait(30)


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
  # The last two are what the client would import at its first request.
  context.set_forkserver_preload(
    ['tests.rationales.command', 'httpcore2', 'anyio._backends._asyncio']
  )
  return context


@pytest.fixture
def extract(server, spawner, tmp_path):
  """Runs the command on sums in a process of its own."""

  def run(num_rows=None, *flags, environment=None, wait=True, seconds=120):
    if num_rows is not None:
      sums.write(tmp_path, num_rows)
    arguments = [
      'extract',
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
    process = spawner.Process(
      target=command.run, args=(arguments, environment, str(log))
    )
    process.start()
    result = command.Running(process, log)
    return result.wait(seconds) if wait else result

  return run


@pytest.fixture
def out(tmp_path) -> pathlib.Path:
  return tmp_path / 'out' / 'train.jsonl'


os.environ.setdefault('PYTHONPATH', str(REPOSITORY))
