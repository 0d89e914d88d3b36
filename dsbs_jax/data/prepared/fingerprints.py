# SPDX-License-Identifier: Apache-2.0
"""What makes prepared examples sound, and what makes them the same."""

import hashlib
import json
from collections.abc import Iterable, Iterator

from dsbs_jax import contract
from dsbs_jax.data import benchmark

TEXT_FIELDS = (
  'example_id',
  'input',
  'gt_label',
  'llm_label',
  'rationale',
  'status',
)
FIELDS = ('index', *TEXT_FIELDS)
# Answer choices, as a JSON array.
OPTIONS = 'options'
VERDICT = 'verdict'
# A wrong label and a rationale for it, as a JSON array, empty without.
COUNTERFACTUAL = 'counterfactual'
# Probabilities of the labels, as a JSON array.
LABEL_PROBS = 'label_probs'


class Digest:
  """A running fingerprint of examples."""

  def __init__(self):
    self.rows = 0
    self._hasher = hashlib.sha256()

  def add(self, example: benchmark.Example) -> None:
    """Takes in one example; the order of examples counts."""
    values = [getattr(example, field) for field in FIELDS]
    if example.options:  # others are as they were before options were kept
      values.append(example.options)
    if example.verdict:
      values.append({VERDICT: example.verdict})
    if example.counterfactual:
      values.append({COUNTERFACTUAL: example.counterfactual})
    if example.label_probs:
      values.append({LABEL_PROBS: example.label_probs})
    line = json.dumps(values, ensure_ascii=False, separators=(',', ':'))
    self._hasher.update(line.encode() + b'\n')
    self.rows += 1

  def hexdigest(self) -> str:
    """The fingerprint of everything added so far."""
    return self._hasher.hexdigest()


def checked(
  examples: Iterable[benchmark.Example], place: str
) -> Iterator[benchmark.Example]:
  """Passes examples on, after checking what training relies on.

  Args:
    examples: the examples of one split.
    place: names the split in errors.

  Raises:
    UserError: there is none, two share an id, or a text is blank or broken.
  """
  seen: set[str] = set()
  example = None
  for example in examples:
    row = f'{place} row {example.index} ({example.example_id!r})'
    if example.example_id in seen:
      raise contract.UserError(
        f'{row} has an id that an earlier row has, expected unique ids.'
        ' Correct the rows, or drop example_id from the benchmark.'
      )
    seen.add(example.example_id)
    if not example.input.strip() or not example.gt_label.strip():
      raise contract.UserError(
        f'{row} has a blank input or label, expected text in both. Fix or'
        ' drop the row.'
      )
    texts = {field: getattr(example, field) for field in TEXT_FIELDS}
    texts[COUNTERFACTUAL] = ''.join(example.counterfactual)
    for field, text in texts.items():
      try:
        text.encode()
      except UnicodeEncodeError as error:
        raise contract.UserError(
          f'{row}: {field} is not valid Unicode ({error}). Fix or drop the row.'
        ) from error
    yield example
  if example is None:
    raise contract.UserError(
      f'{place} has no examples to write. Check --source, --splits,'
      ' --fraction and --keep.'
    )
