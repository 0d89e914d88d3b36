# SPDX-License-Identifier: Apache-2.0
"""The completions file while it is being written: each answer once, for good.

What a crash can take:

  kill -9      Every answer goes to the kernel in one `write` on a descriptor
               opened with O_APPEND before the next call of its row is made.
               The kernel keeps it whatever happens to the process, so only
               calls in flight are lost. A kill in mid-write can tear the last
               line; the next start repairs it.
  power loss   `sync` asks the disk to keep what was written. The session
               calls it once a second in a thread and once at the end: at most
               a second of answers is at risk. A sync per line would cap a
               disk at a few hundred answers per second, for no gain against
               the common crash.
  two writers  The file is locked (flock) for as long as it is open. The
               kernel drops the lock with the process, so none is ever stale.
"""

import datetime
import fcntl
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from rationales import records

FORMAT = 1

_CHUNK = 1 << 16
_BEGINNING = b'{"kind": "header"'


class Ledger:
  """An append-only file of records, locked against other writers.

  Args:
    path: the file; made where it is missing, with its folder.
    redact: masks secrets in each line before it is written.

  Attributes:
    repaired: bytes of a torn last line that were cut off on opening.

  Raises:
    ValueError: another process writes to the file, or it cannot be written.
  """

  def __init__(self, path: pathlib.Path, redact=lambda text: text):
    self.path = path
    self._redact = redact
    self._dirty = False
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
      self._descriptor = os.open(path, flags, 0o644)
    except OSError as error:
      raise ValueError(
        f'{path} cannot be written: {error.strerror}. Give another --out.'
      ) from None
    try:
      fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      os.close(self._descriptor)
      raise ValueError(
        f'{path} is being written by another process. Wait for it, stop it,'
        ' or give another --out.'
      ) from None
    self._check_origin()
    self.repaired = self._repair()

  def append(self, *lines: Mapping[str, Any]) -> None:
    """Adds records at the end, in one write.

    Args:
      *lines: the records; `time` is added to each.

    Raises:
      OSError: the disk is full or failing; nothing is left half written.
    """
    time = now()
    text = ''.join(json.dumps({**line, 'time': time}) + '\n' for line in lines)
    self._write(self._redact(text).encode('ascii'))
    self._dirty = True

  def sync(self) -> None:
    """Asks the disk to keep what was written so far."""
    if self._dirty:
      self._dirty = False
      os.fsync(self._descriptor)

  def close(self) -> None:
    """Syncs, unlocks and closes the file."""
    self.sync()
    os.close(self._descriptor)

  def __enter__(self) -> 'Ledger':
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _write(self, data: bytes) -> None:
    start = os.fstat(self._descriptor).st_size
    written = os.write(self._descriptor, data)
    try:
      while written < len(data):  # only a nearly full disk writes in part
        written += os.write(self._descriptor, data[written:])
    except OSError:
      os.ftruncate(self._descriptor, start)
      raise

  def _check_origin(self) -> None:
    """Leaves files alone that are not ours: a repair would harm them."""
    beginning = os.pread(self._descriptor, len(_BEGINNING), 0)
    if not _BEGINNING.startswith(beginning):
      os.close(self._descriptor)
      raise ValueError(
        f'{self.path} begins with {beginning!r}, expected {_BEGINNING!r}: it'
        ' is no completions file. Give another --out.'
      )

  def _repair(self) -> int:
    """Cuts a torn last line, or ends one that lacks only its newline."""
    size = os.fstat(self._descriptor).st_size
    start = self._last_line_start(size)
    tail = os.pread(self._descriptor, size - start, start)
    if not tail:
      return 0
    try:
      json.loads(tail)
    except (ValueError, RecursionError):
      os.ftruncate(self._descriptor, start)
      return len(tail)
    self._write(b'\n')
    return 0

  def _last_line_start(self, size: int) -> int:
    """The offset after the last newline, 0 where there is none."""
    end = size
    while end > 0:
      begin = max(0, end - _CHUNK)
      newline = os.pread(self._descriptor, end - begin, begin).rfind(b'\n')
      if newline >= 0:
        return begin + newline + 1
      end = begin
    return 0


def header(settings: Mapping[str, Any]) -> dict[str, Any]:
  """The line that opens a run with these settings."""
  return {
    'kind': records.HEADER,
    'format': FORMAT,
    'settings': dict(settings),
  }


def check_format(path: pathlib.Path, line: Mapping[str, Any]) -> None:
  """Refuses a file that a later version of this program wrote."""
  if line.get('format') != FORMAT:
    raise ValueError(
      f'{path} has the format {line.get("format")!r}, expected {FORMAT}. Use'
      ' the version that wrote it, or give another --out.'
    )


def check_settings(
  path: pathlib.Path, recorded: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
  """Refuses to mix answers of two settings in one file.

  Args:
    path: the file, for the message.
    recorded: settings of the file's last header.
    settings: settings of this run.

  Raises:
    ValueError: they differ; the message lists how.
  """
  names = [*recorded, *(name for name in settings if name not in recorded)]
  changes = [
    f'  {name}: {recorded.get(name)!r} in the file, {settings.get(name)!r} now'
    for name in names
    if recorded.get(name) != settings.get(name)
  ]
  if changes:
    raise ValueError(
      f'{path} was written with other settings:\n'
      + '\n'.join(changes)
      + '\nGive another file with --out, go back to the old settings, or'
      ' continue this file with --force.'
    )


def now() -> str:
  """The time in UTC, in ISO 8601 with milliseconds."""
  moment = datetime.datetime.now(datetime.UTC)
  return moment.isoformat(timespec='milliseconds').replace('+00:00', 'Z')
