# SPDX-License-Identifier: Apache-2.0
"""Vocabularies that `prepare --train_vocab` wrote beside the prepared data.

  DATA_DIR/vocabularies/NAME.SIZE.model
  DATA_DIR/vocabularies/replaced/NAME.SIZE.FINGERPRINT.model

A run says which vocabulary its ids come from, by a fingerprint. One that is
trained again is therefore kept under `replaced`, so that runs of before can
still be opened.
"""

import os
import pathlib

from dsbs_jax import contract
from dsbs_jax.data.remote import object_store
from dsbs_jax.data.vocabulary import vocabularies, vocabulary_files

_DIGITS = 8  # of a fingerprint, as many as tell two vocabularies apart


def find(name: str | None, data_dir: str | os.PathLike[str]) -> list[str]:
  """The vocabularies of a benchmark, sorted; replaced ones left out.

  Args:
    name: the benchmark's name.
    data_dir: the folder above all datasets.

  Returns:
    Their files, or URLs.
  """
  if object_store.is_bucket(data_dir):
    folder = f'{str(data_dir).rstrip("/")}/vocabularies'
    there = object_store.names(folder)
    return [f'{folder}/{n}' for n in there if _is_of(n, name)]
  return sorted(map(str, _folder(data_dir).glob(f'{name}.*.model')))


def _is_of(file: str, name: str | None) -> bool:
  return file.startswith(f'{name}.') and file.endswith('.model')


def only(name: str | None, data_dir: str | os.PathLike[str]) -> str | None:
  """The vocabulary of a benchmark; None where there is none.

  Args:
    name: of the benchmark.
    data_dir: the folder that `prepare` wrote to.

  Raises:
    UserError: there are several.
  """
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

  Args:
    name: of the benchmark.
    data_dir: the folder that `prepare` wrote to.
    size: number of pieces that was asked for.
    model: the file's contents.

  Returns:
    The file, and where its predecessor is now; None without a predecessor.
  """
  path = _folder(data_dir) / f'{name}.{size}.model'
  kept = None
  if path.exists() and (before := path.read_bytes()) != model:
    digits = _fingerprint(path)
    if digits is not None:
      kept = path.parent / 'replaced' / f'{name}.{size}.{digits}.model'
      vocabulary_files.write_file(kept, before)
  vocabulary_files.write_file(path, model)
  return str(path), None if kept is None else str(kept)


def _folder(data_dir: str | os.PathLike[str]) -> pathlib.Path:
  return pathlib.Path(data_dir).expanduser() / 'vocabularies'


def _fingerprint(path: pathlib.Path) -> str | None:
  try:
    return vocabularies.load(str(path)).fingerprint[:_DIGITS]
  except contract.UserError:  # damaged: no run can be opened with it
    return None
