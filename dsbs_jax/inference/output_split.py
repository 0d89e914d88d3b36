# SPDX-License-Identifier: Apache-2.0
"""Splits a generated output into its label and its rationale."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dsbs_jax import contract
from dsbs_jax.data import task_forms
from dsbs_jax.data.vocabulary import vocabularies


@dataclasses.dataclass(frozen=True)
class SplitOutput:
  """A generated output, split.

  Attributes:
    prefix_ids: ids before the label: for `_single` all up to and with its
      marker, else none.
    label_ids: ids of the label with what ends it, the end id or the marker of
      `_answer_first`, unless it was cut off; none where a `_single` output
      has no label.
    rationale: the text on the marker's other side, None for other forms.
    end_ids: ids that end a label of this form.
  """

  prefix_ids: list[int]
  label_ids: list[int]
  rationale: str | None = None
  end_ids: tuple[int, ...] = (contract.EOS_ID,)


def split(
  tokens: list[int], form: str, *, vocabulary: vocabularies.Vocabulary
) -> SplitOutput:
  """Splits generated tokens; those behind the end id are dropped.

  Returns:
    The parts. A `_single` output without a marker gets one at the end of its
    prefix, so that labels can still be scored after it.
  """
  ids = tokens
  if contract.EOS_ID in tokens:
    ids = tokens[: tokens.index(contract.EOS_ID) + 1]
  if form not in task_forms.MARKERS:
    return SplitOutput([], ids)
  text = vocabulary.decode_with_unknown(ids)
  marker = task_forms.written_marker(form, vocabulary=vocabulary)
  end = end_ids(form, vocabulary=vocabulary)
  label_first = form == 'answer_first'
  if marker not in text:
    if label_first:
      return SplitOutput([], ids, '', end)
    prefix = [token for token in ids if token != contract.EOS_ID]
    prefix += vocabulary.encode(f' {task_forms.MARKERS[form]}')
    return SplitOutput(prefix, [], vocabulary.without_unknown(text).strip())
  # `_answer_first` ends its label with the first marker; of `_single`, the
  # last one counts, should the rationale hold the marker too.
  count = 1 if label_first else text.count(marker)
  cut = next(
    i
    for i in range(len(ids) + 1)
    if vocabulary.decode_with_unknown(ids[:i]).count(marker) == count
  )
  before, _, after = (text.partition if label_first else text.rpartition)(
    marker
  )
  rationale = vocabulary.without_unknown(after if label_first else before)
  if label_first:
    return SplitOutput([], ids[:cut], rationale.strip(), end)
  return SplitOutput(ids[:cut], ids[cut:], rationale.strip())


def end_ids(
  form: str, *, vocabulary: vocabularies.Vocabulary
) -> tuple[int, ...]:
  """The ids that end a label: the end id, or the marker before a rationale."""
  if form != 'answer_first':
    return (contract.EOS_ID,)
  return tuple(vocabulary.encode(f' {task_forms.MARKERS[form]}'))


def stop_ids(
  form: str, *, vocabulary: vocabularies.Vocabulary
) -> tuple[int, ...]:
  """The ids behind which a label is whole, so that decoding may stop."""
  if form != 'answer_first':
    return ()
  return end_ids(form, vocabulary=vocabulary)


def option_ids(
  output: SplitOutput,
  choices: Sequence[str],
  *,
  vocabulary: vocabularies.Vocabulary,
) -> list[list[int]]:
  """The outputs whose scores give a label's probability.

  Args:
    output: what was generated; empty where nothing was.
    choices: the closed set, () for free labels.

  Returns:
    Ids of the output with each of the choices as its label; for free labels
    the output itself and, where it has one, its prefix.
  """
  if not choices:
    prefix = [output.prefix_ids] if output.prefix_ids else []
    return [output.prefix_ids + output.label_ids, *prefix]
  space = ' ' if output.prefix_ids else ''
  encoded = vocabulary.encode_all([space + text for text in choices])
  return [[*output.prefix_ids, *ids, *output.end_ids] for ids in encoded]


def pad_options(
  options: Sequence[Sequence[Sequence[int]]], shape: tuple[int, int, int]
) -> np.ndarray:
  """Ids of each row's options, [B, options, T] int32, 0 padded.

  Args:
    options: ids of each option of each row, end token included.
    shape: (B, options, T): at least as many rows, options and ids.
  """
  padded = np.zeros(shape, np.int32)
  for row, row_options in zip(padded, options, strict=False):
    for target, ids in zip(row, row_options, strict=False):
      target[: len(ids)] = ids
  return padded
