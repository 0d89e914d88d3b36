# SPDX-License-Identifier: Apache-2.0
"""Two ways to run a command of a sweep: as a subprocess, or in this process."""

import contextlib
import pathlib
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from dsbs_jax.experiments import jobs
from dsbs_jax.preparing import prepare
from dsbs_jax.runtime import signals
from dsbs_jax.runtime.configuration import gin_config
from dsbs_jax.training import loop

FAILED_STATUS = 1
_POLL_SECONDS = 0.5

# (subset or job, log=, lock=, watch=, stop=, say=) -> exit status.
Launcher = Callable[..., int]


def subprocess_launcher(
  todo: jobs.Subset | jobs.Job,
  *,
  log: pathlib.Path,
  lock: int,
  watch: Callable[[], None],
  stop: signals.StopRequest,
  say: Callable[[str], None],
) -> int:
  """Runs a command as a subprocess and passes signals on to it.

  Args:
    todo: what has the command.
    log: file that its output is added to.
    lock: file descriptor of the folder's lock, which the process inherits and
      holds until it ends.
    watch: called twice a second, to show progress.
    stop: the request to stop that the sweep listens to.
    say: prints a line for the user.

  Returns:
    The exit status.
  """
  with log.open('ab') as out:
    process = subprocess.Popen(
      todo.command,
      stdin=subprocess.DEVNULL,
      stdout=out,
      stderr=subprocess.STDOUT,
      start_new_session=True,
      pass_fds=(lock,),
    )
  stopping = False
  try:
    while process.poll() is None:
      if stop.requested() and not stopping:
        process.send_signal(signal.SIGTERM)
        say(f'{stop.name}: waiting for the run to save; Ctrl-C again kills it')
        # A second Ctrl-C raises here, and the `finally` below kills the run.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stopping = True
      if not stopping:
        watch()
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_POLL_SECONDS)
  finally:
    if process.poll() is None:
      process.kill()
      process.wait()
  return process.returncode


def in_process_launcher(
  todo: jobs.Subset | jobs.Job, *, log: pathlib.Path, **unused: Any
) -> int:
  """Runs in this process what is shorter than a process's start.

  A run handles signals and prints its progress by itself; the log gets what
  `prepare` prints, and tracebacks. Memory that a run does not free is missing
  for the next one. Unused is what `subprocess_launcher` also takes.

  Returns:
    The exit status that a process would have had.
  """
  del unused
  try:
    if isinstance(todo, jobs.Job):
      with _handlers_kept():
        run = todo.settings()
        return loop.train(run, config_text=gin_config.operative_text())
    with log.open('a') as out, contextlib.redirect_stdout(out):
      prepare.prepare(todo.config)
    return 0
  except Exception:  # reported, whatever it is: the other runs go on
    text = traceback.format_exc()
    print(text, file=sys.stderr)
    with log.open('a') as out:
      out.write(text)
    return FAILED_STATUS


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
  """Restores the sweep's signal handlers after a run that set its own."""
  numbers = (signal.SIGTERM, signal.SIGINT)
  before = {number: signal.getsignal(number) for number in numbers}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
