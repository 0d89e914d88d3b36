# SPDX-License-Identifier: Apache-2.0
"""From a path of the user's to the files of each split.

The path is a file of rows, or a folder or zip file with one of

  train.csv, dev.csv, test.csv             any kinds, one file per split
  train-00000-of-00002.parquet, ...        shards, as on Hugging Face's hub
  dataset_dict.json, train/state.json ...  saved by `datasets`' save_to_disk
  state.json, data-00000-of-00001.arrow    the same, one split: train
"""

import os
import pathlib
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data.source import archive, json_reader, record_reader

_ALIASES = {
  **{split: split for split in benchmark_lib.SPLITS},
  'valid': 'validation',
  'val': 'validation',
  'dev': 'validation',
}
_FILE = re.compile(
  rf'({"|".join(_ALIASES)})(-\d+-of-\d+)?'
  rf'({"|".join(map(re.escape, record_reader.SUFFIXES))})'
)
_TOTAL = re.compile(r'-\d+-of-(\d+)\.')
_DICT, _STATE = 'dataset_dict.json', 'state.json'
_KINDS = f'a file ({", ".join(record_reader.SUFFIXES)})'

Splits = dict[str, tuple[str, ...]]


def locate(
  rows: str, *, validation: str | None = None, test: str | None = None
) -> tuple[str, Splits]:
  """Where the rows of each split are.

  Args:
    rows: a file with the rows of train, or a folder or zip file.
    validation: a file, or a saved dataset, with its rows; `test` likewise.

  Returns:
    The absolute path of a folder or zip file, and the files of each split as
    paths inside it.

  Raises:
    UserError: nothing is there, or it is not clear which files are meant.
  """
  path = _absolute(rows)
  given = {'validation': validation, 'test': test}
  given = {split: _absolute(found) for split, found in given.items() if found}
  if path.is_dir() or path.suffix.lower() == '.zip':
    source = archive.open_archive(path)
    found = _in_archive(source)
    if not given:
      return str(path), found
    if path.is_file():
      raise contract.UserError(
        f'--{next(iter(given))} is given beside the zip file --rows={rows},'
        ' which names its splits itself. Unpack it, or leave the flag out.'
      )
    both = sorted(set(found) & set(given))
    if both:
      raise contract.UserError(
        f'--{both[0]} is given, but --rows={rows} has {found[both[0]][0]} for'
        ' that split, expected one of the two. Leave the flag out.'
      )
    files = {s: [path / name for name in names] for s, names in found.items()}
  else:
    files = {'train': _files_at(path, 'rows')}
  for split, place in given.items():
    files[split] = _files_at(place, split)
  parents = [file.parent for named in files.values() for file in named]
  root = pathlib.Path(os.path.commonpath(parents))
  return str(root), {
    split: tuple(file.relative_to(root).as_posix() for file in named)
    for split, named in files.items()
  }


def _absolute(path: str) -> pathlib.Path:
  return pathlib.Path(os.path.abspath(pathlib.Path(path).expanduser()))


def _files_at(path: pathlib.Path, flag: str) -> list[pathlib.Path]:
  """One file of rows, or the files of a saved dataset."""
  archive.check_regular(path)
  if path.is_dir() and (path / _STATE).is_file():
    names = _state_files(archive.Folder(path), _STATE)
    return [path / name for name in names]
  if not path.exists():
    raise contract.UserError(
      f'--{flag}={path} does not exist, expected {_KINDS} or a folder. Check'
      ' the path.'
    )
  if path.is_dir() or path.suffix.lower() not in record_reader.SUFFIXES:
    raise contract.UserError(
      f'--{flag}={path} is'
      f' {"a folder" if path.is_dir() else "of no known kind"}'
      f', expected {_KINDS} or a dataset saved by save_to_disk.'
    )
  return [path]


def _in_archive(source: archive.Archive) -> Splits:
  if source.glob(_DICT):
    listed = _json(source, _DICT).get('splits')
    if not isinstance(listed, list):
      raise _not_saved(source, _DICT)
    found = {
      _ALIASES[name]: _state_files(source, f'{name}/{_STATE}')
      for name in listed
      if name in _ALIASES
    }
    names = [f'{name}/' for name in listed]
  elif source.glob(_STATE):
    return {'train': _state_files(source, _STATE)}
  else:
    names = source.glob('*')
    found = _by_name(source, names)
  if 'train' not in found:
    raise contract.UserError(
      f'{source.root} has no rows of train ({", ".join(names[:8]) or "empty"}),'
      ' expected a file such as train.csv or train.jsonl. Give the file itself:'
      ' --rows=FILE.'
    )
  return {s: found[s] for s in benchmark_lib.SPLITS if s in found}


def _by_name(source: archive.Archive, names: Sequence[str]) -> Splits:
  """Files named after their splits; shards in the order of their numbers."""
  found: dict[str, dict[tuple[str, str], list[str]]] = {}
  for name in sorted(names):
    match = _FILE.fullmatch(name)
    if match is not None:
      kind = match[1], match[3] + ('/shards' if match[2] else '')
      found.setdefault(_ALIASES[match[1]], {}).setdefault(kind, []).append(name)
  for split, kinds in found.items():
    if len(kinds) > 1:
      several = [files[0] for files in kinds.values()]
      raise contract.UserError(
        f'{source.root} has {" and ".join(several)} for {split}, expected one'
        ' of them. Give the files themselves: --rows, --validation, --test.'
      )
    _check_shards(source, next(iter(kinds.values())))
  return {
    split: tuple(file for files in kinds.values() for file in files)
    for split, kinds in found.items()
  }


def _check_shards(source: archive.Archive, names: Sequence[str]) -> None:
  """Raises UserError where shards are missing, or there are two sets of them."""
  matches = map(_TOTAL.search, names)
  totals = {int(match[1]) for match in matches if match}
  if totals and totals != {len(names)}:
    raise contract.UserError(
      f'{source.root} has {len(names)} shards such as {names[0]}, expected as'
      ' many as their names say. Get the missing ones, or remove what is of'
      ' another set.'
    )


def _state_files(source: archive.Archive, state: str) -> tuple[str, ...]:
  """The Arrow files of a saved dataset, as paths inside the source."""
  said = _json(source, state)
  listed = said.get('_data_files')
  # Versions before 2.0 kept a selection of rows apart from the rows.
  if said.get('_indices_data_files') or not isinstance(listed, list):
    raise _not_saved(source, state)
  names = [e.get('filename') if isinstance(e, dict) else None for e in listed]
  if not names or not all(
    isinstance(name, str) and posixpath.basename(name) == name for name in names
  ):
    raise _not_saved(source, state)
  folder = posixpath.dirname(state)
  return tuple(posixpath.join(folder, name) for name in names)


def _json(source: archive.Archive, name: str) -> Mapping[str, Any]:
  if not source.glob(name):
    raise _not_saved(source, name)
  place = f'{source.root}/{name}'
  with source.open(name) as file:
    text = json_reader.read_some(file.read, json_reader.MAX_LINE_BYTES, place)
  found = json_reader.decode(text, place)
  if not isinstance(found, dict):
    raise _not_saved(source, name)
  return found


def _not_saved(source: archive.Archive, name: str) -> contract.UserError:
  return contract.UserError(
    f'{source.root}/{name} is not what save_to_disk of `datasets` 2 or newer'
    ' writes. Save the dataset again, or give its rows as Parquet, CSV or'
    ' JSON lines.'
  )
