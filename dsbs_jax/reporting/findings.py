# SPDX-License-Identifier: Apache-2.0
"""What the runs say, in sentences: gains, data saved, and caveats."""

import dataclasses
from collections.abc import Sequence

from dsbs_jax.reporting import comparison, tables
from dsbs_jax.runs import results


@dataclasses.dataclass(frozen=True)
class Finding:
  """A figure in large print, what it is, and for which setting."""

  figure: str
  text: str
  where: str


def findings(
  runs: Sequence[results.Run], rows: Sequence[comparison.Row]
) -> list[Finding]:
  """The findings for each benchmark and model, at its largest share of data.

  Args:
    runs: all runs.
    rows: their comparison.
  """
  found = []
  for (benchmark, model), members in tables.by_model(rows).items():
    where = f'{benchmark}, {model}'
    most = max(row.coordinates.fraction for row in members)
    for row in members:
      is_dsbs = row.coordinates.method.endswith('_dsbs')
      if is_dsbs and row.coordinates.fraction == most and row.gain:
        found.append(_gain(row, where))
        found += _data_saved(row, members, where)
    llm = comparison.llm_accuracy(runs, benchmark)
    if llm is not None:
      text = 'is the test accuracy of the LLM itself.'
      found.append(Finding(f'{llm:.1f} %', text, benchmark))
  return list(dict.fromkeys(found))


def _gain(row: comparison.Row, where: str) -> Finding:
  gain = row.gain
  if gain.error is None:
    verdict = 'One seed only: this may be chance.'
  else:
    is_noise = abs(gain.mean) <= 2 * gain.error
    verdict = (
      f'{"No difference beyond noise" if is_noise else "More than two standard errors"}:'
      f' {gain.mean:+.2f} points, standard error {gain.error:.2f},'
      f' {gain.count} paired seeds.'
    )
  return Finding(
    f'{gain.mean:+.1f} points',
    f'{row.coordinates.title}, over finetuning on the same labels. Test'
    f' accuracy {row.chosen.text()} %. {verdict}',
    f'{where}, {tables.percent(row.coordinates.fraction)} of the training data',
  )


def _data_saved(
  row: comparison.Row, members: Sequence[comparison.Row], where: str
) -> list[Finding]:
  """The smallest share of data that does as well as finetuning on the most.

  Single runs say nothing, nor does finetuning that learned nothing. A share on
  which finetuning itself does as well as on the most saves nothing.
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
  shares = [
    other.coordinates.fraction
    for other in members
    if other.coordinates.title == row.coordinates.title
    and other.coordinates.fraction < row.coordinates.fraction
    and _reaches(other, target)
    and other.chosen.count > 1
    and not _reaches(finetuned.get(other.coordinates.fraction), target)
  ]
  if not shares:
    return []
  text = (
    f'of the training data is enough for "{row.coordinates.title}" to reach'
    f' finetuning on {tables.percent(row.coordinates.fraction)}'
    f' ({target.chosen.text()} %), comparing means.'
  )
  return [Finding(tables.percent(min(shares)), text, where)]


def _reaches(row: comparison.Row | None, target: comparison.Row) -> bool:
  if row is None or row.chosen is None:
    return False
  return row.chosen.mean >= target.chosen.mean


def notes(runs: Sequence[results.Run]) -> list[str]:
  """What a reader must know before comparing the figures with others."""
  found = [
    'Test accuracy is read at the step with the best validation accuracy of'
    ' each run; it never chooses a step. Means and standard errors are over'
    ' seeds. A seed sets the subset of the data, the initial parameters and the'
    ' order of the examples.'
  ]
  fresh = [run for run in runs if not run.macros.get('INITIAL_CHECKPOINT_PATH')]
  if fresh:
    found.append(
      f'{len(fresh):,} of {len(runs):,} runs start from random parameters, not'
      ' from a pre-trained T5. Compare their methods with each other, not their'
      ' accuracies with those of pre-trained models, which are far higher.'
    )
  return found
