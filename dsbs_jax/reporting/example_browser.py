# SPDX-License-Identifier: Apache-2.0
"""What the page's browser shows: each example with teacher and students.

The predictions of one run per setting are put beside the input, the human
label and what the LLM said. Everything is plain data; the page's script turns
it into text nodes, so no text can become markup.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data.prepared import store
from dsbs_jax.inference import evaluator
from dsbs_jax.reporting import comparison, tables
from dsbs_jax.runs import results, run_folder

MAX_EXAMPLES = 2000
MAX_STUDENTS = 24

_Right = Callable[[str, str], bool]


def browsers(
  rows: Sequence[comparison.Row], *, limit: int = MAX_EXAMPLES
) -> list[dict[str, Any]]:
  """The examples of every benchmark, for the page's script.

  Args:
    rows: the settings, in the order of tables.
    limit: examples of all benchmarks together; the first of each are held.

  Returns:
    Per benchmark that has predictions: name, split, total (examples of the
    split), cut (students left out), note, students and examples.
  """
  by_benchmark = {}
  for row in rows:
    if row.runs and _predictions(row.runs[0]) is not None:
      by_benchmark.setdefault(row.coordinates.benchmark, []).append(row)
  share = limit // max(1, len(by_benchmark))
  return [
    _browser(name, members, limit=share)
    for name, members in by_benchmark.items()
  ]


def _browser(
  name: str, rows: Sequence[comparison.Row], *, limit: int
) -> dict[str, Any]:
  shown = rows[:MAX_STUDENTS]
  runs = [row.runs[0] for row in shown]
  tables = [read_predictions(_predictions(run)) for run in runs]
  rationales = [_rationales(run) for run in runs]
  right, note = _judge(name)
  indices = list(tables[0])
  teacher = _teacher(runs, limit=set(indices[:limit]))
  examples = []
  for index in indices[:limit]:
    first = tables[0][index]
    said = teacher.get(index)
    gold = said.gt_label if said else first['target']
    examples.append(
      {
        'index': index,
        'id': first.get('id', ''),
        'input': said.input if said else first['input'],
        'gold': gold,
        'teacher': said and _teacher_entry(said, right),
        'students': [
          _student_entry(table.get(index), extra.get(index), right)
          for table, extra in zip(tables, rationales, strict=True)
        ],
      }
    )
  return {
    'name': name,
    'split': run_folder.TEST,
    'total': len(indices),
    'cut': len(rows) - len(shown),
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


def _teacher_entry(
  example: benchmark_lib.Example, right: _Right
) -> dict[str, Any]:
  return {
    'label': example.llm_label,
    'rationale': example.rationale,
    'right': right(example.gt_label, example.llm_label),
  }


def _student_entry(
  line: Mapping[str, Any] | None, rationale: str | None, right: _Right
) -> dict[str, Any] | None:
  if line is None:
    return None
  return {
    'label': line['prediction'],
    'right': right(line['target'], line['prediction']),
    'rationale': line.get('rationale') if rationale is None else rationale,
  }


def _shown_step(run: results.Run) -> int:
  """The chosen step where its predictions are there, else the last."""
  chosen = run.chosen_step
  return chosen if _file(run, chosen) is not None else run.last_step


def _predictions(run: results.Run) -> pathlib.Path | None:
  return _file(run, _shown_step(run))


def _file(run: results.Run, step: int) -> pathlib.Path | None:
  task = evaluator.evaluated_task(run.coordinates.task)
  return _prediction_file(run.path, task, step)


def _prediction_file(
  path: pathlib.Path, task: str, step: int
) -> pathlib.Path | None:
  name = f'{task}-{run_folder.TEST}-{step:06}.jsonl'
  file = path / evaluator.PREDICTIONS / name
  return file if file.is_file() else None


def _rationales(run: results.Run) -> dict[int, str]:
  """What the student wrote as rationales, by index, where it was decoded."""
  task = f'{run.coordinates.benchmark}_rationale'
  file = _prediction_file(run.path, task, _shown_step(run))
  if file is None:
    return {}
  return {
    index: line['prediction'] for index, line in read_predictions(file).items()
  }


def read_predictions(path: pathlib.Path) -> dict[int, dict[str, Any]]:
  """Reads a file of predictions: index -> line, in the file's order.

  Raises:
    UserError: a line is no prediction.
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


def _teacher(
  runs: Sequence[results.Run], *, limit: set[int]
) -> dict[int, benchmark_lib.Example]:
  """Prepared examples by index, empty where the data is gone."""
  for run in runs:
    data = run.data
    if data is not None and run_folder.TEST in data.splits:
      return _read_examples(data, limit)
  return {}


def _read_examples(
  data: store.Prepared, limit: set[int]
) -> dict[int, benchmark_lib.Example]:
  found = {}
  for example in data.examples(run_folder.TEST):
    if example.index in limit:
      found[example.index] = example
    if len(found) == len(limit):
      break
  return found


def _judge(name: str) -> tuple[_Right, str]:
  """Whether a label is right, by the benchmark's metric; and a remark."""
  try:
    metric = benchmark_lib.find(name).metric
  except ValueError:
    return (lambda gold, label: gold == label), (
      f'No module registers the benchmark {name}, so right means equal text.'
    )

  @functools.cache
  def right(gold: str, label: str) -> bool:
    return metric([gold], [label]).get('accuracy', 0.0) > 50.0

  return right, ''
