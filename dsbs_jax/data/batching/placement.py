# SPDX-License-Identifier: Apache-2.0
"""Examples -> rows of fixed shape.

A batch always holds the same examples; how they lie in rows is a *shape*,
(rows, input length, target length), and a *placement*: the row and the place
in it of each example. Padded rows hold one example each; packed rows hold as
many as fit, found first-fit in decreasing order of size. Every array has one
of a few shapes known beforehand, so that few programs are compiled.
"""

import functools
from typing import NamedTuple

import numpy as np

from dsbs_jax import contract
from dsbs_jax.data.batching import batch_grid, pools
from dsbs_jax.data.prepared import ragged

# Work of an encoder token is 1; of a decoder token 1.25, with its share of
# cross attention and logits in T5 base. A token's attention over a row of n
# places adds n / _ATTENTION: n / 5400 by FLOPs, more for score traffic. On a CPU
# 1000 chooses faster steps than 2000 (docs/performance.md).
_DECODER_TOKEN = 1.25
_ATTENTION = 1000.0


class Shape(NamedTuple):
  """Sizes of one row group.

  Attributes:
    rows: number of rows.
    inputs: their input length.
    targets: their target length.
    input_slots: room for input tokens that are computed without padding, in
      all cells; 0: whole rows are computed.
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

  def __str__(self) -> str:
    rows = f'{self.rows} x {self.inputs}/{self.targets}'
    if not self.input_slots:
      return rows
    return f'{rows} of {self.input_slots}/{self.target_slots} tokens'

  def work(self) -> float:
    """Relative cost of a training step on such rows."""
    pairs = self.rows * _pairs(self.inputs, self.targets)
    return _token_work(*self.tokens) + pairs / _ATTENTION


def example_work(inputs, targets):
  """Relative cost of one example of these lengths (numbers or arrays)."""
  return _token_work(inputs, targets) + _pairs(inputs, targets) / _ATTENTION


def _token_work(inputs, targets):
  return inputs + _DECODER_TOKEN * targets


def _pairs(inputs, targets):
  """Pairs of a query and a key in both stacks."""
  return inputs * inputs + targets * (targets + inputs)


class Placement(NamedTuple):
  """Where each of n examples lies; all [n] int64.

  Attributes:
    row: its row.
    input_start: the place of its first input token in the row.
    target_start: the place of its first target token in the row.
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
  """Packs examples into as few rows as first-fit decreasing finds.

  Args:
    input_lengths: [n] none above `inputs`.
    target_lengths: [n] none above `targets`.
    inputs: input length of a row.
    targets: target length of a row.

  Returns:
    The placement. First-fit leaves its last rows emptier than its first; they
    are numbered so that blocks of rows, and every k-th row, hold about as many
    tokens as others: what devices and microbatches get is balanced.
  """
  size = np.maximum(input_lengths / inputs, target_lengths / targets)
  order = np.argsort(-size, kind='stable').tolist()
  lengths = list(
    zip(input_lengths.tolist(), target_lengths.tolist(), strict=True)
  )
  used_inputs: list[int] = []
  used_targets: list[int] = []
  count: list[int] = []
  places = [(0, 0, 0, 0)] * len(lengths)
  for example in order:
    source, target = lengths[example]
    for row, used in enumerate(used_inputs):
      if used + source <= inputs and used_targets[row] + target <= targets:
        break
    else:
      row = len(count)
      used_inputs.append(0)
      used_targets.append(0)
      count.append(0)
    count[row] += 1
    places[example] = (row, used_inputs[row], used_targets[row], count[row])
    used_inputs[row] += source
    used_targets[row] += target
  columns = np.array(places, np.int64).reshape(-1, 4).T
  return Placement(_spread(len(count))[columns[0]], *columns[1:])


@functools.cache
def _spread(num_rows: int) -> np.ndarray:
  """New numbers of rows, such that old neighbours are far apart.

  Numbers are ordered by their bits read backwards, as in a van der Corput
  sequence.
  """
  width = max(1, (num_rows - 1).bit_length())
  backwards = [int(f'{row:0{width}b}'[::-1], 2) for row in range(num_rows)]
  numbers = np.argsort(backwards)
  numbers.flags.writeable = False
  return numbers


