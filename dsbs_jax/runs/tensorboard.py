# SPDX-License-Identifier: Apache-2.0
"""TensorBoard event file, written in the caller's thread.

tensorboardX's SummaryWriter writes in a thread of its own. If that thread dies
because the disk is full, the queue fills up and the run hangs.
"""

import os
import pathlib
import time
from collections.abc import Mapping

from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

_FLUSH_SECONDS = 30


class EventFile:
  """One event file of a run's folder.

  Args:
    folder: the run's folder.
  """

  def __init__(self, folder: pathlib.Path):
    # The process id keeps two starts within one second apart.
    self._writer = event_file_writer.EventsWriter(
      str(folder / 'events'), filename_suffix=f'.{os.getpid()}'
    )
    self._flushed = time.monotonic()

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes the values of a step by their tags."""
    for tag, value in values.items():
      event = event_pb2.Event(
        summary=summary.scalar(tag, value), step=step, wall_time=time.time()
      )
      self._writer.write_event(event)
    if time.monotonic() - self._flushed > _FLUSH_SECONDS:
      self._writer.flush()
      self._flushed = time.monotonic()

  def close(self) -> None:
    """Flushes and closes the file."""
    self._writer.close()
