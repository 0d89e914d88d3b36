# SPDX-License-Identifier: Apache-2.0
"""JSON lines and JSON arrays, streamed, with the place of every value.

Whatever is wrong with a file ends in one UserError that names file and line.
"""

import codecs
import dataclasses
import itertools
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from dsbs_jax import contract

# What reading a broken zip member raises.
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)

MAX_LINE_BYTES = 16 << 20
MAX_ARRAY_BYTES = 2 << 30


@dataclasses.dataclass(frozen=True)
class Record:
  """One JSON value and where it stands.

  Attributes:
    place: 'file:line' for errors, or 'file[index]' in an array.
  """

  value: Any
  place: str


def raised(found: Iterable[Record | contract.UserError]) -> Iterator[Record]:
  """The records; the first error among them is raised."""
  for record in found:
    if isinstance(record, contract.UserError):
      raise record
    yield record


def read(file: BinaryIO, name: str) -> Iterator[Record]:
  """Values of a JSON-lines file or of one JSON array.

  Blank lines and a byte-order mark are skipped.

  Args:
    file: an open binary file; closed at the end.

  Yields:
    The values in file order. JSON lines are streamed; an array is read whole.

  Raises:
    UserError: not UTF-8, not JSON, or a line over `MAX_LINE_BYTES`.
  """
  return raised(read_each(file, name))


def read_each(
  file: BinaryIO, name: str
) -> Iterator[Record | contract.UserError]:
  """As `read`, but of a line that is no JSON the error is yielded."""
  with file:
    numbered = lines(file, name)
    first = next(numbered, None)
    if first is None:
      return
    line = first[2]
    if line.lstrip().startswith(b'['):
      for index, value in enumerate(_array(line, file, name)):
        yield Record(value, f'{name}[{index}]')
      return
    for number, _, line in itertools.chain([first], numbered):
      place = f'{name}:{number}'
      try:
        record = Record(decode(line, place), place)
      except contract.UserError as error:
        record = error
      yield record


def count(file: BinaryIO, name: str) -> int:
  """Number of values of `read_each`, without decoding JSON lines."""
  with file:
    numbered = lines(file, name)
    first = next(numbered, None)
    if first is not None and first[2].lstrip().startswith(b'['):
      return len(_array(first[2], file, name))
    return (first is not None) + sum(1 for _ in numbered)


def check_columns(names: Sequence[str], place: str) -> None:
  """Raises UserError where a table has two columns of one name."""
  for number, column in enumerate(names):
    if column and column in names[:number]:
      raise contract.UserError(
        f'{place} names the column {column!r} twice, expected each name once.'
        ' Rename one of them.'
      )


def decode(line: bytes, place: str) -> Any:
  """One JSON value; UserError if it is not UTF-8 or not JSON."""
  text = decode_text(line, place)
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as error:
    reason = 'nests too deep' if isinstance(error, RecursionError) else error
    shown = repr(line[:60].decode('utf-8', 'replace').rstrip('\r\n'))
    shown += '...' if len(line) > 60 else ''
    raise contract.UserError(
      f'{place} reads {shown}, expected JSON ({reason}). Fix or drop the line.'
    ) from error


def decode_text(
  line: bytes, place: str, remedy: str = 'Convert the file to UTF-8.'
) -> str:
  """A line's text; UserError, with this remedy, if it is not UTF-8."""
  try:
    return line.decode('utf-8')
  except UnicodeDecodeError as error:
    byte = line[error.start]
    raise contract.UserError(
      f'{place} has the byte 0x{byte:02x} at position {error.start:,},'
      f' expected UTF-8 text. {remedy}'
    ) from error


def lines(file: BinaryIO, name: str) -> Iterator[tuple[int, int, bytes]]:
  """(line number from 1, byte offset, line) of lines that are not blank.

  Args:
    file: opened in binary mode, at its start; it stays open.

  Raises:
    UserError: the file is cut, or a line is longer than MAX_LINE_BYTES.
  """
  number = offset = 0
  while line := read_some(file.readline, MAX_LINE_BYTES + 1, name):
    number += 1
    start, offset = offset, offset + len(line)
    if number == 1 and line.startswith(codecs.BOM_UTF8):
      line = line.removeprefix(codecs.BOM_UTF8)
      start = len(codecs.BOM_UTF8)
    if len(line) > MAX_LINE_BYTES and not line.lstrip().startswith(b'['):
      raise contract.UserError(
        f'{name}:{number} is longer than {MAX_LINE_BYTES:,} bytes, expected'
        ' one JSON value per line. Check the file.'
      )
    if line.strip():
      yield number, start, line


def read_some(
  read_bytes: Callable[[int], bytes], limit: int, name: str
) -> bytes:
  """Bytes of a file; UserError where it is a damaged zip member."""
  try:
    return read_bytes(limit)
  except DAMAGED as error:
    raise contract.UserError(
      f'{name} is damaged ({error}), expected a whole zip member. Get the'
      ' archive again.'
    ) from error


def _array(begin: bytes, file: BinaryIO, name: str) -> list[Any]:
  data = begin + read_some(file.read, MAX_ARRAY_BYTES, name)
  if len(data) >= MAX_ARRAY_BYTES:
    raise contract.UserError(
      f'{name} is a JSON array of {MAX_ARRAY_BYTES:,} bytes or more.'
      ' Rewrite it as JSON lines, which are streamed.'
    )
  values = decode(data, name)
  if not isinstance(values, list):
    raise contract.UserError(
      f'{name} holds a JSON {type(values).__name__}, expected a list.'
    )
  return values
