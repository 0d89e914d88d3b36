# SPDX-License-Identifier: Apache-2.0
"""Choosing the rows that batches are packed into, by what they cost.

The fullest of the run's first batches decides how many rows, and how many slots
for tokens, there are: nearly all batches then have one shape, and one compiled
program.
"""

from collections.abc import Sequence

import numpy as np

from dsbs_jax.data.batching import batch_grid, placement, pools
from dsbs_jax.data.batching.placement import Shape

MULTIPLE = 8
_INPUTS = (64, 96, 128, 160, 192, 224, 256, 320, 384, 512, 768, 1024)
_ROUNDS = ((8, 12), (64, 4), (256, 1))  # batches tried on, candidates kept
_OVERFLOW = 1.25  # more rows than usual for the batch that needs them
_SLOTS = 16  # of each cell in multiples of this, for products of matrices


def choose(
  examples: pools.Pool,
  samples: Sequence[np.ndarray],
  *,
  batch_size: int,
  multiple: int,
  widths: tuple[int, int] | None,
  grid: batch_grid.BatchGrid | None,
) -> tuple[Shape, ...]:
  """The shapes of packed batches.

  Args:
    examples: what batches are taken from.
    samples: positions of the examples of some batches.
    batch_size: examples of a batch at most.
    multiple: what the number of rows must divide by.
    widths: input and target length of a row; None chooses those that cost
      least.
    grid: how batches are cut, for shapes with slots; None: without.

  Returns:
    The usual shape, one with more rows and slots, and one that takes any batch.
  """
  tried = _candidates(examples, batch_size) if widths is None else [widths]
  # Ever fewer candidates on ever more batches: the fullest batch decides.
  for number, kept in _ROUNDS:
    needed = [
      _needed(examples, samples[:number], width, multiple, grid)
      for width in tried
    ]
    needed.sort(key=Shape.work)
    tried = [shape[1:3] for shape in needed[:kept]]
  usual = needed[0]
  most = round_up(batch_size, multiple)
  more = min(round_up(int(np.ceil(usual.rows * _OVERFLOW)), multiple), most)
  shapes = (
    usual,
    _roomy(usual._replace(rows=more), grid),
    Shape(most, usual.inputs, usual.targets),
  )
  return tuple(dict.fromkeys(shapes))


def _needed(
  examples: pools.Pool,
  samples: Sequence[np.ndarray],
  width: tuple[int, int],
  multiple: int,
  grid: batch_grid.BatchGrid | None,
) -> Shape:
  """The rows and slots of this width that the fullest of some batches needs."""
  found = []
  for positions in samples:
    lengths = [
      np.minimum(each, most)
      for each, most in zip(examples.lengths(positions), width, strict=True)
    ]
    placed = placement.first_fit(*lengths, inputs=width[0], targets=width[1])
    found.append((placed, lengths))
  num_rows = round_up(
    max([1, *(placed.num_rows for placed, _ in found)]), multiple
  )
  shape = Shape(num_rows, *width)
  if grid is None:
    return shape
  most = np.max(
    [
      [grid.max_tokens(placed.row, side, num_rows=num_rows) for side in lengths]
      for placed, lengths in found
    ],
    axis=0,
  )
  slots = round_up(np.maximum(most, 1), _SLOTS) * grid.num_cells
  with_slots = shape._replace(
    input_slots=min(int(slots[0]), num_rows * width[0]),
    target_slots=min(int(slots[1]), num_rows * width[1]),
  )
  return with_slots if with_slots.tokens != shape.tokens else shape


def _roomy(shape: Shape, grid: batch_grid.BatchGrid | None) -> Shape:
  """The shape with more slots than usual, no more than it has places."""
  if not shape.input_slots:
    return shape

  def more(slots, length):
    each = int(slots * _OVERFLOW) // grid.num_cells
    places = shape.rows * length // grid.num_cells
    return min(round_up(each, _SLOTS), places) * grid.num_cells

  return shape._replace(
    input_slots=more(shape.input_slots, shape.inputs),
    target_slots=more(shape.target_slots, shape.targets),
  )


def _candidates(examples: pools.Pool, batch_size: int) -> list[tuple[int, int]]:
  """Row lengths worth trying: no example is longer, few are wider than need."""
  longest = [round_up(length, MULTIPLE) for length in examples.longest()]
  mean_input = examples.inputs.lengths.mean()
  mean_target = examples.targets.lengths.mean()
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
