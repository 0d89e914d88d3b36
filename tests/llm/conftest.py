# SPDX-License-Identifier: Apache-2.0
"""A real LLM on loopback, where the packages of `make test-llm` are."""

import dataclasses
import os
import pathlib
import socket
import subprocess
import time
import urllib.request

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# Nothing takes this long; a test that waits longer hangs.
_HANG_SECONDS = 300


def wait_until_healthy(
  address: str, process: subprocess.Popen, log: pathlib.Path
) -> None:
  """Waits until a server answers, and fails if it ends.

  Args:
    address: what to GET.
    process: the server.
    log: what it says.
  """
  started = time.monotonic()
  while True:
    try:
      with urllib.request.urlopen(address, timeout=60):
        return
    except OSError:  # nobody listens yet, or it is not ready
      words = log.read_text()[-2000:]
      assert process.poll() is None, words
      assert time.monotonic() - started < _HANG_SECONDS, words
      time.sleep(0.1)


def _free_port() -> int:
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


@dataclasses.dataclass
class Llm:
  """A llama.cpp server that can be killed and started again at its address."""

  python: str
  folder: pathlib.Path
  model: str = 'smollm2'
  flags: tuple[str, ...] = ()
  port: int = dataclasses.field(default_factory=_free_port)
  process: subprocess.Popen | None = None

  @property
  def host(self) -> str:
    return f'http://127.0.0.1:{self.port}'

  def start(self) -> 'Llm':
    """Starts it, and does not wait until it answers."""
    script = REPOSITORY / 'tests' / 'llm' / 'llama_server.py'
    with (self.folder / 'llm.log').open('a') as log:
      self.process = subprocess.Popen(
        [
          *(self.python, str(script), self.model, str(self.port)),
          *(f'--folder={self.folder}', *self.flags),
        ],
        stdout=log,
        stderr=log,
      )
    return self

  def wait(self) -> 'Llm':
    """Waits until it has loaded its model."""
    wait_until_healthy(
      f'{self.host}/health', self.process, self.folder / 'llm.log'
    )
    return self

  def kill(self) -> None:
    if self.process is not None:
      self.process.kill()
      self.process.wait()


@pytest.fixture(scope='session')
def llm_python() -> str:
  """The Python of the environment with the models."""
  found = os.environ.get('DSBS_LLM_PYTHON', '')
  if not pathlib.Path(found or '-').is_file():
    pytest.skip('no real LLM is installed: run `make test-llm`')
  return found


@pytest.fixture
def make_llm(llm_python, tmp_path):
  """Makes servers, which end with the test."""
  made = []

  def make(model='smollm2', *flags) -> Llm:
    made.append(Llm(llm_python, tmp_path, model, flags))
    return made[-1]

  yield make
  for llm in made:
    llm.kill()
