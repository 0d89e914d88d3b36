# SPDX-License-Identifier: Apache-2.0
"""What a training run works on: opened afresh, or as a checkpoint left it."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dsbs_jax.core import lora as lora_lib
from dsbs_jax.core import partitioning, steps
from dsbs_jax.core.layers import parameter_tree
from dsbs_jax.data import declared, register, soft_labels
from dsbs_jax.data.batching import loader
from dsbs_jax.data.prepared import tokens, views
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.inference import evaluator as evaluator_lib
from dsbs_jax.interop import read_checkpoint
from dsbs_jax.runs import (
  checkpoint_folders,
  checkpoint_validation,
  checkpoints,
  metrics_log,
  results,
)
from dsbs_jax.runtime import progress
from dsbs_jax.training import (
  metrics_buffer,
  phase_clock,
  resume_check,
  step_functions,
  train_config,
)

# The paper's, for a pretrained T5, is 5e-5.
_FINETUNING_RATE = 1e-4


@dataclasses.dataclass
class Session:
  """A run that is about to go on.

  Attributes:
    state: the train state; the loop replaces it.
    first_step: steps that are done.
    eval_due: whether the checkpoint of these was not evaluated to the end.
    batches: this process's rows of the following batches.
    train_step: the jitted step, see `step_functions.train_step`.
    key_data: its key: uint32, of the run's random key.
    evaluator: what scores a checkpoint.
    saved: the run's checkpoints.
    fingerprint: what a resumed run must have in common with this one.
    description: of a benchmark without Python, as JSON; None for another.
    log: metrics of the run.
    buffer: metrics of steps that were not logged yet.
    clock: how fast it goes.
  """

  state: steps.TrainState
  first_step: int
  eval_due: bool
  batches: loader.BatchIterator
  train_step: jax.stages.Wrapped
  key_data: np.ndarray
  evaluator: evaluator_lib.Evaluator
  saved: checkpoints.Checkpoints
  fingerprint: Mapping[str, Any]
  description: Mapping[str, Any] | None
  log: metrics_log.MetricsLog
  buffer: metrics_buffer.MetricsBuffer
  clock: phase_clock.PhaseClock


def open_session(
  run: train_config.TrainConfig,
  mesh: jax.sharding.Mesh,
  *,
  config_text: str | None,
) -> Session:
  """Opens data, train state and log of a run.

  Args: as in `loop.train`.

  Raises:
    UserError: the settings do not fit each other, the data or the newest
      checkpoint.
  """
  source = register.source(
    data_dir=run.data_dir, vocabulary=run.vocabulary, prefixes=run.prefixes
  )
  progress.say(f'reading {run.mixture_or_task_name} ({source.vocabulary})')
  vocabulary = vocabularies.load(source.vocabulary)
  vocabularies.check_size(vocabulary, run.model.vocab_size)
  data = open_data(
    run,
    source,
    row_multiple=mesh.shape[partitioning.DATA_AXIS] * run.microbatches,
    soft=train_config.soft_targets(run, source),
  )
  progress.say(data.describe())
  batches = data.iterate()

  latest_step = checkpoint_validation.latest_valid_step(run.model_dir)
  saved = checkpoints.Checkpoints(run.model_dir, keep=run.keep_checkpoints)
  fingerprint = resume_check.run_fingerprint(run, source, vocabulary)
  init_key, run_key = jax.random.split(jax.random.key(run.seed))
  if latest_step is None:
    state = init_state(run, mesh, init_key, vocabulary=vocabulary)
    position = {}
  else:
    state, position = _resumed_state(
      run, mesh, saved, step=latest_step, fingerprint=fingerprint
    )
    batches.set_state(position['loader'])
    progress.say(f'resuming {run.model_dir} from step {latest_step:,}')
  step = int(state.step)
  evaluator = _evaluator(run, source, mesh)
  log = metrics_log.MetricsLog(
    run.model_dir,
    train_steps=run.train_steps,
    start_step=step,
    writes=jax.process_index() == 0,
  )
  if step < run.train_steps:  # a finished run keeps what it was trained with
    log.config(config_text)
  return Session(
    state=state,
    first_step=step,
    eval_due=bool(position.get('eval_due')) and not saved.has_scores(step),
    batches=batches,
    train_step=step_functions.train_step(run, mesh),
    key_data=np.asarray(jax.random.key_data(run_key)),
    evaluator=evaluator,
    saved=saved,
    fingerprint=fingerprint,
    description=_description(run.mixture_or_task_name, source),
    log=log,
    buffer=metrics_buffer.MetricsBuffer(
      data.example_ids,
      saved.describe_newest,
      max_nonfinite_steps=run.max_nonfinite_steps,
      saved=position,
    ),
    clock=phase_clock.PhaseClock(
      data.lengths, run.model, mesh.devices.flat, lora=run.lora
    ),
  )


def _resumed_state(
  run: train_config.TrainConfig,
  mesh: jax.sharding.Mesh,
  saved: checkpoints.Checkpoints,
  *,
  step: int,
  fingerprint: Mapping[str, Any],
) -> tuple[steps.TrainState, dict[str, Any]]:
  """The train state of a checkpoint, and the position saved with it."""
  saved_run = read_checkpoint.run_metadata(
    f'{run.model_dir}/{checkpoint_folders.PREFIX}_{step}'
  )
  resume_check.check(saved_run, fingerprint, run, step=step)
  return saved.restore(step, step_functions.state(run, mesh).like)


def _evaluator(
  run: train_config.TrainConfig, source: tokens.Source, mesh: jax.sharding.Mesh
) -> evaluator_lib.Evaluator:
  return evaluator_lib.Evaluator(
    evaluator_lib.evaluated_task(run.mixture_or_task_name),
    run.model,
    splits=run.eval_splits,
    batch_size=run.eval_batch_size,
    max_decode_len=run.max_decode_len,
    source=source,
    mesh=mesh,
  )


def _description(task: str, source: tokens.Source) -> dict[str, Any] | None:
  """What says what the run's benchmark is where its data is not."""
  name = views.own_name(task)
  said = name and declared.read(name.benchmark, source.data_dir)
  return said.to_json() if said else None


