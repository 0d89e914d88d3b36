# SPDX-License-Identifier: Apache-2.0
"""The training run: step after step, with checkpoints and evaluations between.

What a run starts from, and how it resumes, is in `session`. No hooks and no
callbacks: what happens, happens in `_train_locked`.
"""

import contextlib
import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax

from dsbs_jax import contract
from dsbs_jax.core import matmul_precision, partitioning
from dsbs_jax.data import declared
from dsbs_jax.data.remote import object_store
from dsbs_jax.runs import run_folder, working_copy
from dsbs_jax.runtime import (
  compilation_cache,
  distributed,
  files,
  folder_lock,
  malloc,
  signals,
)
from dsbs_jax.training import profiling, session, step_functions, train_config


def train(
  run: train_config.TrainConfig, *, config_text: str | None = None
) -> int:
  """Trains, evaluates and saves until `train_steps` are done.

  A run that finds checkpoints in its folder resumes from the newest.

  Args:
    run: all settings.
    config_text: the gin config behind them, kept beside the checkpoints.

  Returns:
    0, or signals.INTERRUPTED_STATUS if a signal ended the run early.

  Raises:
    UserError: another process trains in the folder, the settings do not fit
      each other, the data or a checkpoint, a file could not be written, or too
      many steps were not finite.
  """
  started = time.monotonic()
  files.check_writable(run.model_dir)
  lock = folder_lock.FolderLock(
    f'{run.model_dir}/{run_folder.LOCK_FILE}',
    doing='trained',
    remedy='train in another MODEL_DIR',
  )
  with distributed.hold(lock), working_copy.open(run.model_dir) as copy:
    if copy.is_remote:
      run = dataclasses.replace(run, model_dir=copy.folder)
    return _train_locked(
      run, lock, copy, config_text=config_text, started=started
    )


@dataclasses.dataclass(frozen=True)
class _Checkpointing:
  """Saves the state of a session, and scores what was saved."""

  run: train_config.TrainConfig
  mesh: jax.sharding.Mesh
  now: session.Session
  lock: folder_lock.FolderLock
  copy: working_copy.WorkingCopy
  config_text: str | None

  def save(self, *, eval_due: bool = False) -> None:
    """Starts to save; `eval_due` says that its scores are still missing."""
    now = self.now
    position = {'loader': now.batches.get_state(), 'eval_due': eval_due}
    position |= now.buffer.to_json()
    facts = {**now.fingerprint, 'config': self.config_text}
    if now.description:
      facts[declared.KEY] = now.description
    self.lock.check()
    with now.clock.phase('save'):
      now.saved.save(
        now.state,
        position=position,
        run=facts,
        params=step_functions.network_params(self.run, self.mesh, now.state),
      )
      if self.copy.is_remote:  # it goes up while it is evaluated
        now.saved.wait()
        self.copy.push()

  def evaluate(
    self,
    step: int,
    stop: signals.StopRequest,
    *,
    done: Mapping[str, Any] | None = None,
  ) -> bool:
    """Scores the state after `step` steps; False if a signal ended that.

    `done` are the scores of the splits that were evaluated before.
    """
    now, run = self.now, self.run
    with now.clock.phase('evaluation'):
      params = step_functions.network_params(
        run, self.mesh, now.state, dtype=run.model.dtype
      )
      scores = now.evaluator.evaluate_all(
        params, step, run.model_dir, now.log, done=done, stop=stop
      )
    if scores is not None:
      self.lock.check()
      self.copy.wait()
      now.saved.add_scores(step, scores)
      self.copy.push()
    now.log.timings(step, now.clock.pauses())
    return scores is not None


def _train_locked(
  run: train_config.TrainConfig,
  lock: folder_lock.FolderLock,
  copy: working_copy.WorkingCopy,
  *,
  config_text: str | None,
  started: float,
) -> int:
  """As `train`, with the lock of the folder held; writes to its copy.

  `started` is a time of time.monotonic(), from which start-up counts.
  """
  malloc.keep_freed_memory()
  compilation_cache.use_cache()
  matmul_precision.use(run.matmul_precision)
  mesh = partitioning.make_mesh(run.mesh)
  now = session.open_session(run, mesh, config_text=config_text)
  batch_sharding = partitioning.batch_sharding(mesh)
  log, saved, buffer, clock = now.log, now.saved, now.buffer, now.clock
  profile = profiling.Profile(run.model_dir, run.profile_steps)
  checkpoint = _Checkpointing(run, mesh, now, lock, copy, config_text)
  stop = signals.StopRequest()
  step = now.first_step
  evaluated = not now.eval_due
  if step < run.train_steps:
    log.say('compiling the train step')
  try:
    with contextlib.closing(log), contextlib.closing(saved), profile:
      if not evaluated:  # the run ended between the save and the last score
        done = run_folder.evaluations(run.model_dir, step)
        evaluated = checkpoint.evaluate(
          step, stop, done=distributed.broadcast(done)
        )
      while step < run.train_steps and not stop.requested():
        profile.before(step + 1)
        with clock.phase('data'):
          batch = partitioning.to_global(next(now.batches), batch_sharding)
        with jax.profiler.StepTraceAnnotation('train', step_num=step + 1):
          now.state, metrics = now.train_step(now.state, batch, now.key_data)
        step += 1
        buffer.add(step, metrics)
        clock.count(step - 1)
        profile.after(step, now.state)
        if step == now.first_step + 1:
          buffer.fetch()
          log.say(f'first step after {time.monotonic() - started:.1f} s')
          clock.restart()
        eval_due = step % run.eval_period == 0 or step == run.train_steps
        if step % run.log_period == 0 or eval_due:
          means = buffer.pop_means()
          lock.check()
          log.train(step, means, clock.pop())
          saved.check_for_errors()
        if eval_due:
          checkpoint.save(eval_due=True)
          evaluated = checkpoint.evaluate(step, stop)
      if stop.name and step != saved.latest_step():
        # The buffer goes along: the next log line is that of an unbroken run.
        checkpoint.save()
  except object_store.StoreError as error:
    raise contract.UserError(
      f'{error} The run had done {step:,} steps.'
    ) from error
  except files.NotWritten as error:
    raise contract.UserError(
      f'{error} The run had done {step:,} steps. {saved.describe_newest()}'
    ) from error

  if step < run.train_steps or not evaluated:
    log.say(
      f'stopped by {stop.name} at step {step:,}; the same command goes on from'
      ' there'
    )
    return signals.INTERRUPTED_STATUS
  log.say(f'done: {step:,} steps, checkpoints in {run.model_dir}')
  return 0
