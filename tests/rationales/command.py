# SPDX-License-Identifier: Apache-2.0
"""The command in a child process that starts quickly, for the tests.

The child is forked from a server that has the modules loaded. Its standard
output and error go to a file, as the descriptors that a shell would give it.
"""

import dataclasses
import importlib
import json
import os
import pathlib
import resource
import sys
from multiprocessing import context as context_lib
from multiprocessing import process as process_lib

from dsbs_jax.runtime import command
from rationales.record import completions_file

KEY = 'sk-loopback-0123456789'
# Loaded in the child only: other tests run it as a program in this process.
MODULE = 'rationales.extract'


def run(
  arguments: list[str], folder: str, environment: dict[str, str], log: str
) -> None:
  """What the child does: the command with these arguments."""
  descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
  os.dup2(descriptor, 1)
  os.dup2(descriptor, 2)
  os.environ.update(environment)
  os.chdir(folder)
  sys.argv = arguments
  try:
    command.run(importlib.import_module(MODULE).main)
  finally:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == 'darwin':
      peak //= 1024  # macOS counts bytes
    pathlib.Path(log).with_suffix('.rss').write_text(str(peak))


def start(
  spawner: context_lib.ForkServerContext,
  flags: list[str],
  log: pathlib.Path,
  environment: dict[str, str] | None = None,
) -> 'Running':
  """Starts the command in the present folder."""
  arguments = ['extract', *flags]
  process = spawner.Process(
    target=run, args=(arguments, os.getcwd(), environment or {}, str(log))
  )
  process.start()
  return Running(process, log)


@dataclasses.dataclass
class Running:
  """A child, and afterwards what it left."""

  process: process_lib.BaseProcess
  log: pathlib.Path

  def wait(self) -> 'Running':
    self.process.join()
    return self

  def kill(self) -> None:
    """SIGKILL."""
    self.process.kill()
    self.process.join()

  @property
  def status(self) -> int:
    return self.process.exitcode

  @property
  def peak_mib(self) -> float:
    """The most memory it had resident."""
    return int(self.log.with_suffix('.rss').read_text()) / 1024

  @property
  def output(self) -> str:
    return self.log.read_text() if self.log.exists() else ''


def lines(path: pathlib.Path, kind: str) -> list[dict]:
  """The records of a completions file, of one kind."""
  found = [json.loads(line) for line in path.read_text().splitlines()]
  return [line for line in found if line['kind'] == kind]


def answers(path: pathlib.Path) -> list[dict]:
  return lines(path, completions_file.COMPLETION)
