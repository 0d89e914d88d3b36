# SPDX-License-Identifier: Apache-2.0
"""Runs the jobs of a sweep one after another; a failure does not stop the rest.

Each run is a process of its own, so its memory is freed and a crash does not
end the sweep. That process holds a lock on the run's folder: two sweeps over
the same folder share the work, and neither touches a run that is still
training. Where the file system has no such locks, or has them within one host
only, the lock files of `train` and `prepare` do (`runtime/folder_lock.py`).
"""

import contextlib
import dataclasses
import errno
import fcntl
import functools
import json
import os
import pathlib
import time
from collections.abc import Iterator

from dsbs_jax.data.remote import buckets, object_store
from dsbs_jax.experiments import eta, jobs, launchers
from dsbs_jax.runs import run_folder
from dsbs_jax.runtime import folder_lock, progress, signals

LOG_FILE = 'train.log'

_LOCK_FILE = '.lock'
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_POLL_SECONDS = 0.5
_TAIL_LINES = 12


@dataclasses.dataclass(frozen=True)
class Failure:
  """A command that ended with another status than 0."""

  name: str
  status: int
  log: str
  tail: str


def execute(
  plan: jobs.SweepPlan,
  *,
  launcher: launchers.Launcher = launchers.subprocess_launcher,
) -> int:
  """Prepares and trains what is not finished in a plan.

  Returns:
    0; 1 if a command failed; signals.INTERRUPTED_STATUS if a signal stopped
    the sweep. The run under way has then saved, and the same command resumes.
  """
  return _Execution(plan, launcher).execute()


