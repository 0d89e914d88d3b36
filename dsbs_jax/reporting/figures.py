# SPDX-License-Identifier: Apache-2.0
"""The paper's figures from our runs: by share of data, by size, by step."""

import dataclasses
from collections.abc import Iterable, Sequence

from dsbs_jax.reporting import (
  charts,
  comparison,
  markers,
  paper_numbers,
  tables,
)
from dsbs_jax.runs import results, run_folder, run_names

LABELS = {'gt': 'human labels', 'llm': "the LLM's labels"}
_MAX_CURVE_POINTS = 120
_CURVES = (
  ('Label loss in training', 'label/loss'),
  ('Rationale loss in training', 'rationale/loss'),
)


@dataclasses.dataclass(frozen=True)
class Figure:
  """A chart with its heading and its caption."""

  heading: str
  chart: charts.Chart
  caption: str = ''


def by_fraction(
  rows: Sequence[comparison.Row], *, llm: float | None
) -> list[Figure]:
  """Accuracy against the share of data, one figure per source of labels.

  Args:
    rows: the settings of one benchmark and one model.
    llm: the LLM's own accuracy.
  """
  found = []
  for source, words in LABELS.items():
    mine = [row for row in rows if _source(row) == source]
    series = _series(mine, x=lambda row: 100 * row.coordinates.fraction)
    if not series:
      continue
    shares = sorted({100 * row.coordinates.fraction for row in mine})
    chart = charts.Chart(
      title=f'Accuracy on test against training data, {words}',
      x_label='Training data (%)',
      y_label='Accuracy on test (%)',
      series=series,
      lines=_llm_line(llm),
      marks=_published(mine),
      x_ticks=[(s, run_names.decimal_text(round(s, 6))) for s in shares],
      log_x=shares[0] < 4 and len(shares) > 1,
      ceiling=100.0,
    )
    caption = _count_text(mine)
    if chart.marks:
      caption += (
        f' Stars, at 100 %: {paper_numbers.SOURCE}, {paper_numbers.MODEL}, pre-trained;'
        ' compare with a model like that only. Arrows: values off the scale.'
      )
    found.append(Figure(f'Trained on {words}', chart, caption))
  return found


def by_size(
  rows: Sequence[comparison.Row], *, llm: float | None
) -> list[Figure]:
  """Accuracy against the model's size, one figure per source of labels.

  Args:
    rows: the settings of one benchmark and one share of the data.
    llm: the LLM's own accuracy.
  """
  found = []
  for source, words in LABELS.items():
    mine = [r for r in rows if _source(r) == source and r.num_params]
    sizes = sorted({(row.num_params, row.coordinates.model) for row in mine})
    series = _series(mine, x=lambda row: row.num_params)
    if len(sizes) < 2 or not series:
      continue
    chart = charts.Chart(
      title=f'Accuracy on test against model size, {words}',
      x_label='Parameters of the model',
      y_label='Accuracy on test (%)',
      series=series,
      lines=_llm_line(llm),
      x_ticks=[
        (count, f'{name} {results.size_text(count)}') for count, name in sizes
      ],
      log_x=True,
      ceiling=100.0,
    )
    found.append(Figure(f'Trained on {words}', chart, _count_text(mine)))
  return found


def by_step(rows: Sequence[comparison.Row]) -> list[Figure]:
  """Learning curves of one benchmark, model and share of the data.

  Both loss terms as logged in training and the accuracy on validation; means
  over seeds, the band is one standard error.
  """
  found = []
  for heading, key in _CURVES:
    series = _curves(rows, lambda run, key=key: _column(run.trained, key))
    if series:
      chart = _step_chart(heading, 'Cross entropy per token', series)
      found.append(Figure(heading, chart))
  for split in (run_folder.VALIDATION, run_folder.TEST):
    series = _curves(
      rows,
      lambda run, split=split: _column(run.evaluated.get(split), 'accuracy'),
    )
    if series:
      heading = f'Accuracy on {split}'
      found.append(Figure(heading, _step_chart(heading, 'Percent', series)))
  return found


