# SPDX-License-Identifier: Apache-2.0
"""TensorBoard's event files: they show what metrics.jsonl holds, and rates.

Each process that trains a run writes a file of its own. One that resumes
first repairs those of the processes before it: what they wrote after its
checkpoint goes, and what a kill kept from being written is added.
"""

import os
import pathlib
import struct
import time
from collections.abc import Iterator, Mapping

from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

from dsbs_jax.runtime import files

# Names of values that are not in metrics.jsonl.
RATES = 'timing/'

_FILES = 'events.out.tfevents.*'
# A record: its length and a checksum of it, its bytes, a checksum of them.
_HEADER, _FOOTER = struct.Struct('<QI'), 4

Points = Mapping[tuple[int, str], float]  # (step, tag) -> value


class EventFile:
  """The event file of one process, written in the caller's thread.

  tensorboardX's SummaryWriter writes in a thread of its own. If that thread
  dies because the disk is full, the queue fills up and the run hangs.

  This process starts at a step; the files of those before it shall hold the
  points.
  """

  def __init__(
    self, folder: pathlib.Path, *, start_step: int = 0, points: Points = ()
  ):
    missing = _repair(folder, start_step=start_step, points=points)
    # Keeps two starts within one second apart, and in their order.
    suffix = f'.{time.time_ns()}.{os.getpid()}'
    self._writer = event_file_writer.EventsWriter(
      str(folder / 'events'), filename_suffix=suffix
    )
    # A TensorBoard that has the old files open forgets later steps.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(event_pb2.Event(session_log=start, step=start_step + 1))
    for (step, tag), value in missing.items():
      self.scalars(step, {tag: value})

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes the values of a step by their tags."""
    for tag, value in values.items():
      self._write(
        event_pb2.Event(summary=summary.scalar(tag, value), step=step)
      )
    self._writer.flush()

  def close(self) -> None:
    """Closes the file."""
    self._writer.close()

  def _write(self, event: event_pb2.Event) -> None:
    event.wall_time = time.time()
    self._writer.write_event(event)


def read(folder: pathlib.Path) -> list[tuple[int, str]]:
  """Step and tag of every point in a folder's files, as often as it occurs."""
  return [
    (event.step, value.tag)
    for path in sorted(folder.glob(_FILES))
    for _, event in _records(path.read_bytes())
    for value in event.summary.value
  ]


def _repair(
  folder: pathlib.Path, *, start_step: int, points: Points
) -> dict[tuple[int, str], float]:
  """Drops points of later steps, doubles and torn ends; returns what lacks."""
  missing, seen = dict(points), set()

  def stays(event: event_pb2.Event) -> bool:
    for value in event.summary.value:  # one, or none in an event of the file
      point = event.step, value.tag
      known = point in points or f'/{RATES}' in value.tag
      if event.step > start_step or point in seen:
        return False
      if event.step == start_step and not known:
        return False  # of an evaluation that a kill cut short
      seen.add(point)
      missing.pop(point, None)
    return True

  for path in sorted(folder.glob(_FILES)):
    content = path.read_bytes()
    kept = b''.join(raw for raw, event in _records(content) if stays(event))
    if kept != content:
      files.replace_bytes(path, kept, partial=folder / 'events.tmp')
  return missing


def _records(content: bytes) -> Iterator[tuple[bytes, event_pb2.Event]]:
  """The whole records of a file, as bytes and read."""
  start = 0
  while start + _HEADER.size <= len(content):
    length, _ = _HEADER.unpack_from(content, start)
    body = start + _HEADER.size
    end = body + length + _FOOTER
    if end > len(content):
      return
    event = event_pb2.Event.FromString(content[body : body + length])
    yield content[start:end], event
    start = end
