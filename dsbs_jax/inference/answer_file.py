# SPDX-License-Identifier: Apache-2.0
"""The file of predictions: appended to, locked, and continued after a kill.

Beside it lies `<file>.state.json`: the settings that predictions depend on, and
a digest of the input lines that are done, so that neither can change between
one run and the next.
"""

import fcntl
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

from dsbs_jax import contract
from dsbs_jax.runtime import files

STATE_SUFFIX = '.state.json'


class AnswerFile:
  """Appends lines to a file and knows how many were there before.

  Args:
    settings: JSON values that every line depends on.

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
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      self._state = self._read_state()
      self.num_lines, self.num_errors = self._repair()
    except BlockingIOError as error:
      self._file.close()
      raise contract.UserError(
        f'{self._path} is being written by another process. Wait for it, or'
        ' choose another OUTPUT.'
      ) from error
    except BaseException:
      self._file.close()
      raise
    self._digest = hashlib.sha256()
    self._num_read = 0
    if not self.num_lines:
      self._write_state()

  def note_input(self, content: bytes) -> None:
    """Hashes the next input line; raises if the lines done were others."""
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
    """Raises if the input has fewer lines than the file."""
    if self._num_read < self.num_lines:
      raise contract.UserError(
        f'the input has {self._num_read:,} lines, expected at least the'
        f' {self.num_lines:,} that {self._path} answers. {self._remedy()}'
      )
    self.check_in_place()

  def check_in_place(self) -> None:
    """Raises if the file was removed, moved or replaced since it was opened."""
    if not self._path.exists() or not os.path.samefile(
      self._path, self._file.fileno()
    ):
      raise contract.UserError(
        f'{self._path} was removed or replaced while it was written, expected'
        f' it to stay: its {self.num_lines:,} lines are gone from there. The'
        ' same command begins anew where there is no file, or goes on from one'
        ' that is put back.'
      )

  def check_input(self, contents: Iterable[bytes]) -> None:
    """Raises if the input, read again, begins with other lines than before."""
    digest, num_read = hashlib.sha256(), 0
    for content in itertools.islice(contents, self._num_read):
      digest.update(content)
      num_read += 1
    if digest.digest() != self._digest.digest():
      raise contract.UserError(
        'the input has changed while it was read: its first'
        f' {self._num_read:,} lines are no longer those that {self._path}'
        f' answers. {self._remedy()}'
      )

  def append(self, lines: Sequence[Mapping[str, Any]]) -> None:
    """Writes entries for all lines that were read since the last call."""
    self.check_in_place()
    self._file.write(_to_json_lines(lines))
    self._file.flush()
    self.num_lines += len(lines)
    self.num_errors += sum('error' in line for line in lines)
    self._write_state()

  def close(self) -> None:
    """Closes the file and unlocks it."""
    self._file.close()

  def _read_state(self) -> dict[str, Any]:
    new = {'settings': self._settings, 'input': {'lines': 0, 'sha256': ''}}
    if os.fstat(self._file.fileno()).st_size == 0:
      return new
    if not self._state_path.is_file():
      raise contract.UserError(
        f'{self._path} exists without {self._state_path.name}, expected a'
        f' file that this command wrote. {self._remedy()}'
      )
    try:
      state = json.loads(self._state_path.read_text(encoding='utf-8'))
      saved, _ = dict(state['settings']), state['input']['sha256']
    except (ValueError, KeyError, TypeError) as error:
      raise contract.UserError(
        f'{self._state_path} is not what this command wrote beside {self._path}'
        f' ({error!r:.100}). {self._remedy()}'
      ) from error
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
    """Cuts an incomplete last line; counts lines and errors."""
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
    files.replace_text(self._state_path, json.dumps(self._state, indent=2))


class AnswerStream:
  """The same interface for a stream, which cannot be continued."""

  num_lines = 0

  def __init__(self, file: BinaryIO):
    self._file = file
    self.num_errors = 0

  def _nothing(self, *_: Any) -> None:
    """A stream starts anew and stays where it is: nothing to compare with."""

  note_input = check_end = check_in_place = check_input = _nothing

  def append(self, lines: Sequence[Mapping[str, Any]]) -> None:
    """Writes entries."""
    self._file.write(_to_json_lines(lines))
    self._file.flush()
    self.num_errors += sum('error' in line for line in lines)


def _to_json_lines(lines: Sequence[Mapping[str, Any]]) -> bytes:
  """JSON lines in ASCII, so that odd characters of ids cannot break them."""
  return ''.join(json.dumps(line) + '\n' for line in lines).encode()


def _entry(line: bytes, number: int, path: pathlib.Path) -> dict[str, Any]:
  try:
    entry = json.loads(line)
    if entry['line'] != number:
      raise ValueError(f'it answers line {entry["line"]}')
  except (ValueError, KeyError, TypeError) as error:
    raise contract.UserError(
      f'{path}:{number} is not the answer to line {number} of the input'
      f' ({error}). Remove the file to begin anew.'
    ) from error
  return entry
