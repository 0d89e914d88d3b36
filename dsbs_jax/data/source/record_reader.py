# SPDX-License-Identifier: Apache-2.0
"""Rows of any file that a benchmark may name; its suffix says which kind.

.csv .tsv         text with a header line, see csv_reader
.parquet .arrow   columns, see arrow_reader
any other         JSON lines or one JSON array, see json_reader
"""

import posixpath
import types
from collections.abc import Iterator
from typing import BinaryIO

from dsbs_jax import contract
from dsbs_jax.data.source import arrow_reader, csv_reader, json_reader

_READERS = {
  '.csv': csv_reader,
  '.tsv': csv_reader,
  '.parquet': arrow_reader,
  '.arrow': arrow_reader,
}
SUFFIXES = ('.jsonl', '.json', *_READERS)


def is_table(name: str) -> bool:
  """Whether the file's suffix says that its rows are not JSON."""
  return _suffix(name) in _READERS


def read(file: BinaryIO, name: str) -> Iterator[json_reader.Record]:
  """The rows of a file, streamed.

  Args:
    file: opened in binary mode, at its start; closed at the end.
    name: of the file, for its suffix and for errors.

  Raises:
    UserError: the file is not what its suffix says, or a row is broken.
  """
  return json_reader.raised(read_each(file, name))


def read_each(
  file: BinaryIO, name: str
) -> Iterator[json_reader.Record | contract.UserError]:
  """As `read`, but a broken row of a text file is yielded as its error."""
  return _reader(name).read_each(file, name)


def count(file: BinaryIO, name: str) -> int:
  """Number of rows that `read` yields; arguments and errors as there."""
  return _reader(name).count(file, name)


def _reader(name: str) -> types.ModuleType:
  return _READERS.get(_suffix(name), json_reader)


def _suffix(name: str) -> str:
  return posixpath.splitext(name)[1].lower()
