# SPDX-License-Identifier: Apache-2.0
"""Plots show values where their axes say, lines apart, and text as text."""

import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest

from dsbs_jax.reporting import line_plot

REPOSITORY = pathlib.Path(__file__).parents[2]
CSS = pathlib.Path(line_plot.__file__).with_name('page.css').read_text()
HOSTILE = (
  r'$\frac{1}{0}$ and $x^2$',
  '</text><script>alert(1)</script>',
  '_begins with an underscore',
  '"quotes" & &lt;entities&gt; #c44f00',
)


def _plot(*series, **options):
  given = {'title': 'T', 'x_label': 'Share', 'y_label': 'Accuracy (%)'}
  lines = [
    line_plot.Series(label=f'line {i}', style=line_plot.style(i), points=points)
    for i, points in enumerate(series)
  ]
  return line_plot.Plot(**{**given, 'series': lines, **options})


def _points(*values, error=None):
  return [line_plot.Point(i, y, error) for i, y in enumerate(values, start=1)]


def _draw(plot):
  return ElementTree.fromstring(line_plot.svg(plot, name='p'))


def _group(root, name):
  return root.find(f".//g[@id='p-{name}']")


def _places(group):
  """Positions of the markers of a group."""
  return [(float(u.get('x')), float(u.get('y'))) for u in group.iter('use')]


def _texts(root):
  return [element.text for element in root.iter('text')]


def _ticks(root, axis):
  """(text, x, y) of the labelled ticks of an axis."""
  ticks = []
  for group in root.iter('g'):
    if re.fullmatch(rf'p-{axis}tick_\d+', group.get('id', '')):
      ticks += [(t.text, *_places(group)[0]) for t in group.iter('text')]
  return ticks


def _value_at(root, height):
  """Reads a height off the y axis as an eye does, between two labels."""
  ticks = [(float(t.replace('−', '-')), y) for t, _, y in _ticks(root, 'y')]
  (low, bottom), (high, top) = ticks[0], ticks[-1]
  return low + (height - bottom) * (high - low) / (top - bottom)


def _error_bars(root):
  """x, lower value and upper value of each error bar."""
  paths = [
    path.get('d')
    for group in _group(root, 'axes_1')
    if 'LineCollection' in group.get('id')
    for path in group
    if path.get('d')
  ]
  ends = [[float(n) for n in re.findall(r'[\d.]+', path)] for path in paths]
  return [
    (x, _value_at(root, low), _value_at(root, high)) for x, low, _, high in ends
  ]


def test_a_point_is_read_off_the_axis_as_it_was_put_in():
  values = [12.5, 31.0, 27.25, 44.0]
  root = _draw(_plot(_points(*values)))
  read = [_value_at(root, y) for _, y in _places(_group(root, 'series-0'))]
  assert read == pytest.approx(values, abs=0.05)


def test_error_bars_span_one_error_to_each_side_where_it_is_known():
  points = [line_plot.Point(1, 20.0, 3.0), line_plot.Point(2, 40.0)]
  root = _draw(_plot(points))
  (bar,) = _error_bars(root)
  assert bar[1:] == pytest.approx((17.0, 23.0), abs=0.05)


def test_error_bars_of_lines_with_the_same_points_do_not_hide_each_other():
  lines = [_points(20.0, 30.0, error=2.0) for _ in range(4)]
  assert len({x for x, _, _ in _error_bars(_draw(_plot(*lines)))}) == 8


def test_lines_differ_in_marker_or_dashes_without_their_colours():
  styles = [line_plot.style(i) for i in range(32)]
  assert len({(s['marker'], s['linestyle']) for s in styles}) == 32
  root = _draw(_plot(*(_points(i, i + 1.0) for i in range(32))))
  looks = set()
  for i in range(32):
    line = _group(root, f'series-{i}')
    dashes = re.search('stroke-dasharray: ([^;]*)', line[0].get('style'))
    shape = line.find('.//defs/path').get('d')
    looks.add((shape, dashes and dashes[1]))
  assert len(looks) == 32


