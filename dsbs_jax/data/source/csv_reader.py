# SPDX-License-Identifier: Apache-2.0
"""CSV and TSV, streamed, with the line of every row.

The first line names the columns; every cell is text. Cells may be quoted and
then hold separators and line ends. Columns without a name, such as the index
that pandas writes, are left out. Where commas make one column of the first
line, another separator may make more: spreadsheets write semicolons in
countries whose numbers have a decimal comma.
"""

import codecs
import csv
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

from dsbs_jax import contract
from dsbs_jax.data.source import json_reader

# What a file may be separated by although its suffix says otherwise.
_OTHER_SEPARATORS = ';\t|,'


def read_each(
  file: BinaryIO, name: str
) -> Iterator[json_reader.Record | contract.UserError]:
  """Rows as dicts from column to text; broken ones as their errors.

  Behind a quote that is never closed there is no next row.

  Args:
    file: opened in binary mode, at its start; closed at the end.
    name: of the file, for errors; .tsv means tabs, any other name commas,
      where the first line is not separated otherwise.

  Raises:
    UserError: the header is wrong, or the file is not UTF-8.
  """
  with file:
    lines = _lines(file, name)
    first = next(lines, '')
    separator = _separator(name, first)
    rows = _rows(itertools.chain([first], lines), name, separator)
    number, header = next(rows, (1, []))
    if isinstance(header, contract.UserError):
      raise header
    columns = [column.strip() for column in header]
    _check_header(columns, f'{name}:{number}', separator)
    named = [i for i, column in enumerate(columns) if column]
    for number, cells in rows:
      if isinstance(cells, contract.UserError):
        yield cells
        continue
      if len(cells) != len(columns):
        names = ', '.join(column or '(no name)' for column in columns)
        yield contract.UserError(
          f'{name}:{number} has {len(cells)} cells, expected the'
          f' {len(columns)} of the header ({names}). Put cells that'
          f' hold {separator!r} or a line end in double quotes.'
        )
        continue
      value = {columns[i]: cells[i] for i in named}
      yield json_reader.Record(value, f'{name}:{number}')


def count(file: BinaryIO, name: str) -> int:
  """Number of rows, broken ones included; arguments as in `read_each`."""
  return sum(1 for _ in read_each(file, name))


def _rows(
  lines: Iterable[str], name: str, separator: str
) -> Iterator[tuple[int, list[str] | contract.UserError]]:
  """(line number from 1, cells or what is wrong) of rows that are not blank."""
  # The limit belongs to the process. The default of 128 KiB is less than a
  # JSON line may have.
  csv.field_size_limit(json_reader.MAX_LINE_BYTES)
  read, width = [], 0  # the lines of a row; cells of the header

  def watched() -> Iterator[str]:
    for line in lines:
      read.append(line)
      yield line

  reader = csv.reader(watched(), delimiter=separator, strict=True)
  while True:
    number = reader.line_num + 1
    read.clear()
    try:
      cells = next(reader, None)
    except csv.Error as error:
      wrong = contract.UserError(
        f'{name}:{number} cannot be read as {separator!r}-separated'
        f' cells ({error}), expected quotes that are closed, quotes inside a'
        " quoted cell doubled, and lines that end in '\\n'. Fix the row."
      )
      wrong.__cause__ = error
      yield number, wrong
      continue
    if cells is None:
      return
    width = width or len(cells)
    # A file without quoting may have a quote at the start of one cell and at
    # the end of another: in texts with tabs for sure, with commas who knows.
    if separator == '\t' and 1 < len(read) and _are_rows(read, width):
      yield (
        number,
        contract.UserError(
          f'{name}:{number} has a cell whose quote is closed {len(read) - 1} lines'
          ' later, and each of these lines would be a row, expected quotes around'
          ' cells and those inside doubled. Fix the rows, or drop such quotes.'
        ),
      )
    elif cells:
      yield number, cells


def _are_rows(lines: Sequence[str], width: int) -> bool:
  """Whether lines without quoting have so many cells, two or more, with text."""
  found = [line.split('\t') for line in lines]
  return width > 1 and all(
    len(cells) == width and all(map(str.strip, cells)) for cells in found
  )


def _lines(file: BinaryIO, name: str) -> Iterator[str]:
  """Lines as text, line ends kept, a byte-order mark left out."""
  number, limit = 0, json_reader.MAX_LINE_BYTES
  while line := json_reader.read_some(file.readline, limit + 1, name):
    number += 1
    if len(line) > limit:
      raise contract.UserError(
        f'{name}:{number} is longer than {limit:,} bytes, expected a row per'
        ' line. Check the file.'
      )
    if number == 1:
      line = line.removeprefix(codecs.BOM_UTF8)
    yield json_reader.decode_text(line, f'{name}:{number}')


def _separator(name: str, first: str) -> str:
  """The suffix's; or the only other one that makes columns of a first line."""
  usual = '\t' if name.lower().endswith('.tsv') else ','

  def columns(separator: str) -> int:
    try:
      return len(next(csv.reader([first], delimiter=separator), []))
    except csv.Error:  # told by _rows, with its line
      return 0

  others = [s for s in _OTHER_SEPARATORS if s != usual and columns(s) > 1]
  return others[0] if columns(usual) == 1 and len(others) == 1 else usual


def _check_header(columns: Sequence[str], place: str, separator: str) -> None:
  json_reader.check_columns(columns, place)
  text = ''.join(columns)
  others = [s for s in _OTHER_SEPARATORS if s != separator and s in text]
  if len(columns) == 1 and others:
    raise contract.UserError(
      f'{place} reads {columns[0]!r:.60}: one column, whose name holds'
      f' {others[0]!r}, expected column names separated by {separator!r}. Save'
      ' the file as comma-separated .csv or tab-separated .tsv.'
    )
