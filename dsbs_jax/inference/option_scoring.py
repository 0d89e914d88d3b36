# SPDX-License-Identifier: Apache-2.0
"""Rank classification: the likeliest of given labels, nothing is generated.

The labels are the benchmark's closed set, or an example's own choices, which
prepared data keeps. A label's score is the sum of log p of its tokens and of
those that end it, as in `predictor`; it is not divided by its length.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from dsbs_jax import contract
from dsbs_jax.core import partitioning
from dsbs_jax.data import register, task_forms
from dsbs_jax.data.batching import eval_loader, loader
from dsbs_jax.data.prepared import store, tokens
from dsbs_jax.inference import output_split
from dsbs_jax.inference.backends import decode_functions


def label_options(
  task: str, split: str, source: tokens.Source
) -> list[list[str]]:
  """The labels from which each example takes its answer, in the split's order.

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


def rank_classify(
  score: Callable[..., np.ndarray],
  params: Any,
  data: tokens.Tokens,
  *,
  labels: Sequence[Sequence[str]],
  form: str,
  vocab_size: int,
  mesh: jax.sharding.Mesh,
  batch_size: int,
  max_logits: int = decode_functions.MAX_LOGITS,
) -> list[str]:
  """The likeliest of each example's labels, as the vocabulary writes it.

  Args:
    score: as `decode_functions.jit_score` gives; compiles once per shape.
    batch_size: rows per batch over all devices, fewer where their logits
      would not fit.
    max_logits: logits in memory at once.
  """
  sharding = partitioning.batch_sharding(mesh)
  shard_info = loader.ShardInfo(
    jax.process_index(),
    jax.process_count(),
    row_multiple=mesh.shape[partitioning.DATA_AXIS],
  )
  options = _options(form, data, labels)
  _, num_options, length = options.shape
  # Pairs of a row and an option; options go in parts if no row has room.
  fitting = max_logits // (length * vocab_size)
  chosen = [''] * len(data)
  for positions, rows in eval_loader.batches(
    data,
    max(1, min(batch_size, fitting // num_options)),
    shard_info=shard_info,
  ):
    inputs = partitioning.to_global(rows['encoder_input_tokens'], sharding)
    local = shard_info.local({'options': options[positions]})['options']
    size = max(1, fitting // len(positions))
    scores = [
      score(params, inputs, partitioning.to_global(some, sharding))
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
  form: str, data: tokens.Tokens, labels: Sequence[Sequence[str]]
) -> np.ndarray:
  """Ids of labels, [N + 1, options, T] int32; the last row is empty.

  Padding rows of a batch have position -1, the last row.
  """
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
