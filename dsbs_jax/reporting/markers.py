# SPDX-License-Identifier: Apache-2.0
"""Marks of points in a chart, as SVG paths."""

import html
import math

NAMES = ('circle', 'square', 'diamond', 'triangle', 'cross', 'bar')
STAR = 'star'


def shape(
  marker: str, x: float, y: float, tooltip: str = '', radius: float = 4.0
) -> str:
  """A marker as a path, with a tooltip."""
  r = radius
  outlines = {
    'circle': f'm-{r} 0a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 -{2 * r} 0z',
    'square': f'm-{r} -{r}h{2 * r}v{2 * r}h-{2 * r}z',
    'diamond': f'm0 -{1.3 * r}l{1.3 * r} {1.3 * r}l-{1.3 * r} {1.3 * r}'
    f'l-{1.3 * r} -{1.3 * r}z',
    'triangle': f'm0 -{1.2 * r}l{1.2 * r} {2.2 * r}h-{2.4 * r}z',
    'cross': f'm-{r} -{r}l{2 * r} {2 * r}m0 -{2 * r}l-{2 * r} {2 * r}',
    'bar': f'm-{r} -{r / 2}h{2 * r}v{r}h-{2 * r}z',
    STAR: _star(r),
  }
  title = f'<title>{html.escape(tooltip)}</title>' if tooltip else ''
  return (
    f'<path class="marker" d="M{x:.1f} {y:.1f}{outlines[marker]}">{title}'
    '</path>'
  )


def _star(radius: float) -> str:
  """Five points around the origin, as moves relative to it."""
  ends = []
  for i in range(10):
    reach = radius * (1.4 if i % 2 == 0 else 0.6)
    angle = math.pi * (i / 5 - 0.5)
    ends.append((reach * math.cos(angle), reach * math.sin(angle)))
  moves = [f'm{ends[0][0]:.2f} {ends[0][1]:.2f}']
  for (a, b), (c, d) in zip(ends, ends[1:], strict=False):
    moves.append(f'l{c - a:.2f} {d - b:.2f}')
  return ''.join([*moves, 'z'])
