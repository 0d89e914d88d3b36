# SPDX-License-Identifier: Apache-2.0
"""Progress of a command: lines on stderr, durations, ETA."""

import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

from dsbs_jax.data.remote import buckets

_SECONDS_BETWEEN_LINES = 30.0


def say(text: str) -> None:
  """Prints a progress line at once."""
  print(buckets.shown(text), file=sys.stderr, flush=True)


class ProgressLine:
  """A line that is written over on a terminal, and now and then in a log."""

  def __init__(
    self,
    out: TextIO | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._out = out or sys.stderr
    self._clock = clock
    self._terminal = self._out.isatty()
    self._width = 0
    self._last = -_SECONDS_BETWEEN_LINES

  def update(self, text: str) -> None:
    """Shows the state of things."""
    if self._terminal:
      # A longer line would wrap, and could not be written over.
      text = text[: shutil.get_terminal_size().columns - 1]
      self._out.write('\r' + text.ljust(self._width))
      self._width = len(text)
    elif self._clock() - self._last >= _SECONDS_BETWEEN_LINES:
      self._out.write(text + '\n')
      self._last = self._clock()
    self._out.flush()

  def say(self, text: str) -> None:
    """Writes a line that stays."""
    clear = '\r' + ' ' * self._width + '\r' if self._width else ''
    self._out.write(f'{clear}{text}\n')
    self._out.flush()
    self._width = 0


def duration(seconds: float | None) -> str:
  """Seconds as h:mm:ss."""
  if seconds is None:
    return 'not known yet'
  minutes, rest = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{rest:02}'
