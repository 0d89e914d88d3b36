# SPDX-License-Identifier: Apache-2.0
"""What the runs say, in sentences: gains, data saved, and the caveats."""

import dataclasses
from collections.abc import Sequence

from dsbs_jax.reporting import comparison, tables
from dsbs_jax.runs import results


@dataclasses.dataclass(frozen=True)
class Fact:
  """One finding: a figure, what it is, and of which setting."""

  figure: str
  text: str
  where: str


def facts(
  runs: Sequence[results.Run], rows: Sequence[comparison.Row]
) -> list[Fact]:
  """The findings on each benchmark and model, at their largest share of data.

  Args:
    runs: all runs.
    rows: their comparison.
  """
  found = []
  for (benchmark, model), members in tables.by_model(rows).items():
    where = f'{benchmark}, {model}'
    most = max(row.coordinates.fraction for row in members)
    for row in members:
      step_by_step = row.coordinates.method.endswith('_dsbs')
      if step_by_step and row.coordinates.fraction == most and row.gain:
        found.append(_gain(row, where))
        found += _saved(row, members, where)
    llm = comparison.llm_accuracy(runs, benchmark)
    if llm is not None:
      found.append(
        Fact(f'{llm:.1f} %', 'is the LLM itself on test.', benchmark)
      )
  return list(dict.fromkeys(found))


def _gain(row: comparison.Row, where: str) -> Fact:
  gain = row.gain
  if gain.error is None:
    sure = 'One seed: it may be chance.'
  elif abs(gain.mean) <= 2 * gain.error:
    sure = f'{gain.count} seeds: within two standard errors of nothing.'
  else:
    sure = f'Paired over {gain.count} seeds.'
  return Fact(
    f'{gain.text(sign=True)} points',
    f'{row.coordinates.title}, over finetuning on the same labels:'
    f' {row.chosen.text()} %. {sure}',
    f'{where}, {tables.percent(row.coordinates.fraction)} of the data',
  )


def _saved(
  row: comparison.Row, members: Sequence[comparison.Row], where: str
) -> list[Fact]:
  """The smallest share whose mean reaches that of finetuning on the most.

  Nothing is said of single runs, where finetuning learned nothing, or of a
  share at which finetuning itself does as well as on the most.
  """
  source = row.coordinates.method.split('_')[0]
  finetuned = {
    other.coordinates.fraction: other
    for other in members
    if other.coordinates.method == f'{source}_{comparison.BASELINE_FORM}'
    and not other.coordinates.setting
  }
  target = finetuned.get(row.coordinates.fraction)
  if target is None or not target.chosen or not target.chosen.mean:
    return []
  as_well = {
    fraction
    for fraction, other in finetuned.items()
    if other.chosen is not None and other.chosen.mean >= target.chosen.mean
  }
  shares = [
    other.coordinates.fraction
    for other in members
    if other.coordinates.title == row.coordinates.title
    and other.coordinates.fraction < row.coordinates.fraction
    and other.coordinates.fraction not in as_well
    and other.chosen is not None
    and other.chosen.count > 1
    and other.chosen.mean >= target.chosen.mean
  ]
  if not shares:
    return []
  return [
    Fact(
      tables.percent(min(shares)),
      f'of the data is enough for the mean of "{row.coordinates.title}" to'
      f' reach finetuning on {tables.percent(row.coordinates.fraction)}'
      f' ({target.chosen.text()} %).',
      where,
    )
  ]


def notes(runs: Sequence[results.Run]) -> list[str]:
  """What a reader must know before comparing the figures with others."""
  found = [
    'Validation chooses the step of each run and test is read there; the best'
    ' step on test is never used. Means and standard errors are over seeds,'
    ' which change the subset of the data, the initial parameters and the'
    ' order of the examples.'
  ]
  fresh = [run for run in runs if not run.macros.get('INITIAL_CHECKPOINT_PATH')]
  if fresh:
    found.append(
      f'{len(fresh):,} of {len(runs):,} runs start from random parameters, not'
      ' from a pre-trained T5: their accuracies say how the methods compare'
      ' here, and are far below those of pre-trained models.'
    )
  return found
