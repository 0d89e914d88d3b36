# SPDX-License-Identifier: Apache-2.0
"""Vocabularies that `prepare --train_vocab` wrote beside the prepared data.

  DATA_DIR/vocabularies/NAME.SIZE.model
  DATA_DIR/vocabularies/replaced/NAME.SIZE.FINGERPRINT.model

A run says which vocabulary its ids come from, by a fingerprint. One that is
trained again is therefore kept under `replaced`, so that runs of before can
still be opened.
"""

import contextlib
import fnmatch
import os
import pathlib

from dsbs_jax import contract
from dsbs_jax.data.remote import object_store
from dsbs_jax.data.vocabulary import vocabularies, vocabulary_files

_DIGITS = 8  # of a fingerprint, as many as tell two vocabularies apart


def find(name: str | None, data_dir: str | os.PathLike[str]) -> list[str]:
  """Files, or URLs, of a benchmark's vocabularies; replaced ones left out."""
  if object_store.is_bucket(data_dir):
    folder = f'{str(data_dir).rstrip("/")}/vocabularies'
    there = fnmatch.filter(object_store.names(folder), f'{name}.*.model')
    return [f'{folder}/{file}' for file in there]
  return sorted(map(str, _folder(data_dir).glob(f'{name}.*.model')))


def only(name: str | None, data_dir: str | os.PathLike[str]) -> str | None:
  """A benchmark's vocabulary, None without one; UserError for several."""
  found = find(name, data_dir)
  if len(found) > 1:
    raise contract.UserError(
      f'{_folder(data_dir)} has {len(found)} vocabularies of {name}, expected'
      ' one. Choose:'
      f' {" or ".join(f"--vocabulary={file}" for file in found)}.'
    )
  return found[0] if found else None


def write(
  name: str, data_dir: str | os.PathLike[str], *, size: int, model: bytes
) -> tuple[str, str | None]:
  """Writes a vocabulary, and keeps another one that it replaces.

  Returns:
    The file, and where its predecessor is now; None without a predecessor.
  """
  path = _folder(data_dir) / f'{name}.{size}.model'
  kept = None
  if path.exists() and (before := path.read_bytes()) != model:
    # Of a damaged one nothing is kept: no run can be opened with it.
    with contextlib.suppress(contract.UserError):
      digits = vocabularies.load(str(path)).fingerprint[:_DIGITS]
      kept = path.parent / 'replaced' / f'{name}.{size}.{digits}.model'
      vocabulary_files.write_file(kept, before)
  vocabulary_files.write_file(path, model)
  return str(path), None if kept is None else str(kept)


def _folder(data_dir: str | os.PathLike[str]) -> pathlib.Path:
  return pathlib.Path(data_dir).expanduser() / 'vocabularies'
