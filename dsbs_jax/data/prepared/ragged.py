# SPDX-License-Identifier: Apache-2.0
"""Rows of different lengths in one flat array, which can be memory-mapped."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Ragged:
  """Rows of different lengths in one flat array.

  Attributes:
    flat: [total] all rows, one after another.
    offsets: [rows + 1] int64, where each row starts and the last one ends.
  """

  flat: np.ndarray
  offsets: np.ndarray

  def __len__(self) -> int:
    return len(self.offsets) - 1

  def __getitem__(self, row: int) -> np.ndarray:
    if not 0 <= row < len(self):
      raise IndexError(f'row {row} of {len(self)}')
    return self.flat[self.offsets[row] : self.offsets[row + 1]]

  @property
  def lengths(self) -> np.ndarray:
    """[rows] length of each row."""
    return np.diff(self.offsets)

  def lengths_at(self, rows: np.ndarray) -> np.ndarray:
    """[n] int64, length of some rows, given by their numbers."""
    return self.offsets[rows + 1] - self.offsets[rows]

  def starts_at(self, rows: np.ndarray) -> np.ndarray:
    """[n] int64, where some rows begin in `flat`."""
    return self.offsets[rows]


@dataclasses.dataclass(frozen=True)
class Repeated:
  """Rows of a Ragged, each as often as wanted, without a copy.

  Attributes:
    source: the rows.
    rows: [n] int64, which row of the source each row here is.
  """

  source: Ragged
  rows: np.ndarray

  def __len__(self) -> int:
    return len(self.rows)

  @property
  def flat(self) -> np.ndarray:
    """[total] all rows of the source."""
    return self.source.flat

  @property
  def lengths(self) -> np.ndarray:
    """[n] length of each row."""
    return self.source.lengths_at(self.rows)

  def lengths_at(self, rows: np.ndarray) -> np.ndarray:
    """[m] int64, length of some rows, given by their numbers."""
    return self.source.lengths_at(self.rows[rows])

  def starts_at(self, rows: np.ndarray) -> np.ndarray:
    """[m] int64, where some rows begin in `flat`."""
    return self.source.starts_at(self.rows[rows])


def pack(rows: Sequence[Sequence[int] | np.ndarray], dtype) -> Ragged:
  """Puts rows into one flat array.

  Args:
    rows: ids of each row; rows may be empty.
    dtype: of the flat array, such as np.int32.
  """
  offsets = np.zeros(len(rows) + 1, np.int64)
  np.cumsum([len(row) for row in rows], out=offsets[1:])
  flat = np.zeros(offsets[-1], dtype)
  for row, start, stop in zip(rows, offsets, offsets[1:], strict=False):
    flat[start:stop] = row
  return Ragged(flat, offsets)


def join(pieces: Sequence[Ragged]) -> Ragged:
  """One after another."""
  offsets = np.zeros(1 + sum(len(piece) for piece in pieces), np.int64)
  np.cumsum(np.concatenate([p.lengths for p in pieces]), out=offsets[1:])
  return Ragged(np.concatenate([p.flat for p in pieces]), offsets)


def pack_texts(texts: Sequence[str]) -> Ragged:
  """UTF-8 bytes of texts."""
  return pack(
    [np.frombuffer(text.encode(), np.uint8) for text in texts], np.uint8
  )
