# SPDX-License-Identifier: Apache-2.0
"""The paper's figures from our runs: accuracy by data, by size and by step."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from dsbs_jax.reporting import comparison, line_plot, paper_numbers, tables
from dsbs_jax.runs import results, run_folder, run_names

LABELS = {'gt': 'human labels', 'llm': 'LLM labels'}
# Title of a method -> how its lines are drawn in all figures of a report.
Styles = Mapping[str, Mapping[str, str]]

_MAX_CURVE_POINTS = 120
_LOSS, _ACCURACY = 'Cross-entropy per token', 'Accuracy (%)'
# Heading, y label, what was evaluated (None: training), name of the metric.
_CURVES = (
  ('Label loss in training', _LOSS, None, 'label/loss'),
  ('Rationale loss in training', _LOSS, None, 'rationale/loss'),
  ('Accuracy on validation', _ACCURACY, run_folder.VALIDATION, 'accuracy'),
  ('Accuracy on test', _ACCURACY, run_folder.TEST, 'accuracy'),
)


@dataclasses.dataclass(frozen=True)
class Figure:
  """A plot with its heading and its caption."""

  heading: str
  plot: line_plot.Plot
  caption: str


def styles(rows: Sequence[comparison.Row]) -> Styles:
  """Gives every method and setting a line of its own.

  A method without a setting looks the same in all reports.
  """
  titles = dict.fromkeys(run_names.METHODS.values())
  titles |= dict.fromkeys(row.coordinates.title for row in rows)
  return {title: line_plot.style(i) for i, title in enumerate(titles)}


def by_fraction(
  rows: Sequence[comparison.Row], styles: Styles, *, llm: float | None
) -> list[Figure]:
  """Accuracy against the share of training data; a figure per kind of labels.

  Rows are the settings of one benchmark and one model; llm is the LLM's own
  accuracy in percent.
  """
  found = []
  for labels, members in _by_source(rows).items():
    shares = sorted({100 * row.coordinates.fraction for row in members})
    paper = _paper(members, styles)
    plot = line_plot.Plot(
      title=f'Test accuracy against training data, {labels}',
      x_label='Training data (%)',
      y_label='Test accuracy (%)',
      series=_series(members, styles, x=lambda r: 100 * r.coordinates.fraction),
      references=[*_llm(llm), *paper],
      x_ticks=[(s, run_names.decimal_text(round(s, 6))) for s in shares],
      log_x=shares[0] < 4 and len(shares) > 1,
    )
    caption = _error_text(members)
    if paper:
      caption += (
        f' Paper: {paper_numbers.SOURCE}; a pre-trained {paper_numbers.MODEL}'
        ' on all of the training data. Compare it with such a model only.'
      )
    found.append(Figure(f'Trained on {labels}', plot, caption))
  return found


def by_size(
  rows: Sequence[comparison.Row], styles: Styles, *, llm: float | None
) -> list[Figure]:
  """The same of one share of the data, against the number of parameters.

  A kind of labels needs models of two sizes for a figure. Rows are the settings
  of one benchmark and one share of the data.
  """
  found = []
  for labels, members in _by_source(r for r in rows if r.num_params).items():
    sizes = sorted({(row.num_params, row.coordinates.model) for row in members})
    if len(sizes) < 2:
      continue
    plot = line_plot.Plot(
      title=f'Test accuracy against model size, {labels}',
      x_label='Model parameters',
      y_label='Test accuracy (%)',
      series=_series(members, styles, x=lambda row: row.num_params),
      references=_llm(llm),
      x_ticks=[(n, f'{name} {results.size_text(n)}') for n, name in sizes],
      log_x=True,
    )
    found.append(Figure(f'Trained on {labels}', plot, _error_text(members)))
  return found


def by_step(rows: Sequence[comparison.Row], styles: Styles) -> list[Figure]:
  """Learning curves: both losses in training, accuracies of evaluations.

  Rows are the settings of one benchmark, model and share of the data.
  """
  found = []
  for heading, y_label, split, key in _CURVES:
    series = []
    for row in rows:
      columns = [
        _column(run.evaluated.get(split, {}) if split else run.trained, key)
        for run in row.runs
      ]
      points = _means([column for column in columns if column])
      if points:
        title = row.coordinates.title
        series.append(
          line_plot.Series(label=title, style=styles[title], points=points)
        )
    if series:
      plot = line_plot.Plot(
        title=heading, x_label='Step', y_label=y_label, series=series
      )
      found.append(Figure(heading, plot, ''))
  return found


def _by_source(
  rows: Iterable[comparison.Row],
) -> dict[str, list[comparison.Row]]:
  """Source of labels in words -> its rows with results."""
  return comparison.grouped(
    (row for row in rows if row.chosen is not None),
    lambda row: LABELS[row.coordinates.method.split('_')[0]],
  )


def _series(
  rows: Sequence[comparison.Row],
  styles: Styles,
  *,
  x: Callable[[comparison.Row], float],
) -> list[line_plot.Series]:
  """A line per method through its mean accuracies."""
  lines = comparison.grouped(
    sorted(rows, key=x), lambda row: row.coordinates.title
  )
  return [
    line_plot.Series(
      label=title,
      style=style,
      points=[
        line_plot.Point(
          x(row), row.chosen.mean, row.chosen.error, _tooltip(row)
        )
        for row in lines[title]
      ],
    )
    for title, style in styles.items()
    if title in lines
  ]


def _tooltip(row: comparison.Row) -> str:
  point = row.coordinates
  return (
    f'{point.title}, {tables.model_title(row)},'
    f' {tables.percent(point.fraction)} of the training data:'
    f' {row.chosen.text()} (n = {row.chosen.count})'
  )


def _paper(
  rows: Sequence[comparison.Row], styles: Styles
) -> list[line_plot.Reference]:
  """The paper's accuracies, which it prints for all of the data only."""
  return [
    line_plot.Reference(
      label=f'Paper, {row.coordinates.title}: {value:.2f}',
      y=value,
      x=100.0,
      color=styles[row.coordinates.title]['color'],
    )
    for row in rows
    if (value := paper_numbers.accuracy(row.coordinates)) is not None
  ]


def _llm(accuracy: float | None) -> list[line_plot.Reference]:
  if accuracy is None:
    return []
  label = f'The LLM itself (teacher): {accuracy:.1f}'
  return [line_plot.Reference(label=label, y=accuracy)]


def _means(columns: Sequence[Mapping[int, float]]) -> list[line_plot.Point]:
  """Means over runs at the steps that all have, evenly thinned if many."""
  steps = sorted(set.intersection(*map(set, columns))) if columns else []
  stride = -(-len(steps) // _MAX_CURVE_POINTS) or 1
  points = []
  for step in steps[::-1][::stride][::-1]:  # the last step is always there
    score = comparison.score(values[step] for values in columns)
    text = f'step {step:,}: {score.text()} (n = {score.count})'
    points.append(line_plot.Point(step, score.mean, score.error, text))
  return points


def _column(
  by_step: Mapping[int, run_folder.Metrics], key: str
) -> dict[int, float]:
  """A metric by step, without the steps at which it was not finite."""
  found = {step: metrics.get(key) for step, metrics in by_step.items()}
  return {
    step: value
    for step, value in found.items()
    if value is not None and math.isfinite(value)
  }


def _error_text(rows: Sequence[comparison.Row]) -> str:
  """Says what the error bars are."""
  counts = sorted({row.chosen.count for row in rows})
  if counts[-1] == 1:
    return 'One run per point, so there are no error bars.'
  seeds = ' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))
  return f'Means over {seeds} seeds; bars: ± one standard error.'
