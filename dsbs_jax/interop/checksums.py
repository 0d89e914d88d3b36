# SPDX-License-Identifier: Apache-2.0
"""Checksums of a checkpoint's files: saved with it, checked before reading.

OCDBT checks its index, but neither the arrays that lie outside of it nor the
JSON files beside it: a flipped bit there would be read as it stands. So every
checkpoint of this project holds `checksums.json`, with the size and the
SHA-256 of each file, and appears together with it. Checkpoints of others have
no such list and are read as they are.
"""

import concurrent.futures
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from dsbs_jax import contract

FILE = 'checksums.json'

_FORMAT = 1
_READERS = 4
_DAY = 24 * 3600 * 1000  # milliseconds


def write(folder: pathlib.Path) -> None:
  """Lists all files in the items of a checkpoint that is not yet in place.

  Files directly in the folder are left out: Orbax still writes to them, and
  nothing that a run depends on is in them.
  """
  paths = sorted(path for path in folder.glob('*/**/*') if path.is_file())
  names = [path.relative_to(folder).as_posix() for path in paths]
  with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
    files = dict(zip(names, pool.map(_entry, paths), strict=True))
  (folder / FILE).write_text(_contents(files))


def add(folder: pathlib.Path, name: str) -> None:
  """Lists one more file of a checkpoint that is in place."""
  files = json.loads((folder / FILE).read_text())['files']
  files[name] = _entry(folder / name)
  partial = folder / f'{FILE}.tmp'
  partial.write_text(_contents(files))
  partial.replace(folder / FILE)


def is_listed(folder: str | epath.Path) -> bool:
  """Whether a checkpoint has a list of its files."""
  return (epath.Path(folder) / FILE).exists()


def digests(folder: str | epath.Path) -> dict[str, str] | None:
  """Path of each file of a checkpoint -> SHA-256; None without a list."""
  if not is_listed(folder):
    return None
  files = json.loads((epath.Path(folder) / FILE).read_text())['files']
  return {name: entry['sha256'] for name, entry in files.items()}


def damage(
  folder: str | epath.Path,
  *,
  largest: int | None = None,
  below: str = '',
  share: tuple[int, int] = (0, 1),
) -> str | None:
  """What is wrong with a checkpoint.

  Args:
    largest: files of more bytes are compared by size only; None reads all.
    below: compares the files of one item only, such as 'metrics'.
    share: (i, n) compares every n-th file from the i-th on, so that n processes
      do not read all of a large checkpoint n times.

  Returns:
    The damage in words; None where all is well, or where there is no list.
  """
  folder = epath.Path(folder)
  if not is_listed(folder):
    return None
  try:
    contents = json.loads((folder / FILE).read_text())
    files = contents['files']
    if contents['sha256'] != _digest(files):
      return f'{FILE} holds other bytes than were saved'
  except (ValueError, KeyError, TypeError) as error:
    return f'{FILE} cannot be read ({error})'
  expected = {
    folder / name: (entry['bytes'], entry['sha256'])
    for name, entry in sorted(files.items())[share[0] :: share[1]]
    if name.startswith(below)
  }
  with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
    found = pool.map(lambda pair: _compare(*pair, largest), expected.items())
    problems = [
      f'{path.relative_to(folder).as_posix()} {problem}'
      for path, problem in zip(expected, found, strict=True)
      if problem
    ]
  if not problems:
    return None
  rest = f', and {len(problems) - 1} more files' if problems[1:] else ''
  return problems[0] + rest


def check(folder: str | epath.Path, **options: Any) -> None:
  """Raises UserError if a checkpoint is not as it was saved; see `damage`."""
  problem = damage(folder, **options)
  if problem:
    raise contract.UserError(
      f'{str(folder)!r} is damaged: {problem}. Take another checkpoint of the'
      ' run, or a copy of this one.'
    )


def meet(name: str) -> None:
  """Waits until every process of a run has read its part.

  A collective would wait for 30 seconds only (Gloo's first one), and a large
  checkpoint takes longer; a process that dies ends the others either way.
  """
  ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=_DAY)


def _contents(files: Mapping[str, Any]) -> str:
  return json.dumps(
    {'format': _FORMAT, 'files': files, 'sha256': _digest(files)}
  )


def _digest(files: Mapping[str, Any]) -> str:
  text = json.dumps(files, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _entry(path: pathlib.Path) -> dict[str, Any]:
  return {'bytes': path.stat().st_size, 'sha256': _sha256(path)}


def _sha256(path: pathlib.PurePath) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _compare(path, expected, largest) -> str | None:
  size, sha256 = expected
  if not path.is_file():
    return 'is missing'
  found = path.stat().length
  if found != size:
    return f'has {found:,} bytes, expected {size:,}'
  if (largest is None or size <= largest) and _sha256(path) != sha256:
    return 'holds other bytes than were saved'
  return None
