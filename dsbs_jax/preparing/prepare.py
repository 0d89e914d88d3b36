# SPDX-License-Identifier: Apache-2.0
"""Preparing a benchmark: join, parse, count, write, and say what came out."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import rich.console
import rich.progress

from dsbs_jax import contract
from dsbs_jax.data import declared
from dsbs_jax.data.benchmark import Benchmark
from dsbs_jax.data.prepared import dataset_writer, own_vocabularies, store
from dsbs_jax.data.remote import buckets, download, object_store
from dsbs_jax.data.source import archive, file_layout, filters, sources
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.preparing import (
  count_tables,
  declaration,
  progress_bars,
  row_checks,
  source_digest,
  vocabulary_training,
)
from dsbs_jax.runtime import folder_lock

# Fields that decide the prepared examples, of a benchmark in Python.
_DECISIVE = (
  *('source', 'teacher', 'completions', 'fraction', 'subset_seed'),
  *('keep', 'clean', 'rationalized'),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig(declaration.RowsConfig):
  """What `python -m dsbs_jax.prepare` is asked to do; see its flags."""

  benchmark: str = ''
  source: str = ''
  data_dir: str
  splits: Sequence[str] = ()
  teacher: str = 'palm'
  completions: str | None = None
  fraction: float = 1.0
  subset_seed: int = 0
  keep: str = 'all'
  clean: str = 'none'
  rationalized: bool = False
  vocabulary: str | None = None
  train_vocab: int | None = None
  module: str | None = None
  overwrite: bool = False

  def __post_init__(self):
    needed = ('data_dir',) if self.rows else ('benchmark', 'data_dir')
    for name in needed:
      if not getattr(self, name):
        raise contract.UserError(f'--{name} is missing. See --help.')
    if self.rows and (self.source or self.module):
      raise contract.UserError(
        f'--rows is given with --{"source" if self.source else "module"},'
        ' expected --rows alone, or a benchmark in Python and its --source.'
      )
    pieces = self.train_vocab
    for flag, right, expected in (
      ('fraction', 0 < self.fraction <= 1, 'a number in (0, 1]'),
      ('subset_seed', self.subset_seed >= 0, '0 or more'),
      ('keep', self.keep in filters.KEEP, _one_of(filters.KEEP)),
      ('clean', self.clean in filters.CLEAN, _one_of(filters.CLEAN)),
      ('train_vocab', pieces is None or pieces >= 16, '16 pieces or more'),
    ):
      if not right:
        raise contract.UserError(
          f'--{flag} is {getattr(self, flag)!r}, expected {expected}.'
        )

  def about(self, known: Benchmark) -> dict[str, Any]:
    """What decides the prepared examples, for the metadata."""
    decisive = {name: getattr(self, name) for name in _DECISIVE}
    # Files that have changed since make other examples.
    decisive['completions_bytes'] = sum(
      file.stat().st_size
      for file in source_digest.files_below(self.completions)
    )
    decisive['files'] = source_digest.digest(
      known, self.source, self.completions
    )
    decisive[store.LABELS] = list(known.labels)  # soft labels have their order
    said = declared.description(known)
    return decisive | ({declared.KEY: said.to_json()} if said else {})


def _one_of(names: Iterable[str]) -> str:
  return f'one of {", ".join(names)}'


def prepare(config: PrepareConfig) -> None:
  """Prepares a benchmark and prints its counts and lengths."""
  if object_store.is_bucket(config.data_dir):
    _prepare_in_bucket(config)
    return
  console = rich.console.Console(markup=False, emoji=False)
  config, known = declaration.resolve(config)
  if config.vocabulary is not None:
    vocabularies.load(config.vocabulary)  # a wrong one is an error at once
  if _is_prepared(config, known):
    console.print(
      f'{config.benchmark} is prepared in {config.data_dir} already, with'
      ' these options; --overwrite prepares it again.'
    )
    prepared = store.read(config.benchmark, config.data_dir)
  else:
    with folder_lock.hold(_lock(known.name, config.data_dir)):
      prepared = _write(config, known)
  console.print(count_tables.counts(prepared))
  spec = config.vocabulary
  if config.train_vocab is not None:
    spec, kept = vocabulary_training.train_and_write(
      prepared, config.train_vocab
    )
    if left := vocabulary_training.left_text(prepared):
      console.print(left)
    console.print(f'vocabulary written: --vocabulary={buckets.shown(spec)}')
    if kept:
      console.print(
        f'it replaces another: runs that were trained with that one need'
        f' --vocabulary={buckets.shown(kept)}'
      )
  elif spec is None and not os.environ.get('DSBS_VOCABULARY'):
    own = own_vocabularies.find(known.name, config.data_dir)
    spec = own[0] if len(own) == 1 else None
  with progress_bars.progress() as progress:
    table = count_tables.lengths(prepared, spec, progress=progress)
  console.print(table)
  place = buckets.shown(str(store.folder(known.name, config.data_dir)))
  console.print(f'prepared: {place}')


def _prepare_in_bucket(config: PrepareConfig) -> None:
  """Prepares in a local copy, which is uploaded at the end."""
  _, known = declaration.resolve(config)
  with folder_lock.hold(_lock(known.name, config.data_dir)) as lock:
    store.exists(known.name, config.data_dir)  # fetches what is there
    buckets.fetch(f'{config.data_dir.rstrip("/")}/vocabularies')
    folder = buckets.local_path(config.data_dir)
    prepare(dataclasses.replace(config, data_dir=str(folder)))
    lock.check()
    buckets.push(folder, *buckets.changes(folder))


def _lock(name: str, data_dir: str) -> folder_lock.FolderLock:
  return folder_lock.FolderLock(
    lock_file(name, data_dir),
    doing=f'given {name}',
    remedy='give another --data_dir',
  )


def lock_file(name: str, data_dir: str) -> pathlib.Path | str:
  """The file, or object, that says who prepares a benchmark in a folder."""
  file = f'{store.dataset_name(name)}.lock'
  if object_store.is_bucket(data_dir):
    return f'{data_dir.rstrip("/")}/{file}'
  return pathlib.Path(data_dir).expanduser() / file


def _is_prepared(config: PrepareConfig, known: Benchmark) -> bool:
  """Whether the same config was served before; an error if another was."""
  if config.overwrite or not store.exists(config.benchmark, config.data_dir):
    return False
  prepared = store.read(config.benchmark, config.data_dir)
  now = json.loads(json.dumps(config.about(known)))
  before = {k: prepared.metadata.get(k) for k in {**now, declared.KEY: None}}
  if now['files'] is None:  # the source is not at hand any more
    now['files'] = before['files']
  before, now = _flat(before), _flat(now)
  missing = set(config.splits) - set(prepared.splits)
  if before != now or missing:
    changed = sorted(
      k for k in {**now, **before} if now.get(k) != before.get(k)
    )
    raise contract.UserError(
      f'{store.folder(config.benchmark, config.data_dir)} was prepared with'
      f' other {", ".join(changed) or "splits"}'
      f' ({ {k: before.get(k) for k in changed} or list(prepared.splits) }).'
      ' Give another --data_dir, or --overwrite to replace it.'
    )
  return True


def _flat(about: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of a description beside the others."""
  rest = {key: value for key, value in about.items() if key != declared.KEY}
  return rest | (about.get(declared.KEY) or {})


