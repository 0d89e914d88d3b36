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
VERDICT = 'verdict'
ARRAY_FIELDS = ('options', 'counterfactual', 'label_probs')  # stored as JSON


class Digest:
  """A running fingerprint of examples."""

  def __init__(self):
    self.rows = 0
    self._hasher = hashlib.sha256()

  def add(self, example: benchmark.Example) -> None:
    """Takes in one example; the order of examples counts."""
    values = [getattr(example, field) for field in FIELDS]
    if example.options:
      values.append(example.options)
    for field in (VERDICT, 'counterfactual', 'label_probs'):
      if value := getattr(example, field):
        values.append({field: value})
    line = json.dumps(values, ensure_ascii=False, separators=(',', ':'))
    self._hasher.update(line.encode() + b'\n')
    self.rows += 1

  def hexdigest(self) -> str:
    """The fingerprint of everything added so far."""
    return self._hasher.hexdigest()


def checked(
  examples: Iterable[benchmark.Example], place: str
) -> Iterator[benchmark.Example]:
  """Passes examples on; UserError for none, an id twice, or a bad text."""
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
    texts['counterfactual'] = ''.join(example.counterfactual)
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
