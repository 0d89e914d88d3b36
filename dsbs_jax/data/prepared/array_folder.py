# SPDX-License-Identifier: Apache-2.0
"""A folder of arrays that appears whole, with the digest of each file.

A flipped bit in tokens would be trained on as another token, or as none.
"""

import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np

from dsbs_jax import contract
from dsbs_jax.data.prepared import ragged

_DIGESTS = 'sha256.json'


def write(
  folder: pathlib.Path,
  index: Sequence[int],
  columns: Mapping[str, Sequence[ragged.Ragged]],
) -> None:
  """Writes arrays into a folder that appears only when it is whole.

  Args:
    folder: it must not exist; where another process was faster, its one stays.
    columns: name -> the column in pieces, joined here.
  """
  folder.parent.mkdir(parents=True, exist_ok=True)
  scratch = pathlib.Path(tempfile.mkdtemp(prefix='.tokens-', dir=folder.parent))
  try:
    np.save(scratch / 'index.npy', np.array(index, np.int64))
    for field, pieces in columns.items():
      column = ragged.join(pieces)
      np.save(scratch / f'{field}.npy', column.flat)
      np.save(scratch / f'{field}.offsets.npy', column.offsets)
    (scratch / _DIGESTS).write_text(json.dumps(_digests(scratch)))
    os.chmod(scratch, 0o755)
    try:
      os.rename(scratch, folder)
    except OSError:
      if not folder.is_dir():  # else another process was first: same contents
        raise
  finally:
    shutil.rmtree(scratch, ignore_errors=True)


def _check(folder: pathlib.Path) -> None:
  """Raises ValueError, or OSError, if a file is not as it was written."""
  known, found = json.loads((folder / _DIGESTS).read_text()), _digests(folder)
  changed = [file for file in found if known[file] != found[file]]
  changed += sorted(known.keys() - found.keys())
  if changed:
    raise ValueError(f'{changed[0]} holds other bytes than were written')


def _read(folder: pathlib.Path, field: str) -> ragged.Ragged:
  """Memory-maps one column."""
  flat = folder / f'{field}.npy'
  # An empty array cannot be memory-mapped.
  mode = 'r' if flat.stat().st_size > 128 else None
  offsets = np.load(folder / f'{field}.offsets.npy', allow_pickle=False)
  values = np.asarray(np.load(flat, mmap_mode=mode, allow_pickle=False))
  if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(values):
    raise ValueError(f'{flat} holds {len(values)} values, not what it should')
  return ragged.Ragged(values, offsets)


def opened(
  folder: pathlib.Path, fields: Sequence[str]
) -> tuple[dict[str, ragged.Ragged], np.ndarray]:
  """Columns of a folder, and its index; UserError where it is damaged."""
  try:
    _check(folder)
    columns = {field: _read(folder, field) for field in fields}
    index = np.load(folder / 'index.npy', allow_pickle=False)
  except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
    raise contract.UserError(
      f'the token cache {folder} is damaged ({error}). Delete that folder: it'
      ' is written again.'
    ) from error
  return columns, index


def _digests(folder: pathlib.Path) -> dict[str, str]:
  """File -> SHA-256, of all arrays in a folder."""
  digests = {}
  for path in sorted(folder.glob('*.npy')):
    with path.open('rb') as file:
      digests[path.name] = hashlib.file_digest(file, 'sha256').hexdigest()
  return digests
