# SPDX-License-Identifier: Apache-2.0
"""Charts put values where their axes say, and are well-formed."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from dsbs_jax.reporting import charts, markers


def _chart(points, **changed):
  series = charts.Series(
    label='ours', style='dsbs gt', marker='square', points=points
  )
  given = {
    'title': 'T',
    'x_label': 'Share',
    'y_label': 'Accuracy',
    'series': [series],
  }
  return charts.Chart(**{**given, **changed})


def _draw(chart):
  return ElementTree.fromstring(charts.svg(chart, name='c'))


def _of(root, name, style):
  return [e for e in root.iter(name) if style in e.get('class', '').split()]


def _start(path):
  return tuple(map(float, re.match(r'M(\S+) (\S+?)[a-zA-Z]', path).groups()))


def _markers(root):
  return [_start(e.get('d')) for e in _of(root, 'path', 'marker')]


def _value_at(root, height):
  """Reads a height off the axis, as an eye does: between two labels."""
  ticks = [
    (float(e.text), float(e.get('y')) - 4) for e in _of(root, 'text', 'end')
  ]
  (low, bottom), (high, top) = ticks[0], ticks[-1]
  return low + (height - bottom) * (high - low) / (top - bottom)


def test_a_point_is_read_off_the_axis_as_it_was_put_in():
  values = [12.5, 31.0, 27.25, 44.0]
  points = [
    charts.Point(x, y) for x, y in zip((1, 2, 3, 4), values, strict=True)
  ]
  root = _draw(_chart(points))
  read = [_value_at(root, y) for _, y in _markers(root)]
  assert read == pytest.approx(values, abs=0.1)


def test_error_bars_span_one_error_to_each_side():
  points = [charts.Point(1, 20.0, 3.0), charts.Point(2, 40.0, None)]
  root = _draw(_chart(points))
  (bar,) = _of(root, 'path', 'error')
  top = _start(bar.get('d'))[1]
  bottom = float(re.search(r'V([\d.]+)', bar.get('d'))[1])
  assert _value_at(root, top) == pytest.approx(23.0, abs=0.1)
  assert _value_at(root, bottom) == pytest.approx(17.0, abs=0.1)


def test_a_log_axis_spaces_ratios_equally():
  points = [charts.Point(10.0**i, float(i)) for i in range(6, 10)]
  places = [x for x, _ in _markers(_draw(_chart(points, log_x=True)))]
  gaps = [b - a for a, b in zip(places[:-1], places[1:], strict=True)]
  assert gaps == pytest.approx([gaps[0]] * 3, abs=0.2)


def test_everything_lies_inside_the_picture():
  points = [charts.Point(x, y, 5.0) for x, y in ((1, 0.0), (9, 100.0))]
  line = charts.Series(label='l', style='s', points=points)
  chart = _chart(points, series=[*_chart(points).series, line], ceiling=100.0)
  for x, y in _markers(_draw(chart)):
    assert 0 < x < charts.WIDTH
    assert 0 < y < charts.HEIGHT


def test_a_near_reference_is_a_line_and_a_far_one_a_note():
  points = [charts.Point(1, 50.0), charts.Point(2, 60.0)]
  near = _draw(_chart(points, lines=[(65.0, 'the LLM')]))
  (line,) = _of(near, 'path', 'reference')
  assert _value_at(near, _start(line.get('d'))[1]) == pytest.approx(65, abs=0.1)
  far = _draw(_chart(points, lines=[(99.0, 'the LLM')]))
  assert not _of(far, 'path', 'reference')
  assert [e.text for e in _of(far, 'text', 'note')] == ['\u2191 the LLM']
  # The note stands above the points, not on them.
  assert min(y for _, y in _markers(far)) > 20


def test_marks_from_elsewhere_stand_at_their_value():
  points = [charts.Point(50, 50.0), charts.Point(100, 60.0)]
  star = charts.Series(
    label='paper',
    style='dsbs gt',
    marker=markers.STAR,
    points=[charts.Point(100, 63.0)],
  )
  root = _draw(_chart(points, marks=[star]))
  (group,) = _of(root, 'g', 'published')
  height = _start(group[0].get('d'))[1]
  assert _value_at(root, height) == pytest.approx(63, abs=0.1)


def test_a_line_without_markers_has_a_band_of_one_error():
  points = [charts.Point(i, 10.0 + i, 1.0) for i in range(5)]
  series = charts.Series(label='l', style='s', points=points)
  (band,) = _of(_draw(_chart(points, series=[series])), 'path', 'band')
  assert band.get('d').count('L') == 2 * 5 - 1


def test_screen_readers_get_the_numbers():
  root = _draw(_chart([charts.Point(25, 40.0), charts.Point(100, 47.5)]))
  names = root.get('aria-labelledby').split()
  ids = {e.get('id'): e.text for e in root.iter() if e.get('id')}
  assert list(ids) == names
  assert 'ours: 40.00 at 25 to 47.50 at 100.' in ids['c-d']


@pytest.mark.parametrize('values', [(0.0,), (5.0, 5.0), (1e-9, 2e-9), (1e6,)])
def test_odd_ranges_are_drawn(values):
  root = _draw(_chart([charts.Point(i, v) for i, v in enumerate(values)]))
  assert all(math.isfinite(y) for _, y in _markers(root))
  assert _of(root, 'text', 'end')


def test_a_chart_without_points_is_an_error():
  with pytest.raises(ValueError, match='has no points'):
    charts.svg(_chart([]), name='c')


@pytest.mark.parametrize(
  ('low', 'high'), [(0, 1), (12.2, 63.9), (-4, 0.5), (0.001, 0.0042), (1, 1e6)]
)
def test_ticks_are_round_and_inside(low, high):
  ticks = charts.round_numbers(low, high)
  assert 2 <= len(ticks) <= 6
  assert low - 1e-9 <= ticks[0] <= ticks[-1] <= high + 1e-9
  step = ticks[1] - ticks[0]
  mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
  assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-6
