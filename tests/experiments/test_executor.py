# SPDX-License-Identifier: Apache-2.0
"""A sweep outlives its runs' failures, and its runs outlive nothing."""

import contextlib
import errno
import fcntl
import io
import json
import os
import pathlib
import signal
import sys

import pytest

from dsbs_jax.experiments import eta, executor, jobs
from dsbs_jax.runs import run_folder, run_names
from dsbs_jax.runtime import folder_lock, progress, signals

# Stands for a training run: it writes what one leaves behind.
SCRIPT = """
import json, os, pathlib, signal, sys
path, behaviour = pathlib.Path(sys.argv[1]), sys.argv[2]
print('output of', path.name, flush=True)
(path / 'starts').open('a').write('x')
if behaviour == 'fail':
  raise SystemExit('boom')
if behaviour.startswith('SIG'):  # which the sweep gets now
  signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
  os.kill(os.getppid(), signal.Signals[behaviour])
  signal.sigwait({signal.SIGTERM})
  sys.exit(75)
if behaviour == 'preempted':
  sys.exit(75)
steps = 10 if behaviour == 'short' else 20
lines = [{'step': steps, 'split': 'train', 'loss': 1.0}]
lines += [{'step': steps, 'split': s, 'accuracy': 5.0}
          for s in ('validation', 'test')]
(path / 'metrics.jsonl').write_text(
    ''.join(json.dumps(line) + chr(10) for line in lines))
(path / f'checkpoint_{steps}').mkdir(exist_ok=True)
"""


class _Subset(jobs.Subset):
  """Data that a file stands for."""

  @property
  def done(self):
    return os.path.exists(f'{self.data_dir}/ready')

  @property
  def command(self):
    code = f'import pathlib; pathlib.Path({self.data_dir!r}, "ready").touch()'
    return [
      sys.executable,
      '-c',
      code if self.source else 'raise SystemExit(4)',
    ]


class _Job(jobs.Job):
  """A run that the script stands for."""

  @property
  def command(self):
    behaviour = self.gin_bindings[0]
    return [sys.executable, '-c', SCRIPT, str(self.path), behaviour]


def _subset(tmp_path, name='data', source='x'):
  return _Subset(
    benchmark='cqa',
    source=source,
    data_dir=str(tmp_path / name),
    fraction=1.0,
    subset_seed=0,
  )


def _job(tmp_path, subset, behaviour='finish', seed=0, model='tiny'):
  point = run_names.Coordinates(
    benchmark='cqa', method='gt_dsbs', model=model, seed=seed
  )
  return _Job(
    point=point,
    path=tmp_path / point.name,
    subset=subset,
    gin_files=(),
    gin_bindings=(behaviour,),
    search_paths=('.',),
    macros={'EVAL_SPLITS': ('validation', 'test')},
    train_steps=20,
    state=jobs.NEW,
    step=0,
  )


def _plan(tmp_path, *behaviours):
  subset = _subset(tmp_path)
  found = [
    _job(tmp_path, subset, behaviour, seed)
    for seed, behaviour in enumerate(behaviours)
  ]
  return jobs.SweepPlan([subset], found)


@pytest.fixture(autouse=True)
def kept_handlers():
  """Gives pytest its signals back."""
  before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


def _starts(job):
  file = job.path / 'starts'
  return len(file.read_text()) if file.exists() else 0


def test_everything_open_is_prepared_and_trained(tmp_path):
  plan = _plan(tmp_path, 'finish', 'finish')
  assert executor.execute(plan) == 0
  assert all(job.is_finished() for job in plan.jobs)
  log = plan.jobs[0].path / executor.LOG_FILE
  assert log.read_text() == f'output of {plan.jobs[0].name}\n'


def test_a_failure_is_recorded_and_the_rest_goes_on(tmp_path, capsys):
  plan = _plan(tmp_path, 'finish', 'fail', 'short', 'finish')
  assert executor.execute(plan) == 1
  assert [job.is_finished() for job in plan.jobs] == [True, False, False, True]
  path = plan.jobs[1].path / run_folder.FAILURE_FILE
  facts = json.loads(path.read_text())
  assert facts['status'] == 1
  assert 'boom' in facts['tail']
  assert '2 of 4 runs are finished, 2 failed' in capsys.readouterr().err
  assert (plan.jobs[2].path / run_folder.FAILURE_FILE).exists()


def test_a_second_pass_repeats_the_failed_one_only(tmp_path):
  first = _plan(tmp_path, 'finish', 'fail')
  executor.execute(first)
  again = _plan(tmp_path, 'finish', 'finish')
  assert executor.execute(again) == 0
  assert [_starts(job) for job in again.jobs] == [1, 2]
  assert not (again.jobs[1].path / run_folder.FAILURE_FILE).exists()


def test_data_that_cannot_be_prepared_leaves_out_its_runs_only(tmp_path):
  good, bad = _subset(tmp_path), _subset(tmp_path, 'bad', source='')
  plan = jobs.SweepPlan(
    [bad, good], [_job(tmp_path, bad, seed=0), _job(tmp_path, good, seed=1)]
  )
  assert executor.execute(plan) == 1
  assert [_starts(job) for job in plan.jobs] == [0, 1]
  facts = json.loads((tmp_path / 'bad' / run_folder.FAILURE_FILE).read_text())
  assert facts['status'] == 4


def test_a_run_that_another_process_has_is_left_to_it(tmp_path):
  plan = _plan(tmp_path, 'finish', 'finish')
  taken = plan.jobs[0].path
  taken.mkdir(parents=True)
  with (taken / '.lock').open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert executor.execute(plan) == 0
  assert [_starts(job) for job in plan.jobs] == [0, 1]
  assert executor.execute(plan) == 0
  assert [_starts(job) for job in plan.jobs] == [1, 1]


