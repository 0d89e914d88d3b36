# SPDX-License-Identifier: Apache-2.0
"""The settings of a training run, checked where they are made."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from dsbs_jax import contract
from dsbs_jax.core import lora as lora_lib
from dsbs_jax.core import matmul_precision, network, partitioning
from dsbs_jax.core import objective as objective_lib
from dsbs_jax.data import register, soft_labels
from dsbs_jax.data.batching import batch_order, soft_label_rows
from dsbs_jax.data.prepared import rationale_rules, tokens, views
from dsbs_jax.data.remote import object_store
from dsbs_jax.runtime import field_checks

_COUNTS = (
  'train_steps',
  'batch_size',
  'microbatches',
  'eval_period',
  'eval_batch_size',
  'max_decode_len',
  'log_period',
  'keep_checkpoints',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """A training run's settings; gin/train.gin binds every field.

  Attributes:
    model_dir: folder of checkpoints, metrics and predictions.
    mixture_or_task_name: what to train on, such as 'cqa_gt_dsbs'.
    data_dir: folder that `prepare` wrote to; None for the default one.
    vocabulary: SentencePiece path or 'bytes', with ':N' for N extra ids, or
      None for the public T5 vocabulary.
    prefixes: 'paper' ([label]), 'code' (predict: ), None for the default.
    module: path or name of your own module that registers the benchmark.
    lengths: {'inputs': S, 'targets': T} or None to take them from the data.
    initial_checkpoint_path: where a new run takes its parameters from.
    allow_pickle: whether these may be a pickled pytorch_model.bin.
    model: the network.
    matmul_precision: how float32 factors are multiplied, such as
      'tensorfloat32' or 'bfloat16'; None as float32, unless the variable
      JAX_DEFAULT_MATMUL_PRECISION says otherwise.
    objective: the loss of a mixture; a single task trains on its plain loss.
    lora: with a rank, low-rank adapters are trained in place of all parameters.
    paired: whether each step sees both views of the same examples, as in the
      paper, or samples the mixture's tasks by their rates, as seqio does.
    rates: task -> rate where the mixture is sampled; None for its own.
    rationale_choice: which of a row's several rationales its visits choose
      from: a rule of data/prepared/rationale_rules.
    train_steps: steps of the whole run.
    batch_size: examples (paired: pairs) per step over all devices.
    microbatches: how many parts of a batch are computed one after another.
    chunk_tokens: target tokens whose logits exist at once; 0 for all.
    learning_rate: peak learning rate.
    schedule: peak rate and total_steps -> learning rate at a step. Further
      arguments of it and of the optimizer are bound by their names.
    optimizer: schedule and clip_norm -> gradient transformation.
    clip_norm: global norm to which gradients are clipped, None for never.
    layout: layouts.Packed, layouts.Bucketed or layouts.Padded.
    skip_padding: whether the padding of packed rows is left out of all but
      attention; the same losses, sooner.
    seed: of parameters, dropout and data order.
    mesh: (data, model) devices such as '4x2'; None for all devices as data.
    sharding_rules: makes the table of core/partitioning.py to shard by.
    eval_period: steps between evaluations and checkpoints.
    eval_splits: splits to evaluate; the first chooses the best checkpoint.
    eval_batch_size: rows per decoding batch.
    max_decode_len: target tokens to generate at most.
    log_period: steps that a line of metrics averages over.
    keep_checkpoints: how many of the newest to keep, besides the best.
    max_nonfinite_steps: how many steps whose loss or gradient is not finite
      are skipped; the next one ends the run. 0 skips none.
    profile_steps: first and last step, from 1, that are traced for
      TensorBoard's profile plugin; None traces none.
  """

  DERIVED_MACROS: ClassVar = register.DERIVED_MACROS

  model_dir: str
  mixture_or_task_name: str
  data_dir: str | None
  vocabulary: str | None
  prefixes: str | None
  module: str | None = None
  lengths: Mapping[str, int] | None
  initial_checkpoint_path: str | None
  allow_pickle: bool
  model: network.Config
  matmul_precision: str | None = None
  objective: objective_lib.Distillation
  lora: lora_lib.LoRA = lora_lib.OFF
  paired: bool
  rates: Mapping[str, float] | None
  rationale_choice: str = rationale_rules.FIRST
  train_steps: int
  batch_size: int
  microbatches: int
  chunk_tokens: int
  learning_rate: float
  schedule: Callable[..., Any]
  optimizer: Callable[..., Any]
  clip_norm: float | None
  layout: Callable[..., Any]
  skip_padding: bool
  seed: int
  mesh: str | None
  sharding_rules: Callable[[], partitioning.Rules]
  eval_period: int
  eval_splits: tuple[str, ...]
  eval_batch_size: int
  max_decode_len: int
  log_period: int
  keep_checkpoints: int
  max_nonfinite_steps: int
  profile_steps: tuple[int, int] | None = None

  def __post_init__(self):
    field_checks.texts(self, 'model_dir', 'mixture_or_task_name')
    field_checks.splits(self, 'eval_splits')
    field_checks.texts_or_none(
      self, 'data_dir', 'vocabulary', 'prefixes', 'initial_checkpoint_path'
    )
    field_checks.texts_or_none(self, 'module')
    field_checks.one_of(
      self, 'matmul_precision', (None, *matmul_precision.NAMES)
    )
    field_checks.counts(self, *_COUNTS)
    field_checks.counts(self, 'chunk_tokens', 'max_nonfinite_steps', least=0)
    field_checks.counts(self, 'seed', least=0, below=1 << 32)
    field_checks.numbers(self, 'learning_rate')
    field_checks.numbers_or_none(self, 'clip_norm')
    field_checks.flags(self, 'paired', 'allow_pickle', 'skip_padding')
    _check_profile_steps(self.profile_steps)
    rationale_rules.check(self.rationale_choice)
    field_checks.functions(
      self, 'schedule', 'optimizer', 'layout', 'sharding_rules'
    )
    own = views.own_name(self.mixture_or_task_name)
    if self.rates is not None and own and (self.paired or not _is_pair(self)):
      raise contract.UserError(
        f'rates is {dict(self.rates)}, expected None:'
        f' {self.mixture_or_task_name} is'
        f' {"trained in pairs" if _is_pair(self) else "one task"}. Leave'
        ' MIXTURE_RATES out, or train a _dsbs mixture with --gin.PAIRED=False.'
      )
    if '://' in self.model_dir and not object_store.is_bucket(self.model_dir):
      raise contract.UserError(
        f'MODEL_DIR is {self.model_dir!r}, expected a folder of this machine,'
        ' one that is mounted, or one in a bucket (gs:// or s3://).'
      )
    _check_terms(self)
    if self.module is not None:
      register.load_module(self.module)
    if self.lora.rank:
      lora_lib.tree(self.model, self.lora)  # refuses targets that are not there
    # Checks their settings, and makes gin write them into the run's config.
    self.transformation()
    self.layout(lengths=self.lengths)

  def order(self) -> batch_order.BatchOrder:
    """Which examples each step sees."""
    return batch_order.BatchOrder(
      batch_size=self.batch_size,
      seed=self.seed,
      paired=self.paired,
      rates=self.rates,
    )

  def transformation(self):
    """The optimizer with its schedule."""
    rate = self.schedule(self.learning_rate, total_steps=self.train_steps)
    return self.optimizer(rate, clip_norm=self.clip_norm)

  def depends_on_train_steps(self) -> bool:
    """Whether a longer run has other rates or weights from the start."""

    def program(total_steps):
      rate = self.schedule(self.learning_rate, total_steps=total_steps)
      return str(jax.make_jaxpr(rate)(jax.ShapeDtypeStruct((), jnp.int32)))

    named = isinstance(objective_of(self).alpha_schedule, str)
    return named or program(self.train_steps) != program(2 * self.train_steps)


def objective_of(run: TrainConfig) -> objective_lib.Distillation:
  """The run's objective; a task with one term trains on its plain loss."""
  name = views.own_name(run.mixture_or_task_name)
  if name is None:
    return run.objective
  objective = run.objective.of_form(name.form)
  if name.form in soft_label_rows.FORMS:
    return objective
  return dataclasses.replace(objective, soft_label_weight=0.0)


