# SPDX-License-Identifier: Apache-2.0
"""Completions in arrays of strings that stand in the order of the rows."""

from collections.abc import Iterable, Iterator, Sequence

from dsbs_jax import contract
from dsbs_jax.data.source import completions, json_reader, rows


class ByPosition(completions.Completions):
  """Arrays of strings, one string per row, in the order of the rows."""

  def __init__(
    self, files: Sequence[tuple[str, completions.Opener]], *, model: str = ''
  ):
    self._files, self._model = files, model
    self._texts = self._read()
    self._taken = 0

  def take(self, row: rows.Row) -> Sequence[completions.Sample]:
    text = next(self._texts, None)
    if text is None:
      raise contract.UserError(
        f'{self._files[-1][0]} ends after {self._taken:,} completions, but'
        f' {row.place} is row {self._taken + 1:,}; expected one completion per'
        ' row. Add the missing file, or give the completions by id.'
      )
    self._taken += 1
    return (completions.Sample(text, model=self._model),)

  def finish(self, num_rows: int) -> None:
    extra = sum(1 for _ in self._texts)
    if extra:
      raise contract.UserError(
        f'{" + ".join(name for name, _ in self._files)}: there are'
        f' {num_rows + extra:,} completions for {num_rows:,} rows, expected'
        ' one per row. Check that they belong to this split.'
      )

  def _read(self) -> Iterator[str]:
    for name, opener in self._files:
      for record in json_reader.read(opener(), name):
        if not isinstance(record.value, str):
          raise contract.UserError(
            f'{record.place} is {str(record.value)!r:.60}, expected a JSON'
            ' string, the completion of one row. Fix the file.'
          )
        yield completions.encodable(record.value)


class Concatenated(completions.Completions):
  """ByPosition completions of several files of rows, one after another."""

  def __init__(self, parts: Iterable[tuple[int, ByPosition]]):
    self._parts = iter(parts)
    self._left, self._size, self._current = 0, 0, None

  def take(self, row: rows.Row) -> Sequence[completions.Sample]:
    while not self._left:
      self._close()
      self._size, self._current = next(self._parts)
      self._left = self._size
    self._left -= 1
    return self._current.take(row)

  def finish(self, num_rows: int) -> None:
    self._close()

  def _close(self) -> None:
    if self._current is not None:
      self._current.finish(self._size)
