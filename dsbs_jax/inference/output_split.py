# SPDX-License-Identifier: Apache-2.0
"""A generated output -> the label in it, and what else could stand there."""

import dataclasses
from collections.abc import Sequence

from dsbs_jax import contract
from dsbs_jax.data import forms, vocabularies


@dataclasses.dataclass(frozen=True)
class SplitOutput:
  """A generated output, split.

  Attributes:
    prefix_ids: ids before the label: for `_single` all up to its marker, else none.
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
  """Splits generated tokens.

  Args:
    tokens: ids, anything after the end id.
    form: of the task.
    vocabulary: of the ids.

  Returns:
    The parts. A `_single` output without marker gets one at the end of its
    stem, so that labels can still be scored after it.
  """
  ids = tokens
  if contract.EOS_ID in tokens:
    ids = tokens[: tokens.index(contract.EOS_ID) + 1]
  if form not in forms.MARKERS:
    return SplitOutput([], ids)
  text = vocabulary.decode(ids)
  marker = forms.written_marker(form, vocabulary=vocabulary)
  first = form == 'answer_first'
  if marker not in text:
    if first:
      return SplitOutput(
        [], ids, '', end_ids=end_ids(form, vocabulary=vocabulary)
      )
    stem = [token for token in ids if token != contract.EOS_ID]
    stem += vocabulary.encode(f' {forms.MARKERS[form]}')
    return SplitOutput(stem, [], text.strip())
  count = 1 if first else text.count(marker)
  cut = next(
    i
    for i in range(len(ids) + 1)
    if vocabulary.decode(ids[:i]).count(marker) == count
  )
  if first:
    rationale = text.partition(marker)[2].strip()
    end = end_ids(form, vocabulary=vocabulary)
    return SplitOutput([], ids[:cut], rationale, end_ids=end)
  return SplitOutput(ids[:cut], ids[cut:], text.rpartition(marker)[0].strip())


def end_ids(
  form: str, *, vocabulary: vocabularies.Vocabulary
) -> tuple[int, ...]:
  """The ids that end a label: the end id, or the marker before a rationale."""
  if form != 'answer_first':
    return (contract.EOS_ID,)
  return tuple(vocabulary.encode(f' {forms.MARKERS[form]}'))


def stop_ids(
  form: str, *, vocabulary: vocabularies.Vocabulary
) -> tuple[int, ...]:
  """The ids after which a label is whole though its output is not."""
  if form != 'answer_first':
    return ()
  return end_ids(form, vocabulary=vocabulary)


def option_ids(
  draft: SplitOutput,
  choices: Sequence[str],
  *,
  vocabulary: vocabularies.Vocabulary,
) -> list[list[int]]:
  """The outputs whose scores give a label's probability.

  Args:
    draft: what was generated; empty where nothing was.
    choices: the closed set, () for free labels.
    vocabulary: of the ids.

  Returns:
    Ids of the output with each of the choices; for free labels the output
    itself and, where it has one, its stem.
  """
  if not choices:
    given = [draft.prefix_ids] if draft.prefix_ids else []
    return [draft.prefix_ids + draft.label_ids, *given]
  space = ' ' if draft.prefix_ids else ''
  encoded = vocabulary.encode_all([space + text for text in choices])
  return [[*draft.prefix_ids, *ids, *draft.end_ids] for ids in encoded]
