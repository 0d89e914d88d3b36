# SPDX-License-Identifier: Apache-2.0
"""Processes that take turns: what is compared runs in the same minute.

A machine that others use is fast now and slow later, so rivals are started
together, each in a process of its own with its own libraries, and asked for
one measurement each, round after round. A worker prints a line of JSON when
it is ready, then one for every line it reads.
"""

import contextlib
import functools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

T = TypeVar('T')


class Failed(RuntimeError):
  """A worker could not start, or died."""


class Worker:
  """A process that measures something each time it is asked."""

  def __init__(
    self,
    module: str,
    *arguments: str,
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
    cores: int | None = None,
  ):
    """Starts `python -m module arguments`.

    Args:
      module: its main program calls `serve`.
      *arguments: for it.
      python: the interpreter, where the rival's libraries are.
      environment: variables beside this process's.
      cores: that it may use, the last ones; None for all of this process's.
    """
    self.name = module
    with _last_cores(cores):  # the process inherits them
      self._process = subprocess.Popen(
        [python, '-m', module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | dict(environment or {}),
      )
    self.ready = self._read()

  def ask(self, request: str = '') -> dict:
    """One measurement."""
    try:
      self._process.stdin.write(request + '\n')
      self._process.stdin.flush()
    except BrokenPipeError as error:
      raise Failed(f'{self.name} has ended') from error
    return self._read()

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait(timeout=60)

  def _read(self) -> dict:
    for line in self._process.stdout:
      if line.startswith('{'):
        return json.loads(line)
    raise Failed(f'{self.name} ended with status {self._process.wait()}')


@contextlib.contextmanager
def _last_cores(number: int | None) -> Iterator[None]:
  """Lets this thread use its last cores only, where the system can."""
  if not number or not hasattr(os, 'sched_setaffinity'):  # as on macOS
    yield
    return
  mine = os.sched_getaffinity(0)
  os.sched_setaffinity(0, sorted(mine)[-number:])
  try:
    yield
  finally:
    os.sched_setaffinity(0, mine)


def serve(measure: Callable[[str], object], ready: Mapping) -> None:
  """Answers requests on standard input until it ends.

  Args:
    measure: request -> what to call and time; it may return a dict of more.
    ready: told to the asker first.
  """
  print(json.dumps(dict(ready)), flush=True)
  for request in sys.stdin:
    started, cpu = time.perf_counter(), time.process_time()
    more = measure(request.strip())
    result = {
      'seconds': time.perf_counter() - started,
      'cpu_seconds': time.process_time() - cpu,
      'peak_bytes': peak_bytes(),
    }
    if isinstance(more, Mapping):
      result |= more
    print(json.dumps(result), flush=True)


def peak_bytes() -> int:
  """The most memory that this process has had so far."""
  unit = 1 if sys.platform == 'darwin' else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def take_turns(
  ways: Mapping[str, Callable[[], T]], *, rounds: int
) -> dict[str, list[T]]:
  """Calls all in turn, round after round: name -> one result per round.

  The first round is a warm-up, and not counted. Another one begins each round.
  """
  found = {name: [] for name in ways}
  names = list(ways)
  for number in range(rounds + 1):
    for name in names:
      result = ways[name]()
      if number:
        found[name].append(result)
    names = names[1:] + names[:1]
  return found


def race(
  workers: Mapping[str, Worker], *, rounds: int, requests: Sequence[str] = ('',)
) -> dict[str, list[dict]]:
  """Asks workers in turn, by `take_turns`, all requests in each round.

  A result has sums over the requests, and one peak.
  """

  def ask(asked: Worker) -> dict:
    time.sleep(0.3)  # the threads of the one before stop spinning
    results = [asked.ask(request) for request in requests]
    summed = {key: sum(r[key] for r in results) for key in results[0]}
    return summed | {'peak_bytes': results[-1]['peak_bytes']}

  return take_turns(
    {name: functools.partial(ask, one) for name, one in workers.items()},
    rounds=rounds,
  )
