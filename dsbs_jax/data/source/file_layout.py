# SPDX-License-Identifier: Apache-2.0
"""Where a split's rows and completions lie in a source.

The paper's archive has `cqa/cqa_train.json`, its PaLM completions in
`cqa/llm/train_CoT_0.json`, `..._1.json`, ... and GPT-NeoX's in
`gpt-neox/cqa/train.json`. Completions by id are in `llm/<split>.jsonl` beside
the rows' file, or wherever the user says.
"""

import functools
import io
import os
import pathlib
import posixpath
import re
from collections.abc import Mapping, Sequence

from dsbs_jax import contract
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data.benchmark import Benchmark, Part
from dsbs_jax.data.source import (
  archive,
  completions,
  completions_by_position,
  json_reader,
  record_reader,
)

PALM = 'palm'

Path = str | pathlib.Path

# What the archive calls our splits.
_SHORT = {'train': 'train', 'validation': 'valid', 'test': 'test'}
_NUMBER = re.compile(r'(\d+)\.json$')


def find_parts(
  benchmark: Benchmark, source: archive.Archive, split: str
) -> tuple[Part, ...] | None:
  """The files of a split, as paths inside the source, or None.

  Args:
    split: any name; one without files gives None.
  """
  names = _names(benchmark, split)
  find = functools.partial(archive.find, source, prefer=benchmark.name)
  found = [find(name) for name in names]
  if names and all(found):
    return tuple(Part(name) for name in found)
  fallback = benchmark.fallbacks.get(split)
  name = fallback and find(fallback.file)
  return (Part(name, fallback.select),) if name else None


def parts(
  benchmark: Benchmark, source: archive.Archive, split: str
) -> tuple[Part, ...]:
  """As `find_parts`, but none is a UserError that says what was looked for."""
  if split not in benchmark.splits:
    raise contract.UserError(
      f'{benchmark.name!r} has no file for the split {split!r}, expected one'
      f' of {", ".join(benchmark.splits)}.'
    )
  found = find_parts(benchmark, source, split)
  if found is None:
    raise contract.UserError(
      f'{source.root} has no {split} rows of {benchmark.name!r}, expected'
      f' {file_names(benchmark, split)}. Give the folder that holds them.'
    )
  return found


def files(
  benchmark: Benchmark, path: Path, names: Sequence[str]
) -> dict[str, list[str]]:
  """The files that hold the rows of some splits, with the source's path.

  Args:
    path: folder or zip file.
    names: splits, a derived one too.

  Raises:
    UserError: a file is missing, or two splits lie in different folders.
      Files are searched some folders deep: where one is missing, another
      benchmark's of the same name would be taken for it.
  """
  source = archive.open_archive(path)
  found, folders = {}, {}
  for split in names:
    home = home_of(benchmark, split)
    found[split] = [part.file for part in parts(benchmark, source, home)]
    file, wanted = found[split][0], benchmark.splits[home]
    if isinstance(wanted, str) and file.endswith(wanted):
      folders.setdefault(file.removesuffix(wanted), (split, file))
  if len(folders) > 1:
    (one, first), (other, second) = list(folders.values())[:2]
    raise contract.UserError(
      f'{source.root} has the {one} rows of {benchmark.name!r} in {first} and'
      f' its {other} rows in {second}, expected one folder. Give that folder'
      f' as the source, or leave one out: --splits={one}.'
    )
  return {s: [f'{source.root}/{f}' for f in found[s]] for s in found}


def home_of(benchmark: Benchmark, split: str) -> str:
  """The split whose file holds the rows of a split."""
  return 'train' if split in benchmark.derived else split


def file_names(benchmark: Benchmark, split: str) -> str:
  """The file names that hold a split, for errors."""
  text = ' and '.join(_names(benchmark, split))
  fallback = benchmark.fallbacks.get(split)
  return f'{text} or {fallback.file}' if fallback else text


def _names(benchmark: Benchmark, split: str) -> tuple[str, ...]:
  files = benchmark.splits.get(split, ())
  return (files,) if isinstance(files, str) else tuple(files)


def size(source: archive.Archive, part: Part) -> int:
  """Number of rows of a part."""
  total = record_reader.count(source.open(part.file), part.file)
  return total if part.select is None else len(part.select(total))


