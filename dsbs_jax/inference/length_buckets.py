# SPDX-License-Identifier: Apache-2.0
"""The few shapes that batches have, so that few programs are compiled."""

import bisect
import dataclasses
import math

from dsbs_jax.runtime import field_checks

_SHORTEST_INPUT, _SHORTEST_TARGET = 16, 8
# Between the lengths of scored outputs that a server compiles.
_TARGET_STEP = 4


@dataclasses.dataclass(frozen=True)
class LengthBuckets:
  """One number of rows, lengths on ladders without an end: for files.

  Attributes:
    max_rows: rows of every batch.
  """

  max_rows: int

  def rows(self, num: int) -> int:
    """Rows of a batch with `num` questions."""
    del num
    return self.max_rows

  def inputs(self, longest: int) -> int:
    """Length of a batch's inputs."""
    return next_bucket(longest, _SHORTEST_INPUT)

  def targets(self, longest: int) -> int:
    """Length of a batch's scored outputs."""
    return next_bucket(longest, _SHORTEST_TARGET)

  def options(self, most: int) -> int:
    """Scored outputs per row."""
    return most


@dataclasses.dataclass(frozen=True)
class CompiledShapes:
  """BatchShapes known beforehand, the next larger one is taken: for a server.

  Attributes:
    rows_of: numbers of rows, rising; likewise the others.
    inputs_of: lengths of inputs.
    targets_of: lengths of scored outputs.
    options_of: numbers of scored outputs per row.
  """

  rows_of: tuple[int, ...]
  inputs_of: tuple[int, ...]
  targets_of: tuple[int, ...]
  options_of: tuple[int, ...]

  def __post_init__(self):
    field_checks.rising(
      self, *(field.name for field in dataclasses.fields(self))
    )

  @property
  def max_rows(self) -> int:
    """Rows of the largest batch."""
    return self.rows_of[-1]

  def rows(self, num: int) -> int:
    """Rows of a batch with `num` questions."""
    return _next(self.rows_of, num)

  def inputs(self, longest: int) -> int:
    """Length of a batch's inputs."""
    return _next(self.inputs_of, longest)

  def targets(self, longest: int) -> int:
    """Length of a batch's scored outputs."""
    return _next(self.targets_of, longest)

  def options(self, most: int) -> int:
    """Scored outputs per row."""
    return _next(self.options_of, most)


BatchShapes = LengthBuckets | CompiledShapes


def target_buckets(longest: int) -> tuple[int, ...]:
  """A short ladder of lengths that ends at `longest` or just above."""
  top = next_bucket(longest, _SHORTEST_TARGET)
  steps = math.ceil(math.log(top / _SHORTEST_TARGET, _TARGET_STEP))
  short = (_SHORTEST_TARGET * _TARGET_STEP**i for i in range(steps))
  return tuple(length for length in short if length < top) + (top,)


def next_bucket(length: int, shortest: int) -> int:
  """The next of the lengths n, 1.5 n, 2 n, 3 n, 4 n, ... at or above."""
  while shortest < length:
    if shortest * 3 // 2 >= length:
      return shortest * 3 // 2
    shortest *= 2
  return shortest


def _next(sizes: tuple[int, ...], size: int) -> int:
  place = bisect.bisect_left(sizes, size)
  assert place < len(sizes), f'{size} was let in, {sizes} are compiled'
  return sizes[place]
