# SPDX-License-Identifier: Apache-2.0
"""A profile of some steps, for TensorBoard's profile plugin or xprof."""

import contextlib
from typing import Any

import jax

from dsbs_jax.runtime import progress


class Profile(contextlib.AbstractContextManager):
  """Traces steps of a run; a context that ends a trace which is not over.

  Args:
    folder: the run's; the trace goes to `plugins/profile/` in it.
    steps: first and last step to trace, counted from 1; None traces none.
  """

  def __init__(self, folder: str, steps: tuple[int, int] | None):
    self._folder = folder
    self._first, self._last = steps or (0, 0)
    self._running = False

  def __exit__(self, *_: Any) -> None:
    if self._running:
      self._stop()

  def before(self, step: int) -> None:
    """Starts the trace where this is its first step."""
    if step == self._first:
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # slow, and devices are of interest
      jax.profiler.start_trace(self._folder, profiler_options=options)
      self._running = True

  def after(self, step: int, state: Any) -> None:
    """Ends the trace where this was its last step, whose result is awaited."""
    if self._running and step >= self._last:
      jax.block_until_ready(state)
      self._stop()

  def _stop(self) -> None:
    self._running = False
    jax.profiler.stop_trace()
    progress.say(f'profile: tensorboard --logdir={self._folder}')
