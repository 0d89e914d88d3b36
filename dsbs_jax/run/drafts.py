# SPDX-License-Identifier: Apache-2.0
"""A generated output -> the label in it, and what else could stand there."""

import dataclasses
from collections.abc import Sequence

from dsbs_jax import contract
from dsbs_jax.data import forms, vocabularies


@dataclasses.dataclass(frozen=True)
class Draft:
  """A generated output, split.

  Attributes:
    stem: ids before the label: for `_single` all up to its marker, else none.
    said: ids of the label, with the end id unless it was cut off; none where
      a `_single` output has no label.
    rationale: the text before the marker, None for other forms.
  """

  stem: list[int]
  said: list[int]
  rationale: str | None = None


def split(
  tokens: list[int], form: str, *, vocabulary: vocabularies.Vocabulary
) -> Draft:
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
  if form != 'single':
    return Draft([], ids)
  text = vocabulary.decode(ids)
  marker = forms.round_trip(forms.SINGLE_MARKER, vocabulary=vocabulary).strip()
  rationale, found, _ = text.rpartition(marker)
  if not found:
    stem = [token for token in ids if token != contract.EOS_ID]
    stem += vocabulary.encode(f' {forms.SINGLE_MARKER}')
    return Draft(stem, [], text.strip())
  count = text.count(marker)
  cut = next(
    i
    for i in range(len(ids) + 1)
    if vocabulary.decode(ids[:i]).count(marker) == count
  )
  return Draft(ids[:cut], ids[cut:], rationale.strip())


def options(
  draft: Draft,
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
    given = [draft.stem] if draft.stem else []
    return [draft.stem + draft.said, *given]
  space = ' ' if draft.stem else ''
  encoded = vocabulary.encode_all([space + text for text in choices])
  return [[*draft.stem, *ids, contract.EOS_ID] for ids in encoded]