def soft_targets(
  run: TrainConfig, source: tokens.Source
) -> soft_labels.SoftTargets | None:
  """The soft labels that the run trains on; None where they have no weight."""
  objective = objective_of(run)
  if not objective.soft_label_weight:
    return None
  return soft_label_rows.load(
    run.mixture_or_task_name,
    'train',
    source,
    temperature=objective.soft_label_temperature,
  )


def _is_pair(run: TrainConfig) -> bool:
  name = views.own_name(run.mixture_or_task_name)
  return name is not None and name.form == 'dsbs'


def _check_terms(run: TrainConfig) -> None:
  """Raises UserError for a term of the loss that the run cannot have."""
  objective, of_task = run.objective, objective_of(run)
  task = run.mixture_or_task_name
  name = views.own_name(task)
  beside = f'{task} and PAIRED {run.paired}'

  def refuse(term, beside, expected):
    macro = f'{term.upper()}_WEIGHT'
    raise contract.UserError(
      f'{macro} is {getattr(objective, f"{term}_weight")} with {beside},'
      f' expected {expected}. Set {macro}=0.0 or change the others.'
    )

  if of_task.mi_weight and (
    run.chunk_tokens or not run.paired or not _is_pair(run)
  ):
    refuse(
      'mi',
      f'{beside} and CHUNK_TOKENS {run.chunk_tokens}',
      'a _dsbs mixture, pairs and no chunks: the term ties each label to all of'
      ' its rationale',
    )
  if objective.further_views and (objective.mi_weight or not name):
    refuse(
      objective.further_views[0],
      f'{task} and MI_WEIGHT {objective.mi_weight}',
      'a _dsbs mixture of this project and no other further term',
    )
  if name and name.form == 'contrast':
    raise contract.UserError(
      f'MIXTURE_OR_TASK_NAME is {name}, expected a task: contrast is a term'
      f' beside others. Train on {name.benchmark}_gt_dsbs with CONTRAST_WEIGHT.'
    )
  if of_task.contrast_weight and not run.paired:
    refuse(
      'contrast',
      'PAIRED False',
      'pairs, PAIRED=True: the term compares two rationales of one example',
    )
  if objective.soft_label_weight and (
    not name or (_is_pair(run) and not run.paired)
  ):
    refuse('soft_label', beside, 'a task of this project, and pairs')


def _check_profile_steps(steps: tuple[int, int] | None) -> None:
  if steps is None:
    return
  match steps:
    case (int(first), int(last)) if 1 <= first <= last:
      return
  raise contract.UserError(
    f'profile_steps is {steps!r}, expected the first and the last step of a'
    ' profile such as (100, 110), or None.'
  )
