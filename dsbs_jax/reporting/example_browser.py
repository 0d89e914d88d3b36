# SPDX-License-Identifier: Apache-2.0
"""The examples in the report: what the teacher and each student answered.

Beside the input and the human label stand the LLM's label and rationale and
the predictions of one run per setting. All of it is plain data, which page.js
turns into text nodes, so that no text becomes markup.
"""

import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import register
from dsbs_jax.inference import evaluator
from dsbs_jax.reporting import comparison, tables
from dsbs_jax.runs import results, run_folder

MAX_EXAMPLES = 2000
MAX_STUDENTS = 24

# Whether a label (second) is right, given the human label (first).
_IsRight = Callable[[str, str], bool]


def browsers(
  rows: Sequence[comparison.Row], *, limit: int = MAX_EXAMPLES
) -> list[dict[str, Any]]:
  """The test examples of every benchmark, as page.js reads them.

  Args:
    rows: the settings, in the order of tables.
    limit: number of examples at most; each benchmark has an equal part of it.

  Returns:
    One dict per benchmark with predictions: name, split, num_examples (of the
    split), num_hidden_students, note, students, examples.
  """
  by_benchmark = comparison.grouped(
    (r for r in rows if r.runs and _label_file(r.runs[0]) is not None),
    lambda row: row.coordinates.benchmark,
  )
  part = limit // max(1, len(by_benchmark))
  return [
    _browser(name, members, limit=part)
    for name, members in by_benchmark.items()
  ]


def _browser(
  name: str, rows: Sequence[comparison.Row], *, limit: int
) -> dict[str, Any]:
  shown = rows[:MAX_STUDENTS]
  runs = [row.runs[0] for row in shown]
  predictions = [read_predictions(_label_file(run)) for run in runs]
  rationales = [_rationales(run) for run in runs]
  is_right, note = _label_metric(name, runs)
  indices = list(predictions[0])[:limit]
  prepared = _prepared_examples(runs, set(indices))
  examples = []
  for index in indices:
    first, example = predictions[0][index], prepared.get(index)
    examples.append(
      {
        'index': index,
        'id': first.get('id', ''),
        'input': example.input if example else first['input'],
        'gold': example.gt_label if example else first['target'],
        'teacher': example and _teacher_answer(example, is_right),
        'students': [
          _student_answer(labels.get(index), written.get(index), is_right)
          for labels, written in zip(predictions, rationales, strict=True)
        ],
      }
    )
  return {
    'name': name,
    'split': run_folder.TEST,
    'num_examples': len(predictions[0]),
    'num_hidden_students': len(rows) - len(shown),
    'note': note,
    'students': [_student(row) for row in shown],
    'examples': examples,
  }


def _student(row: comparison.Row) -> dict[str, Any]:
  run, point = row.runs[0], row.coordinates
  return {
    'title': point.title.encode('utf-8', 'replace').decode(),
    'model': point.model,
    'data': tables.percent(point.fraction),
    'seed': run.coordinates.seed,
    'step': _shown_step(run),
    'method': point.method,
  }


def _teacher_answer(
  example: benchmark_lib.Example, is_right: _IsRight
) -> dict[str, Any]:
  return {
    'label': example.llm_label,
    'rationale': example.rationale,
    'right': is_right(example.gt_label, example.llm_label),
  }


def _student_answer(
  prediction: Mapping[str, Any] | None,
  rationale: str | None,
  is_right: _IsRight,
) -> dict[str, Any] | None:
  if prediction is None:
    return None
  if rationale is None:
    rationale = prediction.get('rationale')
  return {
    'label': prediction['prediction'],
    'right': is_right(prediction['target'], prediction['prediction']),
    'rationale': rationale,
  }


def _shown_step(run: results.Run) -> int:
  """The chosen step if its predictions were kept, else the last step."""
  task = evaluator.evaluated_task(run.coordinates.task)
  kept = _prediction_file(run, task, run.chosen_step) is not None
  return run.chosen_step if kept else run.last_step


def _label_file(run: results.Run) -> pathlib.Path | None:
  task = evaluator.evaluated_task(run.coordinates.task)
  return _prediction_file(run, task, _shown_step(run))


def _prediction_file(
  run: results.Run, task: str, step: int
) -> pathlib.Path | None:
  name = f'{task}-{run_folder.TEST}-{step:06}.jsonl'
  file = run.path / evaluator.PREDICTIONS / name
  return file if file.is_file() else None


def _rationales(run: results.Run) -> dict[int, str]:
  """The student's rationales by index, empty where none were decoded."""
  task = f'{run.coordinates.benchmark}_rationale'
  file = _prediction_file(run, task, _shown_step(run))
  lines = {} if file is None else read_predictions(file)
  return {index: line['prediction'] for index, line in lines.items()}


def read_predictions(path: pathlib.Path) -> dict[int, dict[str, Any]]:
  """The lines of an evaluation's JSONL file by index, in the file's order.

  Raises:
    UserError: a line is not a prediction.
  """
  lines = {}
  with path.open(encoding='utf-8') as file:
    for number, line in enumerate(file, start=1):
      try:
        entry = json.loads(line)
        entry['input'], entry['target'], entry['prediction']
        lines[int(entry['index'])] = entry
      except (ValueError, KeyError, TypeError) as error:
        raise contract.UserError(
          f'{path}:{number} reads {line[:60]!r}, expected a prediction with'
          f' index, input, target and prediction ({error}). Evaluate the run'
          ' again.'
        ) from error
  return lines


def _prepared_examples(
  runs: Sequence[results.Run], indices: set[int]
) -> dict[int, benchmark_lib.Example]:
  """Prepared test examples by index, empty where the data is gone."""
  for run in runs:
    if run.data is not None and run_folder.TEST in run.data.splits:
      wanted = (
        (example.index, example)
        for example in run.data.examples(run_folder.TEST)
        if example.index in indices
      )
      return dict(itertools.islice(wanted, len(indices)))
  return {}


def _label_metric(
  name: str, runs: Sequence[results.Run]
) -> tuple[_IsRight, str]:
  """The benchmark's metric for single labels, and a note for the reader."""
  try:
    data_dirs = [run.macros.get('DATA_DIR') for run in runs]
    data_dir = next(filter(None, data_dirs), None)
    metric = register.benchmark(name, data_dir=data_dir).metric
  except contract.UserError:
    return (lambda gold, label: gold == label), (
      f'The benchmark {name} is not registered here, so a label counts as right'
      ' if it equals the human label.'
    )

  @functools.cache
  def is_right(gold: str, label: str) -> bool:
    return metric([gold], [label]).get('accuracy', 0.0) > 50.0

  return is_right, ''
