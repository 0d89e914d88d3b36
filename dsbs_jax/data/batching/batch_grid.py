# SPDX-License-Identifier: Apache-2.0
"""How a batch's rows are cut over data shards and microbatches.

A cell of the grid is what one data shard computes of one microbatch. The train
step gives each shard a block of rows, and microbatch i of P every P-th row of a
block. Cells are ordered by shard, then by microbatch: cell = shard * P + i.
"""

from typing import NamedTuple

import numpy as np


class BatchGrid(NamedTuple):
  """Data shards x microbatches."""

  num_shards: int = 1
  num_microbatches: int = 1

  @property
  def num_cells(self) -> int:
    """C, cells of a batch."""
    return self.num_shards * self.num_microbatches

  def part(self, num_parts: int) -> 'BatchGrid':
    """The grid of one of equally many shards."""
    return self._replace(num_shards=self.num_shards // num_parts)

  def cells_of_rows(
    self, row: np.ndarray, *, num_rows: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """The cell of each row, and the row's number within its cell; each [n]."""
    shard, row_of_shard = np.divmod(row, num_rows // self.num_shards)
    row_of_cell, part = np.divmod(row_of_shard, self.num_microbatches)
    return shard * self.num_microbatches + part, row_of_cell

  def max_tokens(
    self, row: np.ndarray, lengths: np.ndarray, *, num_rows: int
  ) -> int:
    """Tokens of the fullest cell of all batches.

    Args:
      row: [..., n] int, the row of each example.
      lengths: [..., n] int, tokens of each example.
    """
    cell, _ = self.cells_of_rows(row, num_rows=num_rows)
    batch = np.arange(row.size).reshape(row.shape) // max(1, row.shape[-1])
    cell += self.num_cells * batch
    tokens = np.bincount(cell.reshape(-1), weights=lengths.reshape(-1))
    return int(tokens.max(initial=0))

  def token_index(
    self, filled: np.ndarray, *, shape: tuple[int, int], slots: int
  ) -> np.ndarray:
    """Where the real tokens of each cell are.

    Args:
      filled: int, row * L + position of every real token of the batch.
      shape: B rows and their length L.
      slots: room for tokens in all cells together, enough for the fullest.

    Returns:
      [C, slots / C] int32: per cell row * L + position of its tokens, counted
      within the cell and in ascending order, then B * L / C in unused slots.
      See `core/layers/unpadding.Unpadding`.
    """
    num_rows, length = shape
    row, position = np.divmod(np.sort(filled), length)
    cell, row_of_cell = self.cells_of_rows(row, num_rows=num_rows)
    order = np.argsort(cell, kind='stable')
    counts = np.bincount(cell, minlength=self.num_cells)
    slot = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    unused = num_rows * length // self.num_cells
    index = np.full((self.num_cells, slots // self.num_cells), unused, np.int32)
    index[cell[order], slot] = (row_of_cell * length + position)[order]
    return index
