# SPDX-License-Identifier: Apache-2.0
"""Which examples each step holds: a pure function of the step, by Grain."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence

import grain
import numpy as np

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
      raise ValueError(f'batch_size is {self.batch_size}, expected 1 or more.')
    if self.num_epochs is not None and self.num_epochs < 1:
      raise ValueError(
        f'num_epochs is {self.num_epochs}, expected 1 or more, or None.'
      )


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
    parts = [self._examples(i) for i in range(len(sizes))]
    if rates is None:
      self.dataset = (
        parts[0].batch(reading.batch_size).repeat(reading.num_epochs)
      )
    else:
      mixed = grain.MapDataset.mix([p.repeat() for p in parts], list(rates))
      self.dataset = mixed.batch(reading.batch_size)
      if reading.num_epochs is not None:
        steps = math.ceil(sum(sizes) / reading.batch_size)
        self.dataset = self.dataset[: steps * reading.num_epochs]
    self.fingerprint = self._digest(rates, contents)

  def _examples(self, task: int) -> grain.MapDataset:
    first = sum(self.sizes[:task])
    examples = grain.MapDataset.range(first, first + self.sizes[task])
    if self.reading.shuffle:
      examples = examples.seed(self.reading.seed + task).shuffle()
    return examples

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
