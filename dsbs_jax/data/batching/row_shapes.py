# SPDX-License-Identifier: Apache-2.0
"""Shapes of the rows that hold a batch, what they cost, and the cheapest.

All packed batches of a run share a few shapes, each with its own compiled
program. The fullest of the run's first batches decides how many rows, and how
many slots for tokens, the usual shape has, so that nearly all batches fit it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dsbs_jax.data.batching import batch_grid, row_placement, token_table

MULTIPLE = 8  # lengths are rounded up to it
_INPUTS = (64, 96, 128, 160, 192, 224, 256, 320, 384, 512, 768, 1024)
_ROUNDS = ((8, 12), (64, 4), (256, 1))  # batches tried on, candidates kept
_OVERFLOW = 1.25  # more rows than usual for the batch that needs them
_SLOTS = 16  # of each cell in multiples of this, for products of matrices

# Work of an encoder token is 1; of a decoder token 1.25, with its share of
# cross attention and logits in T5 base. A token's attention over a row of
# length n adds n / _ATTENTION: n / 5400 by FLOPs, more for score traffic. On a
# CPU 1000 chooses faster steps than 2000 (docs/performance.md).
_DECODER_TOKEN = 1.25
_ATTENTION = 1000.0


class Shape(NamedTuple):
  """Sizes of one row group.

  Attributes:
    inputs: their input length.
    targets: their target length.
    input_slots: room for input tokens that are computed without padding, in
      all cells of the microbatch grid; 0: whole rows are computed.
    target_slots: the same for target tokens.
  """

  rows: int
  inputs: int
  targets: int
  input_slots: int = 0
  target_slots: int = 0

  @property
  def tokens(self) -> tuple[int, int]:
    """Input and target tokens that are computed, padding included."""
    return (
      self.input_slots or self.rows * self.inputs,
      self.target_slots or self.rows * self.targets,
    )

  def part(self, num_parts: int) -> 'Shape':
    """The shape of one of equally many rows and slots."""
    return self._replace(
      rows=self.rows // num_parts,
      input_slots=self.input_slots // num_parts,
      target_slots=self.target_slots // num_parts,
    )

  def __str__(self) -> str:
    rows = f'{self.rows} x {self.inputs}/{self.targets}'
    if not self.input_slots:
      return rows
    return f'{rows} of {self.input_slots}/{self.target_slots} tokens'

  def work(self) -> float:
    """Relative cost of a training step on such rows."""
    pairs = self.rows * _attention_pairs(self.inputs, self.targets)
    return _token_work(*self.tokens) + pairs / _ATTENTION


def example_work(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
  """Relative cost of training on one example of these lengths.

  Args:
    inputs: input length in tokens, end token included; an int or [N] ints.
    targets: target length, of the same shape.

  Returns:
    float or [N] float; only ratios of such values mean something.
  """
  attention = _attention_pairs(inputs, targets) / _ATTENTION
  return _token_work(inputs, targets) + attention


def _token_work(inputs, targets):
  return inputs + _DECODER_TOKEN * targets


def _attention_pairs(inputs, targets):
  """Pairs of a query and a key in both stacks."""
  return inputs * inputs + targets * (targets + inputs)


def choose(
  table: token_table.TokenTable,
  samples: Sequence[np.ndarray],
  *,
  batch_size: int,
  multiple: int,
  widths: tuple[int, int] | None,
  grid: batch_grid.BatchGrid | None,
) -> tuple[Shape, ...]:
  """The shapes of packed batches.

  Args:
    multiple: the number of rows is a multiple of it.
    widths: input and target length of a row; None chooses those that cost
      least.
    grid: how batches are cut, for shapes with slots; None: without.

  Returns:
    The usual shape, one with more rows and slots, and one that takes any batch.
  """
  tried = _candidates(table, batch_size) if widths is None else [widths]
  lengths = _lengths(table, samples[: _ROUNDS[-1][0]])
  # Ever fewer candidates on ever more batches: the fullest batch decides.
  for number, kept in _ROUNDS:
    needed = [
      _needed(lengths[:, :number], width, multiple=multiple, grid=grid)
      for width in tried
    ]
    needed.sort(key=Shape.work)
    tried = [shape[1:3] for shape in needed[:kept]]
  usual = needed[0]
  most = round_up(batch_size, multiple)
  more = min(round_up(int(np.ceil(usual.rows * _OVERFLOW)), multiple), most)
  shapes = (
    usual,
    _with_spare_slots(usual._replace(rows=more), grid),
    Shape(most, usual.inputs, usual.targets),
  )
  return tuple(dict.fromkeys(shapes))


def _lengths(
  table: token_table.TokenTable, samples: Sequence[np.ndarray]
) -> np.ndarray:
  """[2, S, n] int64, input and target lengths; 0 where a sample has no more."""
  shape = 2, len(samples), max(map(len, samples), default=0)
  lengths = np.zeros(shape, np.int64)
  for number, positions in enumerate(samples):
    lengths[:, number, : len(positions)] = table.lengths(positions)
  return lengths


def _needed(
  lengths: np.ndarray,
  width: tuple[int, int],
  *,
  multiple: int,
  grid: batch_grid.BatchGrid | None,
) -> Shape:
  """The rows and slots of this width that the fullest of some batches needs."""
  lengths = np.minimum(lengths, np.array(width)[:, None, None])
  rows = np.stack(
    [
      row_placement.first_fit(*sides, inputs=width[0], targets=width[1]).row
      for sides in lengths.swapaxes(0, 1)
    ]
  )
  num_rows = round_up(int(rows.max(initial=0)) + 1, multiple)
  shape = Shape(num_rows, *width)
  if grid is None:
    return shape
  most = [grid.max_tokens(rows, side, num_rows=num_rows) for side in lengths]
  slots = round_up(np.maximum(most, 1), _SLOTS) * grid.num_cells
  with_slots = shape._replace(
    input_slots=min(int(slots[0]), num_rows * width[0]),
    target_slots=min(int(slots[1]), num_rows * width[1]),
  )
  return with_slots if with_slots.tokens != shape.tokens else shape


def _with_spare_slots(shape: Shape, grid: batch_grid.BatchGrid | None) -> Shape:
  """The shape with more slots than usual, at most one per position."""
  if not shape.input_slots:
    return shape

  def more(slots: int, length: int) -> int:
    each = int(slots * _OVERFLOW) // grid.num_cells
    positions = shape.rows * length // grid.num_cells
    return min(round_up(each, _SLOTS), positions) * grid.num_cells

  return shape._replace(
    input_slots=more(shape.input_slots, shape.inputs),
    target_slots=more(shape.target_slots, shape.targets),
  )


def _candidates(
  table: token_table.TokenTable, batch_size: int
) -> list[tuple[int, int]]:
  """Row lengths worth trying: no example is longer, few are wider than need."""
  longest = [round_up(length, MULTIPLE) for length in table.longest()]
  mean_input = table.inputs.lengths.mean()
  mean_target = table.targets.lengths.mean()
  found = {tuple(longest)}
  for inputs in {longest[0], *(n for n in _INPUTS if n > longest[0])}:
    per_row = min(inputs / mean_input, batch_size)
    for slack in (0.95, 1.0, 1.05, 1.1, 1.2, 1.35, 1.6, 2.0):
      wanted = round_up(int(np.ceil(per_row * mean_target * slack)), MULTIPLE)
      found.add((inputs, max(wanted, longest[1])))
    if inputs > 4 * longest[0] and inputs > 256:
      break
  return sorted(found)


def round_up(value, multiple: int):
  """The next multiple at or above a number or an array."""
  return -(-value // multiple) * multiple
