# SPDX-License-Identifier: Apache-2.0
"""Files that cannot be read or written: which one, why, and what to do now."""

import contextlib
import errno
import os
import pathlib
import tempfile
import uuid
from collections.abc import Iterator

from dsbs_jax import contract
from dsbs_jax.data.remote import object_store

_FREE_SPACE = 'Free space on that disk; the same command goes on.'
_PERMISSIONS = 'Change its permissions, or give another path.'
# What the user can do about an error of the operating system.
_REMEDIES = {
  errno.ENOENT: 'Expected a path that exists, or whose folder can be made.',
  errno.EEXIST: 'Expected a folder, or a path that is free. Give another.',
  errno.ENOTDIR: 'Expected a folder where there is a file. Give another path.',
  errno.EISDIR: 'Expected a file, not a folder. Give the path of a file.',
  errno.EACCES: _PERMISSIONS,
  errno.EPERM: _PERMISSIONS,
  errno.EROFS: 'Expected a file system that can be written. Give another path.',
  errno.ENAMETOOLONG: 'Expected a shorter path.',
  errno.ENOSPC: _FREE_SPACE,
  errno.EDQUOT: _FREE_SPACE,
  errno.EFBIG: 'Expected a file system that holds files of this size.',
  errno.EIO: 'Check the disk.',
  errno.ESTALE: 'Check the network file system.',
}

# After these what was saved before may be gone or damaged.
_UNSURE = (errno.ENOENT, errno.ENOTDIR, errno.EIO, errno.ESTALE)


class NotWritten(contract.UserError):
  """A file of a run could not be written, for a reason the user can remedy."""


def explain(path: str | os.PathLike, error: BaseException) -> str | None:
  """One line about a file error: what happened to which path, what to do.

  None if there is no reason that a user can remedy. The error may be one that a
  library raised because of an OSError: TensorStore tells its reason as text.
  """
  number = _reason(error)
  if number is None:
    return None
  return f'{os.fspath(path)!r}: {os.strerror(number)}. {_REMEDIES[number]}'


def _reason(error: BaseException) -> int | None:
  number = getattr(error, 'errno', None)
  if not isinstance(error, OSError):
    text = str(error).lower()
    reasons = (n for n in _REMEDIES if os.strerror(n).lower() in text)
    number = next(reasons, None)
  return number if number in _REMEDIES else None


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
  """Names the file of a run that could not be written.

  Raises:
    NotWritten: for a reason that the user can remedy. Any other exception is
      raised as it is, with a note that names the file.
  """
  try:
    yield
  except contract.UserError:
    raise
  except Exception as error:
    if reason := explain(path, error):
      state = _saved_before(pathlib.Path(path), _reason(error))
      raise NotWritten(f'not written: {reason}{state}') from error
    error.add_note(f'while writing {os.fspath(path)!r}.')
    raise


def _saved_before(path: pathlib.Path, reason: int | None) -> str:
  """What has become of what was written before a file could not be."""
  if reason not in _UNSURE:
    return ' What was saved before is whole.'
  missing = [place for place in (path, *path.parents) if not place.exists()]
  if not missing or missing == [path]:
    return ''
  return f' {missing[-1]} is gone, and with it what was saved there.'


def check_writable(folder: str | os.PathLike) -> None:
  """Makes a folder, or raises UserError before hours of work are lost."""
  if object_store.is_bucket(folder):
    probe = f'{str(folder).rstrip("/")}/.{uuid.uuid4().hex}.lock'
    object_store.write(probe, b'dsbs_jax')
    object_store.remove(probe)
    return
  folder = pathlib.Path(folder)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
      file.write(b'dsbs_jax')
  except OSError as error:
    reason = explain(folder, error)
    if reason is None:
      raise
    raise contract.UserError(f'nothing can be written to {reason}') from error


def replace_text(path: pathlib.Path, text: str) -> None:
  """Writes a file so that a kill leaves the old one or the new one.

  Raises:
    NotWritten: there is no room, or no right to write.
  """
  replace_bytes(path, text.encode())


def replace_bytes(
  path: pathlib.Path, content: bytes, *, partial: pathlib.Path | None = None
) -> None:
  """The same of bytes; `partial`, or one beside it, is the file until then."""
  partial = partial or path.with_name(f'{path.name}.tmp')
  with writing(path):
    partial.write_bytes(content)
    partial.replace(path)
