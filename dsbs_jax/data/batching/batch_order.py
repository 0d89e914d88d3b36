# SPDX-License-Identifier: Apache-2.0
"""Which examples the batch of each step holds: a pure function of the step."""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import grain
import numpy as np

from dsbs_jax import contract

_ENDLESS = 1 << 50  # examples
_SAMPLED = 256  # batches from which shapes are chosen: the run's first ones


@dataclasses.dataclass(frozen=True)
class BatchOrder:
  """How examples are put in order and cut into batches.

  Attributes:
    batch_size: examples (pairs, for a `_dsbs` mixture) of all processes.
    seed: of the shuffle.
    shuffle: False keeps the file's order, in every epoch.
    paired: a `_dsbs` mixture gives label and rationale of the same examples;
      False samples the two tasks by `rates`, as seqio mixtures do.
    num_epochs: None repeats without end.
    rates: task -> sampling rate where tasks are mixed; None takes the
      mixture's own, equal for `_dsbs`.
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


class Visits(NamedTuple):
  """Which examples a batch holds, and how often each was read before.

  Attributes:
    positions: [n] int64, examples among those of all tasks.
    epochs: [n] int64, of each example's task, from 0.
  """

  positions: np.ndarray
  epochs: np.ndarray


class ShuffledEpochs:
  """One task's examples, epoch after epoch, as a Grain data source.

  Element i is the position of the i-th example that is read, plus `stride` for
  each epoch before its own; see `BatchSampler.decode`. Grain's own
  shuffle is not used: it costs about 65,000 / size steps per example, which
  is felt below a few thousand examples.
  """

  def __init__(
    self, size: int, first: int, order: BatchOrder, *, stream: int, stride: int
  ):
    """Makes the source.

    Args:
      first: position of the first one among the examples of all tasks.
      stream: number of the task, so that tasks are shuffled differently.
      stride: number of examples of all tasks.
    """
    self.size = size
    self._first = first
    self._order = order
    self._stream = stream
    self._stride = stride
    self.epoch = functools.lru_cache(maxsize=4)(self._epoch)

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, element: int) -> int:
    epoch, offset = divmod(element, self.size)
    return int(self.epoch(epoch)[offset]) + epoch * self._stride

  def _epoch(self, epoch: int) -> np.ndarray:
    """[size] int64, positions in the order of one epoch."""
    if not self._order.shuffle:
      return np.arange(self._first, self._first + self.size)
    key = (self._order.seed, self._stream, epoch)
    draws = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    return self._first + draws.permutation(self.size)


def _num_steps(size: int, order: BatchOrder) -> int:
  if order.num_epochs is None:
    return _ENDLESS // order.batch_size
  return math.ceil(size / order.batch_size) * order.num_epochs


class BatchSampler:
  """Step -> positions of the examples in its batch.

  Attributes:
    dataset: the Grain dataset of visits, one element per step; see `decode`.
    fingerprint: changes with the examples, their order and their mixing.
  """

  def __init__(
    self,
    sizes: Sequence[int],
    order: BatchOrder,
    *,
    rates: Sequence[float] | None,
    contents: Sequence[str],
  ):
    """Makes the sampler.

    Args:
      sizes: number of examples of each task.
      rates: sampling rate of each task where they are mixed; None for one task.
      contents: fingerprints of the examples, part of the sampler's own.
    """
    self.sizes = tuple(sizes)
    self.order = order
    firsts = np.cumsum([0, *sizes])
    tasks = [
      ShuffledEpochs(
        size, int(first), order, stream=stream, stride=int(firsts[-1])
      )
      for stream, (size, first) in enumerate(zip(sizes, firsts, strict=False))
    ]
    if rates is None:
      # Batches do not reach over the end of an epoch.
      per_epoch = math.ceil(tasks[0].size / order.batch_size)

      def batch(step: int) -> np.ndarray:
        epoch, number = divmod(step, per_epoch)
        positions = tasks[0].epoch(epoch)[number * order.batch_size :][
          : order.batch_size
        ]
        return positions + epoch * tasks[0].size

      steps = grain.MapDataset.range(_num_steps(tasks[0].size, order))
      self.dataset = steps.map(batch)
    else:
      parts = [grain.MapDataset.source(task) for task in tasks]
      mixed = grain.MapDataset.mix(parts, list(rates)).batch(order.batch_size)
      self.dataset = mixed[: _num_steps(sum(sizes), order)]
    # Neither of the two changes what a step holds: resuming may change them.
    kept = dataclasses.replace(order, num_epochs=None, rates=None)
    decisive = [self.sizes, dataclasses.asdict(kept), rates, list(contents)]
    digest = hashlib.sha256(json.dumps(decisive).encode())
    self.fingerprint = digest.hexdigest()[:16]

  def decode(self, element: np.ndarray) -> Visits:
    """The visits of a step, of an element of `dataset`."""
    epochs, positions = np.divmod(
      np.asarray(element, np.int64), sum(self.sizes)
    )
    return Visits(positions, epochs)

  def first_batches(self) -> list[Visits]:
    """The run's first batches, from which row shapes are chosen."""
    number = min(_SAMPLED, len(self.dataset))
    return [self.decode(self.dataset[step]) for step in range(number)]
