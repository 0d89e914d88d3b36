# SPDX-License-Identifier: Apache-2.0
"""Every program that a server can need, compiled before the first request."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from dsbs_jax.data import forms, vocabularies
from dsbs_jax.inference import (
  decode_functions,
  length_buckets,
  output_split,
  predictor,
)


def compiled_shapes(
  settings: predictor.PredictorConfig,
  vocabulary: vocabularies.Vocabulary,
  *,
  batch_sizes: Sequence[int],
  input_lengths: Sequence[int],
  max_choices: int,
) -> length_buckets.CompiledShapes:
  """The shapes that batches of a server can have.

  Args:
    settings: how the student answers.
    vocabulary: of the student.
    batch_sizes: numbers of rows.
    input_lengths: lengths of inputs.
    max_choices: choices of an input at most.

  Returns:
    The shapes. Outputs to be scored have one length where all are known: the
    labels of a closed set that follow nothing.
  """
  single = settings.form == 'single'
  marker = vocabulary.encode(f' {forms.SINGLE_MARKER}')
  stem = settings.max_decode_len + len(marker) if single else 0
  end = len(output_split.end_ids(settings.form, vocabulary=vocabulary))
  labels = vocabulary.encode_all([f' {label}' for label in settings.labels])
  said = [len(ids) + end for ids in labels]
  if max_choices:
    said.append(settings.max_decode_len + end)
  elif not labels and not single:
    said.append(settings.max_decode_len)
  longest = stem + max(said, default=0)
  targets = length_buckets.target_buckets(longest)
  if labels and not single and not max_choices:
    targets = targets[-1:]
  free = 2 if single else 1
  options = {len(labels) or free, max(max_choices, len(labels))} - {0}
  if settings.score_labels and not labels:
    options = {max_choices}
  return length_buckets.CompiledShapes(
    rows_of=tuple(batch_sizes),
    inputs_of=tuple(input_lengths),
    targets_of=targets,
    options_of=tuple(sorted(options)),
  )


def calls(
  computed: decode_functions.DecodeFns,
  settings: predictor.PredictorConfig,
  possible: length_buckets.CompiledShapes,
) -> Iterator[Callable[[], object]]:
  """Calls that run each program once on rows of padding.

  Args:
    computed: the programs.
    settings: how the student answers.
    possible: the shapes that batches can have.

  Yields:
    Calls without arguments, largest batches last.
  """
  for num in possible.rows_of:
    rows = computed.divisible(num)
    for length in possible.inputs_of:
      batch = np.zeros((rows, length), np.int32)
      if not settings.score_labels or settings.form == 'single':
        yield lambda batch=batch: computed.generate(batch)
      if settings.explains_apart:
        yield lambda batch=batch: computed.explain(batch)
      for num_options in possible.options_of:
        for target in possible.targets_of:
          options = np.zeros((rows, num_options, target), np.int32)
          yield lambda batch=batch, options=options: computed.score(
            batch, options
          )