def beside_rows(
  benchmark: Benchmark,
  source: archive.Archive,
  split: str,
  *,
  teacher: str,
  parts: Sequence[Part],
) -> completions.Completions:
  """The completions that lie where the archive has them.

  Args:
    teacher: 'palm', or the folder beside the benchmark's that holds another
      teacher's completions.

  Returns:
    The completions; none where PaLM's folder has none for this split.

  Raises:
    UserError: a number is missing among the files, only some parts have
      completions, or another teacher than PaLM has none.
  """
  by_id = archive.beside(source, parts[0].file, f'llm/{split}.jsonl')
  if by_id and teacher == PALM:
    return completions.ById(
      by_id[0],
      _seekable(source, by_id[0]),
      wanted={'benchmark': benchmark.name, 'split': split},
    )
  files = [_positional(source, p.file, split, teacher=teacher) for p in parts]
  if not any(files) and teacher == PALM:
    return completions.Completions()
  for found, part in zip(files, parts, strict=True):
    if not found:
      raise contract.UserError(
        f'{source.root} has no completions of {teacher!r} for {part.file},'
        f' expected {_pattern(part.file, split, teacher)}. Add them.'
      )
  opened = [
    [(name, functools.partial(source.open, name)) for name in found]
    for found in files
  ]
  if len(opened) == 1:
    return completions_by_position.ByPosition(opened[0], model=teacher)
  sizes = [size(source, part) for part in parts]
  return completions_by_position.Concatenated(
    (n, completions_by_position.ByPosition(o, model=teacher))
    for n, o in zip(sizes, opened, strict=True)
  )


def by_id(
  benchmark: Benchmark, given: Path | Mapping[str, Path], split: str
) -> completions.Completions:
  """The completions that the user names, for one split; none if none are its.

  Args:
    given: a folder with `<split>.jsonl`, one file, or files by split. One
      file belongs to the split that its header names, and to train without.

  Raises:
    UserError: nothing is there, or a folder has no file for any split.
  """
  found = given.get(split) if isinstance(given, Mapping) else given
  path = None if found is None else pathlib.Path(found).expanduser()
  if found is given and path.is_dir():
    path = _in_folder(path, split)
  elif found is given and path.is_file() and _header_split(path) != split:
    path = None
  if path is None:
    return completions.Completions()
  archive.check_regular(path)
  if not path.is_file():
    raise contract.UserError(
      f'The completions {path} do not exist, expected a JSONL file or a'
      ' folder with <split>.jsonl. Check the path.'
    )
  return completions.ById(
    str(path),
    functools.partial(open, path, 'rb'),
    wanted={'benchmark': benchmark.name, 'split': split},
  )


def _in_folder(folder: pathlib.Path, split: str) -> pathlib.Path | None:
  if not any((folder / f'{s}.jsonl').exists() for s in benchmark_lib.SPLITS):
    raise contract.UserError(
      f'The completions folder {folder} has none of train.jsonl,'
      ' validation.jsonl, test.jsonl; expected one or more. Check the path.'
    )
  path = folder / f'{split}.jsonl'
  return path if os.path.lexists(path) else None


def _header_split(path: pathlib.Path) -> str:
  """The split that the first line's settings name, or train."""
  with open(path, 'rb') as file:
    number, _, line = next(json_reader.lines(file, str(path)), (1, 0, b'{}'))
  header = json_reader.decode(line, f'{path}:{number}')
  return completions.header_settings(header).get('split') or 'train'


def _pattern(file: str, split: str, teacher: str) -> str:
  if teacher == PALM:
    return f'llm/{_SHORT[split]}_CoT_*.json'
  folder = posixpath.basename(posixpath.dirname(file)) or '.'
  return f'../{teacher}/{folder}/{_SHORT[split]}.json'


def _positional(
  source: archive.Archive, file: str, split: str, *, teacher: str
) -> list[str]:
  """Files of completions in the order of their numbers."""
  found = archive.beside(source, file, _pattern(file, split, teacher))
  if teacher != PALM:
    return found
  numbered = sorted(
    (int(match[1]), name) for name in found if (match := _NUMBER.search(name))
  )
  numbers = [number for number, _ in numbered]
  if numbers != list(range(len(numbers))):
    raise contract.UserError(
      f'{source.root} has completions numbered {numbers} for {file}, expected'
      ' 0, 1, 2, ... without a gap. Add the missing file.'
    )
  return [name for _, name in numbered]


def _seekable(source: archive.Archive, name: str) -> completions.Opener:
  """Opens a file for random access; a zip member is read once."""
  if isinstance(source, archive.Folder):
    return functools.partial(source.open, name)
  with source.open(name) as file:
    data = json_reader.read_some(file.read, archive.MAX_MEMBER_BYTES, name)
  return lambda: io.BytesIO(data)
