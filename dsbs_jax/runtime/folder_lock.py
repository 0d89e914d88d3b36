# SPDX-License-Identifier: Apache-2.0
"""One writer per folder: a lock file that says who writes.

The file holds JSON: host, process, since when, and a token of its own. It is
made by exclusive create and removed at the end, whatever the end is. A process
that is killed leaves it; the next one takes it over

- at once, where that process would be seen from here (the same boot of the
  machine, the same pid namespace) and is gone, a zombie, or another process
  with its number, which started at another time;
- elsewhere once nobody has touched the file for STALE_SECONDS. Whoever holds
  it touches it every BEAT_SECONDS.

In a bucket the lock is an object: created on the condition that there is none
(If-None-Match, ifGenerationMatch=0), and a beat writes it again. Of two that
take over the lock of a dead process at once, the first can delete what the
second has made; so whoever takes over looks again after SETTLE_SECONDS, and
whoever holds a lock checks it before each write: after STALE_SECONDS of sleep
it may be another's, too.
"""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data.remote import object_store
from dsbs_jax.runtime import files, process_identity, progress

BEAT_SECONDS = 15
STALE_SECONDS = 120
SETTLE_SECONDS = 2

_HALF_WRITTEN_SECONDS = 1.0  # between the creation of a file and its text
_HELD = set()  # tokens of the locks of this process


class FolderLock:
  """A lock that is held from `acquire` to `release`.

  Args:
    path: the lock file; its folder is made.
    doing: what happens to the folder, for messages: 'trained'.
    remedy: what the one that is refused can do instead of waiting.
  """

  def __init__(self, path: str | os.PathLike, *, doing: str, remedy: str):
    self._path = _place(path)
    self._folder, self._file_name = os.path.split(path)
    self._doing, self._remedy = doing, remedy
    self._token = uuid.uuid4().hex
    self._text = json.dumps(
      {
        'host': socket.gethostname(),
        'pid': os.getpid(),
        'place': process_identity.machine(),
        'started': process_identity.started(os.getpid()),
        'since': f'{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC',
        'token': self._token,
      }
    )
    self._took_over = False
    self._released = threading.Event()
    self._beats = threading.Thread(target=self._beat, daemon=True)

  def acquire(self) -> None:
    """Takes the lock, from a dead process too.

    Raises:
      UserError: another process holds it, or it cannot be written.
    """
    _HELD.add(self._token)  # before other threads can read it
    try:
      while not self._create() or not self._is_settled():
        text = _read(self._path)
        if text is None:
          continue  # released since
        if text == self._text:
          break  # a store's answer was lost, and it was asked again
        facts = _facts(text)
        if _is_alive(self._path, facts):
          raise contract.UserError(self._refusal(facts))
        progress.say(f'{self._path} was left by {_name(facts)}: taken over')
        self._remove(text)
        self._took_over = True
    except BaseException:
      _HELD.remove(self._token)
      raise
    self._beats.start()

  def check(self) -> None:
    """Raises files.NotWritten if this process has lost what it acquired."""
    if self._token not in _HELD:
      return
    text = _read(self._path)
    if text is None:
      raise files.NotWritten(
        f'{self._path} is gone: its folder was removed or emptied while it was'
        f' {self._doing}. Nothing more is written there.'
      )
    if text != self._text:
      raise files.NotWritten(
        f'{self._folder} is being {self._doing} by {_name(_facts(text))}:'
        f' it has taken over, since {self._file_name} was removed or this'
        f' process was stopped for over {STALE_SECONDS} s. This one writes'
        ' nothing more there.'
      )

  def release(self) -> None:
    """Removes the file if it is still of this process."""
    if self._token not in _HELD:
      return
    _HELD.remove(self._token)
    self._released.set()
    self._beats.join()
    with contextlib.suppress(OSError, object_store.StoreError):
      self._remove(self._text)

  def _refusal(self, other: Mapping[str, Any]) -> str:
    wait = 'Wait until it has ended, stop it'
    if other.get('place') != process_identity.machine():
      wait += (
        f', or, if it is gone, wait {STALE_SECONDS} s for its lock to run out'
        f' or remove {self._path}'
      )
    return (
      f'{self._folder} is being {self._doing} by {_name(other)}, expected'
      f' no other process there. {wait}, or {self._remedy}.'
    )

  def _create(self) -> bool:
    """Whether the file was not there and is of this process now."""
    if isinstance(self._path, str):
      return object_store.create(self._path, self._text.encode())
    with files.writing(self._path.parent):
      self._path.parent.mkdir(parents=True, exist_ok=True)
    with files.writing(self._path):
      try:
        file = open(self._path, 'x', encoding='utf-8')
      except FileExistsError:
        return False
      try:
        with file:
          file.write(self._text)
      except BaseException:
        self._path.unlink(missing_ok=True)
        raise
    return True

  def _is_settled(self) -> bool:
    """Whether nobody has removed the file as that of the dead process."""
    if not (self._took_over and isinstance(self._path, str)):
      return True
    time.sleep(SETTLE_SECONDS)
    return _read(self._path) == self._text

  def _remove(self, text: str) -> None:
    """Removes the file if it has this text: another process's stays."""
    if isinstance(self._path, str):
      if _read(self._path) == text:
        object_store.remove(self._path)
      return
    with contextlib.suppress(FileNotFoundError), open(self._path, 'r+') as file:
      with contextlib.suppress(OSError):  # file systems without flock
        fcntl.flock(file, fcntl.LOCK_EX)  # those that take over take turns
      is_there = os.path.samestat(os.fstat(file.fileno()), os.stat(self._path))
      if is_there and file.read() == text:
        os.unlink(self._path)

  def _beat(self) -> None:
    while not self._released.wait(BEAT_SECONDS):
      with contextlib.suppress(Exception):  # a beat may be missed
        if _read(self._path) == self._text:
          if isinstance(self._path, str):
            object_store.write(self._path, self._text.encode())
          else:
            os.utime(self._path)


