# SPDX-License-Identifier: Apache-2.0
"""An iterator over a run's batches that can say where it is, and go there."""

from collections.abc import Callable, Mapping
from typing import Any

import grain
import numpy as np

from dsbs_jax import contract
from dsbs_jax.data.batching import batch_order

Batch = dict[str, dict[str, np.ndarray]]

_READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)


class BatchIterator:
  """An iterator over batches whose state is the number of the next step."""

  def __init__(
    self,
    sampler: batch_order.BatchSampler,
    assemble: Callable[[np.ndarray], Batch],
    *,
    step: int,
  ):
    self._fingerprint = sampler.fingerprint
    self._dataset = sampler.dataset.map(assemble)
    self._start(step)

  def _start(self, step: int) -> None:
    self._step = step
    rest = self._dataset[step:]
    self._iterator = iter(rest.to_iter_dataset(_READ_AHEAD))

  def __iter__(self) -> 'BatchIterator':
    return self

  def __next__(self) -> Batch:
    batch = next(self._iterator)
    self._step += 1
    return batch

  def get_state(self) -> dict[str, Any]:
    """All that `set_state` needs; JSON values."""
    return {'next_step': self._step, 'order': self._fingerprint}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes to where `get_state` was called.

    Args:
      state: what `get_state` returned, also in another process or with
        another layout.

    Raises:
      UserError: the state belongs to another order of examples.
    """
    if state['order'] != self._fingerprint:
      raise contract.UserError(
        f'the loader state was saved with order {state["order"]!r}, expected'
        f' {self._fingerprint!r}: the data, the batch size, the seed or'
        ' the way of mixing has changed. Restore those, or start a new run.'
      )
    self._iterator.close()
    self._start(int(state['next_step']))