def fill(
  examples: pools.Pool,
  positions: np.ndarray,
  placement: Placement,
  *,
  shape: Shape,
  packed: bool,
  pair_ids: bool = False,
  grid: batch_grid.BatchGrid | None = None,
) -> dict[str, np.ndarray]:
  """Writes examples into rows.

  Args:
    examples: where the tokens come from.
    positions: [n] which examples.
    placement: where each goes.
    shape: sizes of the rows; longer examples are cut, their last id EOS_ID.
    packed: whether segment ids and positions are added.
    pair_ids: whether each target's number in `positions` is added.
    grid: how the batch is cut, where the shape has slots.

  Returns:
    A row group as `contract` describes it; rows without example are zeros.
  """
  source = _Side(
    examples.inputs, positions, row=placement.row, start=placement.input_start
  )
  target = _Side(
    examples.targets,
    positions,
    row=placement.row,
    start=placement.target_start,
  )
  source.lay(shape.rows, shape.inputs)
  target.lay(shape.rows, shape.targets)
  target_tokens = target.ids()
  rows = {
    'encoder_input_tokens': source.ids(),
    'decoder_input_tokens': target.shifted(target_tokens, packed=packed),
    'decoder_target_tokens': target_tokens,
    'decoder_loss_weights': target.each(np.ones(len(positions)), np.float32),
    'decoder_task_ids': target.each(examples.terms[positions], np.int32),
  }
  if examples.task_ids is not None:
    rows['decoder_task_ids'] = target.take(examples.task_ids)
  if packed:
    rows |= {
      'encoder_segment_ids': source.each(placement.segment, np.int32),
      'encoder_positions': source.place(source.within, np.int32),
      'decoder_segment_ids': target.each(placement.segment, np.int32),
      'decoder_positions': target.place(target.within, np.int32),
    }
  if pair_ids:
    numbers = np.arange(1, len(positions) + 1)
    rows['decoder_pair_ids'] = target.each(numbers, np.int32)
  if shape.input_slots:
    rows['encoder_token_index'] = source.token_index(grid, shape.input_slots)
    rows['decoder_token_index'] = target.token_index(grid, shape.target_slots)
  return rows


class _Side:
  """The encoder's or decoder's half of a row group while it is filled."""

  def __init__(self, ids: ragged.Ragged, positions, *, row, start):
    self._ids = ids
    self._begin = ids.offsets[positions]
    self._full = ids.offsets[positions + 1] - self._begin
    self._row, self._start = row, start

  def lay(self, rows: int, width: int) -> None:
    """Computes, for all tokens at once, where each goes."""
    self._shape = (rows, width)
    self._lengths = np.minimum(self._full, width - self._start)
    ends = np.cumsum(self._lengths)
    self.within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(
      ends - self._lengths, self._lengths
    )
    first = self._row * width + self._start
    self._goal = np.repeat(first, self._lengths) + self.within
    self._last = (first + self._lengths - 1)[self._lengths < self._full]

  def ids(self) -> np.ndarray:
    """The ids, with EOS_ID at the end of what had to be cut."""
    out = self.take(self._ids)
    out.reshape(-1)[self._last] = contract.EOS_ID
    return out

  def take(self, values: ragged.Ragged) -> np.ndarray:
    """Values laid like the ids; `values` has the ids' offsets."""
    taken = np.repeat(self._begin, self._lengths) + self.within
    return self.place(values.flat[taken], np.int32)

  def place(self, values: np.ndarray, dtype) -> np.ndarray:
    """One value per token, laid like the ids."""
    out = np.zeros(self._shape, dtype)
    out.reshape(-1)[self._goal] = values
    return out

  def each(self, values: np.ndarray, dtype) -> np.ndarray:
    """One value per example, repeated for each of its tokens."""
    return self.place(np.repeat(values, self._lengths), dtype)

  def token_index(self, grid: batch_grid.BatchGrid, slots: int) -> np.ndarray:
    """Where the tokens of each cell are, [C, slots / C]."""
    return grid.token_index(self._goal, shape=self._shape, slots=slots)

  def shifted(self, ids: np.ndarray, *, packed: bool) -> np.ndarray:
    """The ids one place later; each example of a packed row starts anew.

    In a padded row the end id is shifted too, onto padding, as seqio does.
    """
    out = np.zeros(self._shape, np.int32)
    if not packed:
      out[:, 1:] = ids[:, :-1]
      return out
    later = self._goal[self.within > 0]
    out.reshape(-1)[later] = ids.reshape(-1)[later - 1]
    return out
