# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file: figures, tables and a browser of examples.

It loads nothing. Every text that comes from data, folders or models is escaped
where it enters the page; the examples are JSON that page.js turns into text
nodes.
"""

import html
import json
import pathlib
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dsbs_jax.reporting import (
  comparison,
  figures,
  findings,
  line_plot,
  method_pairs,
  references,
  tables,
)
from dsbs_jax.runs import results

TITLE = 'Distilling step-by-step: experiments'
_escape = html.escape


def build(
  runs: Sequence[results.Run],
  rows: Sequence[comparison.Row],
  browsers: Sequence[dict[str, Any]],
  *,
  found: Sequence[references.Reference] = (),
  compared: Mapping[str, method_pairs.Compared] | None = None,
  failed: Sequence[str] = (),
) -> str:
  """The page, as HTML; failed are names of runs that failed in a sweep."""
  styles = figures.styles(rows)
  by_model, by_share = tables.by_model(rows), tables.by_share(rows)
  by_data = _by_benchmark(by_model, figures.by_fraction, runs, styles)
  by_size = _by_benchmark(by_share, figures.by_size, runs, styles)
  sections = (
    ('summary', 'Summary', _summary(runs, rows, compared or {})),
    ('data', 'Accuracy by training data', by_data),
    ('size', 'Accuracy by model size', by_size),
    ('tables', 'Tables', _tables(rows, found)),
    ('curves', 'Learning curves', _curves(rows, styles)),
  )
  shown = [section for section in sections if section[2]]
  linked = [(name, title) for name, title, _ in shown]
  if browsers:
    linked += [('compare', 'Compare methods')] if compared else []
    linked += [('browser', 'Examples')]
  slots = {
    'title': _escape(TITLE),
    'lead': _escape(_lead(runs, failed)),
    'nav': '\n'.join(f'<a href="#{n}">{_escape(t)}</a>' for n, t in linked),
    'sections': '\n'.join(_section(*section) for section in shown),
    'style': _file('page.css'),
    'script': _file('compare.js') + '\n' + _file('page.js'),
    'data': _embedded_json(browsers),
  }
  return string.Template(_file('page.html')).substitute(slots)


def _file(name: str) -> str:
  return pathlib.Path(__file__).with_name(name).read_text(encoding='utf-8')


def _embedded_json(value: Any) -> str:
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
  return (
    f'<section id="{name}" aria-labelledby="{name}-h">'
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
  runs: Sequence[results.Run],
  rows: Sequence[comparison.Row],
  compared: Mapping[str, method_pairs.Compared],
) -> str:
  items = ''.join(
    f'<li><b>{_escape(finding.figure)}</b> {_escape(finding.text)}'
    f'<div class="where">{_escape(finding.where)}</div></li>'
    for finding in findings.findings(runs, rows, compared)
  )
  notes = ''.join(
    f'<p>{_escape(note)}</p>' for note in findings.notes(runs, compared)
  )
  return f'<ul class="findings">{items}</ul>{notes}'


def _by_benchmark(
  groups: comparison.Groups,
  draw: Callable[..., list[figures.Figure]],
  runs: Sequence[results.Run],
  styles: figures.Styles,
) -> str:
  """The figures of each group: benchmark, what else it shares -> rows."""
  parts = []
  for (benchmark, shared), members in groups.items():
    llm = comparison.llm_accuracy(runs, benchmark)
    found = draw(members, styles, llm=llm)
    if found:
      parts.append(f'<h3>{_escape(f"{benchmark}, {shared}")}</h3>')
      parts.append(_figures(found, name=f'{draw.__name__}{len(parts)}'))
  return ''.join(parts)


def _tables(
  rows: Sequence[comparison.Row], found: Sequence[references.Reference]
) -> str:
  header = tables.header(rows)
  parts = []
  for (benchmark, model), members in tables.by_model(rows).items():
    head = ''.join(f'<th scope="col">{_escape(name)}</th>' for name in header)
    lines = []
    for first, *rest in tables.lines(members, found):
      rest = rest[: len(header) - 1]
      cells = ''.join(f'<td>{_escape(cell)}</td>' for cell in rest)
      lines.append(f'<tr><th scope="row">{_escape(first)}</th>{cells}</tr>')
    name = _escape(f'{benchmark}, {model}')
    parts.append(
      f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">'
      f'<table><caption>{name}</caption><thead><tr>{head}</tr></thead>'
      f'<tbody>{"".join(lines)}</tbody></table></div>'
    )
  introduction = f'<p>{_escape(tables.INTRODUCTION)}</p>'
  return f'{introduction}<div class="tables">{"".join(parts)}</div>'


def _curves(rows: Sequence[comparison.Row], styles: figures.Styles) -> str:
  parts = []
  for (benchmark, model), members in tables.by_model(rows).items():
    shares = comparison.grouped(members, lambda row: row.coordinates.fraction)
    # Rows come largest share first: that one is open, the others are folded.
    opened = ' open'
    for share, found in shares.items():
      drawn = figures.by_step(found, styles)
      if drawn:
        name = f'{benchmark}, {model}, {tables.percent(share)} of the data'
        parts.append(
          f'<details{opened}><summary>{_escape(name)}</summary>'
          f'{_figures(drawn, name=f"curves{len(parts)}")}</details>'
        )
        opened = ''
  note = (
    'Means over seeds; bars: ± one standard error. A single-task or'
    ' answer-first run has one target, rationale and label in one text: its'
    ' label loss is over all of it.'
  )
  return f'<p>{note}</p>{"".join(parts)}' if parts else ''
