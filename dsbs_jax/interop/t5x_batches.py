# SPDX-License-Identifier: Apache-2.0
"""Batches for T5X: the built-in engine's own, or seqio's with task ids.

`get_dataset` stands in for T5X's function of that name. With `paired` it gives
the batches of the built-in engine, the same at every step: both views of the
same examples, as in the paper. Otherwise seqio samples the mixture's tasks by
their rates, as T5X users know it.
"""

import dataclasses
import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import seqio
from absl import logging
from clu.data import dataset_iterator
from etils import epath
from jax.experimental import multihost_utils
from t5x import utils

from dsbs_jax import contract
from dsbs_jax.data import register, task_forms
from dsbs_jax.data.batching import (
  batch_order,
  layouts,
  loader,
  token_table,
)
from dsbs_jax.data.prepared import rationale_rules, tokens, views
from dsbs_jax.interop import t5x_batch_format

_MULTIPLE = 8
_STEP = re.compile(r'checkpoint_(\d+)')


class Iterator(dataset_iterator.DatasetIterator):
  """The built-in engine's batches under T5X's interface.

  A batch is a function of the step alone, so only the step at which the run
  began must be saved. T5X reads one batch ahead of training and does not say
  when, hence the position is computed from the number of the checkpoint, not
  counted.
  """

  def __init__(self, data: loader.Loader, *, num_rows: int):
    """Args: data, and the rows T5X expects of this process per batch."""
    self._data = data
    self._num_rows = num_rows
    self._first_step = None
    self._batches = data.iterate()

  def __next__(self) -> dict[str, np.ndarray]:
    batch = next(self._batches)
    return t5x_batch_format.flatten(batch, num_rows=self._num_rows)

  def reset(self) -> None:
    """Goes back to the first batch."""
    self._batches = self._data.iterate()

  @property
  def element_spec(self) -> dict[str, dataset_iterator.ArraySpec]:
    """Shapes and types of this process's part of a batch."""
    batch = t5x_batch_format.flatten(
      self._data.batch(0), num_rows=self._num_rows
    )
    return {
      key: dataset_iterator.ArraySpec(array.dtype, array.shape)
      for key, array in batch.items()
    }

  def save(self, filename: str) -> None:
    """Writes the position that belongs to the checkpoint `filename` is in."""
    found = _STEP.findall(str(filename))
    if not found:
      raise ValueError(
        f'the data state is to be saved as {filename!r}, expected a path inside'
        ' a folder checkpoint_<n>.'
      )
    step = int(found[-1])
    if self._first_step is None:
      # T5X saves before it trains: no batch is used up yet.
      self._first_step = step
    state = self._batches.get_state()
    state |= {'next_step': step - self._first_step, 'first': self._first_step}
    epath.Path(f'{filename}.json').write_text(json.dumps(state))

  def restore(self, filename: str) -> None:
    """Goes to where the checkpoint that `filename` is in left off."""
    state = json.loads(epath.Path(f'{filename}.json').read_text())
    self._first_step = state.pop('first')
    self._batches.set_state(state)

  load = restore


