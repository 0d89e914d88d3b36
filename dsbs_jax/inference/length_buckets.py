# SPDX-License-Identifier: Apache-2.0
"""The few shapes that batches have, so that few programs are compiled."""

import bisect
import dataclasses
import functools
import math

from dsbs_jax.runtime import field_checks

_MIN_INPUT, _MIN_TARGET = 16, 8
# Ratio of the lengths of scored outputs that a server compiles.
_TARGET_RATIO = 4


@dataclasses.dataclass(frozen=True)
class LengthBuckets:
  """One batch size, lengths n, 1.5 n, 2 n, 3 n, ... without end: for files."""

  max_rows: int

  def batch_size(self, num: int) -> int:
    """Rows of a batch for `num` inputs."""
    del num
    return self.max_rows

  def input_length(self, longest: int) -> int:
    """Tokens of a batch's padded inputs."""
    return next_bucket(longest, _MIN_INPUT)

  def target_length(self, longest: int) -> int:
    """Tokens of a batch's padded outputs that are scored."""
    return next_bucket(longest, _MIN_TARGET)

  def num_options(self, most: int) -> int:
    """Scored outputs per row."""
    return most


@dataclasses.dataclass(frozen=True)
class CompiledShapes:
  """A server's shapes, all compiled at its start; the next larger is taken.

  Attributes:
    batch_sizes: numbers of rows, rising; likewise the others.
    target_lengths: tokens of padded outputs that are scored.
  """

  batch_sizes: tuple[int, ...]
  input_lengths: tuple[int, ...]
  target_lengths: tuple[int, ...]
  option_counts: tuple[int, ...]

  def __post_init__(self):
    field_checks.rising(
      self, *(field.name for field in dataclasses.fields(self))
    )

  @property
  def max_rows(self) -> int:
    """Rows of the largest batch."""
    return self.batch_sizes[-1]

  def _next(self, field: str, size: int) -> int:
    sizes = getattr(self, field)
    index = bisect.bisect_left(sizes, size)
    if index == len(sizes):
      raise ValueError(f'a size of {size} is larger than all compiled: {sizes}')
    return sizes[index]

  # As those of `LengthBuckets`.
  batch_size = functools.partialmethod(_next, 'batch_sizes')
  input_length = functools.partialmethod(_next, 'input_lengths')
  target_length = functools.partialmethod(_next, 'target_lengths')
  num_options = functools.partialmethod(_next, 'option_counts')


BatchShapes = LengthBuckets | CompiledShapes


def target_buckets(longest: int) -> tuple[int, ...]:
  """A few rising lengths; the last is `longest` or the bucket above it."""
  top = next_bucket(longest, _MIN_TARGET)
  steps = math.ceil(math.log(top / _MIN_TARGET, _TARGET_RATIO))
  short = (_MIN_TARGET * _TARGET_RATIO**i for i in range(steps))
  return tuple(length for length in short if length < top) + (top,)


def next_bucket(length: int, shortest: int) -> int:
  """The least of shortest x (1, 1.5, 2, 3, 4, 6, ...) that is >= length."""
  while shortest < length:
    if shortest * 3 // 2 >= length:
      return shortest * 3 // 2
    shortest *= 2
  return shortest
