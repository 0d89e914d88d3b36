# SPDX-License-Identifier: Apache-2.0
"""One row of a file, rendered and checked."""

import collections
import dataclasses
import hashlib
import re
import unicodedata
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data.source import json_reader

# What is wrong with a label that has text.
OUTSIDE_LABELS = 'outside_labels'
NOT_A_CHOICE = 'not_a_choice'
MALFORMED_LABEL = 'malformed_label'
LABEL_PROBLEMS = (OUTSIDE_LABELS, NOT_A_CHOICE, MALFORMED_LABEL)

# The place at the start of an error, and what is wrong there.
_PLACE = re.compile(r'(.*?(?::\d+|\[\d+\])) (.*)', re.DOTALL)
_MOST_PLACES = 5
_UNSTORABLE = re.compile('[\0\ud800-\udfff]')
# What a benchmark's functions raise on a row that is not as they expect.
_ERRORS = (KeyError, IndexError, TypeError, ValueError, AttributeError)


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of a split's file, checked.

  Attributes:
    index: position in the file, from 0.
    example_id: unique in the split.
    place: 'file:line' for errors.
    fingerprint: hash of benchmark, split, id and input, by which a completion
      names the row that it answers.
  """

  index: int
  example_id: str
  fields: dict[str, Any]
  input: str
  gt_label: str
  place: str
  fingerprint: str


class WrongRows:
  """Rows that are wrong, told all at once: the first, and how many are like it."""

  def __init__(self):
    self.count = 0
    self._first: list[contract.UserError] = []  # one of each kind
    self._places: dict[str, list[str]] = {}  # kind -> the first places
    self._counts: collections.Counter[str] = collections.Counter()

  def add(self, error: contract.UserError) -> None:
    """Notes what is wrong with a row; its message begins with its place."""
    self.count += 1
    match = _PLACE.match(str(error))
    place, kind = match.groups() if match else ('', str(error))
    kind = re.sub('[0-9]+', '0', kind)  # columns and counts are no other kind
    self._counts[kind] += 1
    if kind not in self._places:
      self._first.append(error)
    shown = self._places.setdefault(kind, [])
    if len(shown) <= _MOST_PLACES:
      shown.append(place.rpartition('/')[2])

  def check(self) -> None:
    """Raises one UserError for all of them, if there are any."""
    if self.count == 1:
      raise self._first[0]
    if self.count:
      raise contract.UserError(self._text()) from self._first[0]

  def _text(self) -> str:
    kind = next(iter(self._places))
    alike, shown = self._counts[kind] - 1, self._places[kind][1:]
    text = str(self._first[0])
    if alike:
      more = alike - len(shown)
      text += f' The same in {alike:,} more rows: {", ".join(shown)}'
      text += f' and {more:,} others.' if more else '.'
    others = self.count - self._counts[kind]
    if others:
      text += (
        f' Wrong otherwise: {others:,} more rows, the first: {self._first[1]}'
      )
    return text


def label_problem(
  benchmark: benchmark_lib.Benchmark, fields: benchmark_lib.Row, label: str
) -> str | None:
  """Which of LABEL_PROBLEMS a label that is not blank has, or None."""
  if benchmark.labels and label not in benchmark.labels:
    return OUTSIDE_LABELS
  if benchmark.options is not None and label not in benchmark.options(fields):
    return NOT_A_CHOICE
  if benchmark.well_formed is not None and not benchmark.well_formed(label):
    return MALFORMED_LABEL
  return None


def _plain(label: str) -> str:
  return unicodedata.normalize('NFKC', label)


def check(
  benchmark: benchmark_lib.Benchmark,
  record: json_reader.Record,
  *,
  split: str,
  index: int,
) -> Row:
  """Renders and checks one row.

  Raises:
    UserError: a field is missing or has the wrong kind, a text cannot be
      stored, or the human label is no answer of the benchmark.
  """
  fields, place = record.value, record.place
  if not isinstance(fields, dict):
    raise contract.UserError(
      f'{place} is {str(fields)[:60]!r}, expected a JSON object, one row of'
      f' {benchmark.name!r}. Fix or drop the line.'
    )
  try:
    row_id = benchmark.row_id(fields, split=split, index=index)
    text, label = benchmark.render(fields), benchmark.label(fields)
    answers = list(benchmark.labels)
    if not answers and benchmark.options is not None:
      answers = list(benchmark.options(fields))
  except _ERRORS as error:
    missing = isinstance(error, KeyError)
    reason = f'no field {error}' if missing else str(error)
    raise contract.UserError(
      f'{place} cannot be read as a row of {benchmark.name!r} ({reason}),'
      f' expected the fields that it renders; there are'
      f' {", ".join(map(repr, fields)) or "none"}. Fix or drop the row.'
    ) from error
  for name, found in (('id', row_id), ('input', text), ('label', label)):
    # UTF-8 files hold no lone surrogates, and strings in them end with NUL.
    if not isinstance(found, str) or _UNSTORABLE.search(found):
      raise contract.UserError(
        f'{place} has the {name} {found!r:.60}, expected text without'
        ' NUL characters and lone surrogates. Fix or drop the row.'
      )
  if answers and label not in answers:
    same = [a for a in answers if _plain(a) == _plain(label)]
    # 'é' may be one character or two, which look alike.
    hint = f' It is {label!a}, which is not {same[0]!a}.' if same else ''
    raise contract.UserError(
      f'{place} has the label {label!r}, expected one of'
      f' {", ".join(map(repr, answers))}.{hint} Fix or drop the row.'
    )
  identity = '\0'.join((benchmark.name, split, row_id, text)).encode()
  fingerprint = hashlib.blake2b(identity, digest_size=8).hexdigest()
  return Row(index, row_id, fields, text, label, place, fingerprint)