def get_dataset(
  cfg: utils.DatasetConfig,
  shard_id: int,
  num_shards: int,
  feature_converter_cls: Callable[..., seqio.FeatureConverter],
  num_epochs: int | None = None,
  continue_from_last_checkpoint: bool = False,
  *,
  paired: bool,
  layout: Callable[..., layouts.Layout],
  lengths: Mapping[str, int] | None,
  rationale_choice: str = rationale_rules.FIRST,
  rates: Mapping[str, float] | None = None,
) -> Any:
  """An iterator (paired) or a tf.data set, for `train.get_dataset_fn`.

  Args:
    cfg: T5X's description; `batch_size` counts pairs when paired, and rows
      when not, as T5X does.
    feature_converter_cls: the model's; not used when paired.
    num_epochs: None repeats for ever.
    continue_from_last_checkpoint: T5X's; must be False.
    paired: whether each step sees both views of the same examples.
    layout: `layouts.Padded` or `layouts.Packed`.
    lengths: row lengths when paired; None takes them from the data.
    rationale_choice: which of a row's several rationales its visits choose
      from, a rule of `rationale_rules`; only when paired.
    rates: must be None.

  Raises:
    UserError: seqio is to sample tasks and to choose among rationales, or by
      other rates than the mixture's.
  """
  if rates is not None:
    raise contract.UserError(
      f'MIXTURE_RATES is {dict(rates)}, expected None: seqio samples the tasks'
      ' of a mixture by its own rates. Add one with these rates to'
      ' seqio.MixtureRegistry, or take the built-in engine, python -m'
      ' dsbs_jax.train.'
    )
  if cfg.module:
    utils.import_module(cfg.module)
  if not paired:
    return _sampled(
      dataclasses.replace(cfg, pack=layout().packed),
      *(shard_id, num_shards, feature_converter_cls),
      *(num_epochs, continue_from_last_checkpoint),
      rationale_choice=rationale_choice,
    )
  data = loader.open(
    cfg.mixture_or_task_name,
    register.source(),
    _order(cfg, num_epochs),
    layout=layout(lengths=lengths),
    shard_info=loader.ShardInfo(shard_id, num_shards, row_multiple=num_shards),
    split=cfg.split,
    rationale_choice=rationale_choice,
  )
  logging.info('%s', data.describe())
  return Iterator(data, num_rows=cfg.batch_size // num_shards)


def _order(
  cfg: utils.DatasetConfig, num_epochs: int | None
) -> batch_order.BatchOrder:
  """The order of the pairs; without a seed, by process 0's time everywhere."""
  seed = cfg.seed
  if seed is None:
    now = np.int32(time.time())
    seed = int(multihost_utils.broadcast_one_to_all(now))
  return batch_order.BatchOrder(
    batch_size=cfg.batch_size,
    seed=seed,
    shuffle=cfg.shuffle,
    num_epochs=num_epochs,
  )


def _sampled(
  cfg: utils.DatasetConfig, *arguments: Any, rationale_choice: str
) -> Any:
  """The mixture's tasks as seqio samples them; arguments: T5X's."""
  if rationale_choice != rationale_rules.FIRST:
    raise contract.UserError(
      f'RATIONALE_CHOICE is {rationale_choice!r}, but PAIRED is False, where'
      f" seqio reads the data, expected '{rationale_rules.FIRST}': seqio's tasks"
      ' have one rationale per row. Train paired, or leave RATIONALE_CHOICE out.'
    )
  return utils.get_dataset(cfg, *arguments)


def vocabulary(
  *,
  spec: str | None,
  data_dir: str | None,
  prefixes: str | None,
  task: str,
  module: str | None = None,
) -> seqio.Vocabulary:
  """The vocabulary of every task of this project, for inputs and outputs.

  T5X builds the model before it opens any task, so this is also where the
  tasks learn their settings, and where the benchmark that a name belongs to
  is registered: no module need be imported by hand.

  Args:
    spec: SentencePiece path or 'bytes'; None for the default one.
    prefixes: 'paper' or 'code'; None for the default ones.
    module: dotted name of a module that registers it; None finds the tasks of
      this project by their names.
  """
  register.configure(vocabulary=spec, data_dir=data_dir, prefixes=prefixes)
  parsed = views.own_name(task)
  if parsed is not None and parsed.form in task_forms.OPTIONAL:
    raise contract.UserError(
      f'MIXTURE_OR_TASK_NAME is {task!r}, expected a task of labels or'
      f' rationales: the {parsed.form} task is not built for T5X. Take the'
      ' built-in engine, python -m dsbs_jax.train.'
    )
  if module is not None:
    utils.import_module(module)
  elif parsed is not None:
    register.benchmark(parsed.benchmark)
  register.build()
  return register.vocabulary()


def lengths(
  *,
  task: str,
  given: Mapping[str, int] | None = None,
  targets: int | None = None,
  mode: str = 'predict',
  rationale_choice: str = rationale_rules.FIRST,
) -> dict[str, int]:
  """Lengths of inputs and targets for T5X's dataset configurations.

  Args:
    given: the user's lengths; None takes those of the longest example of any
      prepared split.
    targets: takes the place of the targets' length: when decoding, the
      number of tokens that may be generated.
    mode: T5X's infer mode; where it scores, targets are never cut.
    rationale_choice: as in `get_dataset`.

  Raises:
    UserError: no lengths are given and the task is not of this project.
  """
  chosen = dict(given or _longest(task, rationale_choice))
  if targets is not None and mode != 'score':
    chosen['targets'] = targets
  return chosen


def _longest(task: str, rationale_choice: str) -> dict[str, int]:
  parsed = views.own_name(task)
  if parsed is None:
    raise contract.UserError(
      f'the lengths of {task!r} are not known, expected TASK_FEATURE_LENGTHS'
      ' for a task of another project: --gin.TASK_FEATURE_LENGTHS='
      "\"{'inputs': 512, 'targets': 128}\"."
    )
  source = register.source()
  tables = [
    token_table.from_tasks(parts)
    for split in tokens.splits(task, source)
    for parts in views.load(
      task, split, source, rationale_choice=rationale_choice
    )[0].values()
  ]
  found = np.max([table.longest() for table in tables], axis=0)
  longest = dict(zip(('inputs', 'targets'), map(int, found), strict=True))
  return {
    n: -(-length // _MULTIPLE) * _MULTIPLE for n, length in longest.items()
  }
