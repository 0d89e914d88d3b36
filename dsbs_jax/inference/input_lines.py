# SPDX-License-Identifier: Apache-2.0
"""Lines of a file, or rows of a request -> inputs of a student.

A line that cannot be read becomes an `InvalidInput`, so that line n of the
input stays line n of the output. Row n of a table (CSV, TSV, Parquet, Arrow, a
JSON array) counts as line n.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from dsbs_jax import contract
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data.source import json_reader, record_reader

_BOM = b'\xef\xbb\xbf'
# What a benchmark's functions raise on a row that is not as they expect.
_ERRORS = (KeyError, IndexError, TypeError, ValueError, AttributeError)


@dataclasses.dataclass(frozen=True)
class ModelInput:
  """What a student predicts for.

  Attributes:
    text: the input, without the task's prefix.
    choices: the answers to choose from, () where the row has none.
    ids: fields of the row that its prediction repeats.
  """

  text: str
  choices: tuple[str, ...] = ()
  ids: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class InvalidInput:
  """Why a line or a row cannot be read."""

  reason: str
  ids: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Line:
  """One line of the input.

  Attributes:
    number: counted from 1.
    content: its bytes, the newline included; overlong ones are cut. Of a
      table's row, the row as JSON, or what is wrong with it.
    input: what it holds, or why it cannot be read.
    place: where it stands in the file, for errors: of a table's row its line
      there, which the header and line ends in cells move.
  """

  number: int
  content: bytes
  input: ModelInput | InvalidInput
  place: str


def read_lines(
  file: BinaryIO,
  name: str,
  *,
  benchmark: benchmark_lib.Benchmark | None = None,
  id_fields: Sequence[str] = (),
) -> Iterator[Line]:
  """Reads lines one at a time: plain text, JSON objects, or a table's rows.

  The name's suffix says what is a table. Of other files the first line that is
  not blank decides: if it opens with a brace, or a benchmark is given, all
  lines are JSON.

  Args:
    benchmark: renders the rows; None takes their text from `input`.
    id_fields: fields that a prediction repeats.

  Yields:
    One `Line` per line, the last one without a newline too.

  Raises:
    UserError: a table is broken; nothing behind that place can be read.
  """
  if _is_table(file, name):
    yield from _table_lines(
      file, name, benchmark=benchmark, id_fields=id_fields
    )
    return
  parse, is_json = _parse_text, None
  for number in itertools.count(1):
    content = file.readline(json_reader.MAX_LINE_BYTES + 1)
    if not content:
      return
    body = content.removeprefix(_BOM) if number == 1 else content
    if is_json is None and body.strip():
      is_json = benchmark is not None or body.lstrip().startswith(b'{')
      if is_json:
        parse = functools.partial(
          _parse_row, benchmark=benchmark, id_fields=id_fields
        )
    place = f'{name}:{number}'
    if len(content) > json_reader.MAX_LINE_BYTES:
      rest = content
      while rest and not rest.endswith(b'\n'):
        rest = file.readline(json_reader.MAX_LINE_BYTES)
      found = InvalidInput(
        f'it is longer than {json_reader.MAX_LINE_BYTES:,} bytes, expected one'
        ' input per line. Check the file.'
      )
    else:
      found = _checked(parse, body, place)
    yield Line(number, content, found, place)


def check_columns(file: BinaryIO, name: str) -> None:
  """Raises UserError if a table has no inputs, read without a benchmark.

  Args:
    file: an open binary file; closed at the end if it is a table.
  """
  if not _is_table(file, name):
    return
  first = next(record_reader.read_each(file, name), None)
  row = getattr(first, 'value', None)
  if isinstance(row, dict) and 'input' not in row:
    raise contract.UserError(
      f'{name} has the columns {", ".join(map(str, row))}, expected one named'
      ' input, or rows of the benchmark that the student was trained on: add'
      ' --rows (or in gin BENCHMARK).'
    )


def _is_table(file: BinaryIO, name: str) -> bool:
  """Whether rows are no lines: a table, or one JSON array in a .json file."""
  if not name.lower().endswith('.json') or not file.seekable():
    return record_reader.is_table(name)
  begin = file.read(64).removeprefix(_BOM)
  file.seek(0)
  return begin.lstrip().startswith(b'[')


def _table_lines(file: BinaryIO, name: str, **options: Any) -> Iterator[Line]:
  for number, record in enumerate(record_reader.read_each(file, name), 1):
    if isinstance(record, contract.UserError):
      content = str(record).encode() + b'\n'
      yield Line(number, content, InvalidInput(str(record)), name)
      continue
    # What no JSON can hold, such as a date, is text: ids are repeated so.
    content = json.dumps(record.value, default=str).encode() + b'\n'
    parse = functools.partial(_parse_row, **options)
    found = _checked(parse, content, record.place)
    yield Line(number, content, found, record.place)


def _checked(
  parse: Callable[[bytes, str], ModelInput | InvalidInput],
  body: bytes,
  place: str,
) -> ModelInput | InvalidInput:
  try:
    found = parse(body.rstrip(b'\r\n'), place)
  except contract.UserError as error:
    return InvalidInput(str(error))
  if isinstance(found, InvalidInput):
    return found
  if not found.text.strip():
    return InvalidInput(
      f'{place} has no text, expected an input. Drop the line or fill it.',
      found.ids,
    )
  try:
    '\n'.join([found.text, *found.choices]).encode()
  except UnicodeEncodeError as error:
    return InvalidInput(
      f'{place} has a lone surrogate ({error}), expected text. Fix the line.',
      found.ids,
    )
  return found


def _parse_text(body: bytes, place: str) -> ModelInput:
  try:
    return ModelInput(body.decode())
  except UnicodeDecodeError as error:
    raise contract.UserError(
      f'{place} has the byte 0x{body[error.start]:02x} at position'
      f' {error.start:,}, expected UTF-8 text. Convert the file to UTF-8.'
    ) from error


def _parse_row(
  body: bytes, place: str, **options: Any
) -> ModelInput | InvalidInput:
  row = json_reader.decode(body, place)
  if not isinstance(row, dict):
    raise contract.UserError(
      f'{place} is {str(row)[:60]!r}, expected a JSON object. Fix or drop'
      ' the line.'
    )
  return from_row(row, place, **options)


def from_row(
  row: dict[str, Any],
  place: str,
  *,
  benchmark: benchmark_lib.Benchmark | None = None,
  id_fields: Sequence[str] = (),
) -> ModelInput | InvalidInput:
  """The input in one JSON object.

  Args:
    benchmark: renders it; None takes its text from `input`.
    id_fields: fields that the prediction repeats.

  Returns:
    The input, whose text may still be blank, or why it cannot be read.
  """
  ids = {field: row[field] for field in id_fields if field in row}
  try:
    choices = ()
    text = row['input'] if benchmark is None else benchmark.render(row)
    if benchmark is not None and benchmark.options is not None:
      choices = tuple(dict.fromkeys(benchmark.options(row)))
      if not choices:
        raise ValueError('the row has no choices')
    if not all(isinstance(found, str) for found in (text, *choices)):
      raise TypeError(f'{text!r:.60} and its choices are not all text')
    return ModelInput(text, choices, ids)
  except _ERRORS as error:
    missing = isinstance(error, KeyError)
    wanted = benchmark.name if benchmark else 'input'
    return InvalidInput(
      f'{place} cannot be read'
      f' ({f"no field {error}" if missing else error}), expected'
      f' {f"a row of {wanted!r}" if benchmark else "text under input"};'
      f' there are {", ".join(map(repr, row)) or "no fields"}. Fix the row,'
      ' or say what it is a row of: --rows (in gin, BENCHMARK).',
      ids,
    )
