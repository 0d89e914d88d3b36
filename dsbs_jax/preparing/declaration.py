# SPDX-License-Identifier: Apache-2.0
"""The flags by which `prepare` is told of a benchmark without Python."""

import dataclasses
import difflib
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import columns, declared, register
from dsbs_jax.data.benchmark import Benchmark
from dsbs_jax.data.prepared import store
from dsbs_jax.data.source import archive, record_reader, row_files


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowsConfig:
  """What the flags say of rows and their columns; see `declared.Description`.

  Attributes:
    rows: a file or a folder, see `row_files`; None for a benchmark that is
      known already.
    validation, test: files of these splits.
    input, label: a column, or a template over columns.
    labels, id, options, answer, metric: as in the description.
  """

  rows: str | None = None
  validation: str | None = None
  test: str | None = None
  input: str | None = None
  label: str | None = None
  labels: Sequence[str] = ()
  id: str | None = None
  options: Sequence[str] = ()
  answer: str | None = None
  metric: str | None = None


def describe(config: RowsConfig, name: str) -> declared.Description | None:
  """What the flags describe; None where there is no --rows.

  Args:
    name: of the benchmark; '' takes the name of the file.

  Raises:
    UserError: a flag is missing or wrong, or names no column of the rows.
  """
  if config.rows is None:
    for field in dataclasses.fields(RowsConfig):
      if getattr(config, field.name):
        raise contract.UserError(
          f'--{field.name} is given without --rows=FILE, which it is about.'
        )
    return None
  source, splits = row_files.locate(
    config.rows, validation=config.validation, test=config.test
  )
  found = list(_first_row(source, splits['train'][0]))
  templates = {
    flag: _template(flag, getattr(config, flag), found, splits['train'])
    for flag in ('input', 'label')
  }
  name = name or _name(config.rows)
  known = benchmark_lib.get(name)
  if known is not None and not declared.is_made(known):
    raise contract.UserError(
      f'--benchmark={name} is a benchmark in Python already, expected a name'
      ' of its own for --rows. Give another --benchmark=NAME.'
    )
  description = declared.Description(
    name=name,
    source=source,
    splits=splits,
    labels=tuple(label.strip() for label in config.labels),
    id=config.id,
    options=tuple(config.options),
    answer=declared.ANSWER if config.answer is None else config.answer,
    metric=config.metric or 'exact_match',
    **templates,
  )
  for split, files in splits.items():
    _check_columns(description, split, _first_row(source, files[0]))
  return description


@register.without_seqio()  # nothing of it is needed to prepare
def resolve(config: Any) -> tuple[Any, Benchmark]:
  """The benchmark that is to be prepared, and where its rows are.

  It is described by --rows and its flags; or it was described when it was
  prepared before, in the folder --source or else in --data_dir; or it is one
  in Python.

  Returns:
    The config with name, source and completions filled in, and the benchmark.

  Raises:
    UserError: flags are missing or wrong, or nothing has this name.
  """
  said, completions = describe(config, config.benchmark), config.completions
  before = config.source or config.data_dir
  if said is None and config.module is None:
    said = declared.read(config.benchmark, before)
    if said is not None and completions is None:
      completions = store.read(said.name, before).metadata.get('completions')
  if said is None:
    known = register.benchmark(
      config.benchmark,
      module=config.module,
      data_dir=None if config.module else before,
    )
    if not config.source:
      raise contract.UserError('--source is missing. See --help.')
    return config, known
  if completions is not None:
    completions = os.path.abspath(pathlib.Path(completions).expanduser())
  config = dataclasses.replace(
    config,
    rows=None,
    benchmark=said.name,
    source=said.source,
    completions=completions,
  )
  return config, register.declare(said)


def derived_text(benchmark: Benchmark) -> str:
  """The line that says which splits are cut from train, '' for none."""
  cut = [s for s in benchmark_lib.SPLITS if s in benchmark.derived]
  if not cut:
    return ''
  share = ' and '.join(f'a tenth of train is {split}' for split in cut)
  flags = ' and '.join(f'--{split}=FILE' for split in cut)
  return (
    f'{benchmark.name}: {share}, always the same rows; {flags} would name rows'
    ' of its own.'
  )


def _template(
  flag: str, given: str | None, found: Sequence[str], files: Sequence[str]
) -> str:
  """The template that a flag gives: a column's bare name is one, too."""
  if not given:
    raise contract.UserError(
      f'--{flag} is missing. The columns are {", ".join(found)}: give one, or a'
      f" text with columns in braces, such as --{flag}='{{{found[0]}}}'."
    )
  if '{' in given or '}' in given:
    return given
  # 'choices.text' is a field of an object, whose columns are checked later.
  if given not in found and given.partition('.')[0] not in found:
    raise _no_column(flag, given, files, found)
  return f'{{{given}}}'


def _check_columns(
  said: declared.Description, split: str, row: Mapping[str, Any]
) -> None:
  wanted = {
    'input': columns.names(said.input),
    'label': columns.names(said.label),
    'id': [said.id] if said.id else [],
    'options': said.options,
  }
  for flag, names in wanted.items():
    for name in names:
      try:
        columns.cell(row, name)
      except KeyError as error:
        raise _no_column(flag, name, said.splits[split], list(row)) from error


def _no_column(
  flag: str, name: str, files: Sequence[str], found: Sequence[str]
) -> contract.UserError:
  folded = {column.casefold(): column for column in found}
  near = difflib.get_close_matches(name.casefold(), folded, n=1)
  hint = f' Did you mean {folded[near[0]]}?' if near else ''
  return contract.UserError(
    f'--{flag} names the column {name!r}, but the columns of'
    f' {" + ".join(files)} are {", ".join(found)}.{hint}'
  )


def _first_row(source: str, file: str) -> Mapping[str, Any]:
  """The first row of a file."""
  place = f'{source}/{file}'
  opened = archive.open_archive(source).open(file)
  record = next(record_reader.read(opened, place), None)
  if record is None:
    raise contract.UserError(
      f'{place} has no rows, expected one or more. Check the file.'
    )
  if not isinstance(record.value, dict) or not record.value:
    raise contract.UserError(
      f'{record.place} is {str(record.value)[:60]!r}, expected an object with'
      ' a value per column. Fix or drop the line.'
    )
  return record.value


def _name(rows: str) -> str:
  """A benchmark's name from a file's, or its folder's where that says more."""
  path = pathlib.Path(os.path.abspath(pathlib.Path(rows).expanduser()))
  stem = path.name if path.is_dir() else path.stem
  if stem.lower() in benchmark_lib.SPLITS:
    stem = path.parent.name
  name = re.sub('[^a-z0-9]+', '_', stem.lower()).strip('_')
  if not re.match('[a-z]', name):
    raise contract.UserError(
      f'--rows={rows} gives no name for the benchmark. Give --benchmark=NAME:'
      ' lower-case letters, digits and underscores.'
    )
  return name
