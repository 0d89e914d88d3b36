# SPDX-License-Identifier: Apache-2.0
"""Rows and completions -> the examples of a split, streamed.

Rows and completions come from the paper's archive as it was published, or are
the user's own JSON lines (see `file_layout`). Nothing is shuffled or filtered
before they are joined, because the archive joins by position.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from dsbs_jax import contract
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data.benchmark import Benchmark, Example, Part
from dsbs_jax.data.source import (
  archive,
  counterfactuals,
  file_layout,
  filters,
  joining,
  json_reader,
  record_reader,
  rows,
  splits,
)
from dsbs_jax.data.source import completions as completions_lib
from dsbs_jax.data.source import counts as counts_lib

Path = str | pathlib.Path


def available(benchmark: Benchmark, source: Path) -> tuple[str, ...]:
  """The splits that a source has rows for, derived ones too, or UserError."""
  opened = archive.open_archive(source)
  found = {
    split
    for split in benchmark.splits
    if file_layout.find_parts(benchmark, opened, split) is not None
  }
  if 'train' in found:
    found |= benchmark.derived
  if not found:
    names = [
      file_layout.file_names(benchmark, split) for split in benchmark.splits
    ]
    raise contract.UserError(
      f'{source} has no rows of {benchmark.name!r}, expected one of'
      f' {", ".join(names)}. Give the folder that holds them.'
    )
  return tuple(split for split in benchmark_lib.SPLITS if split in found)


def read_rows(
  benchmark: Benchmark, source: Path, split: str
) -> Iterator[rows.Row]:
  """Streams the rows of a split's files, checked and rendered.

  Args:
    split: a split that has a file of its own. A derived validation split has
      none: its rows are in train's.

  Raises:
    UserError: a file is missing, or rows are wrong: behind the first wrong one
      the rest is read, so that all are told at once (file and line are named).
  """
  opened = archive.open_archive(source)
  index, seen, wrong = 0, set(), rows.WrongRows()
  for part in file_layout.parts(benchmark, opened, split):
    for record in _records(opened, part):
      try:
        row = _row(benchmark, record, split=split, index=index, seen=seen)
      except contract.UserError as error:
        wrong.add(error)
      else:
        if not wrong.count:
          yield row
      index += 1
  wrong.check()


def _row(
  benchmark: Benchmark,
  record: json_reader.Record | contract.UserError,
  *,
  split: str,
  index: int,
  seen: set[str],
) -> rows.Row:
  """A row, checked; its id is added to those `seen` in the split."""
  if isinstance(record, contract.UserError):
    raise record
  row = rows.check(benchmark, record, split=split, index=index)
  if benchmark.example_id is not None:
    if row.example_id in seen:
      raise contract.UserError(
        f'{row.place} has the id {row.example_id!r} again, expected ids'
        f' that are unique in {split}. Change or drop the row.'
      )
    seen.add(row.example_id)
  return row


def count_rows(benchmark: Benchmark, source: Path, split: str) -> int:
  """The number of rows that `read_rows` yields, found without decoding."""
  opened = archive.open_archive(source)
  found = file_layout.parts(benchmark, opened, split)
  return sum(file_layout.size(opened, part) for part in found)


@dataclasses.dataclass(kw_only=True)
class Examples:
  """The rows of a split, joined with the completions of a teacher.

  Iterating reads the files and yields the examples: streamed, unless train is
  subsampled or validation is cut from it.

  Attributes:
    teacher: who wrote the completions beside the rows; see
      `file_layout.beside_rows`. Also picks the parser.
    completions: completions by id instead; see `file_layout.by_id`.
    fraction: share of train to keep, in (0, 1].
    subset_seed: which subset of that size.
    rules: what to keep of train (see `filters`); () keeps all, as the paper.
    rationalized: whether completions that were given the human label replace
      those whose label is wrong.

  Raises:
    UserError: something is wrong with the files; what is inside them only
      shows while iterating.
  """

  benchmark: Benchmark = dataclasses.field(kw_only=False)
  source: Path = dataclasses.field(kw_only=False)
  split: str
  teacher: str = file_layout.PALM
  completions: Path | Mapping[str, Path] | None = None
  fraction: float = 1.0
  subset_seed: int = 0
  rules: Sequence[filters.Rule] = ()
  rationalized: bool = False

  def __post_init__(self):
    self._counts = None
    file_layout.parts(
      self.benchmark, archive.open_archive(self.source), self._home
    )

  def __iter__(self) -> Iterator[Example]:
    of_file = of_split = counts_lib.CountsBuilder(self.benchmark)
    rank = self._rank()
    if rank is not None:
      of_split = counts_lib.CountsBuilder(self.benchmark)
    rules = self.rules if self.split == 'train' else ()
    ranked = {}
    said = self._opened_completions()
    for row, samples, example in self._joined(said):
      of_file.add(row, samples, example)
      if rank is not None:
        if row.index not in rank:
          continue
        of_split.add(row, samples, example)
      result = filters.apply(rules, self.benchmark, row, example)
      of_split.add_outcome(result)
      if isinstance(result, str):
        continue
      if rank is None:
        yield result
      else:
        ranked[rank[row.index]] = result
    self._counts = tuple(
      builder.counts(torn=said.torn) for builder in (of_split, of_file)
    )
    yield from (ranked[key] for key in sorted(ranked))

  @property
  def counts(self) -> counts_lib.Counts:
    """Of this split; reads the files unless they were read to the end."""
    return self._counted()[0]

  @property
  def file_counts(self) -> counts_lib.Counts:
    """Of the whole file, before a subsample or validation is cut from it."""
    return self._counted()[1]

  @property
  def _home(self) -> str:
    return file_layout.home_of(self.benchmark, self.split)

  def _rank(self) -> dict[int, int] | None:
    """Index of a row in its file -> place in the split; None: all, in order."""
    whole = self.fraction == 1.0 and not self.benchmark.derived
    if self._home != 'train' or whole:
      return None
    chosen = splits.select(
      self.split,
      count_rows(self.benchmark, self.source, self._home),
      derive_validation=self.benchmark.derive_validation,
      derive_test=self.benchmark.derive_test,
      fraction=self.fraction,
      subset_seed=self.subset_seed,
    )
    return {index: place for place, index in enumerate(chosen.tolist())}

  def _joined(
    self, said: completions_lib.Completions
  ) -> Iterator[tuple[rows.Row, Sequence[completions_lib.Sample], Example]]:
    parse = self.benchmark.parser(self.teacher)
    num_rows = 0
    for row in read_rows(self.benchmark, self.source, self._home):
      num_rows += 1
      samples = said.take(row)
      example = joining.join(
        self.benchmark,
        row,
        samples,
        parse=parse,
        rationalized=self.rationalized,
      )
      wrong = counterfactuals.of_example(
        self.benchmark,
        row,
        samples or (),
        parse=parse,
        llm_label=example.llm_label,
      )
      example = dataclasses.replace(example, counterfactual=wrong)
      yield row, samples or (), example
    said.finish(num_rows)
    if not num_rows:
      raise contract.UserError(
        f'{self.source} has no row in {self._home} of'
        f' {self.benchmark.name!r}, expected at least one. Check the file.'
      )

  def _opened_completions(self) -> completions_lib.Completions:
    if self.completions is not None:
      return file_layout.by_id(self.benchmark, self.completions, self._home)
    opened = archive.open_archive(self.source)
    parts = file_layout.parts(self.benchmark, opened, self._home)
    return file_layout.beside_rows(
      self.benchmark, opened, self._home, teacher=self.teacher, parts=parts
    )

  def _counted(self) -> tuple[counts_lib.Counts, counts_lib.Counts]:
    if self._counts is None:
      for _ in self:
        pass
    return self._counts


def _records(
  source: archive.Archive, part: Part
) -> Iterator[json_reader.Record | contract.UserError]:
  """The records of some rows; what cannot be read, as its error."""
  place = f'{source.root}/{part.file}'
  opened = source.open(part.file)
  if part.select is not None:
    every = list(record_reader.read(opened, place))
    yield from (every[index] for index in part.select(len(every)))
    return
  try:
    yield from record_reader.read_each(opened, place)
  except contract.UserError as error:
    yield error
