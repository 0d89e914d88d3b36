# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and SIGINT ask a run to stop after the current step."""

import signal

import jax
from jax.experimental import multihost_utils

# EX_TEMPFAIL of sysexits.h: the run is saved, the same command resumes it.
INTERRUPTED_STATUS = 75


class StopRequest:
  """Remembers the first signal; a second SIGINT ends the process at once.

  With several processes JAX handles SIGTERM, whichever process receives it, and
  all of them agree on the step after which they stop. SIGINT is not handled
  then: stop such a run with SIGTERM.
  """

  def __init__(self):
    self._signal = None
    self._num_asked = 0
    if jax.process_count() == 1:
      for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, self._receive)

  def _receive(self, number, frame):
    del frame
    self._signal = number
    signal.signal(signal.SIGINT, signal.SIG_DFL)

  def requested(self) -> bool:
    """Whether to stop now.

    Every process of a run asks at the same places, equally often: all of them
    get the same answers.
    """
    self._num_asked += 1
    if self._signal is None and jax.process_count() > 1:
      if multihost_utils.reached_preemption_sync_point(self._num_asked):
        self._signal = signal.SIGTERM
    return self._signal is not None

  @property
  def name(self) -> str | None:
    """The signal's name, such as 'SIGTERM', or None before there is one."""
    return self._signal and signal.Signals(self._signal).name
