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
  """A mean over runs.

  Attributes:
    mean: of the runs' values.
    error: standard error of the mean, None for a single run.
    count: number of runs.
  """

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
  """A row of the tables: runs that differ in their seed only.

  Accuracies are in percent.

  Attributes:
    coordinates: of the first run.
    runs: the finished runs, by seed.
    num_unfinished: further runs, which are in no mean.
    num_params: parameters of the model, None if unknown.
    train_examples: training examples of the first run, None if unknown.
    test_last: test accuracy at the last step.
    test_best: test accuracy at the step with the best validation accuracy.
    validation_best: validation accuracy at that step.
    gain: accuracy minus that of finetuning on the same labels, paired by seed.
  """

  coordinates: run_names.Coordinates
  runs: tuple[results.Run, ...]
  num_unfinished: int
  num_params: int | None
  train_examples: int | None
  test_last: Score | None
  test_best: Score | None
  validation_best: Score | None
  gain: Score | None = None

  @property
  def chosen(self) -> Score | None:
    """`test_best`, or `test_last` for runs without validation."""
    return self.test_best or self.test_last


# Benchmark and what else its rows share -> the rows.
Groups = Mapping[tuple[str, str], Sequence[Row]]


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
  """Key -> the items that have it, both in the order of the items.

  Args:
    items: any, in order.
    key: item -> what it is grouped by.
  """
  groups = {}
  for item in items:
    groups.setdefault(key(item), []).append(item)
  return groups


def rows(runs: Sequence[results.Run]) -> list[Row]:
  """One row per setting in the order of tables; runs differ by their seed."""
  groups = grouped(
    runs, lambda run: dataclasses.replace(run.coordinates, seed=0)
  )
  found = {key: _row(members) for key, members in groups.items()}
  return [
    dataclasses.replace(row, gain=_gain(row, found))
    for row in sorted(found.values(), key=_order)
  ]


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

  Args:
    row: of another method; finetuning has no baseline.
    found: coordinates with seed 0 -> row.
  """
  source = row.coordinates.method.split('_')[0]
  point = dataclasses.replace(
    row.coordinates, method=f'{source}_{BASELINE_FORM}', seed=0
  )
  # A sweep over ALPHA, say, finetunes once: finetuning has no such setting.
  without_setting = dataclasses.replace(point, setting=())
  other = found.get(point) or found.get(without_setting)
  if other is None or other.coordinates.method == row.coordinates.method:
    return None
  return other


def by_point(all_rows: Iterable[Row]) -> dict[run_names.Coordinates, Row]:
  """Coordinates with seed 0 -> row."""
  return {dataclasses.replace(r.coordinates, seed=0): r for r in all_rows}


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

  Args:
    runs: all runs.
    benchmark: its name.
    split: which.

  Returns:
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

  Args:
    runs: all runs.
    benchmark: its name.
    split: which.
  """
  found = all_counts(runs, benchmark, split)
  return found[0] if len({c['accuracy'] for c in found}) == 1 else {}


def all_counts(
  runs: Sequence[results.Run], benchmark: str, split: str
) -> list[Mapping[str, Any]]:
  """What prepare counted in a split, of all data that has an accuracy.

  Args:
    runs: all runs.
    benchmark: its name.
    split: which.
  """
  own = (r for r in runs if r.coordinates.benchmark == benchmark)
  first = {run.macros.get('DATA_DIR'): run for run in own}
  found = []
  for data in (run.data for run in first.values()):
    if data is not None and split in data.splits:
      counts = data.metadata['splits'].get(split, {}).get('counts', {})
      if counts.get('accuracy') is not None:
        found.append(counts)
  return found