def test_lines_of_many_points_have_bars_and_markers_at_some():
  points = [line_plot.Point(i, 50.0 + i, 2.0, f'{i}') for i in range(40)]
  root = _draw(_plot(points, points))
  bars = _error_bars(root)
  assert len(bars) == 20
  marked = set()
  for i in range(2):
    markers = list(_group(root, f'series-{i}').iter('use'))
    marked |= {marker.find('title').text for marker in markers}
    for marker, bar in zip(markers, bars[10 * i :][:10], strict=True):
      value = 50.0 + int(marker.find('title').text)
      assert bar[1:] == pytest.approx((value - 2.0, value + 2.0), abs=0.1)
  assert len(marked) == 20


def test_a_log_axis_spaces_ratios_equally():
  points = [line_plot.Point(10.0**i, float(i)) for i in range(6, 10)]
  root = _draw(_plot(points, log_x=True))
  xs = [x for x, _ in _places(_group(root, 'series-0'))]
  gaps = [b - a for a, b in zip(xs[:-1], xs[1:], strict=True)]
  assert gaps == pytest.approx([gaps[0]] * 3, abs=0.2)


def test_a_near_reference_is_a_line_and_a_far_one_in_the_legend_only():
  def draw(value):
    reference = line_plot.Reference(label='teacher', y=value)
    return _draw(_plot(_points(50.0, 60.0), references=[reference]))

  near, far, low = draw(65.0), draw(99.0), draw(1.0)
  dotted = [p for p in near.iter('path') if 'dasharray' in p.get('style', '')]
  heights = [float(re.search(r'M \S+ (\S+)', p.get('d'))[1]) for p in dotted]
  assert _value_at(near, heights[0]) == pytest.approx(65.0, abs=0.05)
  assert 'teacher' in _texts(near)
  assert '↑ teacher (off scale)' in _texts(far)
  assert '↓ teacher (off scale)' in _texts(low)
  assert [t for t, *_ in _ticks(far, 'y')] == [
    t for t, *_ in _ticks(_draw(_plot(_points(50.0, 60.0))), 'y')
  ]


def test_a_star_stands_at_its_value():
  star = line_plot.Reference(label='paper', y=58.0, x=2.0)
  root = _draw(_plot(_points(50.0, 60.0), references=[star]))
  markers = _places(_group(root, 'axes_1'))
  right = _places(_group(root, 'series-0'))[1]
  (found,) = (
    y
    for x, y in markers
    if abs(x - right[0]) < 0.5 and abs(_value_at(root, y) - 58.0) < 0.05
  )
  assert found > right[1]


def test_hostile_text_is_text():
  for text in HOSTILE:
    series = line_plot.Series(
      label=text, style=line_plot.style(0), points=_points(1.0, 2.0)
    )
    plot = _plot(series=[series], x_label=text, title=text)
    drawn = line_plot.svg(plot, name='p')
    root = ElementTree.fromstring(drawn)
    assert _texts(root).count(text) == 2
    assert root.find('title').text == text
    tags = {element.tag for element in root.iter()}
    assert tags <= {
      *'svg title desc g path defs use text clipPath rect'.split()
    }


def test_characters_that_no_page_can_hold_are_escaped():
  text = 'nul \0, \ud800, \u202e and \ufffe\nend'
  series = line_plot.Series(
    label=text, style=line_plot.style(0), points=_points(1.0)
  )
  shown = r'nul \x00, \ud800, \u202e and \ufffe end'
  assert shown in _texts(_draw(_plot(series=[series])))


def test_long_names_are_wrapped_and_the_picture_grows():
  def draw(label):
    series = line_plot.Series(
      label=label, style=line_plot.style(0), points=_points(1.0, 2.0)
    )
    return _draw(_plot(series=[series]))

  short, long = draw('short'), draw('many words ' * 40)
  assert max(len(text) for text in _texts(long)) <= 56
  height = [float(r.get('viewBox').split()[3]) for r in (short, long)]
  assert height[1] > height[0] + 5 * line_plot.LEGEND_LINE_HEIGHT


