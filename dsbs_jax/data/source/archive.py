# SPDX-License-Identifier: Apache-2.0
"""A folder or a zip file, read the same way and never unpacked.

Files are found by the end of their path, so that an archive may have any
folders above `cqa/cqa_train.json`. Zip files come from elsewhere and are
checked before a byte of them is used.
"""

import collections
import dataclasses
import fnmatch
import glob
import pathlib
import posixpath
import stat
import zipfile
from typing import BinaryIO

from dsbs_jax import contract

MAX_LEVELS = 4
MAX_MEMBERS = 100_000
MAX_MEMBER_BYTES = 4 << 30
# JSON text packs 3-30 times; a bomb packs 1,000 times and more.
MAX_RATIO = 300
_RATIO_FREE_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Folder:
  """A folder on disk."""

  root: pathlib.Path

  def glob(self, pattern: str) -> list[str]:
    """Files whose path matches, `*` staying within one folder's name."""
    # pathlib's own glob leaves a link to nothing out, and so its split.
    found = glob.glob(pattern, root_dir=self.root, include_hidden=True)
    return sorted(
      pathlib.PurePath(name).as_posix()
      for name in found
      if not (self.root / name).is_dir()
    )

  def open(self, name: str) -> BinaryIO:
    check_regular(self.root / name)
    return open(self.root / name, 'rb')


@dataclasses.dataclass(frozen=True)
class Zip:
  """A checked zip file; see `open_archive`."""

  root: pathlib.Path
  members: frozenset[str]

  def glob(self, pattern: str) -> list[str]:
    """Members whose path matches, `*` staying within one folder's name."""
    parts = pattern.split('/')
    return sorted(n for n in self.members if _matches(n.split('/'), parts))

  def open(self, name: str) -> BinaryIO:
    # The member keeps the archive open for as long as it needs it.
    try:
      with zipfile.ZipFile(self.root) as archive:
        return archive.open(name)
    except (zipfile.BadZipFile, NotImplementedError) as error:
      raise contract.UserError(
        f'Member {name!r} of {self.root} cannot be read ({error}), expected'
        ' what zip -9 writes. Get the archive again, or unpack it and give the'
        ' folder.'
      ) from error


Archive = Folder | Zip


def check_regular(path: pathlib.Path) -> None:
  """UserError for pipes, sockets and devices: reading them may never end."""
  if path.exists() and not (path.is_file() or path.is_dir()):
    raise contract.UserError(
      f'{path} is no regular file (a pipe, a socket or a device), expected one'
      ' that can be read again. Give a file with its contents.'
    )


def open_archive(path: str | pathlib.Path) -> Archive:
  """Opens a folder or a zip file for reading.

  Raises:
    UserError: nothing is there, it is neither of the two, or a zip member
      has an unsafe path, is encrypted, or is too large.
  """
  path = pathlib.Path(path).expanduser()
  if path.is_dir():
    return Folder(path)
  if not path.exists():
    raise contract.UserError(
      f'The source {path} does not exist, expected a folder or a zip file.'
      ' Check the path.'
    )
  check_regular(path)
  if not zipfile.is_zipfile(path):
    if path.suffix.lower() == '.zip':
      raise contract.UserError(
        f'The source {path} is no whole zip file: it is cut or damaged. Get it'
        ' again.'
      )
    raise contract.UserError(
      f'The source {path} is neither a folder nor a zip file. Give the'
      " folder that holds the rows' file."
    )
  try:
    with zipfile.ZipFile(path) as archive:
      members = archive.infolist()
  except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
    raise contract.UserError(
      f'The source {path} is damaged ({error}), expected a whole zip file. Get'
      ' it again.'
    ) from error
  if len(members) > MAX_MEMBERS:
    raise contract.UserError(
      f'{path} has {len(members):,} members, expected at most'
      f' {MAX_MEMBERS:,}. Unpack what is needed and give the folder.'
    )
  for member in members:
    _check(member, path)
  names = collections.Counter(member.filename for member in members)
  name, times = max(names.items(), key=lambda item: item[1], default=('', 0))
  if times > 1:
    raise contract.UserError(
      f'{path} has {times} members named {name!r}, expected each once: the'
      ' one that is read could be another than the one that is looked at.'
      ' Unpack what is needed and give the folder.'
    )
  return Zip(path, frozenset(m.filename for m in members if not m.is_dir()))


def find(archive: Archive, file: str, *, prefer: str) -> str | None:
  """The one file whose path ends in `file`.

  Args:
    prefer: name of the folder that decides where several files are equally
      deep.

  Raises:
    UserError: several files fit equally well, or `file` leaves the archive.
  """
  if file.startswith('/') or '..' in file.split('/'):
    raise contract.UserError(
      f'The file name {file!r} leaves the source, expected a path inside it.'
    )
  for level in range(MAX_LEVELS + 1):
    found = archive.glob('*/' * level + glob.escape(file))
    named = [f for f in found if prefer in f.split('/')[:-1]]
    found = named if named else found
    if len(found) > 1:
      raise contract.UserError(
        f'{archive.root} has {len(found)} files named {file}'
        f' ({", ".join(found[:3])}), expected one. Give the folder of one'
        ' of them as the source.'
      )
    if found:
      return found[0]
  return None


def beside(archive: Archive, file: str, pattern: str) -> list[str]:
  """Files inside the source that match a pattern beside another file.

  Args:
    pattern: a glob relative to the file's folder, which may begin with '../'.
  """
  folder = glob.escape(posixpath.dirname(file))
  path = posixpath.normpath(posixpath.join(folder, pattern))
  return [] if path.startswith('..') else archive.glob(path)


def _matches(name: list[str], pattern: list[str]) -> bool:
  return len(name) == len(pattern) and all(
    fnmatch.fnmatchcase(n, p) for n, p in zip(name, pattern, strict=True)
  )


def _check(member: zipfile.ZipInfo, path: pathlib.Path) -> None:
  name, size = member.filename, member.file_size
  fault = None
  if (
    name.startswith('/')
    or '..' in name.split('/')
    or ':' in name.split('/')[0]
    or '\\' in member.orig_filename
    or '\0' in member.orig_filename
  ):
    fault = 'has a path that leaves the archive'
  elif stat.S_ISLNK(member.external_attr >> 16):
    fault = 'is a link'
  elif member.flag_bits & 1:
    fault = 'is encrypted'
  elif size > MAX_MEMBER_BYTES:
    fault = f'unpacks to {size:,} bytes, over {MAX_MEMBER_BYTES:,}'
  elif size > max(_RATIO_FREE_BYTES, MAX_RATIO * member.compress_size):
    fault = f'unpacks {member.compress_size:,} bytes to {size:,}'
  if fault:
    raise contract.UserError(
      f'Member {name!r} of {path} {fault}, expected plain files inside the'
      ' archive. Unpack what is needed and give the folder.'
    )
