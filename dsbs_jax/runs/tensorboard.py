# SPDX-License-Identifier: Apache-2.0
"""TensorBoard's event file, written by the caller's own thread.

tensorboardX's SummaryWriter hands events to a thread of its own: once that
thread has died of a full disk, the queue fills up and the run hangs.
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
    # The process in its name: two starts may read the same time.
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
    """Writes out what is still in memory."""
    self._writer.close()
