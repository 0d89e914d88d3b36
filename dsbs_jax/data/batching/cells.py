# SPDX-License-Identifier: Apache-2.0
"""Which tokens of a row group are computed together, without padding.

A cell is what one data shard computes of one microbatch. The train step gives
shards blocks of rows, and microbatch i of P every P-th row of a block; its cells
are ordered by shard, then by microbatch. See core/unpadding.py.
"""

from typing import NamedTuple

import numpy as np


class Cells(NamedTuple):
  """How a batch is cut.

  Attributes:
    shards: data shards.
    parts: microbatches.
  """

  shards: int = 1
  parts: int = 1

  @property
  def number(self) -> int:
    """C, cells of a batch."""
    return self.shards * self.parts

  def of_rows(
    self, row: np.ndarray, num_rows: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """The cell of each row given by its number, and its number there."""
    shard, within = np.divmod(row, num_rows // self.shards)
    number, part = np.divmod(within, self.parts)
    return shard * self.parts + part, number

  def fullest(
    self, row: np.ndarray, lengths: np.ndarray, *, num_rows: int
  ) -> int:
    """Tokens of the fullest cell.

    Args:
      row: [n] the row of each example.
      lengths: [n] tokens of each example.
      num_rows: rows of the batch.
    """
    cell, _ = self.of_rows(row, num_rows)
    return int(np.bincount(cell, weights=lengths).max(initial=0))

  def places(
    self, filled: np.ndarray, *, shape: tuple[int, int], slots: int
  ) -> np.ndarray:
    """Where the tokens of each cell are.

    Args:
      filled: row * L + position of every token.
      shape: rows B and their length L.
      slots: of all cells together, enough for their tokens.

    Returns:
      [C, slots / C] int32, in ascending order; see `unpadding.Unpadding`.
    """
    num_rows, length = shape
    row, position = np.divmod(np.sort(filled), length)
    cell, number = self.of_rows(row, num_rows)
    order = np.argsort(cell, kind='stable')
    counts = np.bincount(cell, minlength=self.number)
    within = np.arange(len(order)) - np.repeat(
      np.cumsum(counts) - counts, counts
    )
    each = slots // self.number
    beyond = num_rows * length // self.number
    places = np.full((self.number, each), beyond, np.int32)
    places[cell[order], within] = (number * length + position)[order]
    return places