def init_state(
  run: train_config.TrainConfig,
  mesh: jax.sharding.Mesh,
  key: jax.Array,
  *,
  vocabulary: vocabularies.Vocabulary,
) -> steps.TrainState:
  """The state of a new run: random by a key, or with a checkpoint's parameters.

  Raises:
    UserError: the checkpoint has another vocabulary.
  """
  if not run.initial_checkpoint_path:
    for hint in random_start_hints(run, vocabulary):
      progress.say(hint)
  num_params = results.num_params(run.model)
  progress.say(f'initialising {num_params:,} parameters')
  state = step_functions.init_state(run, mesh)(key)
  if run.lora.rank:
    trained = sum(lora_lib.sizes(run.model, run.lora).values())
    progress.say(
      f'LoRA of rank {run.lora.rank} trains {trained:,} parameters of its own'
    )
  if not run.initial_checkpoint_path:
    return state
  shardings = step_functions.state(run, mesh).shardings
  load = functools.partial(
    read_checkpoint.load_params,
    run.initial_checkpoint_path,
    run.model,
    vocabulary=vocabulary,
    allow_pickle=run.allow_pickle,
  )
  if not run.lora.rank:
    return state.replace(params=load(shardings=shardings.params))
  # Two copies, one of them float32, are what a small device has room for.
  state = state.replace(frozen=None)
  params = load(shardings=shardings.frozen)
  return state.replace(
    frozen=parameter_tree.round_large(params, run.lora.base_dtype)
  )


def open_data(
  run: train_config.TrainConfig,
  source: tokens.Source,
  *,
  row_multiple: int,
  soft: soft_labels.SoftTargets | None = None,
) -> loader.Loader:
  """Opens this process's part of the batches.

  Args:
    run: all settings.
    source: where its tokens come from.
    row_multiple: rows come in multiples of it.
    soft: the soft labels that the run trains on.
  """
  return loader.open(
    run.mixture_or_task_name,
    source,
    run.order(),
    layout=run.layout(lengths=run.lengths),
    shard_info=loader.ShardInfo(
      jax.process_index(),
      jax.process_count(),
      row_multiple=row_multiple,
      microbatches=run.microbatches,
    ),
    skip_padding=run.skip_padding,
    pair_ids=train_config.objective_of(run).needs_pair_ids,
    rationale_choice=run.rationale_choice,
    further_views=run.objective.further_views,
    soft=soft,
  )


def random_start_hints(
  run: train_config.TrainConfig, vocabulary: vocabularies.Vocabulary
) -> list[str]:
  """A sentence per setting that does not suit random parameters."""
  hints = []
  if run.learning_rate <= _FINETUNING_RATE:
    hints.append(
      f'LEARNING_RATE is {run.learning_rate:g}, a rate for finetuning, but the'
      ' parameters are random: set INITIAL_CHECKPOINT_PATH, or a rate such as'
      ' 1e-3.'
    )
  if run.lora.rank:
    hints.append(
      f'LORA_RANK is {run.lora.rank}, but the parameters are random, and LoRA'
      ' leaves them so: set INITIAL_CHECKPOINT_PATH, or LORA_RANK=0.'
    )
  rows = vocabularies.padded_size(vocabulary)
  if run.model.vocab_size > 2 * rows:
    small = dataclasses.replace(run.model, vocab_size=rows)
    hints.append(
      f'VOCAB_SIZE is {run.model.vocab_size:,}, but the vocabulary has'
      f' {vocabulary.size:,} ids: {results.num_params(run.model):,} parameters'
      f' for {results.num_params(small):,}. Leave VOCAB_SIZE out.'
    )
  return hints
