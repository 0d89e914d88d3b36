# SPDX-License-Identifier: Apache-2.0
"""The command in a child process that starts in a blink, for the tests.

The child is forked from a server that has the modules loaded. Its standard
output and error go to a file, as the descriptors that a shell would give it.
"""

import dataclasses
import json
import os
import pathlib
import resource
import sys
from multiprocessing import process as process_lib

from dsbs_jax.runtime import command
from rationales import extract, records

KEY = 'sk-loopback-0123456789'


def run(arguments: list[str], environment: dict[str, str], log: str) -> None:
  """What the child does: the command with these arguments."""
  descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
  os.dup2(descriptor, 1)
  os.dup2(descriptor, 2)
  os.environ.update(environment)
  sys.argv = arguments
  try:
    command.run(extract.main)
  finally:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pathlib.Path(log).with_suffix('.rss').write_text(str(peak))


@dataclasses.dataclass
class Running:
  """A child, and afterwards what it left."""

  process: process_lib.BaseProcess
  log: pathlib.Path

  def wait(self, seconds: float = 120) -> 'Running':
    self.process.join(seconds)
    assert self.process.exitcode is not None, self.output
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


def lines(path: pathlib.Path, kind: str | None = None) -> list[dict]:
  """The records of a completions file, of one kind or all."""
  found = [json.loads(line) for line in path.read_text().splitlines()]
  return [line for line in found if kind in (None, line['kind'])]


def answers(path: pathlib.Path) -> list[dict]:
  return lines(path, records.COMPLETION)
