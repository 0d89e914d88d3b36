# SPDX-License-Identifier: Apache-2.0
"""Two ways to start a plan's commands: in processes of their own, or here."""

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
from dsbs_jax.training import loop

FAILED_STATUS = 1
_POLL_SECONDS = 0.5


class Processes:
  """Starts each command as a process; a signal is passed on to it.

  Args:
    stop: the request to stop that the sweep listens to.
    say: tells the user something.
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
      lock: descriptor that the process keeps open as long as it lives.
      watch: called twice a second.

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
    told = False
    try:
      while process.poll() is None:
        if self._stop.requested() and not told:
          process.send_signal(signal.SIGTERM)
          self._say(f'{self._stop.name}: the run saves; Ctrl-C ends it at once')
          # A second Ctrl-C is an exception here, so that the run ends too.
          signal.signal(signal.SIGINT, signal.default_int_handler)
          told = True
        if not told:
          watch()
        time.sleep(_POLL_SECONDS)
    finally:
      if process.poll() is None:
        process.kill()
        process.wait()
    return process.returncode


class Here:
  """Runs in this process: for small runs that start-up time would rule.

  Progress is what the run itself prints. Memory that one run leaves behind,
  the next one has less of.
  """

  def __init__(self, stop: signals.StopRequest, say: Callable[[str], None]):
    del stop, say  # a run listens to signals and speaks by itself

  def prepare(
    self, subset: jobs.Subset, *, log: pathlib.Path, lock: int
  ) -> int:
    """Prepares a subset; returns the exit status it would have had."""
    del lock
    request = prepare_lib.Preparation(
      benchmark=subset.benchmark,
      source=subset.source,
      data_dir=subset.data_dir,
      fraction=subset.fraction,
      run=subset.run,
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
        loop.Training,
        gin_files=job.gin_files,
        gin_bindings=job.gin_bindings,
        search_paths=job.search_paths,
      )
      return loop.train(settings, config_text=gin_config.operative_text())

    with _handlers_kept():
      return _guarded(train, log)


def _guarded(call: Callable[[], int], log: pathlib.Path) -> int:
  """A call's status; an exception becomes a status, its traceback a log."""
  try:
    return call()
  except Exception:  # whatever it is, it is told, and the other runs go on
    text = traceback.format_exc()
    print(text, file=sys.stderr)
    with log.open('a') as out:
      out.write(text)
    return FAILED_STATUS


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
  """Gives the signals back to the sweep after a run that listened to them."""
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
