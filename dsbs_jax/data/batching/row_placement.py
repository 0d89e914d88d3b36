# SPDX-License-Identifier: Apache-2.0
"""Bin packing: which row each example of a batch goes into, and where."""

import functools
from typing import NamedTuple

import numpy as np


class Placement(NamedTuple):
  """Where each of n examples lies; all [n] int64.

  Attributes:
    row: its row.
    input_start: the position of its first input token in the row.
    target_start: the position of its first target token in the row.
    segment: its number within the row, from 1.
  """

  row: np.ndarray
  input_start: np.ndarray
  target_start: np.ndarray
  segment: np.ndarray

  @property
  def num_rows(self) -> int:
    """Number of rows that hold an example."""
    return int(self.row.max(initial=-1)) + 1


def one_per_row(num_examples: int) -> Placement:
  """Each example at the start of its own row."""
  zeros = np.zeros(num_examples, np.int64)
  return Placement(np.arange(num_examples), zeros, zeros, zeros + 1)


def first_fit(
  input_lengths: np.ndarray,
  target_lengths: np.ndarray,
  *,
  inputs: int,
  targets: int,
) -> Placement:
  """Packs examples by first-fit decreasing: longest first, first row with room.

  Args:
    input_lengths: [n] int64, none above `inputs`.
    target_lengths: [n] int64, none above `targets`.

  Returns:
    The placement. First-fit leaves its last rows emptier than its first; they
    are renumbered so that blocks of rows, and every k-th row, hold about as
    many tokens as others: devices and microbatches get equal shares.
  """
  size = np.maximum(input_lengths / inputs, target_lengths / targets)
  lengths = list(
    zip(input_lengths.tolist(), target_lengths.tolist(), strict=True)
  )
  left_inputs: list[int] = []  # of each row
  left_targets: list[int] = []
  segments: list[int] = []
  placed = [(0, 0, 0, 0)] * len(lengths)
  for example in np.argsort(-size, kind='stable').tolist():
    source, target = lengths[example]
    for row, left in enumerate(left_inputs):
      if left >= source and left_targets[row] >= target:
        break
    else:
      row = len(left_inputs)
      left_inputs.append(inputs)
      left_targets.append(targets)
      segments.append(0)
    segments[row] += 1
    placed[example] = (
      row,
      inputs - left_inputs[row],
      targets - left_targets[row],
      segments[row],
    )
    left_inputs[row] -= source
    left_targets[row] -= target
  columns = np.array(placed, np.int64).reshape(-1, 4).T
  return Placement(bit_reversal_order(len(segments))[columns[0]], *columns[1:])


@functools.cache
def bit_reversal_order(num_rows: int) -> np.ndarray:
  """[num_rows] int64, new numbers of rows: old neighbours end up far apart.

  Numbers are ordered by their bits read backwards, as in a van der Corput
  sequence.
  """
  width = max(1, (num_rows - 1).bit_length())
  backwards = [int(f'{row:0{width}b}'[::-1], 2) for row in range(num_rows)]
  numbers = np.argsort(backwards)
  numbers.flags.writeable = False
  return numbers
