# SPDX-License-Identifier: Apache-2.0
"""A batch's examples -> the arrays of its row group, packed or padded.

This is where a batch is made: `Packer.pack` finds a row for each example
(`row_placement`), takes the first shape of rows that has room for all of them
(`row_shapes`), and writes ids, loss weights, segments and positions.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dsbs_jax import contract
from dsbs_jax.data.batching import (
  batch_grid,
  row_placement,
  row_shapes,
  token_table,
)
from dsbs_jax.data.prepared import ragged


@dataclasses.dataclass(frozen=True)
class Packer:
  """Lays batches of one view's examples into rows; made by a layout.

  Attributes:
    shapes: shapes in order of preference; the last one takes any batch.
    packed: whether a row holds several examples, or one.
    pair_ids: whether rows tell which example of the batch a target is of.
    grid: how the train step cuts batches, where tokens are computed without
      padding.
  """

  table: token_table.TokenTable
  shapes: tuple[row_shapes.Shape, ...]
  _: dataclasses.KW_ONLY
  packed: bool
  pair_ids: bool = False
  grid: batch_grid.BatchGrid | None = None

  def pack(
    self,
    positions: np.ndarray,
    *,
    process_index: int = 0,
    process_count: int = 1,
  ) -> dict[str, np.ndarray]:
    """The row group of some examples, in the first shape that takes them.

    Every process finds the same rows, and writes its own alone.

    Args:
      positions: [n] int64, which examples of the table, all processes'.
      process_count: number of processes; each gets a block of rows.

    Returns:
      This process's rows as `contract` describes them; rows without example
      are zeros.
    """
    placed, shape = self.place(positions)
    each = shape.rows // process_count
    own = np.flatnonzero(placed.row // each == process_index)
    placed = row_placement.Placement(*(column[own] for column in placed))
    return self._fill(
      positions[own],
      placed._replace(row=placed.row - process_index * each),
      shape.part(process_count),
      grid=self.grid and self.grid.part(process_count),
      numbers=own + 1,
    )

  def place(
    self, positions: np.ndarray
  ) -> tuple[row_placement.Placement, row_shapes.Shape]:
    """Where these examples go, and the first shape that takes them."""
    inputs, targets = self.table.lengths(positions)
    if self.packed:  # the shapes of packed rows have the same lengths
      usual = self.shapes[0]
      inputs = np.minimum(inputs, usual.inputs)
      targets = np.minimum(targets, usual.targets)
      placed = row_placement.first_fit(
        inputs, targets, inputs=usual.inputs, targets=usual.targets
      )
    else:
      placed = row_placement.one_per_row(len(positions))
    for shape in self.shapes:
      if self.packed:
        fits = placed.num_rows <= shape.rows and self._has_slots(
          shape, placed.row, inputs, targets
        )
      else:
        fits = inputs.max() <= shape.inputs and targets.max() <= shape.targets
      if fits:
        break
    return placed, shape

  def _has_slots(
    self, shape: row_shapes.Shape, row: np.ndarray, *lengths: np.ndarray
  ) -> bool:
    """Whether the shape has slots for all tokens of each cell."""
    if not shape.input_slots:
      return True
    most = [
      self.grid.max_tokens(row, each, num_rows=shape.rows) for each in lengths
    ]
    slots = np.array([shape.input_slots, shape.target_slots])
    return bool(np.all(np.multiply(most, self.grid.num_cells) <= slots))

  def _fill(
    self,
    positions: np.ndarray,
    placed: row_placement.Placement,
    shape: row_shapes.Shape,
    *,
    grid: batch_grid.BatchGrid | None,
    numbers: np.ndarray,
  ) -> dict[str, np.ndarray]:
    """Writes examples into rows; longer ones are cut, and end as others do.

    `numbers` [n] int64 are those of the examples within the whole batch.
    """
    source, target = (
      _Side(ids, positions, (shape.rows, width), row=placed.row, start=start)
      for ids, width, start in (
        (self.table.inputs, shape.inputs, placed.input_start),
        (self.table.targets, shape.targets, placed.target_start),
      )
    )
    ids, terms = target.ids(), self.table.terms[positions]
    weights = target.repeat(np.ones(len(positions)), np.float32)
    if self.table.task_ids is None:
      task_ids = target.repeat(terms, np.int32)
    else:
      task_ids = target.take(self.table.task_ids)
      weights *= task_ids > 0  # the others are only read
    rows = {
      'encoder_input_tokens': source.ids(self.table.input_end),
      'decoder_input_tokens': target.shifted(ids, packed=self.packed),
      'decoder_target_tokens': ids,
      'decoder_loss_weights': weights,
      'decoder_task_ids': task_ids,
    }
    if self.packed:
      rows |= {
        'encoder_segment_ids': source.repeat(placed.segment, np.int32),
        'encoder_positions': source.scatter(source.within, np.int32),
        'decoder_segment_ids': target.repeat(placed.segment, np.int32),
        'decoder_positions': target.scatter(target.within, np.int32),
      }
    if self.pair_ids:
      rows['decoder_pair_ids'] = target.repeat(numbers, np.int32)
    if self.table.soft is not None:
      soft_ids, soft_probs = self.table.soft.at(
        np.repeat(positions, target.lengths), target.within
      )
      rows['decoder_soft_ids'] = target.scatter(soft_ids, np.int32)
      rows['decoder_soft_probs'] = target.scatter(soft_probs, np.float32)
    if shape.input_slots:
      rows['encoder_token_index'] = source.token_index(grid, shape.input_slots)
      rows['decoder_token_index'] = target.token_index(grid, shape.target_slots)
    return rows

  def describe(self, samples: Sequence[np.ndarray]) -> str:
    """The shapes in words, and what they waste on some batches.

    Returns:
      Shapes, how full they are, work against the ideal (every example alone in
      a row of its own length) and the number of examples that are cut.
    """
    real, room = np.zeros(2), np.zeros(2)
    ideal = work = usual = 0
    for positions in samples:
      inputs, targets = self.table.lengths(positions)
      _, shape = self.place(positions)
      usual += shape == self.shapes[0]
      real += inputs.sum(), targets.sum()
      room += shape.tokens
      ideal += row_shapes.example_work(inputs, targets).sum()
      work += shape.work()
    widest = self.shapes[-1]
    cut = (self.table.inputs.lengths > widest.inputs) | (
      self.table.targets.lengths > widest.targets
    )
    return (
      f'{"packed" if self.packed else "padded"} rows x inputs/targets:'
      f' {", ".join(map(str, self.shapes))}; first shape in'
      f' {100 * usual / len(samples):.0f} % of {len(samples)} batches, encoder'
      f' {100 * real[0] / room[0]:.0f} % and decoder'
      f' {100 * real[1] / room[1]:.0f} % full, {work / ideal:.2f}x the ideal'
      f' work, {cut.sum():,} of {len(self.table):,} examples cut'
    )


class _Side:
  """The encoder's or decoder's half of a row group while it is filled.

  Attributes:
    lengths: [n] int64, tokens of each example that are laid out.
    within: [tokens] int64, each token's position within its example.
  """

  def __init__(
    self,
    ids: ragged.Ragged,
    positions: np.ndarray,
    shape: tuple[int, int],
    *,
    row: np.ndarray,
    start: np.ndarray,
  ):
    """Computes, for all tokens at once, where each goes."""
    self._ids = ids
    self._shape = shape
    self._begin = ids.starts_at(positions)
    full = ids.lengths_at(positions)
    self.lengths = np.minimum(full, shape[1] - start)
    ends = np.cumsum(self.lengths)
    self.within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(
      ends - self.lengths, self.lengths
    )
    first = row * shape[1] + start
    self._flat = np.repeat(first, self.lengths) + self.within
    self._cut_ends = (first + self.lengths - 1)[self.lengths < full]
    self._cut_lengths = self.lengths[self.lengths < full]

  def ids(self, end: tuple[int, ...] = (contract.EOS_ID,)) -> np.ndarray:
    """The ids, with an end, such as EOS_ID, of what had to be cut."""
    out = self.take(self._ids)
    for back, token in enumerate(reversed(end)):
      fits = self._cut_lengths > back
      out.reshape(-1)[self._cut_ends[fits] - back] = token
    return out

  def take(self, values: ragged.Ragged) -> np.ndarray:
    """Values laid out like the ids; `values` has the ids' offsets."""
    taken = np.repeat(self._begin, self.lengths) + self.within
    return self.scatter(values.flat[taken], np.int32)

  def scatter(self, values: np.ndarray, dtype) -> np.ndarray:
    """One value, or [n, ...] of equal shape, per token, laid out like ids."""
    shape = values.shape[1:]
    out = np.zeros((*self._shape, *shape), dtype)
    out.reshape(-1, *shape)[self._flat] = values
    return out

  def repeat(self, values: np.ndarray, dtype) -> np.ndarray:
    """One value per example, repeated for each of its tokens."""
    return self.scatter(np.repeat(values, self.lengths), dtype)

  def token_index(self, grid: batch_grid.BatchGrid, slots: int) -> np.ndarray:
    """Where the tokens of each cell are, [C, slots / C]."""
    return grid.token_index(self._flat, shape=self._shape, slots=slots)

  def shifted(self, ids: np.ndarray, *, packed: bool) -> np.ndarray:
    """The ids one position later; each example of a packed row starts anew.

    In a padded row the end id is shifted too, onto padding, as seqio does.
    """
    out = np.zeros(self._shape, np.int32)
    if not packed:
      out[:, 1:] = ids[:, :-1]
      return out
    later = self._flat[self.within > 0]
    out.reshape(-1)[later] = ids.reshape(-1)[later - 1]
    return out