class _Execution:
  """One pass over a plan."""

  def __init__(self, plan: jobs.SweepPlan, launcher: launchers.Launcher):
    self._plan = plan
    self._open = plan.open_jobs
    self._sweep = eta.SweepProgress(self._open)
    self._line = progress.ProgressLine()
    self._stop = signals.StopRequest()
    self._interrupted = False
    self._launch = functools.partial(
      launcher, stop=self._stop, say=self._line.say
    )
    self._failures = []
    self._num_elsewhere = 0
    self._started = time.monotonic()

  def execute(self) -> int:
    for subset in self._plan.open_subsets if self._plan.prepares else ():
      if not self._stopping():
        self._prepare(subset)
    for number, job in enumerate(self._open if self._plan.trains else (), 1):
      if not self._stopping():
        self._train(number, job)
    return self._close()

  def _stopping(self) -> bool:
    return self._interrupted or self._stop.requested()

  def _prepare(self, subset: jobs.Subset) -> None:
    folder = pathlib.Path(subset.data_dir)
    if object_store.is_bucket(subset.data_dir):
      folder = buckets.local_path(subset.data_dir)
    name = f'{subset.benchmark} in {folder.name}'
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f'prepare-{subset.benchmark}.log'
    with _locked(folder, wait=True) as lock:
      self._wait_for_others(subset)
      if subset.done or self._stopping():
        return
      self._line.say(f'preparing {name}')
      status = self._launch(subset, log=log, lock=lock, watch=lambda: None)
    if status and folder_lock.holder(subset.lock_file):
      self._prepare(subset)  # refused: another host began at the same time
    elif status:
      self._failed(name, status, log, folder)
    else:
      (folder / run_folder.FAILURE_FILE).unlink(missing_ok=True)

  def _wait_for_others(self, subset: jobs.Subset) -> None:
    """Returns when nobody prepares a subset, such as by hand or elsewhere."""
    told = False
    while not self._stopping() and folder_lock.holder(subset.lock_file):
      if not told:
        self._line.say(f'{subset.lock_file}: another process prepares it')
      told = True
      time.sleep(_POLL_SECONDS)

  def _train(self, number: int, job: jobs.Job) -> None:
    if not job.subset.done:
      reason = 'its data is not prepared'
      self._line.say(f'skipped: {job.name}, {reason}')
      self._failures.append(
        Failure(job.name, launchers.FAILED_STATUS, str(job.path), reason)
      )
      self._sweep.record(job, seconds=0.0, steps=0)
      return
    job.path.mkdir(parents=True, exist_ok=True)
    with _locked(job.path, wait=False) as lock:
      if lock is None or folder_lock.holder(job.lock_file):
        self._elsewhere(job)
      elif job.is_finished():
        self._sweep.record(job, seconds=0.0, steps=0)
      else:
        self._train_locked(number, job, lock)

  def _elsewhere(self, job: jobs.Job) -> None:
    self._sweep.record(job, seconds=0.0, steps=0)
    self._num_elsewhere += 1
    self._line.say(f'skipped: {job.name}, another process is training it')

  def _train_locked(self, number: int, job: jobs.Job, lock: int) -> None:
    (job.path / run_folder.FAILURE_FILE).unlink(missing_ok=True)
    started = time.monotonic()
    log = job.path / LOG_FILE

    def watch() -> None:
      step = max(job.step, _logged_step(job.path))
      done, seconds_left = self._sweep.estimate(
        job, seconds=time.monotonic() - started, steps=step - job.step
      )
      self._line.update(
        f'[{number}/{len(self._open)}] {job.name}'
        f'  step {step:,}/{job.train_steps:,}  all {100 * done:.0f} %'
        f'  {progress.duration(time.monotonic() - self._started)}'
        f'  ETA {progress.duration(seconds_left)}'
      )

    status = self._launch(job, log=log, lock=lock, watch=watch)
    _synchronise(job.path)
    if status and folder_lock.holder(job.lock_file):
      self._elsewhere(job)  # refused: another host began at the same time
      return
    seconds = time.monotonic() - started
    steps = max(0, _logged_step(job.path) - job.step)
    self._sweep.record(job, seconds=seconds, steps=steps)
    if status == signals.INTERRUPTED_STATUS:
      self._line.say(f'saved and stopped: {job.name}')
      self._interrupted = True
    elif status or not job.is_finished():
      self._failed(job.name, status, log, job.path)
    else:
      done, seconds_left = self._sweep.estimate()
      self._line.say(
        f'[{number}/{len(self._open)}] {job.name}  {_result(job)}'
        f'  {progress.duration(seconds)}  all {100 * done:.0f} %'
        f'  ETA {progress.duration(seconds_left)}'
      )

  def _failed(
    self, name: str, status: int, log: pathlib.Path, folder: pathlib.Path
  ) -> None:
    if self._stopping():
      return  # it was asked to stop
    tail = _tail(log)
    if status == 0:
      tail += (
        '\n  ended with status 0, but without a checkpoint of its last step'
      )
    failure = Failure(name, status, str(log), tail)
    self._failures.append(failure)
    text = json.dumps(dataclasses.asdict(failure), indent=2)
    (folder / run_folder.FAILURE_FILE).write_text(text + '\n', encoding='utf-8')
    _synchronise(folder)
    self._line.say(f'FAILED with status {status}: {name} ({log})')

  def _close(self) -> int:
    for failure in self._failures:
      self._line.say(
        f'\n{failure.name}: status {failure.status},'
        f' {failure.log}\n{failure.tail}'
      )
    finished = sum(job.is_finished() for job in self._plan.jobs)
    self._line.say(
      f'{finished:,} of {len(self._plan.jobs):,} runs are finished,'
      f' {len(self._failures):,} failed, {self._num_elsewhere:,} trained by'
      f' another process, {progress.duration(time.monotonic() - self._started)}'
    )
    if self._stopping():
      self._line.say('stopped; the same command resumes the sweep')
      return signals.INTERRUPTED_STATUS
    return launchers.FAILED_STATUS if self._failures else 0


@contextlib.contextmanager
def _locked(folder: pathlib.Path, *, wait: bool) -> Iterator[int | None]:
  """Holds the lock of a folder; yields None if another process has it."""
  descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
  held = descriptor
  try:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
      held = None
    except OSError as error:
      if error.errno not in _NO_LOCKS:
        raise
    yield held
  finally:
    os.close(descriptor)


def _synchronise(folder: pathlib.Path) -> None:
  """Of a copy of a folder in a bucket: uploads logs, fetches what is new."""
  if url := buckets.url_of(folder):
    buckets.push(folder)
    buckets.fetch(url, arrays=False)


def _logged_step(path: pathlib.Path) -> int:
  """The last step in metrics.jsonl, 0 where there is none yet."""
  file = path / run_folder.METRICS_FILE
  if not file.is_file():
    return 0
  return run_folder.last_step(*run_folder.read_metrics(file))


def _result(job: jobs.Job) -> str:
  _, evaluated = run_folder.read_metrics(job.path / run_folder.METRICS_FILE)
  last = run_folder.last_step({}, evaluated)
  return '  '.join(
    f'{split} {steps[last]["accuracy"]:.2f}'
    for split, steps in evaluated.items()
    if 'accuracy' in steps.get(last, {})
  )


def _tail(log: pathlib.Path) -> str:
  if not log.is_file():
    return ''
  text = log.read_text(encoding='utf-8', errors='replace')
  return '\n'.join(f'  {line}' for line in text.splitlines()[-_TAIL_LINES:])
