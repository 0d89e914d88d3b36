# SPDX-License-Identifier: Apache-2.0
"""T5X's trainer with the whole batch in view, and where runs start from.

T5X cuts a batch into microbatches before the model sees it. The number of
label and rationale tokens in the whole batch must be known first: this trainer
writes each token's weight into the batch, inside the jitted step, so it is
exact on any number of microbatches, devices and processes.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
from absl import logging
from t5x import partitioning, trainer, utils

from dsbs_jax.data import register
from dsbs_jax.data.seqio_tasks import providers
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.interop import read_checkpoint, t5x_batch_format, t5x_model


class Trainer(trainer.Trainer):
  """Binds in place of `trainer.Trainer`, with the same arguments."""

  def compile_train(self, batch: Mapping[str, Any]) -> None:
    """Compiles ahead where all batches have one shape, as T5X does.

    Packed pairs come in a few shapes; each is compiled when it is first met.
    """
    if not t5x_batch_format.is_packed(batch):
      super().compile_train(batch)

  @functools.cached_property
  def _partitioned_train_step(self):
    num_shards = self._partitioner.get_data_layout().num_shards
    num_parts = self._num_microbatches or 1
    rows_spec = self._partitioner.data_partition_spec
    multiple = num_parts * _num_devices(self._partitioner.mesh, rows_spec)

    def shard(rows):  # with empty rows up to a multiple
      widths = [(0, -len(rows) % multiple)] + [(0, 0)] * (rows.ndim - 1)
      rows = jnp.pad(rows, widths)
      return partitioning.with_sharding_constraint(rows, rows_spec)

    def split(rows):
      # [B, T] -> [parts, B / parts, T]; part i has rows i, i + parts, ...
      return rows.reshape(-1, num_parts, *rows.shape[1:]).swapaxes(0, 1)

    def train_step(train_state, batch):
      groups = t5x_batch_format.unflatten(batch, num_shards=num_shards)
      groups = jax.tree.map(shard, groups)
      groups = self._model.add_token_weights(groups)
      spec = rows_spec
      if num_parts > 1:
        groups = jax.tree.map(split, groups)
        spec = partitioning.PartitionSpec(None, *rows_spec)
      return trainer.train_with_lr(
        train_state,
        t5x_batch_format.join(groups),
        learning_rate=self._learning_rate_fn(train_state.step),
        dropout_rng=self._get_step_rng(train_state.step),
        model=self._model,
        num_microbatches=self._num_microbatches,
        weight_metrics_computer=self._weight_metrics_computer,
        data_partition_spec=spec,
      )

    return self._partitioner.partition(
      train_step,
      in_axis_resources=(self._train_state_axes, rows_spec),
      out_axis_resources=(self._train_state_axes, None),
      donate_argnums=(0,),
    )


class TrainStateInitializer(utils.TrainStateInitializer):
  """Starts a new run from the parameters of a checkpoint of any format.

  Step and optimizer start afresh, as in the built-in engine: TRAIN_STEPS are
  the steps of this run, and a checkpoint needs nothing but parameters.

  Args:
    path: as for `read_checkpoint.load_params`; None starts from random numbers.
  """

  def __init__(self, *, path: str | None, **kwargs):
    super().__init__(**kwargs)
    self._path = path
    self._model = kwargs['init_fn'].__self__

  def from_scratch(self, init_rng: jax.Array):
    """A fresh state, with the checkpoint's parameters if there is one."""
    state = super().from_scratch(init_rng)
    if not self._path:
      return state
    logging.info('Taking parameters from %s', self._path)
    shardings = jax.tree.map(
      lambda param: param.sharding, flax.core.unfreeze(state.params)
    )
    params = read_checkpoint.load_params(
      self._path,
      t5x_model.to_config(self._model),
      shardings=shardings,
      vocabulary=_vocabulary(self._model.input_vocabulary),
    )
    return state.replace_params(flax.core.freeze(params))


def _vocabulary(vocabulary: Any) -> vocabularies.Vocabulary | None:
  """What a checkpoint's own vocabulary is compared with; None of others'."""
  if not isinstance(vocabulary, providers.LazyVocabulary):
    return None
  return vocabularies.load(register.source().vocabulary)


def _num_devices(mesh: jax.sharding.Mesh, spec: Any) -> int:
  """Devices along the axes that the first dimension is cut over."""
  names = spec[0] if isinstance(spec[0], tuple) else (spec[0],)
  return math.prod(mesh.shape[name] for name in names if name is not None)
