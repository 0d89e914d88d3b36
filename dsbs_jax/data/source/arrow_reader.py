# SPDX-License-Identifier: Apache-2.0
"""Parquet and Arrow files, streamed, with the index of every row.

Hugging Face `datasets` writes both, and says in the schema which integers
stand for class names: such columns are read as the names.
"""

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from dsbs_jax import contract
from dsbs_jax.data.source import json_reader

_BATCH_ROWS = 256
_SCHEMA_KEY = b'huggingface'
# Ends an Arrow stream; pyarrow takes the end of the file for one, too.
_END = b'\xff\xff\xff\xff\0\0\0\0'


def read_each(file: BinaryIO, name: str) -> Iterator[json_reader.Record]:
  """Rows as dicts from column to value.

  Args:
    file: opened in binary mode, at its start, and seekable; closed at the end.
    name: of the file, for errors; .parquet means Parquet, any other Arrow.

  Yields:
    The rows in file order, their place being 'file[index]' from 0.

  Raises:
    UserError: the file is damaged or of another kind, or a column name is
      there twice.
  """
  index = 0
  with file:
    schema, batches = _open(file, name)
    with _damage(name):
      classes, names = _class_names(schema.metadata or {}), schema.names
    json_reader.check_columns(names, name)
    while True:
      with _damage(name):
        batch = next(batches, None)
        if batch is None:
          return
        # Arrow trusts the offsets in a file: wrong ones read any memory.
        batch.validate(full=True)
        rows = batch.to_pylist()
      for row in rows:
        place = f'{name}[{index}]'
        for column, names in classes.items():
          row[column] = _class_name(row.get(column), names, place, column)
        yield json_reader.Record(row, place)
        index += 1


def count(file: BinaryIO, name: str) -> int:
  """Number of rows that `read_each` yields; arguments and errors as there."""
  with file, _damage(name):
    return sum(batch.num_rows for batch in _open(file, name, columns=[])[1])


def _open(file: BinaryIO, name: str, **options: Any):
  """Schema and record batches; `options` are for Parquet alone."""
  # Imported here: most sources have no such file.
  import pyarrow
  from pyarrow import parquet

  with _damage(name):
    opened = pyarrow.PythonFile(file, mode='r')
    if name.lower().endswith('.parquet'):
      found = parquet.ParquetFile(opened)
      batches = found.iter_batches(batch_size=_BATCH_ROWS, **options)
      return found.schema_arrow, batches
    try:  # as `save_to_disk` writes it
      found = pyarrow.ipc.open_stream(opened)
      _check_end(file)
      return found.schema, iter(found)
    except pyarrow.ArrowInvalid:
      opened.seek(0)
      found = pyarrow.ipc.open_file(opened)
      batches = map(found.get_batch, range(found.num_record_batches))
      return found.schema, batches


def _check_end(file: BinaryIO) -> None:
  """Raises ValueError where an Arrow stream is cut, be it between batches."""
  place = file.tell()
  file.seek(-min(len(_END), file.seek(0, io.SEEK_END)), io.SEEK_END)
  if file.read() != _END:
    raise ValueError('it has no end mark: it was cut')
  file.seek(place)


@contextlib.contextmanager
def _damage(name: str) -> Iterator[None]:
  """Turns what pyarrow raises of a broken file into a UserError."""
  try:
    yield
  except contract.UserError:
    raise
  # pyarrow's own errors are among these; a file has no name there.
  except (ValueError, OSError, KeyError, TypeError, *json_reader.DAMAGED) as e:
    reason = ' '.join(str(e).split())[:200]
    raise contract.UserError(
      f'{name} cannot be read ({reason}), expected a whole'
      f' {"Parquet" if name.lower().endswith(".parquet") else "Arrow"} file.'
      ' Write it again, or give its rows as JSON lines or CSV.'
    ) from e


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
  """Columns of `datasets.ClassLabel` -> the names of their classes."""
  about = json.loads(metadata.get(_SCHEMA_KEY, b'{}'))
  features = (about.get('info') or {}).get('features') or {}
  return {
    column: list(feature['names'])
    for column, feature in features.items()
    if isinstance(feature, dict) and feature.get('_type') == 'ClassLabel'
  }


def _class_name(
  value: Any, names: list[str], place: str, column: str
) -> str | None:
  """The name of a class; None and -1 stand for no class."""
  if value is None or value == -1:
    return None
  if not isinstance(value, int) or not 0 <= value < len(names):
    raise contract.UserError(
      f'{place} has the class {value!r} in {column!r}, expected a number below'
      f' {len(names)} ({", ".join(names)}). Fix the row.'
    )
  return names[value]