def _lock(todo):
  return folder_lock.FolderLock(todo.lock_file, doing='trained', remedy='')


def test_a_run_that_another_host_trains_is_left_to_it(tmp_path, capsys):
  """Its flock is not seen from here; the lock of `train` is."""
  plan = _plan(tmp_path, 'finish', 'finish')
  with folder_lock.hold(_lock(plan.jobs[0])):
    assert executor.execute(plan) == 0
  assert [_starts(job) for job in plan.jobs] == [0, 1]
  assert '0 failed, 1 trained by another' in capsys.readouterr().err


def test_a_refused_run_is_no_failure(tmp_path, capsys):
  """Both sweeps looked before one of them began."""
  plan = _plan(tmp_path, 'finish')
  with contextlib.ExitStack() as other:

    def launch(todo, **unused):
      if isinstance(todo, jobs.Subset):
        pathlib.Path(todo.data_dir, 'ready').touch()
        return 0
      other.enter_context(folder_lock.hold(_lock(todo)))
      return 2

    assert executor.execute(plan, launcher=launch) == 0
  assert '0 failed, 1 trained by another' in capsys.readouterr().err
  assert not (plan.jobs[0].path / run_folder.FAILURE_FILE).exists()


def test_data_that_another_host_prepares_is_waited_for(tmp_path, monkeypatch):
  plan = _plan(tmp_path, 'finish')
  (subset,) = plan.subsets
  lock = _lock(subset)
  lock.acquire()

  said = []

  def say(self, text):
    said.append(text)
    if 'another process prepares' in text:  # and ends
      pathlib.Path(subset.data_dir, 'ready').touch()
      lock.release()

  monkeypatch.setattr(progress.ProgressLine, 'say', say)
  assert executor.execute(plan) == 0
  assert 'another process' in said[0] and _starts(plan.jobs[0]) == 1


def test_a_file_system_without_locks_is_no_error(tmp_path, monkeypatch):
  def flock(descriptor, operation):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(fcntl, 'flock', flock)
  plan = _plan(tmp_path, 'finish')
  assert executor.execute(plan) == 0
  assert _starts(plan.jobs[0]) == 1


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_run_save_and_ends_the_sweep(tmp_path, number):
  plan = _plan(tmp_path, number.name, 'finish')
  assert executor.execute(plan) == signals.INTERRUPTED_STATUS
  assert [_starts(job) for job in plan.jobs] == [1, 0]
  assert not (plan.jobs[0].path / run_folder.FAILURE_FILE).exists()


def test_a_preempted_run_ends_the_sweep_as_interrupted(tmp_path):
  plan = _plan(tmp_path, 'preempted', 'finish')
  assert executor.execute(plan) == signals.INTERRUPTED_STATUS
  assert [_starts(job) for job in plan.jobs] == [1, 0]


def test_only_the_stage_that_was_asked_for_is_done(tmp_path):
  plan = _plan(tmp_path, 'finish')
  prepare = jobs.SweepPlan(plan.subsets, plan.jobs, trains=False)
  assert executor.execute(prepare) == 0
  assert plan.subsets[0].done
  assert _starts(plan.jobs[0]) == 0
  train = jobs.SweepPlan(plan.subsets, plan.jobs, prepares=False)
  assert executor.execute(train) == 0
  assert _starts(plan.jobs[0]) == 1


def test_each_model_is_predicted_by_its_own_time_per_step(tmp_path):
  subset = _subset(tmp_path)
  small = [_job(tmp_path, subset, seed=i) for i in range(3)]
  large = [_job(tmp_path, subset, seed=i, model='base') for i in range(2)]
  measured = eta.SweepProgress([*small, *large])
  assert measured.estimate() == (0, None)
  # It took 99 s to start and compile; then 0.5 s a step.
  first = measured.estimate(small[0], seconds=100.0, steps=2)
  assert first == pytest.approx((0.02, None))
  later = measured.estimate(small[0], seconds=104.0, steps=10)
  assert later == pytest.approx((0.1, 90 * 0.5))
  measured.record(small[0], seconds=10.0, steps=20)
  measured.record(large[0], seconds=100.0, steps=20)
  # Two small runs at 0.5 s a step, a large one at 5 s.
  assert measured.estimate() == pytest.approx((2 / 5, 2 * 10 + 100))
  # The next small one has done half of its steps at 1 s each.
  estimate = measured.estimate(small[1], seconds=10.0, steps=10)
  assert estimate == pytest.approx((2.5 / 5, (10 + 20) * 20 / 30 + 100))


def test_a_log_gets_a_line_now_and_then_and_a_terminal_one_line():
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  now = [0.0]
  log, terminal = io.StringIO(), Terminal()
  for out in (log, terminal):
    line = progress.ProgressLine(out, clock=lambda: now[0])
    for second in range(0, 60):
      now[0] = float(second)
      line.update(f'second {second}')
    line.say('done')
  assert log.getvalue() == 'second 0\nsecond 30\ndone\n'
  assert terminal.getvalue().count('\n') == 1
  assert terminal.getvalue().count('\r') == 62


def test_a_finished_run_is_not_started_again(tmp_path):
  plan = _plan(tmp_path, 'finish')
  executor.execute(plan)
  with contextlib.redirect_stderr(io.StringIO()):
    assert executor.execute(plan) == 0
  assert _starts(plan.jobs[0]) == 1
