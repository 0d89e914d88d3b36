# SPDX-License-Identifier: Apache-2.0
"""Line charts as SVG text, for a page that brings its own style sheet.

Colours come from CSS classes, so one picture serves light and dark pages.
Every point carries its values as a tooltip, and the whole a description.
"""

import dataclasses
import html
import math
from collections.abc import Sequence

from dsbs_jax import contract
from dsbs_jax.reporting import markers

WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 44

# A reference further off than so many times the range of the points is noted
# at the edge.
FAR = 1.5

_NOTE_HEIGHT = 15
_MARK_DISTANCE = 13


@dataclasses.dataclass(frozen=True)
class Point:
  """A mean with its standard error (or None) and a tooltip."""

  x: float
  y: float
  error: float | None = None
  tooltip: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
  """A line.

  Attributes:
    label: its name.
    style: CSS class that sets its colour and dashes.
    marker: one of `markers.NAMES`, or '' for a line without marks.
    points: in the order of x.
  """

  label: str
  style: str
  marker: str = ''
  points: Sequence[Point] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
  """A line chart.

  Attributes:
    title: what it shows, for screen readers.
    x_label: text below.
    y_label: text at the left.
    series: the lines.
    lines: (y, text) of horizontal reference lines; one that is far off the
      points is noted at the edge instead of pressing them flat.
    marks: single points from elsewhere, drawn hollow; their style is a CSS
      class too.
    x_ticks: (x, text), or () for round numbers.
    log_x: whether x is logarithmic.
    floor: lowest y that makes sense, or None.
    ceiling: highest y that makes sense, or None.
  """

  title: str
  x_label: str
  y_label: str
  series: Sequence[Series]
  lines: Sequence[tuple[float, str]] = ()
  marks: Sequence[Series] = ()
  x_ticks: Sequence[tuple[float, str]] = ()
  log_x: bool = False
  floor: float | None = 0.0
  ceiling: float | None = None


@dataclasses.dataclass(frozen=True)
class _Scale:
  """Maps values to pixels."""

  low: float
  high: float
  start: float
  stop: float
  log: bool = False

  def __call__(self, value: float) -> float:
    low, high = self.low, self.high
    if self.log:
      low, high, value = math.log(low), math.log(high), math.log(value)
    share = 0.5 if high == low else (value - low) / (high - low)
    return self.start + share * (self.stop - self.start)


def svg(chart: Chart, *, name: str) -> str:
  """Draws a chart.

  Args:
    chart: what to draw; at least one series has a point.
    name: unique in the page; prefix of element ids.

  Returns:
    An `<svg>` element.
  """
  x, y, y_ticks = _scales(chart)
  parts = [
    f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
    f' aria-labelledby="{name}-t {name}-d">',
    f'<title id="{name}-t">{html.escape(chart.title)}</title>',
    f'<desc id="{name}-d">{html.escape(_description(chart))}</desc>',
    *_axes(chart, x, y, y_ticks),
    *_all_series(chart, x, y),
    *_references(chart, x, y),
    '</svg>',
  ]
  return '\n'.join(parts)


def _scales(chart: Chart) -> tuple[_Scale, _Scale, list[float]]:
  points = [p for s in chart.series for p in s.points]
  if not points:
    raise contract.UserError(
      f'the chart {chart.title!r} has no points, expected one at least. Leave'
      ' the chart out.'
    )
  low, high = _y_range(chart)
  pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
  low, high = low - pad, high + pad
  if chart.floor is not None:
    low = max(low, chart.floor)
  if chart.ceiling is not None:
    high = min(high, chart.ceiling)
  ticks = round_numbers(low, high)
  xs = [p.x for p in points] + [value for value, _ in chart.x_ticks]
  left, right = min(xs), max(xs)
  if chart.log_x:
    left, right = left / 1.15, right * 1.15
  x = _Scale(left, right, LEFT + 8, WIDTH - RIGHT - 8, chart.log_x)
  notes = len(_off_scale(chart, low, high))
  y = _Scale(low, high, HEIGHT - BOTTOM, TOP + _NOTE_HEIGHT * notes)
  return x, y, ticks


def _y_range(chart: Chart) -> tuple[float, float]:
  """Lowest and highest y, with the references that are not far off."""
  points = [p for series in chart.series for p in series.points]
  low = min(p.y - (p.error or 0) for p in points)
  high = max(p.y + (p.error or 0) for p in points)
  reach = FAR * max(high - low, 0.1 * abs(high))
  references = [value for value, _ in chart.lines]
  references += [p.y for mark in chart.marks for p in mark.points]
  near = [v for v in references if low - reach <= v <= high + reach]
  return min([low, *near]), max([high, *near])


def round_numbers(low: float, high: float, *, count: int = 5) -> list[float]:
  """About `count` round numbers within an interval; its end if it is empty."""
  if not low < high:
    return [low]
  step = 10.0 ** math.floor(math.log10((high - low) / count))
  step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= count)
  first = math.ceil(low / step - 1e-9)
  last = math.floor(high / step + 1e-9)
  return [round(i * step, 12) for i in range(first, last + 1)]


