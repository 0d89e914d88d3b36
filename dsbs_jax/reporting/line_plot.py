# SPDX-License-Identifier: Apache-2.0
"""Line plots with error bars: drawn by matplotlib, as SVG inside of a page.

Colours become CSS variables, so that one plot serves light and dark pages.
Text stays text, and names of runs and models mean nothing to matplotlib or the
browser: no mathtext, no markup. Equal plots give equal bytes.
"""

import dataclasses
import io
import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence

import matplotlib.axes
import matplotlib.container
import matplotlib.figure
import matplotlib.lines
import matplotlib.style
import matplotlib.ticker
import matplotlib.transforms
import numpy as np

from dsbs_jax.reporting import svg_element

WIDTH, AXES_HEIGHT, LEGEND_LINE_HEIGHT = 440, 250, 15  # points
MAX_LEGEND_CHARACTERS = 56
# A line with more points has markers and error bars at about so many of them.
MAX_MARKERS = 10
# Distance in points between lines that share their x.
SIDE_STEP = 5

# Line colours on a light page; page.css has their dark counterparts.
COLORS = (
  '#1f6fb2 #c44f00 #2b7a55 #8b4aa0 #8a6100 #b0265f #00707c #5a6472'.split()
)
MARKERS = 'os^DvPX<>ph*d'
LINES = ('-', '--', ':', '-.')

_TEXT, _SOFT, _GRID = '#1b1f27', '#545c6a', '#d5d9e0'
_VARIABLES = {_TEXT: '--text', _SOFT: '--soft', _GRID: '--line'}
_VARIABLES |= {color: f'--series-{i}' for i, color in enumerate(COLORS)}
_SETTINGS = {
  'svg.fonttype': 'none',
  'svg.hashsalt': 'dsbs_jax',
  'text.parse_math': False,
  'text.color': _TEXT,
  'font.size': 11,
  'axes.labelcolor': _TEXT,
  'axes.edgecolor': _SOFT,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'axes.grid.axis': 'y',
  'grid.color': _GRID,
  'xtick.color': _SOFT,
  'ytick.color': _SOFT,
  'errorbar.capsize': 3,
  'legend.frameon': False,
  'legend.handlelength': 3.2,
}


