# SPDX-License-Identifier: Apache-2.0
"""Which examples each step holds: a pure function of the step, by Grain."""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence

import grain
import numpy as np

from dsbs_jax import contract

_FOR_EVER = 1 << 50  # examples
_SAMPLED = 256  # batches that shapes are chosen from: the first of the run


@dataclasses.dataclass(frozen=True)
class Reading:
  """Which examples each step sees.

  Attributes:
    batch_size: examples (pairs, for a `_dsbs` mixture) of all processes.
    seed: decides the order.
    shuffle: False keeps the file's order, in every epoch.
    paired: a `_dsbs` mixture gives label and rationale of the same examples;
      False samples the two tasks by `rates`, as seqio mixtures do.
    num_epochs: None repeats for ever.
    rates: task -> rate where tasks are sampled; None takes the mixture's own,
      equal for `_dsbs`.
  """

  batch_size: int = 64
  seed: int = 0
  shuffle: bool = True
  paired: bool = True
  num_epochs: int | None = None
  rates: Mapping[str, float] | None = None

  def __post_init__(self):
    if self.batch_size < 1:
      raise contract.UserError(
        f'batch_size is {self.batch_size}, expected 1 or more.'
      )
    if not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 32:
      raise contract.UserError(
        f'seed is {self.seed!r}, expected a whole number from 0 to 2**32 - 1.'
      )
    if self.num_epochs is not None and self.num_epochs < 1:
      raise contract.UserError(
        f'num_epochs is {self.num_epochs}, expected 1 or more, or None.'
      )


class _Endless:
  """One task's examples, epoch after epoch; element -> position.

  Not Grain's own shuffle: that costs about 65,000 / size steps per example,
  which is felt below a few thousand examples.
  """

  def __init__(self, size: int, first: int, reading: Reading, *, stream: int):
    self.size = size
    self._first = first
    self._reading = reading
    self._stream = stream
    self.epoch = functools.lru_cache(maxsize=4)(self._epoch)

  def __len__(self) -> int:
    return _FOR_EVER

  def __getitem__(self, element: int) -> int:
    epoch, place = divmod(element, self.size)
    return int(self.epoch(epoch)[place])

  def _epoch(self, epoch: int) -> np.ndarray:
    """[size] positions in the order of an epoch."""
    if not self._reading.shuffle:
      return np.arange(self._first, self._first + self.size)
    key = (self._reading.seed, self._stream, epoch)
    draws = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    return self._first + draws.permutation(self.size)


class _Batches:
  """Batches formed within each epoch; step -> positions."""

  def __init__(self, task: _Endless, reading: Reading):
    self._task = task
    self._batch_size = reading.batch_size
    self._per_epoch = math.ceil(task.size / reading.batch_size)
    self._num_steps = _num_steps(task.size, reading)

  def __len__(self) -> int:
    return self._num_steps

  def __getitem__(self, step: int) -> np.ndarray:
    epoch, batch = divmod(step, self._per_epoch)
    first = batch * self._batch_size
    return self._task.epoch(epoch)[first : first + self._batch_size]


def _num_steps(size: int, reading: Reading) -> int:
  if reading.num_epochs is None:
    return _FOR_EVER // reading.batch_size
  return math.ceil(size / reading.batch_size) * reading.num_epochs


class Order:
  """Positions of the examples of every step."""

  def __init__(
    self,
    sizes: Sequence[int],
    reading: Reading,
    *,
    rates: Sequence[float] | None = None,
    contents: Sequence[str] = (),
  ):
    """Makes the order.

    Args:
      sizes: number of examples of each task.
      reading: how they are read.
      rates: rate of each task where they are mixed; None for one task.
      contents: fingerprints of the examples, for the state.
    """
    self.sizes = tuple(sizes)
    self.reading = reading
    firsts = np.cumsum([0, *sizes])
    tasks = [
      _Endless(size, int(first), reading, stream=stream)
      for stream, (size, first) in enumerate(zip(sizes, firsts, strict=False))
    ]
    if rates is None:
      self.dataset = grain.MapDataset.source(_Batches(tasks[0], reading))
    else:
      parts = [grain.MapDataset.source(task) for task in tasks]
      mixed = grain.MapDataset.mix(parts, list(rates)).batch(reading.batch_size)
      self.dataset = mixed[: _num_steps(sum(sizes), reading)]
    self.fingerprint = self._digest(rates, contents)

  def _digest(self, rates, contents) -> str:
    reading = dataclasses.replace(self.reading, num_epochs=None, rates=None)
    decisive = [self.sizes, dataclasses.asdict(reading), rates, list(contents)]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]

  def positions(self, step: int) -> np.ndarray:
    """[n] positions of the examples of a step."""
    return np.asarray(self.dataset[step], np.int64)

  @property
  def num_sampled(self) -> int:
    """Number of batches that plans are made from."""
    return min(_SAMPLED, len(self.dataset))
