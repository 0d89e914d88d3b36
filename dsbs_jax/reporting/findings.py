# SPDX-License-Identifier: Apache-2.0
"""What the runs say, in sentences: gains, data saved, and caveats."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from dsbs_jax.reporting import (
  comparison,
  method_pairs,
  paired_tests,
  references,
  tables,
)
from dsbs_jax.runs import results, run_folder


@dataclasses.dataclass(frozen=True)
class Finding:
  """A figure in large print, what it is, and for which setting."""

  figure: str
  text: str
  where: str


def findings(
  runs: Sequence[results.Run],
  rows: Sequence[comparison.Row],
  compared: Mapping[str, method_pairs.Compared] | None = None,
) -> list[Finding]:
  """The findings for each benchmark and model, at its largest share of data."""
  found = []
  points = comparison.by_point(rows)
  for (benchmark, model), members in tables.by_model(rows).items():
    where = f'{benchmark}, {model}'
    most = max(row.coordinates.fraction for row in members)
    pairs = (compared or {}).get(benchmark)
    methods = {m.coordinates: m for m in pairs.methods} if pairs else {}
    for row in members:
      is_dsbs = row.coordinates.method.endswith('_dsbs')
      if not is_dsbs or row.coordinates.fraction != most:
        continue
      ours = methods.get(row.coordinates)
      if row.gain:
        finetuned = methods.get(comparison.baseline(row, points).coordinates)
        pair = pairs.pair(ours, finetuned) if ours and finetuned else None
        found.append(_gain(row, where, pair))
        found += _data_saved(row, members, where)
      if ours:
        found += _over_references(pairs, ours, row, where)
    llm = comparison.llm_accuracy(runs, benchmark)
    if llm is not None:
      text = 'is the test accuracy of the LLM itself.'
      found.append(Finding(f'{llm:.1f} %', text, benchmark))
  return list(dict.fromkeys(found))


def _gain(
  row: comparison.Row, where: str, pair: method_pairs.Pair | None
) -> Finding:
  gain = row.gain
  if gain.error is None:
    verdict = 'One seed only: this may be chance.'
  else:
    size = 'More than two standard errors'
    if abs(gain.mean) <= 2 * gain.error:
      size = 'No difference beyond noise'
    verdict = (
      f'{size}: {gain.mean:+.2f} points, standard error {gain.error:.2f},'
      f' {gain.count} paired seeds.'
    )
  return Finding(
    f'{gain.mean:+.1f} points',
    f'{row.coordinates.title}, over finetuning on the same labels. Test'
    f' accuracy {row.chosen.text()} %. {verdict}{_tests(pair)}',
    _where(row, where),
  )


def _where(row: comparison.Row, where: str) -> str:
  share = tables.percent(row.coordinates.fraction)
  return f'{where}, {share} of the training data'


def _over_references(
  pairs: method_pairs.Compared,
  ours: method_pairs.Method,
  row: comparison.Row,
  where: str,
) -> Iterator[Finding]:
  """A setting against the untouched student and the teacher."""
  starts = {references.start_of(run) for run in row.runs}
  for other in pairs.methods:
    is_beside = other.kind == references.TEACHER or other.where in starts
    if not other.kind or not is_beside:
      continue
    pair = pairs.pair(ours, other)
    difference = pair.over_examples or pair.over_seeds
    if difference is not None:
      yield Finding(
        f'{difference.mean:+.1f} points',
        f'{row.coordinates.title}, against: {other.title}.{_tests(pair)}',
        _where(row, where),
      )


def _tests(pair: method_pairs.Pair | None) -> str:
  """Both tests in a sentence each; '' where there is none."""
  if pair is None:
    return ''
  text, seeds, examples = '', pair.over_seeds, pair.over_examples
  if seeds and seeds.p_value is not None:
    text += (
      f' Over {seeds.count} seeds (paired t-test, p = {seeds.p_value:.2g})'
      f' {_interval(seeds)}'
    )
  elif seeds and seeds.low is not None:
    text += f' All {seeds.count} seeds have the same difference.'
  if examples and examples.low is not None:
    text += (
      f' Over {examples.count:,} test examples (bootstrap)'
      f' {_interval(examples)}'
    )
  return text


def _interval(difference: paired_tests.Difference) -> str:
  verdict = 'includes 0: it shows no difference.'
  if difference.is_shown:
    verdict = 'leaves out 0.'
  return (
    f'the 95 % interval, {difference.low:+.2f} to {difference.high:+.2f},'
    f' {verdict}'
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


def other_tests(compared: Mapping[str, method_pairs.Compared]) -> list[str]:
  """A sentence for each benchmark whose runs had different test sets."""
  return [
    f'The runs on {name} were tested on different examples, so that their'
    ' accuracies and gains do not compare: the data was prepared again between'
    ' them. Only examples that all have are compared one by one. Train them on'
    ' the same data, or report them apart.'
    for name, methods in compared.items()
    if methods.questions.differ
  ]


def notes(
  runs: Sequence[results.Run],
  compared: Mapping[str, method_pairs.Compared] | None = None,
) -> list[str]:
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
  for name in sorted({run.coordinates.benchmark for run in runs}):
    counts = comparison.all_counts(runs, name, run_folder.TEST)
    if len({each['accuracy'] for each in counts}) > 1:
      found.append(
        f'The data of the runs on {name} has answers of several LLMs, or several'
        ' answers of one, so that no accuracy of a teacher is shown. Report the'
        ' runs of each apart.'
      )
  return found + other_tests(compared or {})
