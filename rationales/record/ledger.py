# SPDX-License-Identifier: Apache-2.0
"""The completions file on disk: what it holds, and safe appending to it.

What a crash can take:

  kill -9      Every answer goes to the kernel in one `write` on a descriptor
               opened with O_APPEND, before anything else is done with it. The
               kernel keeps it whatever happens to the process, so only calls
               in flight are lost. A kill in mid-write can tear the last line;
               the next start cuts it off.
  power loss   `sync` makes the disk keep what was written. A run calls it once
               a second in a thread, and once at the end: at most a second of
               answers is at risk. A sync per line would limit a disk to a few
               hundred answers per second.
  two writers  The file is locked (flock) while it is open. The kernel releases
               the lock when the process ends, however it ends.
  removal      A call is made only while the file is still at its path (`check`)
               and as long as it was. What was answered until then is copied
               from the open descriptor to `FILE.rescued-PID`.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import mmap
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data.source import archive
from dsbs_jax.runtime import files
from rationales.record import batch_jobs, completions_file, costs

_BEGINNING = b'{"kind": "header"'
_TAKEN_AWAY = 'was removed, replaced or cut while this run wrote to it'


@dataclasses.dataclass(frozen=True)
class Contents:
  """What earlier runs left in a completions file."""

  index: completions_file.Index
  jobs: batch_jobs.BatchJobs
  tracker: costs.CostTracker
  settings: Mapping[str, Any]  # of the last header; empty if the file is new
  models: set[str]  # who gave the answers, as the server named them
  substitutes: Mapping[str, str | None]  # refused field -> the one sent instead


def read(path: pathlib.Path, tracker: costs.CostTracker) -> Contents:
  """What a completions file holds, which may not exist yet.

  A new tracker counts what the file says was paid.

  Raises:
    contract.UserError: a line is malformed, or the file has another format.
  """
  index, jobs = completions_file.Index(path), batch_jobs.BatchJobs()
  settings, substitutes, models = {}, {}, set()
  if path.exists():
    for offset, record in completions_file.scan(path):
      index.add(offset, record)
      jobs.restore(record)
      tracker.restore(record)
      if record['kind'] in completions_file.ANSWERS and record.get('model'):
        models.add(str(record['model']))
      if record['kind'] == completions_file.HEADER:
        if record.get('format') != completions_file.FORMAT:
          raise contract.UserError(
            f'{path} has the format {record.get("format")!r}, expected'
            f' {completions_file.FORMAT}. Use the version that wrote it, or'
            ' give another --out.'
          )
        settings = record['settings']
        found = record.get('substitutes')
        substitutes = found if isinstance(found, dict) else {}
  return Contents(index.freeze(), jobs, tracker, settings, models, substitutes)


class Ledger(contextlib.AbstractContextManager):
  """An append-only file of records, locked against other writers.

  Args:
    path: the file; created if it is missing, with its folder.
    redact: masks secrets in each line before it is written.

  Attributes:
    repaired: bytes of a torn last line that were cut off on opening.

  Raises:
    contract.UserError: the file cannot be written, is no completions file, or
      another process writes to it.
  """

  def __init__(
    self,
    path: pathlib.Path,
    redact: Callable[[str], str] = lambda text: text,
  ):
    self.path = path
    self._redact = redact
    self._unsynced = False
    archive.check_regular(path)
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
      self._descriptor = os.open(path, flags, 0o644)
    except OSError as error:
      raise contract.UserError(
        f'{path} cannot be written: {error.strerror}. Give another --out.'
      ) from None
    try:
      fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      os.close(self._descriptor)
      raise contract.UserError(
        f'{path} is being written by another process. Wait for it, stop it,'
        ' or give another --out.'
      ) from None
    self._check_beginning()
    self.repaired = self._repair()
    self._size = os.fstat(self._descriptor).st_size

  def append(self, *records: Mapping[str, Any]) -> None:
    """Adds records with the time at the end, a line each, in one write.

    Raises:
      contract.UserError: the disk is full or failing; nothing is left half
        written.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='milliseconds')
    time = now.replace('+00:00', 'Z')
    text = ''.join(json.dumps({**r, 'time': time}) + '\n' for r in records)
    with files.writing(self.path):
      self._write(self._redact(text).encode('ascii'))
    self._unsynced = True

  def check(self) -> None:
    """Checks that nobody has taken the file away, before a call is paid.

    Raises:
      contract.UserError: it was removed, replaced or cut.
    """
    if self._taken_away():
      raise contract.UserError(f'{self.path} {_TAKEN_AWAY}.')

  def sync(self) -> None:
    """Makes the disk keep what was written so far."""
    if self._unsynced:
      self._unsynced = False
      with files.writing(self.path):
        os.fsync(self._descriptor)

  def close(self) -> None:
    """Syncs, unlocks and closes the file.

    Raises:
      contract.UserError: it was removed, replaced or cut since it was opened.
    """
    try:
      self.sync()
      if self._taken_away():
        raise contract.UserError(
          f'{self.path} {_TAKEN_AWAY}. What was answered is in'
          f' {self._rescue()}: move it to {self.path}, and the same command'
          ' goes on.'
        )
    finally:
      os.close(self._descriptor)

  def _taken_away(self) -> bool:
    mine = os.fstat(self._descriptor)
    try:
      found = self.path.stat()
    except (FileNotFoundError, NotADirectoryError):
      return True
    return not os.path.samestat(mine, found) or found.st_size < self._size

  def _rescue(self) -> pathlib.Path:
    """Copies what the descriptor still holds to a file that is left alone."""
    path = self.path.with_name(f'{self.path.name}.rescued-{os.getpid()}')
    with files.writing(path):
      path.parent.mkdir(parents=True, exist_ok=True)
      os.lseek(self._descriptor, 0, os.SEEK_SET)
      with (
        os.fdopen(os.dup(self._descriptor), 'rb') as left,
        path.open('wb') as copy,
      ):
        shutil.copyfileobj(left, copy)
        copy.flush()
        os.fsync(copy.fileno())
    return path

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
    self._size = start + len(data)

  def _check_beginning(self) -> None:
    """Refuses a file of another program, which a repair would damage."""
    beginning = os.pread(self._descriptor, len(_BEGINNING), 0)
    if not _BEGINNING.startswith(beginning):
      os.close(self._descriptor)
      raise contract.UserError(
        f'{self.path} begins with {beginning!r}, expected {_BEGINNING!r}: it'
        ' is no completions file. Give another --out.'
      )

  def _repair(self) -> int:
    """Cuts off a torn last line, or adds the newline that alone is missing."""
    size = os.fstat(self._descriptor).st_size
    if not size:
      return 0
    with mmap.mmap(self._descriptor, size, prot=mmap.PROT_READ) as whole:
      start = whole.rfind(b'\n') + 1
      tail = whole[start:]
    if not tail:
      return 0
    try:
      json.loads(tail)
    except (ValueError, RecursionError):
      os.ftruncate(self._descriptor, start)
      return len(tail)
    self._write(b'\n')
    return 0


def header(
  settings: Mapping[str, Any],
  substitutes: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
  """The line that opens a run with these settings."""
  line = {
    'kind': completions_file.HEADER,
    'format': completions_file.FORMAT,
    'settings': dict(settings),
  }
  return line | ({'substitutes': dict(substitutes)} if substitutes else {})


def check_settings(
  path: pathlib.Path, recorded: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
  """Refuses to mix answers of two settings in one file.

  Raises:
    contract.UserError: those of the last header differ; the message lists how.
  """
  changes = [
    f'  {name}: {recorded.get(name)!r} in the file, {settings.get(name)!r} now'
    for name in recorded | settings
    if recorded.get(name) != settings.get(name)
  ]
  if changes:
    raise contract.UserError(
      f'{path} was written with other settings:\n'
      + '\n'.join(changes)
      + '\nGive another file with --out, go back to the old settings, or'
      ' continue this file with --force.'
    )
