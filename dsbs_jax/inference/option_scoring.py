# SPDX-License-Identifier: Apache-2.0
"""Rank classification: the likeliest of given labels, nothing is generated.

The labels are the benchmark's closed set, or an example's own choices, which
prepared data keeps. A label's score is the sum of log p of its tokens and of
those that end it, as in `predictor`; it is not divided by its length.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dsbs_jax import contract
from dsbs_jax.core import network, partitioning
from dsbs_jax.data import register, task_forms
from dsbs_jax.data.batching import eval_loader, loader
from dsbs_jax.data.prepared import store, tokens
from dsbs_jax.inference import output_split
from dsbs_jax.inference.backends import ct2_engine, decode_functions


def label_options(
  task: str, split: str, source: tokens.Source
) -> list[list[str]]:
  """The labels from which each example takes its answer, in the split's order.

  Args:
    task: a task whose answer is a label.
    split: a prepared split.
    source: where the benchmark is prepared.

  Raises:
    UserError: the task has no closed set, or writes a rationale first.
  """
  name = contract.parse_task_name(task)
  benchmark = register.benchmark(name.benchmark, data_dir=source.data_dir)
  if name.form == 'single':
    raise contract.UserError(
      f'SCORE_LABELS is True, but {task} writes a rationale before its label,'
      ' which must be generated. Leave SCORE_LABELS out.'
    )
  prepared = store.read(name.benchmark, source.data_dir)
  if benchmark.labels:
    return [list(benchmark.labels)] * prepared.num_examples(split)
  if benchmark.options is None:
    raise contract.UserError(
      f'SCORE_LABELS is True, but {name.benchmark!r} has no closed set of'
      ' labels. Leave it out.'
    )
  found = [list(example.options) for example in prepared.examples(split)]
  if not all(found):
    raise contract.UserError(
      f'SCORE_LABELS is True, but {name.benchmark} {split} was prepared'
      f' without its choices in {source.data_dir}. Prepare it again with'
      ' --overwrite.'
    )
  return found


class RankClassifier:
  """Ranks labels by their probability; compiles once per shape.

  Args:
    task: a task that predicts labels.
    model: the network.
    mesh: the devices.
    batch_size: rows per batch over all devices, fewer where their logits
      would not fit.
    max_logits: logits in memory at once.
    engine: computes in place of jitted functions; parameters are then not read.
  """

  def __init__(
    self,
    task: str,
    model: network.Config,
    *,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    max_logits: int = decode_functions.MAX_LOGITS,
    engine: ct2_engine.Engine | None = None,
  ):
    self._max_logits = max_logits
    self._task, self._model, self._batch_size = task, model, batch_size
    self._shards = mesh.shape[partitioning.DATA_AXIS]
    self._sharding = partitioning.batch_sharding(mesh)
    self._score = (
      engine.score_fn if engine else decode_functions.jit_score(model, mesh)
    )

  def rank_classify(
    self, params: Any, data: tokens.Tokens, labels: Sequence[Sequence[str]]
  ) -> list[str]:
    """The likeliest label of each example, as the vocabulary writes it.

    Args:
      params: the parameters.
      data: the examples.
      labels: the candidates of each example.
    """
    shard_info = loader.ShardInfo(
      jax.process_index(), jax.process_count(), row_multiple=self._shards
    )
    options = self._options(data, labels)
    _, num_options, length = options.shape
    # Pairs of a row and an option; options go in parts if no row has room.
    fitting = self._max_logits // (length * self._model.vocab_size)
    chosen = [''] * len(data)
    for positions, rows in eval_loader.batches(
      data,
      max(1, min(self._batch_size, fitting // num_options)),
      shard_info=shard_info,
    ):
      inputs = partitioning.to_global(
        rows['encoder_input_tokens'], self._sharding
      )
      local = shard_info.local({'options': options[positions]})['options']
      size = max(1, fitting // len(positions))
      scores = [
        self._score(
          params, inputs, partitioning.to_global(some, self._sharding)
        )
        for some in decode_functions.option_parts(local, size)
      ]
      best = np.argmax(np.concatenate(scores, axis=1), axis=1)
      for position, choice in zip(positions, best, strict=True):
        if position >= 0:
          chosen[position] = task_forms.round_trip(
            labels[position][choice], vocabulary=data.vocabulary
          )
    return chosen

  def _options(
    self, data: tokens.Tokens, labels: Sequence[Sequence[str]]
  ) -> np.ndarray:
    """Ids of labels, [N + 1, options, T] int32; the last row is empty.

    Padding rows of a batch have position -1, the last row.
    """
    form = contract.parse_task_name(self._task).form
    nothing = output_split.SplitOutput(
      [], [], end_ids=output_split.end_ids(form, vocabulary=data.vocabulary)
    )
    ids = [
      output_split.option_ids(nothing, own, vocabulary=data.vocabulary)
      for own in labels
    ]
    longest = max(len(option) for own in ids for option in own)
    shape = (len(ids) + 1, max(map(len, ids)), longest)
    return output_split.pad_options(ids, shape)