def _local_source(
  config: PrepareConfig, progress: rich.progress.Progress
) -> pathlib.Path:
  """The archive or folder of the rows on this machine; downloads a URL."""
  if '://' not in config.source:
    return pathlib.Path(config.source).expanduser()
  return download.fetch(
    config.source,
    pathlib.Path(config.data_dir) / 'downloads',
    check=archive.open_archive,
    progress=progress_bars.download_bar(progress),
  )


def _split_names(
  config: PrepareConfig, known: Benchmark, local: pathlib.Path
) -> Sequence[str]:
  """The splits to prepare: those that are asked for, or all that are there."""
  names = config.splits or sources.available(known, local)
  if unknown := set(names) - set(known.split_names()):
    raise contract.UserError(
      f'--splits names {", ".join(sorted(unknown))}, expected some of'
      f' {", ".join(known.split_names())}.'
    )
  return names


def _write(config: PrepareConfig, known: Benchmark) -> store.Prepared:
  """Joins, parses and writes all splits."""
  with progress_bars.progress() as progress:
    local = _local_source(config, progress)
    names = _split_names(config, known, local)
    for split, files in file_layout.files(known, local, names).items():
      progress.console.print(f'{known.name} {split}: {", ".join(files)}')
    if declared.is_made(known) and (cut := declaration.derived_text(known)):
      progress.console.print(cut)
    # A folder of tables may hold anything: only the user says what an LLM
    # wrote about them. None looks beside the rows.
    nothing = {} if declared.is_made(known) else None
    rules = (*filters.CLEAN[config.clean], *filters.KEEP[config.keep])
    examples = {
      split: sources.Examples(
        known,
        local,
        split=split,
        teacher=config.teacher,
        completions=config.completions or nothing,
        fraction=config.fraction,
        subset_seed=config.subset_seed,
        rules=rules,
        rationalized=config.rationalized,
      )
      for split in names
    }

    def counted(split: str) -> dict[str, Any]:
      counts, by_file = examples[split].counts, examples[split].file_counts
      return {'counts': counts.to_dict(), 'file_counts': by_file.to_dict()}

    checks = row_checks.RowChecks(known if declared.is_made(known) else None)
    prepared = dataset_writer.write(
      known.name,
      {
        split: checks.watch(
          split, progress.track(found, description=f'{known.name} {split}')
        )
        for split, found in examples.items()
      },
      data_dir=config.data_dir,
      about=config.about(known),
      counts=counted,
      overwrite=config.overwrite,
    )
    for finding in checks.findings():
      progress.console.print(finding, markup=False)
    return prepared