def _axes(
  chart: Chart, x: _Scale, y: _Scale, y_ticks: Sequence[float]
) -> list[str]:
  bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
  parts = []
  for value in y_ticks:
    at = y(value)
    parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{right}"/>')
    parts.append(_text(LEFT - 6, at + 4, f'{value:g}', 'tick end'))
  parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
  ticks = chart.x_ticks or [
    (value, f'{value:,g}') for value in round_numbers(x.low, x.high)
  ]
  shown = -math.inf
  for value, label in sorted(ticks):
    at, width = x(value), 7.0 * len(label)
    parts.append(f'<path class="axis" d="M{at:.1f} {bottom}v5"/>')
    if at - width / 2 > shown:
      parts.append(_text(at, bottom + 18, label, 'tick middle'))
      shown = at + width / 2
  middle = (TOP + bottom) / 2
  parts.append(
    _text((LEFT + right) / 2, HEIGHT - 6, chart.x_label, 'label middle')
  )
  parts.append(
    f'<text class="label middle" transform="translate(14 {middle:.1f})'
    f' rotate(-90)">{html.escape(chart.y_label)}</text>'
  )
  return parts


def _references(chart: Chart, x: _Scale, y: _Scale) -> list[str]:
  """Lines and marks from elsewhere; those off the scale as notes."""
  parts = []
  for value, label in chart.lines:
    if y.low <= value <= y.high:
      at = y(value)
      above = at - 5 if at > TOP + 18 else at + 14
      parts.append(
        f'<path class="reference" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>'
      )
      parts.append(_text(LEFT + 6, above, label, 'note'))
  for place, mark in enumerate(chart.marks):
    beside = _MARK_DISTANCE * (place - (len(chart.marks) - 1))
    for point in mark.points:
      if y.low <= point.y <= y.high:
        at = (x(point.x) + beside, y(point.y))
        inside = markers.shape(mark.marker, *at, point.tooltip, 6.0)
        parts.append(f'<g class="{mark.style} published">{inside}</g>')
  for place, (value, label) in enumerate(_off_scale(chart, y.low, y.high)):
    arrow = '\u2191' if value > y.high else '\u2193'
    top = 12 + _NOTE_HEIGHT * place
    parts.append(_text(LEFT + 6, top, f'{arrow} {label}', 'note'))
  return parts


def _off_scale(
  chart: Chart, low: float, high: float
) -> list[tuple[float, str]]:
  """Values and labels from elsewhere that are outside, highest first."""
  marks = [(p.y, mark.label) for mark in chart.marks for p in mark.points]
  return sorted(
    (pair for pair in (*chart.lines, *marks) if not low <= pair[0] <= high),
    reverse=True,
  )


def _all_series(chart: Chart, x: _Scale, y: _Scale) -> list[str]:
  parts = []
  marked = [series for series in chart.series if series.marker]
  for series in chart.series:
    if not series.points:
      continue
    # Methods often meet in the same x: each is drawn a little beside.
    place = marked.index(series) if series.marker else 0
    beside = 3.0 * (place - (len(marked) - 1) / 2) if series.marker else 0.0
    ends = [(x(p.x) + beside, y(p.y), p) for p in series.points]
    line = 'M' + 'L'.join(f'{a:.1f} {b:.1f}' for a, b, _ in ends)
    parts.append(f'<g class="{series.style}">')
    if not series.marker:
      parts.append(_band(series, x, y))
    parts.append(f'<path class="line" d="{line}"><title>')
    parts[-1] += f'{html.escape(series.label)}</title></path>'
    if series.marker:
      for a, b, point in ends:
        if point.error:
          top, bottom = y(point.y + point.error), y(point.y - point.error)
          parts.append(
            f'<path class="error" d="M{a:.1f} {top:.1f}V{bottom:.1f}'
            f'm-3 0h6M{a - 3:.1f} {top:.1f}h6"/>'
          )
        parts.append(markers.shape(series.marker, a, b, point.tooltip))
    parts.append('</g>')
  return parts


def _band(series: Series, x: _Scale, y: _Scale) -> str:
  """The range of one standard error around a line."""
  wide = [p for p in series.points if p.error]
  if len(wide) < 2:
    return ''
  over = [f'{x(p.x):.1f} {y(p.y + p.error):.1f}' for p in wide]
  under = [f'{x(p.x):.1f} {y(p.y - p.error):.1f}' for p in reversed(wide)]
  return f'<path class="band" d="M{"L".join(over + under)}z"/>'


def _text(x: float, y: float, text: str, style: str) -> str:
  return (
    f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{html.escape(text)}</text>'
  )


def _description(chart: Chart) -> str:
  """All series in words: label, then x and y of its first and last point."""
  sentences = [f'{chart.y_label} against {chart.x_label.lower()}.']
  for series in (*chart.series, *chart.marks):
    if series.points:
      first, last = series.points[0], series.points[-1]
      ends = f'{first.y:.2f} at {first.x:g}'
      if first != last:
        ends += f' to {last.y:.2f} at {last.x:g}'
      sentences.append(f'{series.label}: {ends}.')
  sentences += [f'{label}: {value:.2f}.' for value, label in chart.lines]
  return ' '.join(sentences)
