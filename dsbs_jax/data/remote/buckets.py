# SPDX-License-Identifier: Apache-2.0
"""gs:// and s3:// as folders: fetched before they are read, uploaded after.

A process has one temporary folder in which `gs://bucket/name` is the local file
`gs/bucket/name`; what it fetches goes there, what it writes there is uploaded
by `push`. Large files are links into a cache that processes share
(`object_cache`). docs/buckets.md tells more.

An object store has no rename. A folder that must be whole (`_WHOLE`: a
checkpoint, prepared data) is accompanied by an object `<folder>.incomplete`
while it is uploaded or deleted; whoever fetches leaves such a folder out.
"""

import atexit
import contextlib
import fcntl
import functools
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data.remote import object_cache, object_store

_INCOMPLETE = '.incomplete'
_WHOLE = re.compile(r'(?:.*/)?(?:checkpoint_\d+|dsbs_\w+/\d[\d.]*)(?=/)')
_ARRAYS = re.compile(r'(?:.*/)?checkpoint_\d+/state/(?!_METADATA$)')
# Never uploaded: files that are still written, locks, what is being deleted.
_LOCAL_ONLY = re.compile(
  r'(?:.*/)?(?:.*\.tmp|.*-checkpoint-tmp.*|\..*\.partial|.*\.lock'
  r'|deleted_checkpoints|downloads|\.preparing-.*)(?:/.*)?'
)
_APPENDED = re.compile(r'.*\.(jsonl|log)|(.*/)?events\.out\..*')
_LINKED_BYTES = 1 << 24  # larger files are linked, not copied
# Local path -> (mtime_ns, size) of what the store has, too.
_known: dict[pathlib.Path, tuple[int, int]] = {}
# Local path -> version of the object that was fetched there.
_versions: dict[pathlib.Path, str] = {}


def local_path(url: str) -> pathlib.Path:
  """Where this process has its copy of an object or a folder, if it has one."""
  scheme, _, name = url.partition('://')
  return _root() / scheme / name.strip('/')


def url_of(path: str | os.PathLike) -> str | None:
  """What a local copy is a copy of, or the URL itself; None for other files."""
  if object_store.is_bucket(path):
    return str(path).rstrip('/')
  if not _root.cache_info().currsize:
    return None
  path = pathlib.Path(path)
  if _root() not in path.parents:
    return None
  scheme, *names = path.relative_to(_root()).parts
  return f'{scheme}://{"/".join(names)}'


def shown(text: str) -> str:
  """A message about local copies, in the words of the user."""
  if _root.cache_info().currsize:
    for scheme in object_store.SCHEMES:
      text = text.replace(f'{_root()}/{scheme}/', f'{scheme}://')
  return text


