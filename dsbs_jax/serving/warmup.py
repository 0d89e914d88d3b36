# SPDX-License-Identifier: Apache-2.0
"""Compiles every program that a server can need, before the first request."""

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from dsbs_jax import contract
from dsbs_jax.data import task_forms
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.inference import length_buckets, output_split, predictor
from dsbs_jax.inference.backends import ct2_engine, decode_functions


def compiled_shapes(
  config: predictor.PredictorConfig,
  vocabulary: vocabularies.Vocabulary,
  *,
  batch_sizes: Sequence[int],
  input_lengths: Sequence[int],
  max_choices: int,
) -> length_buckets.CompiledShapes:
  """The shapes that a server's batches can have.

  Returns:
    The shapes. Scored outputs have one length if all are known beforehand: the
    labels of a closed set, with no text before them.
  """
  single = config.form == 'single'
  marker = vocabulary.encode(f' {task_forms.SINGLE_MARKER}')
  prefix = config.max_decode_len + len(marker) if single else 0
  end = len(output_split.end_ids(config.form, vocabulary=vocabulary))
  labels = vocabulary.encode_all([f' {label}' for label in config.labels])
  label_lengths = [len(ids) + end for ids in labels]
  if max_choices:
    label_lengths.append(config.max_decode_len + end)
  elif not labels and not single:
    label_lengths.append(config.max_decode_len)
  longest = prefix + max(label_lengths, default=0)
  targets = length_buckets.target_buckets(longest)
  if labels and not single and not max_choices:
    targets = targets[-1:]
  # A free label is scored as a whole, less the text before it.
  free = 2 if single else 1
  options = {len(labels) or free, max(max_choices, len(labels))} - {0}
  if config.score_labels and not labels:
    options = {max_choices}
  return length_buckets.CompiledShapes(
    batch_sizes=tuple(batch_sizes),
    input_lengths=tuple(input_lengths),
    target_lengths=targets,
    option_counts=tuple(sorted(options)),
  )


def calls(
  fns: decode_functions.DecodeFns | ct2_engine.DecodeFns,
  config: predictor.PredictorConfig,
  shapes: length_buckets.CompiledShapes,
) -> Iterator[Callable[[], object]]:
  """Calls that run each program once, on padding.

  The first one gets a real row: a student whose logits are not finite raises
  UserError there, not at every request.

  Yields:
    Calls without arguments, largest batches last; those of the smallest batch
    alone where nothing is compiled.
  """
  kept = slice(None) if fns.is_compiled else slice(1)
  for size in shapes.batch_sizes[kept]:
    rows = fns.round_up_rows(size)
    for length in shapes.input_lengths[kept]:
      tokens = np.zeros((rows, length), np.int32)
      if (size, length) == (shapes.batch_sizes[0], shapes.input_lengths[0]):
        tokens[0, 0] = contract.EOS_ID
      if config.generates_labels:
        yield functools.partial(fns.generate, tokens)
      if config.has_rationale_task:
        yield functools.partial(fns.generate_rationale, tokens)
      for num_options in shapes.option_counts:
        for target in shapes.target_lengths:
          options = np.zeros((rows, num_options, target), np.int32)
          yield functools.partial(fns.score_options, tokens, options)
