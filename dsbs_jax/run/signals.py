# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and SIGINT as a polite request to stop after the step."""

import signal

# EX_TEMPFAIL of sysexits.h: saved; the same command goes on.
INTERRUPTED_STATUS = 75


class StopRequest:
  """Remembers the first signal; a second SIGINT ends the process at once."""

  def __init__(self):
    self._signal = None
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._receive)

  def _receive(self, number, frame):
    del frame
    self._signal = number
    signal.signal(signal.SIGINT, signal.SIG_DFL)

  def requested(self) -> bool:
    """Whether a signal arrived."""
    return self._signal is not None

  @property
  def name(self) -> str:
    """The signal's name, such as 'SIGTERM'."""
    return signal.Signals(self._signal).name
