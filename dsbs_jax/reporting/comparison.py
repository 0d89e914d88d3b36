# SPDX-License-Identifier: Apache-2.0
"""Compares runs: means and standard errors over seeds, gains over finetuning.

A run's test accuracy is read at the step with its best validation accuracy and
at its last step. Nothing here looks for its best step on test.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from dsbs_jax.runs import results, run_folder, run_names

# Gains are over this form of training on the same labels.
BASELINE_FORM = 'finetune'

K, T = TypeVar('K'), TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Score:
  """A mean over `count` runs and its standard error, None for a single run."""

  mean: float
  error: float | None
  count: int

  def text(self, *, sign: bool = False) -> str:
    """'61.2 ± 0.4', or the mean alone."""
    mean = f'{self.mean:+.2f}' if sign else f'{self.mean:.2f}'
    return mean if self.error is None else f'{mean} ± {self.error:.2f}'


def score(values: Iterable[float | None]) -> Score | None:
  """Mean and standard error s / sqrt(n), where s divides by n - 1.

  Runs without a value (None) are left out; without any value it is None.
  """
  known = [value for value in values if value is not None]
  if not known:
    return None
  count = len(known)
  mean = statistics.fmean(known)
  if count == 1:
    return Score(mean, None, 1)
  return Score(mean, statistics.stdev(known) / math.sqrt(count), count)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """A row of the tables: runs that differ in their seed only; in percent."""

  coordinates: run_names.Coordinates  # of the first run
  runs: tuple[results.Run, ...]  # the finished ones, by seed
  num_unfinished: int  # further runs, which are in no mean
  num_params: int | None  # of the model
  train_examples: int | None  # of the first run
  test_last: Score | None  # test accuracy at the last step
  test_best: Score | None  # at the step with the best validation accuracy
  validation_best: Score | None  # validation accuracy at that step
  # Accuracy minus that of finetuning on the same labels, paired by seed.
  gain: Score | None = None

  @property
  def chosen(self) -> Score | None:
    """`test_best`, or `test_last` for runs without validation."""
    return self.test_best or self.test_last


# Benchmark and what else its rows share -> the rows.
Groups = Mapping[tuple[str, str], Sequence[Row]]


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
  """Key -> the items that have it, both in the order of the items."""
  groups = {}
  for item in items:
    groups.setdefault(key(item), []).append(item)
  return groups


def rows(runs: Sequence[results.Run]) -> list[Row]:
  """One row per setting in the order of tables; runs differ by their seed."""
  groups = grouped(runs, _point)
  found = {point: _row(members) for point, members in groups.items()}
  return [
    dataclasses.replace(row, gain=_gain(row, found))
    for row in sorted(found.values(), key=_order)
  ]


def by_point(all_rows: Iterable[Row]) -> dict[run_names.Coordinates, Row]:
  """Coordinates with seed 0 -> row."""
  return {_point(row): row for row in all_rows}


def _point(item: results.Run | Row) -> run_names.Coordinates:
  return dataclasses.replace(item.coordinates, seed=0)


def _row(members: Sequence[results.Run]) -> Row:
  members = sorted(members, key=lambda run: run.coordinates.seed)
  ended = tuple(run for run in members if run.finished)
  first = (*ended, *members)[0]
  return Row(
    coordinates=first.coordinates,
    runs=ended,
    num_unfinished=len(members) - len(ended),
    num_params=first.num_params,
    train_examples=first.train_examples,
    test_last=score(r.accuracy(run_folder.TEST, r.last_step) for r in ended),
    test_best=score(r.accuracy(run_folder.TEST, r.best_step) for r in ended),
    validation_best=score(
      r.accuracy(run_folder.VALIDATION, r.best_step) for r in ended
    ),
  )


def baseline(
  row: Row, found: Mapping[run_names.Coordinates, Row]
) -> Row | None:
  """Finetuning on the same labels, model and data; None where it is not there.

  Finetuning itself has none. Found are rows as of `by_point`.
  """
  source = row.coordinates.method.split('_')[0]
  method = f'{source}_{BASELINE_FORM}'
  point = dataclasses.replace(row.coordinates, method=method, seed=0)
  # A sweep over ALPHA, say, finetunes once: finetuning has no such setting.
  without_setting = dataclasses.replace(point, setting=())
  if row.coordinates.method == method:
    return None
  return found.get(point) or found.get(without_setting)


def _gain(row: Row, found: Mapping[run_names.Coordinates, Row]) -> Score | None:
  """Mean difference to the baseline, over the seeds that both have."""
  other = baseline(row, found)
  if other is None:
    return None
  ours, theirs = by_seed(row), by_seed(other)
  return score(ours[seed] - theirs[seed] for seed in ours if seed in theirs)


def by_seed(row: Row) -> dict[int, float]:
  """Seed -> test accuracy at the chosen step."""
  found = {
    run.coordinates.seed: run.accuracy(run_folder.TEST, run.chosen_step)
    for run in row.runs
  }
  return {seed: value for seed, value in found.items() if value is not None}


def _order(row: Row) -> tuple:
  point = row.coordinates
  return (
    point.benchmark,
    row.num_params or 0,
    point.model,
    -point.fraction,
    tuple(run_names.METHODS).index(point.method),
    point.setting,
  )


def llm_accuracy(
  runs: Sequence[results.Run], benchmark: str, *, split: str = run_folder.TEST
) -> float | None:
  """The LLM's own accuracy on a benchmark in percent, by prepare's count.

  None if the prepared data of no run is there or has the count, or if there
  are several teachers.
  """
  value = split_counts(runs, benchmark, split).get('accuracy')
  return None if value is None else float(value)


def split_counts(
  runs: Sequence[results.Run], benchmark: str, split: str
) -> Mapping[str, Any]:
  """What prepare counted in a split with answers of the LLM; {} without.

  Nor is there one answer where runs have data of several LLMs.
  """
  found = all_counts(runs, benchmark, split)
  return found[0] if len({c['accuracy'] for c in found}) == 1 else {}


def all_counts(
  runs: Sequence[results.Run], benchmark: str, split: str
) -> list[Mapping[str, Any]]:
  """What prepare counted in a split, of all data that has an accuracy."""
  own = (r for r in runs if r.coordinates.benchmark == benchmark)
  first = {run.macros.get('DATA_DIR'): run for run in own}
  found = []
  for data in (run.data for run in first.values()):
    if data is not None and split in data.splits:
      counts = data.metadata['splits'].get(split, {}).get('counts', {})
      if counts.get('accuracy') is not None:
        found.append(counts)
  return found