def legend(rows: Iterable[comparison.Row]) -> list[charts.Series]:
  """An entry per method, in the order of tables."""
  entries = {}
  for row in rows:
    entries.setdefault(row.coordinates.title, _line(row))
  return list(entries.values())


def _series(rows: Sequence[comparison.Row], *, x) -> list[charts.Series]:
  """A line per method and setting through the chosen accuracies."""
  lines = {}
  for row in rows:
    if row.chosen is not None:
      lines.setdefault(row.coordinates.title, []).append(row)
  return [
    dataclasses.replace(
      _line(members[0]),
      points=[
        charts.Point(x(row), row.chosen.mean, row.chosen.error, _tooltip(row))
        for row in sorted(members, key=x)
      ],
    )
    for members in lines.values()
  ]


def _line(row: comparison.Row) -> charts.Series:
  """Colour and dashes by method, the marker by what else was varied."""
  source, _, form = row.coordinates.method.partition('_')
  style = 'label-only' if form == 'label' else form
  forms = ('finetune', 'dsbs', 'single', 'label', 'answer_first')
  place = forms.index(form) + sum(map(ord, ' '.join(row.coordinates.setting)))
  return charts.Series(
    label=row.coordinates.title,
    style=f'{style} {source}',
    marker=markers.NAMES[place % len(markers.NAMES)],
  )


def _tooltip(row: comparison.Row) -> str:
  point = row.coordinates
  return (
    f'{point.title}, {tables.model_title(row)},'
    f' {tables.percent(point.fraction)} of the data:'
    f' {row.chosen.text()} (n = {row.chosen.count})'
  )


def _published(rows: Sequence[comparison.Row]) -> list[charts.Series]:
  marks = []
  for row in rows:
    point = row.coordinates
    value = paper_numbers.accuracy(
      point.benchmark, point.method, point.fraction
    )
    if value is not None and not point.setting:
      text = f'{value:.2f} published: {point.title}'
      place = charts.Point(100.0, value, None, text)
      marks.append(
        dataclasses.replace(
          _line(row), label=text, marker=markers.STAR, points=[place]
        )
      )
  return marks


def _llm_line(llm: float | None) -> list[tuple[float, str]]:
  return [] if llm is None else [(llm, f'the LLM itself: {llm:.1f}')]


def _curves(rows: Sequence[comparison.Row], column) -> list[charts.Series]:
  """A line per row: means of its runs at the steps that all of them have."""
  series = []
  for row in rows:
    columns = [values for run in row.runs if (values := column(run))]
    if not columns:
      continue
    steps = sorted(set.intersection(*(set(values) for values in columns)))
    stride = -(-len(steps) // _MAX_CURVE_POINTS) if steps else 1
    steps = steps[::-1][::stride][::-1]
    scores = [comparison.score(values[s] for values in columns) for s in steps]
    points = [
      charts.Point(step, value.mean, value.error)
      for step, value in zip(steps, scores, strict=True)
    ]
    if points:
      line = dataclasses.replace(_line(row), marker='', points=points)
      series.append(line)
  return series


def _column(by_step, key: str) -> dict[int, float]:
  values = (by_step or {}).items()
  return {step: metrics[key] for step, metrics in values if key in metrics}


def _step_chart(
  title: str, y_label: str, series: Sequence[charts.Series]
) -> charts.Chart:
  return charts.Chart(
    title=title, x_label='Step', y_label=y_label, series=series
  )


def _source(row: comparison.Row) -> str:
  return row.coordinates.method.split('_')[0]


def _count_text(rows: Sequence[comparison.Row]) -> str:
  counts = sorted({row.chosen.count for row in rows if row.chosen})
  if counts[-1] == 1:
    return 'One run a point.'
  words = ' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))
  return f'{words} runs a point; bars are standard errors.'