@contextlib.contextmanager
def hold(lock: FolderLock) -> Iterator[FolderLock]:
  """Holds a lock; raises UserError if another process does."""
  with exit_on_sigterm():
    lock.acquire()
    try:
      yield lock
    finally:
      lock.release()


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
  """SIGTERM raises SystemExit, as Ctrl-C raises, so that locks are released.

  Where it is handled already, or will be, that handler is the one.
  """

  def leave(number, frame):
    sys.exit(os.EX_TEMPFAIL)

  is_main = threading.current_thread() is threading.main_thread()
  if not is_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
    yield
    return
  signal.signal(signal.SIGTERM, leave)
  try:
    yield
  finally:
    if signal.getsignal(signal.SIGTERM) is leave:
      signal.signal(signal.SIGTERM, signal.SIG_DFL)


def holder(path: str | os.PathLike) -> str | None:
  """Who holds a lock, in words; None where no living process does."""
  path = _place(path)
  text = _read(path)
  if text is None or not _is_alive(path, _facts(text)):
    return None
  return _name(_facts(text))


def _place(path: str | os.PathLike) -> pathlib.Path | str:
  """A lock's file, or the URL of its object."""
  return path if object_store.is_bucket(path) else pathlib.Path(path)


def _read(path: pathlib.Path | str) -> str | None:
  """The text of a lock file; None where there is none."""
  deadline = time.monotonic() + _HALF_WRITTEN_SECONDS
  while True:
    late = time.monotonic() > deadline  # this process may be stopped, too
    try:
      text = (
        object_store.read(path).decode()
        if isinstance(path, str)
        else path.read_text()
      )
    except (FileNotFoundError, NotADirectoryError):
      return None
    if _facts(text) or late:
      return text
    time.sleep(0.02)


def _facts(text: str) -> dict[str, Any]:
  """What a lock file says; {} where it is torn."""
  try:
    facts = json.loads(text)
    return facts if isinstance(facts['pid'], int) else {}
  except (ValueError, KeyError, TypeError):
    return {}


def _name(facts: Mapping[str, Any]) -> str:
  if not facts:
    return 'a process that has not said its name'
  return f'process {facts["pid"]} on {facts["host"]} since {facts["since"]}'


def _is_alive(path: pathlib.Path | str, facts: Mapping[str, Any]) -> bool:
  """Whether the process that wrote a lock file is still there."""
  if facts.get('place') == process_identity.machine():
    if facts['pid'] == os.getpid():
      return facts['token'] in _HELD
    return process_identity.started(facts['pid']) == facts['started']
  try:
    return abs(_age(path)) < STALE_SECONDS
  except FileNotFoundError:
    return False


def _age(path: pathlib.Path | str) -> float:
  """Seconds since a file was touched, by the clock of its file system."""
  if isinstance(path, str):
    return time.time() - object_store.modified(path)
  with tempfile.TemporaryFile(dir=path.parent) as now:
    now.write(b'now')
    now.flush()
    return os.fstat(now.fileno()).st_mtime - os.stat(path).st_mtime