def style(index: int) -> dict[str, str]:
  """How the line at a place in the legend is drawn, as matplotlib's options.

  Marker and line style tell the first 32 lines apart without their colours.
  """
  return {
    'color': COLORS[index % len(COLORS)],
    'marker': MARKERS[index % len(MARKERS)],
    'linestyle': LINES[index // len(COLORS) % len(LINES)],
  }


@dataclasses.dataclass(frozen=True)
class Point:
  """A mean, its standard error (None if unknown) and a tooltip."""

  x: float
  y: float
  error: float | None = None
  tooltip: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
  """A line: its name in the legend, its `style`, its points by ascending x."""

  label: str
  style: Mapping[str, str]
  points: Sequence[Point]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
  """A number from elsewhere to compare with."""

  label: str  # in the legend
  y: float
  x: float | None = None  # where a star marks it; None: a horizontal line
  color: str = _TEXT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
  """What to draw."""

  title: str  # what it shows, for screen readers
  x_label: str
  y_label: str
  series: Sequence[Series]  # one at least
  # One that would press the lines flat stands in the legend only.
  references: Sequence[Reference] = ()
  x_ticks: Sequence[tuple[float, str]] = ()  # none: round numbers
  log_x: bool = False


def svg(plot: Plot, *, name: str) -> str:
  """Draws a plot.

  Args:
    plot: what to draw.
    name: prefix of all element ids, unique in the page.

  Returns:
    An `<svg>` element for an HTML page.
  """
  file = io.StringIO()
  with (
    matplotlib.style.context(['default', _SETTINGS]),
    warnings.catch_warnings(),
  ):
    # The browser draws the letters; matplotlib's font only measures them.
    warnings.filterwarnings('ignore', 'Glyph .* missing from font')
    figure = _draw(plot)
    _hide_overlapping_labels(figure)
    figure.savefig(file, format='svg', transparent=True)
  tooltips = {
    f'series-{index}': [
      point.tooltip for point in series.points[_marked_points(series, index)]
    ]
    for index, series in enumerate(plot.series)
  }
  return svg_element.inline(
    file.getvalue(),
    name=name,
    title=plot.title,
    description=_description(plot),
    tooltips=tooltips,
    variables=_VARIABLES,
  )


def _draw(plot: Plot) -> matplotlib.figure.Figure:
  figure = matplotlib.figure.Figure(layout='constrained')
  axes = figure.add_subplot(xlabel=plot.x_label, ylabel=plot.y_label)
  handles = [
    _draw_series(axes, plot, index) for index in range(len(plot.series))
  ]
  if axes.dataLim.y1 == 0:
    axes.update_datalim([(0, 1)], updatex=False)  # all values are 0
  low, high = axes.get_ylim()
  reach = 1.5 * max(high - low, 0.1 * high)
  for reference in plot.references:
    low, high = axes.get_ylim()
    offset = max(reference.y - high, 0) or min(reference.y - low, 0)
    is_far = abs(offset) > reach
    handles.append(_draw_reference(axes, reference, far=is_far and offset))
  _format_x(axes, plot)
  labels = [
    textwrap.fill(
      svg_element.one_line(handle.get_label()), MAX_LEGEND_CHARACTERS
    )
    for handle in handles
  ]
  num_lines = sum(1 + label.count('\n') for label in labels)
  height = AXES_HEIGHT + LEGEND_LINE_HEIGHT * num_lines
  figure.set_size_inches(WIDTH / 72, height / 72)
  figure.legend(handles, labels, loc='outside lower left')
  return figure


def _draw_series(
  axes: matplotlib.axes.Axes, plot: Plot, index: int
) -> matplotlib.container.ErrorbarContainer:
  """A line with error bars, which do not hide those of other lines.

  Lines of few points, which often share their x, are moved aside; others have
  their markers and bars at other points.
  """
  series = plot.series[index]
  marked = _marked_points(series, index)
  side = SIDE_STEP * (index - (len(plot.series) - 1) / 2)
  aside = matplotlib.transforms.ScaledTranslation(
    side / 72 if marked.step == 1 else 0, 0, axes.figure.dpi_scale_trans
  )
  x, y, error = np.array([(p.x, p.y, p.error) for p in series.points], float).T
  drawn = axes.errorbar(
    x,
    y,
    error,
    **series.style,
    label=series.label,
    elinewidth=1.3,
    errorevery=marked,
    markevery=marked,
    transform=axes.transData + aside,
  )
  drawn.lines[0].set_gid(f'series-{index}')
  # Autoscaling leaves out what has a transform of its own.
  spread = np.nan_to_num(error)
  axes.update_datalim(np.c_[x, y - spread])
  axes.update_datalim(np.c_[x, y + spread])
  return drawn


def _marked_points(series: Series, index: int) -> slice:
  step = -(-len(series.points) // MAX_MARKERS)
  return slice(index % step, None, step)


def _draw_reference(
  axes: matplotlib.axes.Axes, reference: Reference, *, far: float
) -> matplotlib.lines.Line2D:
  """A line or a star; far above or below (far > 0, < 0) a legend's entry."""
  label, color = reference.label, reference.color
  if far:
    label = f'{"↑" if far > 0 else "↓"} {label} (off scale)'
    (drawn,) = axes.plot([], [], color=color, ls='none')
  elif reference.x is None:
    drawn = axes.axhline(reference.y, color=color, ls=(0, (1, 2)), lw=1.3)
  else:
    (drawn,) = axes.plot(
      [reference.x], [reference.y], '*', color=color, ms=12, fillstyle='none'
    )
  drawn.set_label(label)
  return drawn


def _format_x(axes: matplotlib.axes.Axes, plot: Plot) -> None:
  if plot.log_x:
    axes.set_xscale('log')
  if plot.x_ticks:
    places, texts = zip(*plot.x_ticks, strict=True)
    axes.set_xticks(places, [svg_element.one_line(text) for text in texts])
    axes.minorticks_off()
  else:
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter('{x:,g}')


def _hide_overlapping_labels(figure: matplotlib.figure.Figure) -> None:
  """Hides each label of the x axis that would run into the one before."""
  figure.draw_without_rendering()
  end = -math.inf
  for label in figure.axes[0].get_xticklabels():
    box = label.get_window_extent()
    label.set_visible(box.x0 > end)
    if label.get_visible():
      end = box.x1 + 4
  # The layout is done and takes longest: saving need not do it again.
  figure.set_layout_engine('none')


def _description(plot: Plot) -> str:
  """The marked points of each line and the references, in words."""
  sentences = [f'{plot.y_label} against {plot.x_label.lower()}.']
  for series in plot.series:
    points = series.points[_marked_points(series, 0)]
    values = ', '.join(f'{point.y:.2f} at {point.x:g}' for point in points)
    sentences.append(f'{series.label}: {values}.')
  sentences += [f'{r.label}: {r.y:.2f}.' for r in plot.references]
  return ' '.join(sentences)