def test_labels_of_x_that_would_overlap_are_left_out():
  points = [line_plot.Point(x, 1.0) for x in (1.0, 50.0, 50.5, 100.0)]
  ticks = [(point.x, f'{point.x:g} of them') for point in points]
  root = _draw(_plot(points, x_ticks=ticks))
  shown = [text for text, *_ in _ticks(root, 'x')]
  assert shown == ['1 of them', '50 of them', '100 of them']


def test_equal_plots_are_equal_bytes_whatever_the_user_has_set():
  plot = _plot(_points(1.0, 2.0, error=0.5), _points(2.0, 1.0))
  drawn = line_plot.svg(plot, name='p')
  with matplotlib.rc_context({'font.size': 30, 'svg.fonttype': 'path'}):
    assert line_plot.svg(plot, name='p') == drawn
    assert matplotlib.rcParams['font.size'] == 30


def test_ids_belong_to_the_plot_and_references_lead_to_them():
  root = _draw(_plot(_points(1.0, 2.0, error=0.5), _points(3.0, 2.0)))
  ids = [e.get('id') for e in root.iter() if e.get('id')]
  assert len(set(ids)) == len(ids)
  assert all(name.startswith('p-') for name in ids)
  values = ' '.join(v for e in root.iter() for v in e.attrib.values())
  assert set(re.findall(r'#(p-[\w-]+)', values)) <= set(ids)


def test_tooltips_stand_at_the_points_and_screen_readers_get_the_numbers():
  points = [
    line_plot.Point(25, 40.0, None, 'first'),
    line_plot.Point(100, 47.5, 1.0, '<last>'),
  ]
  root = _draw(_plot(points))
  markers = _group(root, 'series-0').iter('use')
  assert [m.find('title').text for m in markers] == ['first', '<last>']
  names = root.get('aria-labelledby').split()
  texts = {e.get('id'): e.text for e in root.iter() if e.get('id')}
  assert texts[names[0]] == 'T'
  assert 'line 0: 40.00 at 25, 47.50 at 100.' in texts[names[1]]


@pytest.mark.parametrize(
  'values', [(0.0, 0.0), (5.0, 5.0), (100.0,), (0.003, 0.002)]
)
def test_odd_ranges_have_an_axis(values):
  root = _draw(_plot(_points(*values)))
  read = [_value_at(root, y) for _, y in _places(_group(root, 'series-0'))]
  assert read == pytest.approx(values, rel=1e-2, abs=1e-4)
  assert min(float(text) for text, *_ in _ticks(root, 'y')) >= 0


def _contrast(first, second):
  """WCAG's contrast of two colours, 1 to 21."""

  def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
      p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

  low, high = sorted((luminance(first), luminance(second)))
  return (high + 0.05) / (low + 0.05)


def test_lines_are_readable_on_a_light_and_on_a_dark_page():
  light, dark = CSS.split('prefers-color-scheme: dark')
  for part, colors in (
    (light, line_plot.COLORS),
    (dark, re.findall(r'--series-\d+: (#\w{6})', dark)),
  ):
    assert len(colors) == len(line_plot.COLORS)
    panel = re.search(r'--panel: (#\w{6})', part)[1]
    assert min(_contrast(color, panel) for color in colors) > 4


def test_all_colours_are_the_page_s():
  points = _points(1.0, 2.0, error=0.5)
  reference = line_plot.Reference(label='teacher', y=1.5)
  drawn = line_plot.svg(_plot(points, references=[reference]), name='p')
  styles = ' '.join(re.findall('style="([^"]*)"', drawn))
  assert 'var(--series-0, #1f6fb2)' in styles
  assert '#' not in re.sub(r'var\(--[\w-]+, #\w{6}\)', '', styles)


def test_only_the_report_waits_for_matplotlib():
  rooms = 'preparing.prepare training.loop inference.infer_file serving.server'
  rooms += ' exporting.export hardware.planner experiments.sweep'
  code = (
    f'import sys, {", ".join(f"dsbs_jax.{room}" for room in rooms.split())}\n'
    'assert "matplotlib" not in sys.modules\n'
    'import dsbs_jax.reporting.report\n'
    'assert "matplotlib" in sys.modules\n'
    'assert "matplotlib.pyplot" not in sys.modules'
  )
  subprocess.run([sys.executable, '-c', code], cwd=REPOSITORY, check=True)
