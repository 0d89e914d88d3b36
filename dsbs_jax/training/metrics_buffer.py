# SPDX-License-Identifier: Apache-2.0
"""What the steps since the last line of metrics returned, and the bad ones.

A step is bad if its loss or gradient is not finite. Whether one was is looked
up where its metrics are fetched anyway, when a line or a checkpoint is due:
looking after each step would make the devices wait for the host. Until then a
run without MAX_BAD_STEPS may compute on with broken parameters; they are never
saved. Metrics are the same on all processes, so all stop at the same place.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from dsbs_jax import contract
from dsbs_jax.runs import metrics_log
from dsbs_jax.runtime import progress

_SHOWN_IDS = 100


class Tally:
  """Metrics of the steps since the last line, and the count of bad steps.

  Args:
    example_ids: step, from 0 -> ids of the examples in its batch.
    newest: says which checkpoint is the newest.
    max_bad_steps: how many bad steps the run may have.
    position: what `position` returned at the checkpoint that the run goes on
      from, {} at its start.
  """

  def __init__(
    self,
    example_ids: Callable[[int], list[str]],
    newest: Callable[[], str],
    *,
    max_bad_steps: int,
    position: Mapping[str, Any],
  ):
    self._example_ids = example_ids
    self._newest = newest
    self._max_bad_steps = max_bad_steps
    self._bad_steps = position.get('bad_steps', 0)
    self._good = list(position.get('pending', ()))
    self._unseen = []

  def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
    """Takes the metrics of a step, counted from 1, still on the devices."""
    self._unseen.append((step, metrics))

  def line(self) -> dict[str, float]:
    """Means over the good steps since the last line; begins a new one.

    Raises:
      UserError: more steps were bad than the run may have.
    """
    self.look()
    means = metrics_log.summarise(self._good) if self._good else {}
    if self._max_bad_steps:
      means['bad_steps'] = self._bad_steps
    self._good = []
    return means

  def position(self) -> dict[str, Any]:
    """All that goes on after a resume, as JSON; raises like `line`."""
    self.look()
    return {'pending': self._good, 'bad_steps': self._bad_steps}

  def look(self) -> None:
    """Fetches what is on the devices; raises like `line`."""
    unseen, self._unseen = self._unseen, []
    for step, metrics in jax.device_get(unseen):
      host = {key: float(value) for key, value in metrics.items()}
      if host.get('finite', 1.0):
        self._good.append(host)
        continue
      self._bad_steps += 1
      if self._bad_steps > self._max_bad_steps:
        raise contract.UserError(self._stopped(step))
      self._say(
        f'step {step:,} was skipped, its loss or gradient is not finite'
        f' ({self._bad_steps:,} of at most {self._max_bad_steps:,})'
      )

  def _say(self, text: str) -> None:
    if jax.process_index() == 0:
      progress.say(text)

  def _stopped(self, step: int) -> str:
    ids = self._example_ids(step - 1)
    more = f' and {len(ids) - _SHOWN_IDS} more' if ids[_SHOWN_IDS:] else ''
    return (
      f'the loss or gradient of step {step:,} is not finite, bad step number'
      f' {self._bad_steps:,} of the run (MAX_BAD_STEPS={self._max_bad_steps}).'
      f' Its batch: {", ".join(ids[:_SHOWN_IDS])}{more}. {self._newest()} Look'
      ' at these examples, lower LEARNING_RATE in a new run, or go on with'
      ' --gin.MAX_BAD_STEPS=N, which skips N such steps.'
    )
