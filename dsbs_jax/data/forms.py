# SPDX-License-Identifier: Apache-2.0
"""What each form of task puts into the encoder and asks of the decoder.

  form       input             target
  finetune   input             label
  label      [label] input     label
  rationale  [rationale] input rationale
  single     input             rationale [label] label

The label is the human one (gt) or the LLM's (llm); outside of train it is
always the human one, because that is what is scored. `[rationale] ` and
`[label] ` are the paper's prefixes; its code writes `explain: ` and
`predict: `.
"""

import dataclasses

from dsbs_jax import contract
from dsbs_jax.data import vocabularies

SINGLE_MARKER = '[label]'


@dataclasses.dataclass(frozen=True)
class Prefixes:
  """What stands before the input of a task that has a prefix."""

  label: str
  rationale: str

  def of(self, form: str) -> str:
    """The prefix of a form, '' where it has none."""
    known = {'label': self.label, 'rationale': self.rationale}
    return known.get(form, '')


PREFIXES = {
  'paper': Prefixes(label='[label] ', rationale='[rationale] '),
  'code': Prefixes(label='predict: ', rationale='explain: '),
}


def prefixes(style: str) -> Prefixes:
  """The prefixes of a style.

  Args:
    style: 'paper' or 'code'.

  Returns:
    The two prefixes.

  Raises:
    ValueError: no style has this name.
  """
  if style not in PREFIXES:
    raise ValueError(
      f'prefixes is {style!r}, expected {" or ".join(PREFIXES)}. Correct'
      ' PREFIXES, DSBS_PREFIXES or --prefixes.'
    )
  return PREFIXES[style]


def label_source(name: contract.TaskName, split: str) -> str:
  """Whose label a task uses in a split: 'gt' or 'llm'."""
  llm = name.label_source == 'llm' and split == 'train'
  return 'llm' if llm else 'gt'


def target(form: str, *, label: str, rationale: str) -> str:
  """The decoder's text for one example.

  Args:
    form: a form of `contract.FORMS` other than 'dsbs'.
    label: the label that the task uses.
    rationale: the LLM's rationale.

  Returns:
    The text, without an end marker.
  """
  if form == 'rationale':
    return rationale
  if form == 'single':
    return f'{rationale} {SINGLE_MARKER} {label}'
  return label


def answer(name: str, text: str, *, vocabulary: vocabularies.Vocabulary) -> str:
  """The part of a decoded text that the metric scores.

  Args:
    name: the task.
    text: what the decoder wrote, or a target that passed encode and decode.
    vocabulary: the vocabulary of the text; the marker is looked for as this
      vocabulary writes it.

  Returns:
    The text itself, or for `_single` what follows its last marker ('' where
    it has none).
  """
  if contract.parse_task_name(name).form != 'single':
    return text
  marker = round_trip(SINGLE_MARKER, vocabulary=vocabulary).strip()
  _, found, after = text.rpartition(marker)
  return after.strip() if found else ''


def round_trip(text: str, *, vocabulary: vocabularies.Vocabulary) -> str:
  """A text as the vocabulary can write it: encoded, then decoded.

  Gold labels pass through this before they are compared, so that what a
  vocabulary normalises (blanks, NFKC) or cannot write is no error of the
  model.
  """
  return vocabulary.decode(vocabulary.encode(text))
