# SPDX-License-Identifier: Apache-2.0
"""Tables of the comparison: Markdown to read, CSV to compute with."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from dsbs_jax.reporting import comparison, paper_numbers, references
from dsbs_jax.runs import results, run_folder, run_names


def percent(fraction: float) -> str:
  """A share as percent: '12.5 %'."""
  return f'{run_names.decimal_text(round(100 * fraction, 6))} %'


INTRODUCTION = (
  'Accuracy in percent: mean ± standard error over seeds. Each run is tested at'
  ' the step with its best validation accuracy and at its last step; test'
  ' accuracy never chooses a step. The gain is over finetuning on the same'
  ' labels and data, paired by seed. Untouched student: the checkpoint that'
  ' runs start from, before any step. Teacher: the labels that the LLM gave.'
)
_COLUMNS = (
  'Method',
  'Training data',
  'Test (best validation step)',
  'Test (last step)',
  'Validation (best step)',
  'Gain over finetuning',
  'Runs',
)
_PAPER_COLUMN = f'Paper ({paper_numbers.MODEL})'


def header(all_rows: Sequence[comparison.Row]) -> tuple[str, ...]:
  """The columns; the last one only where the paper prints a number."""
  in_paper = any(_paper(row) != '–' for row in all_rows)
  return (*_COLUMNS, _PAPER_COLUMN) if in_paper else _COLUMNS


def _cells(row: comparison.Row) -> tuple[str, ...]:
  """A row as text, in the order of all columns."""
  examples = '' if row.train_examples is None else f' ({row.train_examples:,})'
  runs = str(len(row.runs))
  if row.num_unfinished:
    runs += f' (+{row.num_unfinished} unfinished)'
  return (
    row.coordinates.title,
    percent(row.coordinates.fraction) + examples,
    _text(row.test_best),
    _text(row.test_last),
    _text(row.validation_best),
    _text(row.gain, sign=True),
    runs,
    _paper(row),
  )


def _reference_cells(reference: references.Reference) -> tuple[str, ...]:
  """A reference as text, in the order of all columns.

  It has one accuracy whatever the step, and nothing was trained.
  """
  test, validation = (
    '–' if value is None else f'{value:.2f}'
    for value in (reference.test, reference.validation)
  )
  return (reference.title, '–', test, test, validation, '–', '–', '–')


def _paper(row: comparison.Row) -> str:
  accuracy = paper_numbers.accuracy(row.coordinates)
  return '–' if accuracy is None else f'{accuracy:.2f}'


def _text(score: comparison.Score | None, *, sign: bool = False) -> str:
  return '–' if score is None else score.text(sign=sign)


def model_title(row: comparison.Row) -> str:
  """The model's name, with its number of parameters where that is known."""
  name, count = row.coordinates.model, row.num_params
  if count is None:
    return name
  size = f'{results.size_text(count)} parameters'
  # A run made by hand has the number for its model's name.
  return size if size.startswith(name) else f'{name} ({size})'


def markdown(
  all_rows: Sequence[comparison.Row],
  found: Sequence[references.Reference] = (),
) -> str:
  """One table per benchmark and model; the references stand above settings."""
  names = header(all_rows)
  parts = [INTRODUCTION]
  for (benchmark, model), members in by_model(all_rows).items():
    parts.append(f'\n## {_cell(benchmark)}, {_cell(model)}\n')
    parts.append('| ' + ' | '.join(names) + ' |')
    parts.append('|---|---|' + '---:|' * (len(names) - 2))
    for line in lines(members, found):
      parts.append('| ' + ' | '.join(map(_cell, line[: len(names)])) + ' |')
  return '\n'.join(parts) + '\n'


def lines(
  rows: Sequence[comparison.Row], found: Sequence[references.Reference]
) -> list[tuple[str, ...]]:
  """The lines of one table as cells: references, then settings."""
  beside = references.beside(rows, found)
  return [*map(_reference_cells, beside), *map(_cells, rows)]


def by_model(all_rows: Sequence[comparison.Row]) -> comparison.Groups:
  """(benchmark, `model_title`) -> its rows."""
  return comparison.grouped(
    all_rows, lambda row: (row.coordinates.benchmark, model_title(row))
  )


def by_share(all_rows: Sequence[comparison.Row]) -> comparison.Groups:
  """(benchmark, share of the training data) -> its rows."""

  def key(row):
    share = percent(row.coordinates.fraction)
    return row.coordinates.benchmark, f'{share} of the training data'

  return comparison.grouped(all_rows, key)


def _cell(text: str) -> str:
  """Escapes what would end a Markdown cell or become a link or HTML."""
  text = text.replace('\\', '\\\\').replace('|', '\\|').replace('<', '&lt;')
  text = text.replace('[', '\\[')
  return ' '.join(text.split())


def settings_csv(
  all_rows: Sequence[comparison.Row],
  found: Sequence[references.Reference] = (),
) -> str:
  """One line per setting, then one per reference, numbers unrounded.

  The setting of an untouched student is its start.
  """
  lines = []
  for row in all_rows:
    line = _setting(row.coordinates, row.num_params) | {
      'train_examples': row.train_examples,
      'runs': len(row.runs),
      'unfinished': row.num_unfinished,
    }
    for name in ('test_best', 'test_last', 'validation_best', 'gain'):
      score = getattr(row, name)
      line[f'{name}_mean'] = score and score.mean
      line[f'{name}_error'] = score and score.error
    lines.append(line)
  for reference in found:
    lines.append(
      dict.fromkeys(lines[0])
      | {
        'benchmark': reference.benchmark,
        'method': reference.kind,
        'setting': reference.start or '',
        'test_best_mean': reference.test,
        'test_last_mean': reference.test,
        'validation_best_mean': reference.validation,
      }
    )
  return _csv(lines)


def runs_csv(runs: Sequence[results.Run]) -> str:
  """One line per run, unfinished ones included."""
  return _csv(
    [
      {
        'run': run.path.name,
        **_setting(run.coordinates, run.num_params),
        'seed': run.coordinates.seed,
        'finished': int(run.finished),
        'last_step': run.last_step,
        'best_step': run.best_step,
        'validation_best': run.accuracy(run_folder.VALIDATION, run.best_step),
        'test_best': run.accuracy(run_folder.TEST, run.best_step),
        'test_last': run.accuracy(run_folder.TEST, run.last_step),
      }
      for run in runs
    ]
  )


def _setting(
  point: run_names.Coordinates, num_params: int | None
) -> dict[str, Any]:
  return {
    'benchmark': point.benchmark,
    'model': point.model,
    'parameters': num_params,
    'method': point.method,
    'setting': ' '.join(point.setting),
    'fraction': point.fraction,
  }


def _csv(lines: Sequence[dict[str, Any]]) -> str:
  """CSV as in RFC 4180, but with plain newlines."""
  out = io.StringIO()
  # Texts are quoted: a bare carriage return in one would begin a new line.
  writer = csv.DictWriter(
    out, lines[0], lineterminator='\n', quoting=csv.QUOTE_NONNUMERIC
  )
  writer.writeheader()
  for line in lines:
    writer.writerow({name: _inert(value) for name, value in line.items()})
  return out.getvalue()


def _inert(value: Any) -> Any:
  """Keeps spreadsheets from taking a text for a formula."""
  if isinstance(value, str) and value[:1] in ('=', '+', '-', '@', '\t', '\r'):
    return f"'{value}"
  return value
