# SPDX-License-Identifier: Apache-2.0
"""The training run, from top to bottom.

Data, train state, then step after step, with checkpoints and evaluations
between them. No hooks and no callbacks: what happens, happens in `train_locked`.
"""

import contextlib
import time

import jax
import numpy as np

from dsbs_jax import contract
from dsbs_jax.core import partitioning, steps
from dsbs_jax.data import register, vocabularies
from dsbs_jax.data.batching import loader
from dsbs_jax.data.prepared import tokens
from dsbs_jax.inference import decode_functions
from dsbs_jax.inference import evaluator as evaluator_lib
from dsbs_jax.interop import read_checkpoint
from dsbs_jax.runs import (
  checkpoint_repair,
  checkpoints,
  metrics_log,
  results,
  run_folder,
)
from dsbs_jax.runtime import (
  compilation_cache,
  distributed,
  files,
  folder_lock,
  malloc,
  progress,
  signals,
)
from dsbs_jax.training import (
  metrics_buffer,
  resume_check,
  step_functions,
  train_config,
)


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
    UserError: another process trains in the folder, the settings do not fit each
      other, the data or a checkpoint, a file could not be written, or too many
      steps were not finite.
  """
  started = time.monotonic()
  files.check_writable(run.model_dir)
  lock = folder_lock.FolderLock(
    f'{run.model_dir}/{run_folder.LOCK_FILE}',
    doing='trained',
    remedy='train in another MODEL_DIR',
  )
  with distributed.hold(lock):
    return train_locked(run, lock, config_text=config_text, started=started)


def train_locked(
  run: train_config.TrainConfig,
  lock: folder_lock.FolderLock,
  *,
  config_text: str | None,
  started: float,
) -> int:
  """As `train`, which see, with the lock of the folder held.

  `started` is a time of time.monotonic(), from which start-up counts.
  """
  malloc.keep_freed_memory()
  compilation_cache.use_cache()
  mesh = partitioning.make_mesh(run.mesh)

  # What to train on: this process's rows of every batch.
  source = register.source(
    data_dir=run.data_dir, vocabulary=run.vocabulary, prefixes=run.prefixes
  )
  progress.say(f'reading {run.mixture_or_task_name} ({source.vocabulary})')
  vocabulary = vocabularies.load(source.vocabulary)
  vocabularies.check_size(vocabulary, run.model.vocab_size)
  data = open_data(run, source, mesh)
  progress.say(data.describe())
  batches = data.iterate()
  batch_sharding = partitioning.batch_sharding(mesh)

  # The train state: from the newest checkpoint, or at its start.
  abstract_state = step_functions.state(run, mesh)
  latest_step = checkpoint_repair.latest_valid_step(run.model_dir)
  saved = checkpoints.Checkpoints(run.model_dir, keep=run.keep_checkpoints)
  fingerprint = resume_check.run_fingerprint(run, source, vocabulary)
  init_key, run_key = jax.random.split(jax.random.key(run.seed))
  position = {}
  if latest_step is None:
    state = init_state(run, mesh, init_key, vocabulary=vocabulary)
  else:
    saved_run = read_checkpoint.run_metadata(
      f'{run.model_dir}/{checkpoints.PREFIX}_{latest_step}'
    )
    resume_check.check(saved_run, fingerprint, run, step=latest_step)
    state, position = saved.restore(latest_step, abstract_state.like)
    batches.set_state(position['loader'])
    progress.say(f'resuming {run.model_dir} from step {latest_step:,}')
  step = int(state.step)

  # What happens to it.
  train_step = step_functions.train_step(run, mesh)
  key_data = np.asarray(jax.random.key_data(run_key))
  evaluator = evaluator_lib.Evaluator(
    evaluator_lib.evaluated_task(run.mixture_or_task_name),
    run.model,
    splits=run.eval_splits,
    batch_size=run.eval_batch_size,
    max_decode_len=run.max_decode_len,
    source=source,
    mesh=mesh,
  )
  log = metrics_log.MetricsLog(
    run.model_dir,
    train_steps=run.train_steps,
    start_step=step,
    writes=jax.process_index() == 0,
  )
  if step < run.train_steps:  # a finished run keeps what it was trained with
    log.config(config_text)
  buffer = metrics_buffer.MetricsBuffer(
    data.example_ids,
    saved.describe_newest,
    max_nonfinite_steps=run.max_nonfinite_steps,
    saved=position,
  )

  def save(*, eval_due=False):
    position = {'loader': batches.get_state(), 'eval_due': eval_due}
    position |= buffer.to_json()
    facts = {**fingerprint, 'config': config_text}
    lock.check()
    saved.save(state, position=position, run=facts)

  def evaluate(done=None):
    scores = evaluator.evaluate_all(
      state.params, step, run.model_dir, log, done=done, stop=stop
    )
    if scores is not None:
      lock.check()
      saved.add_scores(step, scores)
    log.pause(step)
    return scores is not None

  stop = signals.StopRequest()
  evaluated = not position.get('eval_due') or saved.has_scores(step)
  first_step = step + 1
  if step < run.train_steps:
    log.say('compiling the train step')
  try:
    with contextlib.closing(log), contextlib.closing(saved):
      if not evaluated:  # the run ended between the save and the last score
        done = run_folder.evaluations(run.model_dir, step)
        evaluated = evaluate(distributed.broadcast(done))
      while step < run.train_steps and not stop.requested():
        batch = decode_functions.to_global(next(batches), batch_sharding)
        state, metrics = train_step(state, batch, key_data)
        step += 1
        buffer.add(step, metrics)
        if step == first_step:
          buffer.fetch()
          log.say(f'first step after {time.monotonic() - started:.1f} s')
          log.pause(step)
        eval_due = step % run.eval_period == 0 or step == run.train_steps
        if step % run.log_period == 0 or eval_due:
          means = buffer.pop_means()
          lock.check()
          log.train(step, means)
          saved.check_for_errors()
        if eval_due:
          save(eval_due=True)
          evaluated = evaluate()
      if stop.name and step != saved.latest_step():
        # The buffer goes along: the next log line is that of an unbroken run.
        save()
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


def init_state(
  run: train_config.TrainConfig,
  mesh: jax.sharding.Mesh,
  key: jax.Array,
  *,
  vocabulary: vocabularies.Vocabulary,
) -> steps.TrainState:
  """The state of a new run: random, or with a checkpoint's parameters.

  Args:
    run: all settings.
    mesh: the devices.
    key: of the random parameters.
    vocabulary: another one in the checkpoint is a UserError.
  """
  if not run.initial_checkpoint_path:
    for hint in train_config.random_start_hints(run, vocabulary):
      progress.say(hint)
  num_params = results.num_params(run.model)
  progress.say(f'initialising {num_params:,} parameters')
  state = step_functions.init_state(run, mesh)(key)
  if run.initial_checkpoint_path:
    params = read_checkpoint.load_params(
      run.initial_checkpoint_path,
      run.model,
      shardings=step_functions.state(run, mesh).shardings.params,
      vocabulary=vocabulary,
      allow_pickle=run.allow_pickle,
    )
    state = state.replace(params=params)
  return state


def open_data(
  run: train_config.TrainConfig, source: tokens.Source, mesh: jax.sharding.Mesh
) -> loader.Loader:
  """Opens this process's part of the batches."""
  return loader.open(
    run.mixture_or_task_name,
    source,
    run.order(),
    layout=run.layout(lengths=run.lengths),
    shard_info=loader.ShardInfo(
      jax.process_index(),
      jax.process_count(),
      row_multiple=mesh.shape[partitioning.DATA_AXIS] * run.microbatches,
      microbatches=run.microbatches,
    ),
    skip_padding=run.skip_padding,
    pair_ids=bool(train_config.objective_of(run).mi_weight),
  )
