# SPDX-License-Identifier: Apache-2.0
"""The examples in the report: what the teacher and each student answered.

Beside the input and the human label stand the LLM's label and rationale and
the predictions of one run per setting, and of untouched students. With them go
the comparisons of any two of these methods. All of it is plain data, which
page.js turns into text nodes, so that no text becomes markup.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import conclusions
from dsbs_jax.reporting import (
  comparison,
  method_pairs,
  predictions,
  references,
  tables,
)
from dsbs_jax.runs import results, run_folder

MAX_EXAMPLES = 2000
MAX_STUDENTS = 24


@dataclasses.dataclass(frozen=True)
class _Student:
  """A student in the page."""

  about: Mapping[str, Any]  # what page.js says of it
  labels: Mapping[int, Mapping[str, Any]]  # index -> line of its predictions
  rationales: Mapping[int, str]  # by index, empty where none were decoded


def shown_rows(
  rows: Sequence[comparison.Row],
) -> dict[str, list[comparison.Row]]:
  """Benchmark -> the settings in the page, whose predictions are there."""
  by_benchmark = _with_predictions(rows)
  return {name: rows[:MAX_STUDENTS] for name, rows in by_benchmark.items()}


def browsers(
  rows: Sequence[comparison.Row],
  *,
  compared: Mapping[str, method_pairs.Compared] | None = None,
  limit: int = MAX_EXAMPLES,
) -> list[dict[str, Any]]:
  """The test examples of every benchmark, as page.js reads them.

  Args:
    rows: the settings, in the order of tables.
    compared: benchmark -> the comparisons of its `shown_rows`.
    limit: number of examples at most; each benchmark has an equal part of it.

  Returns:
    One dict per benchmark with predictions: name, split, num_examples (of the
    split), num_hidden_students, note, students, examples, methods, pairs.
  """
  compared = compared or {}
  by_benchmark = _with_predictions(rows)
  part = limit // max(1, len(by_benchmark))
  return [
    _browser(name, members, compared.get(name), limit=part)
    for name, members in by_benchmark.items()
  ]


def _with_predictions(
  rows: Sequence[comparison.Row],
) -> dict[str, list[comparison.Row]]:
  return comparison.grouped(
    (r for r in rows if r.runs and predictions.shown_labels(r.runs[0])),
    lambda row: row.coordinates.benchmark,
  )


def _browser(
  name: str,
  rows: Sequence[comparison.Row],
  compared: method_pairs.Compared | None,
  *,
  limit: int,
) -> dict[str, Any]:
  shown = rows[:MAX_STUDENTS]
  runs = [row.runs[0] for row in shown]
  untouched = compared.untouched if compared else ()
  students = [*map(_trained, shown), *map(_untouched, untouched)]
  is_right, note = predictions.label_metric(name, runs)
  known = predictions.benchmark_of(name, runs)
  first_labels = students[0].labels
  prepared = {e.index: e for e in references.test_examples(runs)}
  examples = []
  for index in list(first_labels)[:limit]:
    first, example = first_labels[index], prepared.get(index)
    text = predictions.question(first['input'])
    if example and predictions.question(example.input) != text:
      example = None  # prepared again since
    examples.append(
      {
        'index': index,
        'id': first.get('id', ''),
        'input': example.input if example else first['input'],
        'gold': example.gt_label if example else first['target'],
        'teacher': example and _teacher_answer(example, is_right),
        'argues': example and _argues(known, example),
        'students': [_answer(s, index, text, is_right) for s in students],
      }
    )
  return {
    'name': name,
    'split': run_folder.TEST,
    'num_examples': len(first_labels),
    'num_hidden_students': len(rows) - len(shown),
    'note': note,
    'students': [student.about for student in students],
    'examples': examples,
    **(compared.to_json() if compared else {'methods': [], 'pairs': []}),
  }


def _trained(row: comparison.Row) -> _Student:
  run, point = row.runs[0], row.coordinates
  step = predictions.shown_step(run)
  share = tables.percent(point.fraction)
  about = {
    'title': _text(point.title),
    'details': f'{point.model}, {share} of the data, seed'
    f' {run.coordinates.seed}, step {step:,}',
    'method': point.method,
    'step': step,
  }
  labels = predictions.read(predictions.shown_labels(run))
  return _Student(about, labels, _rationales(run))


def _untouched(reference: references.Reference) -> _Student:
  about = {
    'title': _text(reference.title),
    'details': _text(pathlib.PurePath(reference.start).name),
    'method': reference.kind,
    'step': 0,
  }
  return _Student(about, predictions.read(reference.predictions), {})


def _text(text: str) -> str:
  """A folder's name, which need not be UTF-8, as text."""
  return text.encode('utf-8', 'replace').decode()


def _teacher_answer(
  example: benchmark_lib.Example, is_right: predictions.IsRight
) -> dict[str, Any] | None:
  if not references.is_answered(example):
    return None
  return {
    'label': example.llm_label,
    'rationale': example.rationale,
    'right': references.is_right(example, is_right),
  }


def _argues(
  known: benchmark_lib.Benchmark | None, example: benchmark_lib.Example
) -> str | None:
  """The label that a teacher's rationale argues for; see `conclusions`."""
  if known is None or not example.rationale.strip():
    return None
  return conclusions.argues(
    known,
    example.rationale,
    label=example.llm_label,
    options=example.options,
    target=example.gt_label,
  )


def _answer(
  student: _Student, index: int, text: str, is_right: predictions.IsRight
) -> dict[str, Any] | None:
  prediction = student.labels.get(index)
  if prediction is None or predictions.question(prediction['input']) != text:
    return None
  return {
    'label': prediction['prediction'],
    'right': is_right(prediction['target'], prediction['prediction']),
    'rationale': student.rationales.get(index, prediction.get('rationale')),
  }


def _rationales(run: results.Run) -> dict[int, str]:
  """The student's rationales by index, empty where none were decoded."""
  task = f'{run.coordinates.benchmark}_rationale'
  file = predictions.file_of(run, task, predictions.shown_step(run))
  lines = {} if file is None else predictions.read(file)
  return {index: line['prediction'] for index, line in lines.items()}
