# SPDX-License-Identifier: Apache-2.0
"""Step metrics that wait on the devices, and the count of non-finite steps.

Fetching metrics after each step would make the devices wait for the host, so
they are fetched when a log line or a checkpoint is due. Only then is a loss or
gradient that is not finite noticed. Until then a run without
MAX_NONFINITE_STEPS may compute on with broken parameters; they are never
saved. Metrics are the same on all processes, so all stop at the same step.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from dsbs_jax import contract
from dsbs_jax.runs import metrics_log
from dsbs_jax.runtime import progress

_MAX_SHOWN_IDS = 100


class MetricsBuffer:
  """Metrics of the steps since the last log line.

  Args:
    example_ids: step, from 0 -> ids of the examples in its batch.
    newest_checkpoint: returns a sentence that names the newest checkpoint.
    max_nonfinite_steps: how many non-finite steps the run may skip.
    saved: what `to_json` returned at the checkpoint that the run resumes from,
      {} at its start.
  """

  def __init__(
    self,
    example_ids: Callable[[int], list[str]],
    newest_checkpoint: Callable[[], str],
    *,
    max_nonfinite_steps: int,
    saved: Mapping[str, Any],
  ):
    self._example_ids = example_ids
    self._newest_checkpoint = newest_checkpoint
    self._max_nonfinite = max_nonfinite_steps
    self._num_nonfinite = saved.get('nonfinite_steps', 0)
    self._fetched = list(saved.get('pending', ()))
    self._on_device = []

  def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
    """Takes metrics of a step, from 1: float32 scalars, left on the devices."""
    self._on_device.append((step, metrics))

  def pop_means(self) -> dict[str, float]:
    """Means over the finite steps since the last call, and empties the buffer.

    Raises:
      UserError: more steps were not finite than the run may skip.
    """
    self.fetch()
    means = metrics_log.summarise(self._fetched) if self._fetched else {}
    if self._max_nonfinite:
      means['nonfinite_steps'] = self._num_nonfinite
    self._fetched = []
    return means

  def to_json(self) -> dict[str, Any]:
    """What a checkpoint keeps of the buffer; raises like `pop_means`."""
    self.fetch()
    return {'pending': self._fetched, 'nonfinite_steps': self._num_nonfinite}

  def fetch(self) -> None:
    """Waits for the steps added so far; raises like `pop_means`."""
    on_device, self._on_device = self._on_device, []
    for step, metrics in jax.device_get(on_device):
      host = {key: float(value) for key, value in metrics.items()}
      if host.get('finite', 1.0):
        self._fetched.append(host)
        continue
      self._num_nonfinite += 1
      if self._num_nonfinite > self._max_nonfinite:
        ids = self._example_ids(step - 1)
        hidden = len(ids) - _MAX_SHOWN_IDS
        more = f' and {hidden} more' if hidden > 0 else ''
        raise contract.UserError(
          f'the loss or gradient of step {step:,} is not finite, non-finite'
          f' step number {self._num_nonfinite:,} of the run'
          f' (MAX_NONFINITE_STEPS={self._max_nonfinite}). Its batch:'
          f' {", ".join(ids[:_MAX_SHOWN_IDS])}{more}.'
          f' {self._newest_checkpoint()} Look at these examples, lower'
          ' LEARNING_RATE in a new run, or go on with'
          ' --gin.MAX_NONFINITE_STEPS=N, which skips N such steps.'
        )
      if jax.process_index() == 0:
        progress.say(
          f'step {step:,} skipped: its loss or gradient is not finite'
          f' ({self._num_nonfinite:,} of at most {self._max_nonfinite:,})'
        )
