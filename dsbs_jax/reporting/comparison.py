# SPDX-License-Identifier: Apache-2.0
"""Runs to numbers: means, standard errors over seeds, gains.

Validation chooses the step of each run; test is reported there and at the
last step. The best step on test is never computed.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from dsbs_jax.runs import results, run_folder, run_names

# The method that each label source's gains are counted from.
BASELINE_FORM = 'finetune'


@dataclasses.dataclass(frozen=True)
class Score:
  """A mean over runs.

  Attributes:
    mean: of the values.
    error: standard error of the mean, None for a single value.
    count: how many values.
  """

  mean: float
  error: float | None
  count: int

  def text(self, *, sign: bool = False) -> str:
    """'61.2 ± 0.4', or the mean alone."""
    mean = f'{self.mean:+.2f}' if sign else f'{self.mean:.2f}'
    return mean if self.error is None else f'{mean} ± {self.error:.2f}'


def score(values: Iterable[float | None]) -> Score | None:
  """Mean and standard error, s / sqrt(n) with s over n - 1.

  Args:
    values: one per run; None where a run has none.

  Returns:
    The score, None without any value.
  """
  known = [value for value in values if value is not None]
  if not known:
    return None
  count = len(known)
  mean = math.fsum(known) / count
  if count == 1:
    return Score(mean, None, 1)
  variance = math.fsum((value - mean) ** 2 for value in known) / (count - 1)
  return Score(mean, math.sqrt(variance / count), count)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One setting: runs that differ in their seed only.

  Attributes:
    coordinates: of the setting; its seed is the first run's.
    runs: the finished runs.
    num_unfinished: runs that have not ended and are not counted.
    num_params: parameters of the model.
    train_examples: training examples of the first run.
    test_last: accuracy on test at the last step.
    test_best: accuracy on test at the best step on validation.
    validation_best: accuracy on validation at that step.
    gain: accuracy over the baseline of the same labels, paired by seed.
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
    """Accuracy on test where validation chose, else at the last step."""
    return self.test_best or self.test_last


def rows(runs: Sequence[results.Run]) -> list[Row]:
  """Groups runs by setting; settings in the order of tables.

  Args:
    runs: all runs; those that have not ended are counted, not averaged.

  Returns:
    One row per setting that has a run.
  """
  groups = {}
  for run in runs:
    groups.setdefault(_setting(run.coordinates), []).append(run)
  found = {key: _row(members) for key, members in groups.items()}
  return [
    dataclasses.replace(row, gain=_gain(row, found))
    for row in sorted(found.values(), key=_order)
  ]


def _setting(
  point: run_names.Coordinates,
) -> run_names.Coordinates:
  return dataclasses.replace(point, seed=0)


def _row(members: Sequence[results.Run]) -> Row:
  ended = tuple(
    sorted(
      (run for run in members if run.finished),
      key=lambda run: run.coordinates.seed,
    )
  )
  first = (ended or tuple(members))[0]
  validated = [run for run in ended if run.best_step is not None]
  return Row(
    coordinates=first.coordinates,
    runs=ended,
    num_unfinished=len(members) - len(ended),
    num_params=first.num_params,
    train_examples=first.train_examples,
    test_last=score(r.accuracy(run_folder.TEST, r.last_step) for r in ended),
    test_best=score(
      r.accuracy(run_folder.TEST, r.best_step) for r in validated
    ),
    validation_best=score(
      r.accuracy(run_folder.VALIDATION, r.best_step) for r in validated
    ),
  )


def _gain(row: Row, found: dict[run_names.Coordinates, Row]):
  """Mean difference to the baseline, over the seeds that both have."""
  source = row.coordinates.method.split('_')[0]
  baseline = dataclasses.replace(
    row.coordinates, method=f'{source}_{BASELINE_FORM}', seed=0
  )
  plain = dataclasses.replace(baseline, setting=())
  against = found.get(baseline) or found.get(plain)
  if against is None or against.coordinates.method == row.coordinates.method:
    return None
  theirs = {run.coordinates.seed: _chosen(run) for run in against.runs}
  differences = [
    _chosen(run) - theirs[run.coordinates.seed]
    for run in row.runs
    if _chosen(run) is not None and theirs.get(run.coordinates.seed) is not None
  ]
  return score(differences)


def _chosen(run: results.Run) -> float | None:
  return run.accuracy(run_folder.TEST, run.chosen_step)


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


def llm_accuracy(runs: Sequence[results.Run], benchmark: str) -> float | None:
  """The LLM's own accuracy on test in percent, where the data tells."""
  for run in runs:
    data = run.data if run.coordinates.benchmark == benchmark else None
    if data is not None and run_folder.TEST in data.splits:
      counts = data.metadata['splits'][run_folder.TEST].get('counts', {})
      value = counts.get('accuracy')
      if value is not None:
        return float(value)
  return None
