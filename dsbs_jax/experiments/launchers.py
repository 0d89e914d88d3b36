# SPDX-License-Identifier: Apache-2.0
"""Two ways to run the jobs of a sweep: as subprocesses, or in this process."""

import contextlib
import pathlib
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence

from dsbs_jax.experiments import jobs
from dsbs_jax.preparing import prepare as prepare_lib
from dsbs_jax.runtime import gin_config, signals
from dsbs_jax.training import loop, train_config

FAILED_STATUS = 1
_POLL_SECONDS = 0.5


class Subprocesses:
  """Runs each job as a subprocess and passes signals on to it.

  Args:
    stop: the request to stop that the sweep listens to.
    say: prints a line for the user.
  """

  def __init__(self, stop: signals.StopRequest, say: Callable[[str], None]):
    self._stop = stop
    self._say = say

  def prepare(
    self, subset: jobs.Subset, *, log: pathlib.Path, lock: int
  ) -> int:
    """Prepares a subset; returns the exit status."""
    return self._run(subset.command, log, lock, lambda: None)

  def train(
    self,
    job: jobs.Job,
    *,
    log: pathlib.Path,
    lock: int,
    watch: Callable[[], None],
  ) -> int:
    """Trains a run.

    Args:
      job: the run.
      log: file that its output is added to.
      lock: file descriptor of the folder's lock, which the process inherits
        and holds until it ends.
      watch: called twice a second, to show progress.

    Returns:
      The exit status.
    """
    return self._run(job.command, log, lock, watch)

  def _run(
    self,
    command: Sequence[str],
    log: pathlib.Path,
    lock: int,
    watch: Callable[[], None],
  ) -> int:
    with log.open('ab') as out:
      process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=(lock,),
      )
    stopping = False
    try:
      while process.poll() is None:
        if self._stop.requested() and not stopping:
          process.send_signal(signal.SIGTERM)
          self._say(
            f'{self._stop.name}: waiting for the run to save; Ctrl-C again kills it'
          )
          # A second Ctrl-C raises here, and the `finally` below kills the run.
          signal.signal(signal.SIGINT, signal.default_int_handler)
          stopping = True
        if not stopping:
          watch()
        time.sleep(_POLL_SECONDS)
    finally:
      if process.poll() is None:
        process.kill()
        process.wait()
    return process.returncode


class InProcess:
  """Runs jobs in this process: for runs shorter than a process's start.

  Each run prints its own progress. Memory that a run does not free is missing
  for the next one.
  """

  def __init__(self, stop: signals.StopRequest, say: Callable[[str], None]):
    del stop, say  # a run handles signals and prints by itself

  def prepare(
    self, subset: jobs.Subset, *, log: pathlib.Path, lock: int
  ) -> int:
    """Prepares a subset; returns the exit status it would have had."""
    del lock
    request = prepare_lib.PrepareConfig(
      benchmark=subset.benchmark,
      source=subset.source,
      data_dir=subset.data_dir,
      fraction=subset.fraction,
      subset_seed=subset.subset_seed,
      vocabulary=subset.vocabulary,
      **_options(subset.flags),
    )

    def prepare() -> int:
      with log.open('a') as out, contextlib.redirect_stdout(out):
        prepare_lib.prepare(request)
      return 0

    return _guarded(prepare, log)

  def train(
    self,
    job: jobs.Job,
    *,
    log: pathlib.Path,
    lock: int,
    watch: Callable[[], None],
  ) -> int:
    """Trains a run; returns the exit status it would have had."""
    del lock, watch

    def train() -> int:
      settings = gin_config.build(
        train_config.TrainConfig,
        gin_files=job.gin_files,
        gin_bindings=job.gin_bindings,
        search_paths=job.search_paths,
      )
      return loop.train(settings, config_text=gin_config.operative_text())

    with _handlers_kept():
      return _guarded(train, log)


def _guarded(call: Callable[[], int], log: pathlib.Path) -> int:
  """The status of a call; of an exception, whose traceback goes to the log."""
  try:
    return call()
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


def _options(flags: Sequence[str]) -> dict[str, object]:
  """'--keep=correct' -> {'keep': 'correct'}, as prepare's own flags read."""
  options = {}
  for flag in flags:
    name, equals, value = flag.removeprefix('--').partition('=')
    options[name] = value if equals else True
  for name, kind in (('train_vocab', int), ('splits', _comma_list)):
    if name in options:
      options[name] = kind(options[name])
  return options


def _comma_list(text: str) -> list[str]:
  return text.split(',')