@functools.cache
def _root() -> pathlib.Path:
  """This process's folder of copies; those of killed processes are removed."""
  parent = object_cache.folder() / 'processes'
  parent.mkdir(parents=True, exist_ok=True)
  for other in parent.iterdir():
    with contextlib.suppress(OSError), (other / '.lock').open() as file:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      shutil.rmtree(other, ignore_errors=True)
  root = pathlib.Path(tempfile.mkdtemp(prefix='copies-', dir=parent))
  held = os.open(root / '.lock', os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
  fcntl.flock(held, fcntl.LOCK_EX)  # until the process ends, however it ends
  atexit.register(_remove, root, os.getpid())
  object_cache.remove_unused()
  return root


def _remove(root: pathlib.Path, pid: int) -> None:
  if os.getpid() == pid:  # not in a forked child
    shutil.rmtree(root, ignore_errors=True)


def fetch(
  url: str, *, arrays: bool = True, cached: bool = True
) -> pathlib.Path:
  """Brings this process's copy of an object or a folder up to date.

  Args:
    url: in a bucket; a local path is returned as it is.
    arrays: whether the arrays of checkpoints are fetched, too.
    cached: whether the files stay in the cache for other processes.

  Returns:
    The local copy, which does not exist where nothing is in the bucket.

  Raises:
    StoreError: there is no such bucket, it refuses, or it is unavailable.
  """
  if not object_store.is_bucket(url):
    return pathlib.Path(url)
  url = url.rstrip('/')
  found = object_store.find(url)
  if _WHOLE.match(f'{url}/'):
    found |= object_store.find(f'{url}{_INCOMPLETE}')
  partial = tuple(
    f'{key.removesuffix(_INCOMPLETE)}/'
    for key in found
    if key.endswith(_INCOMPLETE)
  )
  wanted = {
    key: about
    for key, about in found.items()
    if not key.endswith(_INCOMPLETE) and not key.startswith(partial)
    if arrays or not _ARRAYS.match(key)
    if _versions.get(local_path(key)) != object_cache.version(about)
  }
  for path in [p for p in _versions if p.is_relative_to(local_path(url))]:
    if (gone := url_of(path)) not in found or gone.startswith(partial):
      path.unlink(missing_ok=True)
      del _versions[path], _known[path]
  if wanted:
    _download(wanted, cached=cached)
  return local_path(url)


def file(path: str) -> pathlib.Path:
  """A local file with the contents of a path; UserError where there is none."""
  found = fetch(path)
  if object_store.is_bucket(path) and not found.is_file():
    raise contract.UserError(
      f'{path} does not exist, expected a file. Correct the path.'
    )
  return found


def complete(path: str | os.PathLike) -> None:
  """Fetches what a local copy of a checkpoint lacks; others are as they are."""
  if url := url_of(path):
    fetch(url)


def _download(wanted: Mapping[str, Mapping[str, Any]], *, cached: bool) -> None:
  """Fetches objects at the same time, and puts each in its place."""
  blobs = object_cache.get(wanted, None if cached else _root() / '.fetched')
  for key, blob in blobs.items():
    path = local_path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if not cached:
      os.replace(blob, path)
    elif wanted[key]['size'] < _LINKED_BYTES or _APPENDED.match(key):
      shutil.copyfile(blob, path)
    else:
      path.symlink_to(blob)
    if cached:
      os.utime(blob)
    _versions[path] = object_cache.version(wanted[key])
    _known[path] = _signature(path)


def _is_shared(path: pathlib.Path) -> bool:
  """Whether a local copy is uploaded, and deleted where it is gone."""
  return not _LOCAL_ONLY.fullmatch(path.relative_to(_root()).as_posix())


def _signature(path: pathlib.Path) -> tuple[int, int]:
  found = path.stat()
  return found.st_mtime_ns, found.st_size


def is_in_whole_folder(path: pathlib.Path) -> bool:
  """Whether a local copy is part of a folder that must be whole."""
  return bool(_WHOLE.match(path.relative_to(_root()).as_posix()))


def changes(
  folder: pathlib.Path,
) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
  """Files below a local copy that `push` would upload, and would delete."""
  paths = [folder] if folder.is_file() else sorted(folder.rglob('*'))
  there = [path for path in paths if path.is_file() and _is_shared(path)]
  changed = [p for p in there if _known.get(p) != _signature(p)]
  known = {p for p in _known if p.is_relative_to(folder) and _is_shared(p)}
  return changed, sorted(known - set(there))


def push(
  folder: pathlib.Path,
  paths: Iterable[pathlib.Path] | None = None,
  gone: Iterable[pathlib.Path] = (),
) -> None:
  """Uploads what was written into a local copy.

  Args:
    folder: the copy, of an object or a folder; of anything else nothing is
      uploaded.
    paths: files to upload; None for all that have changed.
    gone: files to delete from the bucket.

  Raises:
    StoreError: the store refuses, or was unavailable for too long.
  """
  if url_of(folder) is None:
    return
  paths = changes(folder)[0] if paths is None else list(paths)
  _in_whole_folders(paths, _upload, is_new=True)
  _in_whole_folders(list(gone), _delete, is_new=False)


def _in_whole_folders(
  paths: list[pathlib.Path],
  act: Callable[[list[pathlib.Path]], None],
  *,
  is_new: bool,
) -> None:
  """Acts on files; folders that are begun or end are marked meanwhile."""
  groups: dict[str | None, list[pathlib.Path]] = {}
  for path in paths:
    match = _WHOLE.match(path.relative_to(_root()).as_posix())
    groups.setdefault(match and match[0], []).append(path)
  for name, group in groups.items():
    folder = name and _root() / name
    begun = name and any(p.is_relative_to(folder) for p in _known)
    is_added_to = begun and is_new and folder.name.startswith('checkpoint_')
    if name is None or is_added_to:
      act(group)
      continue
    marker = f'{url_of(folder)}{_INCOMPLETE}'
    object_store.write(marker, b'')
    act(group)
    object_store.remove(marker)


def _upload(paths: list[pathlib.Path]) -> None:
  """Uploads files at the same time; lists of checksums follow the others."""
  lists = [path for path in paths if path.name == 'checksums.json']
  for group in ([path for path in paths if path not in lists], lists):
    if group:
      signatures = [_signature(path) for path in group]
      object_store.put(list(map(str, group)), list(map(url_of, group)))
      _known.update(zip(group, signatures, strict=True))


def _delete(paths: list[pathlib.Path]) -> None:
  object_store.delete(list(map(url_of, paths)))
  for path in paths:
    _known.pop(path, None)
    _versions.pop(path, None)


def remove_incomplete(url: str) -> list[str]:
  """Deletes folders that another process began to upload, or to delete.

  Args:
    url: the folder above them, which only this process writes to.
  """
  found = object_store.find(url)
  folders = [k.removesuffix(_INCOMPLETE) for k in found if _INCOMPLETE in k]
  for folder in folders:
    object_store.delete([key for key in found if key.startswith(f'{folder}/')])
    object_store.remove(f'{folder}{_INCOMPLETE}')
  return folders


@contextlib.contextmanager
def output(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """A local file or folder to write, uploaded at the end if it is in a bucket.

  Args:
    path: in a bucket, or a local copy of one, or any other local path.

  Yields:
    Where to write. A file in a bucket is not fetched before.
  """
  place = pathlib.Path(path)
  if object_store.is_bucket(path):
    place = local_path(str(path))
    place.parent.mkdir(parents=True, exist_ok=True)
  yield place
  push(place)
