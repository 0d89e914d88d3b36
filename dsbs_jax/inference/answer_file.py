# SPDX-License-Identifier: Apache-2.0
"""The file of answers: appended to, locked, and continued after a kill.

Beside it lies `<file>.state.json`: the settings that the answers depend on,
and a digest of the input lines that are answered, so that neither can change
between one run and the next.
"""

import fcntl
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from dsbs_jax import contract

STATE_SUFFIX = '.state.json'


class AnswerFile:
  """Appends lines to a file and knows how many were there before.

  Args:
    path: the file.
    settings: JSON facts that every line depends on.

  Attributes:
    num_lines: whole lines in the file.
    num_errors: those among them that hold an error.

  Raises:
    UserError: the file was made with other settings, by something else, or
      is being written by another process.
  """

  def __init__(self, path: str | pathlib.Path, settings: Mapping[str, Any]):
    self._path = pathlib.Path(path)
    self._state_path = self._path.with_name(self._path.name + STATE_SUFFIX)
    self._settings = json.loads(json.dumps(dict(settings)))
    self._path.parent.mkdir(parents=True, exist_ok=True)
    self._file = self._path.open('a+b')
    try:
      self._lock()
      self._state = self._read_state()
      self.num_lines, self.num_errors = self._repair()
    except BaseException:
      self._file.close()
      raise
    self._digest = hashlib.sha256()
    self._num_read = 0
    if not self.num_lines:
      self._write_state()

  def read(self, content: bytes) -> None:
    """Takes note of the next input line, and compares it if it is known."""
    self._digest.update(content)
    self._num_read += 1
    known = self._state['input']
    if self._num_read == known['lines'] and (
      self._digest.hexdigest() != known['sha256']
    ):
      raise contract.UserError(
        f'the first {known["lines"]:,} lines of the input are not those that'
        f' {self._path} answers. {self._remedy()}'
      )

  def check_end(self) -> None:
    """Raises where the input ended before the lines that were answered."""
    if self._num_read < self.num_lines:
      raise contract.UserError(
        f'the input has {self._num_read:,} lines, expected at least the'
        f' {self.num_lines:,} that {self._path} answers. {self._remedy()}'
      )

  def append(self, lines: Sequence[Mapping[str, Any]]) -> None:
    """Writes answers to all lines that were read since the last call."""
    self._file.write(dump(lines))
    self._file.flush()
    self.num_lines += len(lines)
    self.num_errors += sum('error' in line for line in lines)
    self._write_state()

  def close(self) -> None:
    """Lets go of the file."""
    self._file.close()

  def _lock(self) -> None:
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise contract.UserError(
        f'{self._path} is being written by another process. Wait for it, or'
        ' choose another OUTPUT.'
      ) from error

  def _read_state(self) -> dict[str, Any]:
    new = {'settings': self._settings, 'input': {'lines': 0, 'sha256': ''}}
    if os.fstat(self._file.fileno()).st_size == 0:
      return new
    if not self._state_path.is_file():
      raise contract.UserError(
        f'{self._path} exists without {self._state_path.name}, expected a'
        f' file that this command wrote. {self._remedy()}'
      )
    state = json.loads(self._state_path.read_text(encoding='utf-8'))
    saved = state['settings']
    changed = [
      f'{name}: {saved.get(name)!r} -> {self._settings.get(name)!r}'
      for name in sorted({*saved, *self._settings})
      if saved.get(name) != self._settings.get(name)
    ]
    if changed:
      raise contract.UserError(
        f'{self._path} was begun with other settings ({"; ".join(changed)}).'
        f' Restore them. {self._remedy()}'
      )
    return state

  def _remedy(self) -> str:
    return f'To begin anew, remove {self._path} or choose another OUTPUT.'

  def _repair(self) -> tuple[int, int]:
    """Cuts a torn last line; counts lines and errors."""
    self._file.seek(0)
    end = num_lines = num_errors = 0
    for line in self._file:
      if not line.endswith(b'\n'):
        break
      end += len(line)
      num_lines += 1
      num_errors += 'error' in _entry(line, num_lines, self._path)
    if end < os.fstat(self._file.fileno()).st_size:
      self._file.truncate(end)
    return num_lines, num_errors

  def _write_state(self) -> None:
    if self._num_read:
      self._state['input'] = {
        'lines': self._num_read,
        'sha256': self._digest.hexdigest(),
      }
    partial = self._state_path.with_name(self._state_path.name + '.tmp')
    partial.write_text(json.dumps(self._state, indent=2), encoding='utf-8')
    partial.replace(self._state_path)


class AnswerStream:
  """The same for a stream, which cannot be continued."""

  num_lines = 0

  def __init__(self, file: BinaryIO):
    self._file = file
    self.num_errors = 0

  def read(self, content: bytes) -> None:
    """Nothing is known of the input."""

  def check_end(self) -> None:
    """Nothing is known of the input."""

  def append(self, lines: Sequence[Mapping[str, Any]]) -> None:
    """Writes answers."""
    self._file.write(dump(lines))
    self._file.flush()
    self.num_errors += sum('error' in line for line in lines)

  def close(self) -> None:
    """Leaves the stream to its owner."""


def dump(lines: Sequence[Mapping[str, Any]]) -> bytes:
  """JSON lines in ASCII, so that odd characters of ids cannot break them."""
  return ''.join(json.dumps(line) + '\n' for line in lines).encode()


def _entry(line: bytes, number: int, path: pathlib.Path) -> dict[str, Any]:
  try:
    entry = json.loads(line)
    if entry['line'] != number:
      raise contract.UserError(f'it answers line {entry["line"]}')
  except (ValueError, KeyError, TypeError) as error:
    raise contract.UserError(
      f'{path}:{number} is not the answer to line {number} of the input'
      f' ({error}). Remove the file to begin anew.'
    ) from error
  return entry
