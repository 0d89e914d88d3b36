# SPDX-License-Identifier: Apache-2.0
"""Benchmarks without Python: a description beside the data says it all.

`prepare --rows=rows.csv --input='{question}' --label=answer` writes the
description into the prepared dataset's metadata.json, under 'declared'.
`register.benchmark` reads it there and makes a `Benchmark` of it, which every
command then uses like one of `tasks/`.
"""

import dataclasses
import json
import string
from collections.abc import Mapping, Sequence
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import columns, metrics, parsing
from dsbs_jax.data.benchmark import Benchmark
from dsbs_jax.data.prepared import store

KEY = 'declared'
VERSION = 1
ANSWER = 'The answer is {label}.'
METRICS = {
  'exact_match': metrics.exact_match,
  'equation_accuracy': metrics.equation_accuracy,
}

# Descriptions of the benchmarks that were made here, by name.
_MADE: dict[str, tuple['Description', Benchmark]] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
  """What there is to say about a benchmark of columns.

  Attributes:
    source: folder or zip file of the rows.
    splits: split -> its files, as paths inside the source.
    input: template of the input, see `columns`.
    label: template of the human label.
    labels: the closed set of labels, () where they are free text.
    id: column that is unique in its split, None for '<split>-<index>'.
    options: one column with a list of choices, or one column per choice; ()
      for none. A label that is a letter names the choice at its place.
    answer: how a completion ends, with `{label}` in it.
    metric: a name of METRICS.
    version: of this description.

  Raises:
    UserError: a field is not what is expected.
  """

  name: str
  source: str
  splits: Mapping[str, Sequence[str]]
  input: str
  label: str
  labels: Sequence[str] = ()
  id: str | None = None
  options: Sequence[str] = ()
  answer: str = ANSWER
  metric: str = 'exact_match'
  version: int = VERSION

  def __post_init__(self):
    for field in ('input', 'label'):
      if not columns.names(getattr(self, field)):
        raise contract.UserError(
          f'--{field} is {getattr(self, field)!r}, expected a column in braces,'
          " such as '{question}'."
        )
    labels = list(self.labels)
    plain = [label.strip() for label in labels]
    if labels and (
      plain != labels or '' in labels or len({*labels}) < max(2, len(labels))
    ):
      raise contract.UserError(
        f'--labels is {labels}, expected two or more different texts without'
        ' blanks around them.'
      )
    if self.labels and self.options:
      raise contract.UserError(
        '--labels and --options are both given, expected one: labels of all'
        ' rows, or choices of each.'
      )
    if self.metric not in METRICS:
      raise contract.UserError(
        f'--metric is {self.metric!r}, expected {" or ".join(METRICS)}.'
      )
    parsing.after_answer(self.answer)  # a wrong one is an error here

  def to_json(self) -> dict[str, Any]:
    """JSON values from which `from_json` makes the same description."""
    return json.loads(json.dumps(dataclasses.asdict(self)))


def from_json(values: Mapping[str, Any], place: str) -> Description:
  """The description that `to_json` gave; UserError if it is wrong."""
  remedy = 'Prepare the benchmark again with --rows.'
  if not isinstance(values, Mapping) or values.get('version') != VERSION:
    version = values.get('version') if isinstance(values, Mapping) else values
    raise contract.UserError(
      f'{place} describes a benchmark in version {version!r}, expected'
      f' {VERSION}. {remedy}'
    )
  try:
    return Description(**values)
  except (TypeError, AttributeError) as error:
    raise contract.UserError(
      f'{place} has a description that cannot be read ({error}). {remedy}'
    ) from error


def read(name: str, data_dir: str) -> Description | None:
  """A prepared benchmark's description or None; UserError if it is damaged."""
  if not store.exists(name, data_dir):
    return None
  found = store.read(name, data_dir).metadata.get(KEY)
  place = store.folder(name, data_dir) / 'metadata.json'
  return None if found is None else from_json(found, str(place))


def source(name: str, data_dir: str | None = None) -> str | None:
  """The folder or zip file of a declared benchmark's rows.

  Args:
    data_dir: the folder that `prepare` wrote to; None takes the benchmark as
      `register.benchmark` has found it.

  Returns:
    What a `source` is everywhere; None for a benchmark in Python.
  """
  said = read(name, data_dir) if data_dir else _MADE.get(name, (None,))[0]
  return said and said.source


def description(benchmark: Benchmark) -> Description | None:
  """What a benchmark was made of; None for one in Python."""
  said, made = _MADE.get(benchmark.name, (None, None))
  return said if made is benchmark else None


def is_made(benchmark: Benchmark) -> bool:
  """Whether a benchmark was made here, and not in Python."""
  return description(benchmark) is not None


def make(said: Description) -> Benchmark:
  """The benchmark of a description; of an equal one, the very same object."""
  before = _MADE.get(said.name)
  if before is None or before[0].to_json() != said.to_json():
    before = _MADE[said.name] = said, _make(said)
  return before[1]


def _make(said: Description) -> Benchmark:
  scores_values = said.metric == 'equation_accuracy'
  missing = {'validation', 'test'} - set(said.splits)

  def label(row: benchmark_lib.Row) -> str:
    found = columns.fill(said.label, row).strip()
    if not found:
      raise ValueError('the label is blank')
    if said.options:
      found = _choice(found, _cells(said, row))
    if scores_values and not metrics.has_value(found):
      raise ValueError(f'the label {found!r:.60} is no number or equation')
    return found

  return Benchmark(
    name=said.name,
    splits={
      split: files[0] if len(files) == 1 else tuple(files)
      for split, files in said.splits.items()
    },
    render=lambda row: columns.fill(said.input, row, lists=True),
    label=label,
    parse=parsing.after_answer(said.answer, labels=said.labels),
    metric=METRICS[said.metric],
    labels=tuple(said.labels),
    options=(lambda row: choices(said, row)) if said.options else None,
    well_formed=metrics.has_value if scores_values else None,
    example_id=(lambda row: columns.text(columns.cell(row, said.id), said.id))
    if said.id
    else None,
    vote=metrics.value if scores_values else None,
    derive_validation='validation' in missing and 'train' in said.splits,
    derive_test='test' in missing and 'train' in said.splits,
    completion=f'{{rationale}} {said.answer}',
  )


def choices(said: Description, row: benchmark_lib.Row) -> list[str]:
  """A row's answer choices; KeyError or ValueError where a cell has none."""
  found = _cells(said, row)
  # Of columns, a row with fewer choices leaves some blank.
  return [c for c in found if c] if len(said.options) > 1 else found


def _cells(said: Description, row: benchmark_lib.Row) -> list[str]:
  """All choices of a row at their places, blank ones included."""
  cells = [columns.cell(row, column) for column in said.options]
  if len(cells) > 1:
    return [c.strip() for c in map(columns.text, cells, said.options)]
  (column,), (cell,) = said.options, cells
  if not isinstance(cell, list | tuple):
    raise ValueError(
      f'the cell of {column!r} is {cell!r:.60}, expected a list; for a table'
      ' of texts name one column per choice, --options=a,b,c'
    )
  return [columns.text(choice, column).strip() for choice in cell]


def _choice(label: str, found: Sequence[str]) -> str:
  """The choice that a label is, or whose letter it is.

  A letter counts the columns, also those that are blank in this row; that of a
  blank one stays a letter, which is no choice.
  """
  letter = label.lower()
  if label in found or len(letter) != 1:
    return label
  place = string.ascii_lowercase.find(letter)
  return (found[place] if 0 <= place < len(found) else '') or label
