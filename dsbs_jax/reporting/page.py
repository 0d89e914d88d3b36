# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file: figures, tables and a browser of examples.

It loads nothing. Every text that comes from data, folders or models is escaped
where it enters the page; the examples are JSON that page.js turns into text
nodes.
"""

import html
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from dsbs_jax.reporting import comparison, figures, findings, line_plot, tables
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
    browsers: the examples, from `example_browser.browsers`.
    failed: names of the runs that failed in a sweep.

  Returns:
    The HTML text.
  """
  styles = figures.styles(rows)
  bodies = {
    'summary': _summary(runs, rows),
    'data': _by_fraction(runs, rows, styles),
    'size': _by_size(runs, rows, styles),
    'tables': _tables(rows),
    'curves': _curves(rows, styles),
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
  """JSON for a script element: ASCII, without <, > and & that could end it."""
  text = json.dumps(value, ensure_ascii=True, separators=(',', ':'))
  for character in '<>&':
    text = text.replace(character, f'\\u{ord(character):04x}')
  return text


def _figures(found: Sequence[figures.Figure], *, name: str) -> str:
  """Figures side by side; `name` begins the ids of their elements."""
  parts = []
  for i, figure in enumerate(found):
    plot = line_plot.svg(figure.plot, name=f'{name}-{i}')
    caption = f'<figcaption>{_escape(figure.caption)}</figcaption>'
    parts.append(
      f'<figure><h4>{_escape(figure.heading)}</h4>{plot}'
      f'{caption if figure.caption else ""}</figure>'
    )
  return f'<div class="figures">{"".join(parts)}</div>'


def _section(name: str, title: str, body: str) -> str:
  hidden = ' hidden' if name == 'browser' else ''
  return (
    f'<section id="{name}" aria-labelledby="{name}-h"{hidden}>'
    f'<h2 id="{name}-h">{_escape(title)}</h2>\n{body}</section>'
  )


def _lead(runs: Sequence[results.Run], failed: Sequence[str]) -> str:
  """How many runs there are, and which are missing."""
  num_finished = sum(run.finished for run in runs)
  num_unfinished = len(runs) - num_finished
  benchmarks = sorted({run.coordinates.benchmark for run in runs})
  text = f'Finished runs: {num_finished:,}, on {", ".join(benchmarks)}.'
  if num_unfinished:
    text += f' Unfinished runs, left out of all means: {num_unfinished:,}.'
  if failed:
    text += f' Failed runs: {", ".join(failed)}.'
  return text


def _summary(
  runs: Sequence[results.Run], rows: Sequence[comparison.Row]
) -> str:
  items = ''.join(
    f'<li><b>{_escape(finding.figure)}</b> {_escape(finding.text)}'
    f'<div class="where">{_escape(finding.where)}</div></li>'
    for finding in findings.findings(runs, rows)
  )
  notes = ''.join(f'<p>{_escape(note)}</p>' for note in findings.notes(runs))
  return f'<ul class="findings">{items}</ul>{notes}'


def _by_fraction(
  runs: Sequence[results.Run],
  rows: Sequence[comparison.Row],
  styles: figures.Styles,
) -> str:
  parts = []
  for key, members in tables.by_model(rows).items():
    llm = comparison.llm_accuracy(runs, key[0])
    found = figures.by_fraction(members, styles, llm=llm)
    if found:
      parts.append(f'<h3>{_escape(", ".join(key))}</h3>')
      parts.append(_figures(found, name=f'data{len(parts)}'))
  return ''.join(parts)


def _by_size(
  runs: Sequence[results.Run],
  rows: Sequence[comparison.Row],
  styles: figures.Styles,
) -> str:
  groups = {}
  for row in rows:
    share = f'{tables.percent(row.coordinates.fraction)} of the training data'
    groups.setdefault((row.coordinates.benchmark, share), []).append(row)
  parts = []
  for key, members in groups.items():
    llm = comparison.llm_accuracy(runs, key[0])
    found = figures.by_size(members, styles, llm=llm)
    if found:
      parts.append(f'<h3>{_escape(", ".join(key))}</h3>')
      parts.append(_figures(found, name=f'size{len(parts)}'))
  return ''.join(parts)


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


def _curves(rows: Sequence[comparison.Row], styles: figures.Styles) -> str:
  groups = {}
  for row in rows:
    point = row.coordinates
    key = (point.benchmark, tables.model_title(row), point.fraction)
    groups.setdefault(key, []).append(row)
  parts, seen = [], set()
  for (benchmark, model, fraction), members in groups.items():
    found = figures.by_step(members, styles)
    if not found:
      continue
    # Rows come largest share first: that one is open, the others are folded.
    opened = '' if (benchmark, model) in seen else ' open'
    seen.add((benchmark, model))
    name = f'{benchmark}, {model}, {tables.percent(fraction)} of the data'
    parts.append(
      f'<details{opened}><summary>{_escape(name)}</summary>'
      f'{_figures(found, name=f"curves{len(parts)}")}</details>'
    )
  note = (
    'Means over seeds; bars: ± one standard error. A single-task or'
    ' answer-first run has one target, rationale and label in one text: its'
    ' label loss is over all of it.'
  )
  return f'<p>{note}</p>{"".join(parts)}' if parts else ''


def _browser(browsers: Sequence[dict[str, Any]]) -> str:
  if not browsers:
    return ''
  fields = ''.join(
    f'<label for="{name}">{title}<select id="{name}"></select></label>'
    for name, title in (
      ('benchmark', 'Benchmark'),
      ('student', 'Student'),
      ('show', 'Show'),
    )
  )
  return (
    '<p id="scope" class="soft"></p>'
    f'<div class="controls" role="search">{fields}'
    '<label for="q">Search all texts<input id="q" type="search"'
    ' autocomplete="off"></label></div>'
    '<p id="count" class="count" role="status" aria-live="polite"></p>'
    '<div id="examples"></div><div class="pages">'
    '<button id="previous" type="button">Previous</button>'
    '<span id="page"></span>'
    '<button id="next" type="button">Next</button></div>'
  )
