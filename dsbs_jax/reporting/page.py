# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file: charts, tables, examples, nothing from outside.

Every text that comes from data, folders or models is escaped where it enters
the page; the examples travel as JSON and become text nodes.
"""

import html
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from dsbs_jax.reporting import (
  charts,
  comparison,
  figures,
  findings,
  markers,
  tables,
)
from dsbs_jax.runs import results

TITLE = 'Distilling step-by-step: experiments'
_SECTIONS = (
  ('summary', 'Summary'),
  ('data', 'Accuracy by training data'),
  ('size', 'Accuracy by model size'),
  ('tables', 'Tables'),
  ('curves', 'Learning curves'),
  ('browser', 'Examples'),
)
_SLOT = re.compile(r'\{\{(\w+)\}\}')
_escape = html.escape


def build(
  runs: Sequence[results.Run],
  rows: Sequence[comparison.Row],
  browsers: Sequence[dict[str, Any]],
  *,
  failed: Sequence[str] = (),
) -> str:
  """Builds the page.

  Args:
    runs: all runs.
    rows: their comparison.
    browsers: the examples, of `example_browser.browsers`.
    failed: names of runs that a sweep gave up.

  Returns:
    The HTML text.
  """
  draw = _Drawer()
  bodies = {
    'summary': _summary(runs, rows),
    'data': _by_fraction(runs, rows, draw),
    'size': _by_size(runs, rows, draw),
    'tables': _tables(rows),
    'curves': _curves(rows, draw),
    'browser': _browser(browsers),
  }
  shown = [(name, title) for name, title in _SECTIONS if bodies[name]]
  folder = pathlib.Path(__file__).parent
  slots = {
    'title': _escape(TITLE),
    'lead': _escape(_lead(runs, failed)),
    'nav': '\n'.join(f'<a href="#{n}">{_escape(t)}</a>' for n, t in shown),
    'sections': '\n'.join(_section(n, t, bodies[n]) for n, t in shown),
    'style': (folder / 'page.css').read_text(encoding='utf-8'),
    'script': (folder / 'page.js').read_text(encoding='utf-8'),
    'data': embedded_json(browsers),
  }
  template = (folder / 'page.html').read_text(encoding='utf-8')
  return _SLOT.sub(lambda match: slots[match[1]], template)


def embedded_json(value: Any) -> str:
  """JSON that may stand inside a script element: pure ASCII, no angle."""
  text = json.dumps(value, ensure_ascii=True, separators=(',', ':'))
  for character in '<>&':
    text = text.replace(character, f'\\u{ord(character):04x}')
  return text


class _Drawer:
  """Draws figures with ids that are unique in the page."""

  def __init__(self):
    self._count = 0

  def __call__(self, found: Sequence[figures.Figure]) -> str:
    parts = []
    for figure in found:
      self._count += 1
      caption = _escape(figure.caption)
      parts.append(
        f'<figure><h4>{_escape(figure.heading)}</h4>'
        + charts.svg(figure.chart, name=f'c{self._count}')
        + (f'<figcaption>{caption}</figcaption>' if caption else '')
        + '</figure>'
      )
    return f'<div class="figures">{"".join(parts)}</div>' if parts else ''


def _section(name: str, title: str, body: str) -> str:
  hidden = ' hidden' if name == 'browser' else ''
  return (
    f'<section id="{name}" aria-labelledby="{name}-h"{hidden}>'
    f'<h2 id="{name}-h">{_escape(title)}</h2>\n{body}</section>'
  )


def _lead(runs: Sequence[results.Run], failed: Sequence[str]) -> str:
  finished = sum(run.finished for run in runs)
  benchmarks = sorted({run.coordinates.benchmark for run in runs})
  waiting = len(runs) - finished
  text = f'{finished:,} finished runs on {", ".join(benchmarks)}.'
  if waiting:
    text += f' Not ended, and in no mean: {waiting:,}.'
  if failed:
    text += f' Failed, and missing: {", ".join(failed)}.'
  return text


def _summary(
  runs: Sequence[results.Run], rows: Sequence[comparison.Row]
) -> str:
  facts = [
    f'<li><b>{_escape(fact.figure)}</b> {_escape(fact.text)}'
    f'<div class="where">{_escape(fact.where)}</div></li>'
    for fact in findings.facts(runs, rows)
  ]
  notes = ''.join(f'<p>{_escape(note)}</p>' for note in findings.notes(runs))
  return f'<ul class="facts">{"".join(facts)}</ul>{notes}'


def _by_fraction(runs, rows: Sequence[comparison.Row], draw: _Drawer) -> str:
  parts = []
  for (benchmark, model), members in tables.by_model(rows).items():
    llm = comparison.llm_accuracy(runs, benchmark)
    drawn = draw(figures.by_fraction(members, llm=llm))
    if drawn:
      parts.append(f'<h3>{_escape(f"{benchmark}, {model}")}</h3>{drawn}')
  return _legend(rows) + ''.join(parts) if parts else ''


def _by_size(runs, rows: Sequence[comparison.Row], draw: _Drawer) -> str:
  groups = {}
  for row in rows:
    key = (row.coordinates.benchmark, row.coordinates.fraction)
    groups.setdefault(key, []).append(row)
  parts = []
  for (benchmark, fraction), members in groups.items():
    llm = comparison.llm_accuracy(runs, benchmark)
    drawn = draw(figures.by_size(members, llm=llm))
    if drawn:
      heading = f'{benchmark}, {tables.percent(fraction)} of the training data'
      parts.append(f'<h3>{_escape(heading)}</h3>{drawn}')
  return _legend(rows) + ''.join(parts) if parts else ''


def _legend(rows: Sequence[comparison.Row]) -> str:
  entries = []
  for series in figures.legend(rows):
    mark = markers.shape(series.marker, 17, 7)
    entries.append(
      f'<li class="{series.style}"><svg viewBox="0 0 34 14" aria-hidden="true">'
      f'<path class="line" d="M1 7H33"/>{mark}</svg>{_escape(series.label)}</li>'
    )
  return f'<ul class="legend">{"".join(entries)}</ul>'


def _tables(rows: Sequence[comparison.Row]) -> str:
  header = tables.header(rows)
  parts = []
  for (benchmark, model), members in tables.by_model(rows).items():
    head = ''.join(f'<th scope="col">{_escape(name)}</th>' for name in header)
    lines = []
    for row in members:
      first, *rest = tables.cells(row)[: len(header)]
      cells = ''.join(f'<td>{_escape(cell)}</td>' for cell in rest)
      lines.append(f'<tr><th scope="row">{_escape(first)}</th>{cells}</tr>')
    name = _escape(f'{benchmark}, {model}')
    parts.append(
      f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">'
      f'<table><caption>{name}</caption><thead><tr>{head}</tr></thead>'
      f'<tbody>{"".join(lines)}</tbody></table></div>'
    )
  return f'<p>{_escape(tables.INTRODUCTION)}</p><div class="tables">' + (
    f'{"".join(parts)}</div>'
  )


def _curves(rows: Sequence[comparison.Row], draw: _Drawer) -> str:
  groups = {}
  for row in rows:
    point = row.coordinates
    key = (point.benchmark, tables.model_title(row), point.fraction)
    groups.setdefault(key, []).append(row)
  parts, seen = [], set()
  for (benchmark, model, fraction), members in groups.items():
    drawn = draw(figures.by_step(members))
    if not drawn:
      continue
    # Rows come largest share first: that one is open, the others fold.
    opened = '' if (benchmark, model) in seen else ' open'
    seen.add((benchmark, model))
    name = f'{benchmark}, {model}, {tables.percent(fraction)} of the data'
    parts.append(
      f'<details{opened}><summary>{_escape(name)}</summary>{drawn}</details>'
    )
  note = (
    'Means over seeds; bands are standard errors. The label loss of a'
    ' single-task or answer-first run covers its whole target, rationale and'
    ' label.'
  )
  return f'<p>{note}</p>{_legend(rows)}{"".join(parts)}' if parts else ''


def _browser(browsers: Sequence[dict[str, Any]]) -> str:
  if not browsers:
    return ''
  fields = ''.join(
    f'<label for="{name}">{title}<select id="{name}"></select></label>'
    for name, title in (
      ('benchmark', 'Benchmark'),
      ('student', 'Student to filter by'),
      ('show', 'Show'),
    )
  )
  return (
    '<p id="held" class="soft"></p>'
    f'<div class="controls" role="search">{fields}'
    '<label for="q">Search all texts<input id="q" type="search"'
    ' autocomplete="off"></label></div>'
    '<p id="count" class="count" role="status" aria-live="polite"></p>'
    '<div id="examples"></div><div class="pages">'
    '<button id="previous" type="button">Previous</button>'
    '<span id="page"></span>'
    '<button id="next" type="button">Next</button></div>'
  )
