# SPDX-License-Identifier: Apache-2.0
"""Comparisons as text: Markdown to read, CSV to compute with."""

import csv
import io
from collections.abc import Sequence

from dsbs_jax.reporting import comparison, paper_numbers
from dsbs_jax.runs import results, run_folder, run_names


def percent(fraction: float) -> str:
  """A share as percent: '12.5 %'."""
  return f'{run_names.decimal_text(round(100 * fraction, 6))} %'


INTRODUCTION = (
  'Accuracy in percent: mean ± standard error over seeds. Validation chooses'
  ' the step of each run; the best step on test is never used. Gains are over'
  ' finetuning on the same labels and data, paired by seed.'
)
_HEADER = (
  'Method',
  'Training data',
  'Test, chosen on validation',
  'Test, last step',
  'Validation',
  'Gain over finetuning',
  'Runs',
)
_PUBLISHED = f'Paper, {paper_numbers.MODEL}'


def header(all_rows: Sequence[comparison.Row]) -> tuple[str, ...]:
  """The columns; the published one only where the paper has a number."""
  known = any(_published(row) is not None for row in all_rows)
  return (*_HEADER, _PUBLISHED) if known else _HEADER


def cells(row: comparison.Row) -> tuple[str, ...]:
  """A row as text, in the order of all columns."""
  examples = '' if row.train_examples is None else f' ({row.train_examples:,})'
  waiting = f' (+{row.num_unfinished} unfinished)' if row.num_unfinished else ''
  return (
    row.coordinates.title,
    percent(row.coordinates.fraction) + examples,
    _text(row.test_best),
    _text(row.test_last),
    _text(row.validation_best),
    '–' if row.gain is None else row.gain.text(sign=True),
    f'{len(row.runs)}{waiting}',
    '–' if _published(row) is None else f'{_published(row):.2f}',
  )


def _published(row: comparison.Row) -> float | None:
  point = row.coordinates
  if point.setting:
    return None
  return paper_numbers.accuracy(point.benchmark, point.method, point.fraction)


def _text(value: comparison.Score | None) -> str:
  return '–' if value is None else value.text()


def model_title(row: comparison.Row) -> str:
  """The model's name with its size."""
  name, count = row.coordinates.model, row.num_params
  if count is None or name == results.size_text(count):
    return name
  return f'{name} ({results.size_text(count)} parameters)'


def markdown(all_rows: Sequence[comparison.Row]) -> str:
  """One table per benchmark and model."""
  names = header(all_rows)
  parts = [INTRODUCTION]
  for (benchmark, model), members in by_model(all_rows).items():
    parts.append(f'\n## {_cell(benchmark)}, {_cell(model)}\n')
    parts.append('| ' + ' | '.join(names) + ' |')
    parts.append('|---|---|' + '---:|' * (len(names) - 2))
    for row in members:
      parts.append(
        '| ' + ' | '.join(map(_cell, cells(row)[: len(names)])) + ' |'
      )
  return '\n'.join(parts) + '\n'


def by_model(
  all_rows: Sequence[comparison.Row],
) -> dict[tuple[str, str], list[comparison.Row]]:
  """(benchmark, model's title) -> rows, in their order."""
  groups = {}
  for row in all_rows:
    key = (row.coordinates.benchmark, model_title(row))
    groups.setdefault(key, []).append(row)
  return groups


def _cell(text: str) -> str:
  """Text that neither ends a Markdown cell nor becomes HTML."""
  text = text.replace('\\', '\\\\').replace('|', '\\|').replace('<', '&lt;')
  text = text.replace('[', '\\[')
  return ' '.join(text.split())


def settings_csv(all_rows: Sequence[comparison.Row]) -> str:
  """One line per setting, numbers in full."""
  header = 'benchmark model parameters method setting fraction train_examples'
  scores = ('test_best', 'test_last', 'validation_best', 'gain')
  columns = [f'{name}_{part}' for name in scores for part in ('mean', 'error')]
  lines = [[*header.split(), 'runs', 'unfinished', *columns]]
  for row in all_rows:
    point = row.coordinates
    values = [getattr(row, name) for name in scores]
    lines.append(
      [
        point.benchmark,
        point.model,
        row.num_params,
        point.method,
        ' '.join(point.setting),
        point.fraction,
        row.train_examples,
        len(row.runs),
        row.num_unfinished,
        *(
          part
          for v in values
          for part in ((v.mean, v.error) if v else ('', ''))
        ),
      ]
    )
  return _csv(lines)


def runs_csv(runs: Sequence[results.Run]) -> str:
  """One line per run, unfinished ones included."""
  header = (
    'run benchmark model parameters method setting fraction seed finished'
    ' last_step best_step validation_best test_best test_last'
  )
  lines = [header.split()]
  for run in runs:
    point = run.coordinates
    lines.append(
      [
        run.path.name,
        point.benchmark,
        point.model,
        run.num_params,
        point.method,
        ' '.join(point.setting),
        point.fraction,
        point.seed,
        int(run.finished),
        run.last_step,
        run.best_step,
        run.accuracy(run_folder.VALIDATION, run.best_step),
        run.accuracy(run_folder.TEST, run.best_step),
        run.accuracy(run_folder.TEST, run.last_step),
      ]
    )
  return _csv(lines)


def _csv(lines: Sequence[Sequence]) -> str:
  """RFC 4180 with plain newlines; a text is never a spreadsheet's formula."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  for line in lines:
    writer.writerow([_harmless(value) for value in line])
  return out.getvalue()


def _harmless(value):
  if isinstance(value, str) and value[:1] in ('=', '+', '-', '@', '\t', '\r'):
    return f"'{value}"
  return value
