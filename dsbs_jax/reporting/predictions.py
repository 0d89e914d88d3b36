# SPDX-License-Identifier: Apache-2.0
"""Predictions of evaluations, read back, and which of them are right."""

import functools
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import register, task_forms
from dsbs_jax.inference import evaluator
from dsbs_jax.runs import results, run_folder

# Whether a label (second) is right, given the human label (first).
IsRight = Callable[[str, str], bool]

_LABEL_PREFIXES = (p.label for p in task_forms.PREFIXES.values())
_PREFIXES = re.compile(f'^(?:{"|".join(map(re.escape, _LABEL_PREFIXES))})+')


def file_of(run: results.Run, task: str, step: int) -> pathlib.Path | None:
  """The file with a run's predictions on test, None where it is not there."""
  file = evaluator.predictions_file(run.path, task, run_folder.TEST, step=step)
  return file if file.is_file() else None


def labels_at(run: results.Run, step: int) -> pathlib.Path | None:
  """The file with the labels that a run predicted at a step."""
  return file_of(run, evaluator.evaluated_task(run.coordinates.task), step)


def shown_step(run: results.Run) -> int:
  """The chosen step if its predictions were kept, else the last step."""
  kept = labels_at(run, run.chosen_step) is not None
  return run.chosen_step if kept else run.last_step


def shown_labels(run: results.Run) -> pathlib.Path | None:
  """The file with the labels at `shown_step`."""
  return labels_at(run, shown_step(run))


def read(path: pathlib.Path) -> dict[int, dict[str, Any]]:
  """The lines of an evaluation's JSONL file by index, in the file's order.

  Raises:
    UserError: a line is not a prediction.
  """
  lines = read_lines(
    path,
    number='index',
    texts=('input', 'target', 'prediction'),
    remedy='Evaluate the run again.',
  )
  return {int(line['index']): line for line in lines}


def read_lines(
  path: pathlib.Path, *, number: str, texts: Sequence[str], remedy: str
) -> Iterator[dict[str, Any]]:
  """The lines of a JSONL file that an evaluation wrote.

  Args:
    path: the file.
    number: the field of a whole number that each must have.
    texts: the other fields that each must have.
    remedy: what to do about a damaged line.

  Raises:
    UserError: a line lacks one of them.
  """
  with path.open(encoding='utf-8', errors='replace') as file:
    for place, line in enumerate(file, start=1):
      try:
        entry = json.loads(line)
        int(entry[number]), [entry[name] for name in texts]
      except (ValueError, KeyError, TypeError) as error:
        raise contract.UserError(
          f'{path}:{place} reads {line[:60]!r}, expected JSON with {number},'
          f' {", ".join(texts)} ({error}). {remedy}'
        ) from error
      yield entry


def question(text: str) -> str:
  """An input without prefixes of label tasks, its row's own among them."""
  return _PREFIXES.sub('', text)


class Questions:
  """The test examples of a benchmark: those that were met first at an index.

  Data that was prepared again may have others there. Right answers to other
  questions compare with nothing.
  """

  def __init__(self):
    self._texts: dict[int, str] = {}
    self._sizes: set[int] = set()  # numbers of predictions in the files
    self._num_others = 0  # on other questions, which are left out

  @property
  def differ(self) -> bool:
    """Whether predictions are on different test sets."""
    return self._num_others > 0 or len(self._sizes) > 1

  def is_same(self, index: int, text: str) -> bool:
    """Whether this input is the question of an index, or the first one there.

    A task's prefix makes no difference.
    """
    asked = question(text)
    return self._texts.setdefault(index, asked) == asked

  def right(self, path: pathlib.Path, is_right: IsRight) -> dict[int, bool]:
    """Index of an example -> whether its prediction in a file is right."""
    lines = read(path)
    found = {
      index: is_right(line['target'], line['prediction'])
      for index, line in lines.items()
      if self.is_same(index, line['input'])
    }
    self._sizes.add(len(lines))
    self._num_others += len(lines) - len(found)
    return found


def benchmark_of(
  name: str, runs: Iterable[results.Run]
) -> benchmark_lib.Benchmark | None:
  """A benchmark by its name; None where it is not registered here.

  One of its runs may know where the data lies.
  """
  data_dirs = (run.macros.get('DATA_DIR') for run in runs)
  data_dir = next(filter(None, data_dirs), None)
  try:
    return register.benchmark(name, data_dir=data_dir)
  except contract.UserError:
    return None


def label_metric(name: str, runs: Iterable[results.Run]) -> tuple[IsRight, str]:
  """The benchmark's metric for single labels, and a note for the reader."""
  known = benchmark_of(name, runs)
  if known is None:
    return (lambda gold, label: gold == label), (
      f'The benchmark {name} is not registered here, so a label counts as right'
      ' if it equals the human label.'
    )

  @functools.cache
  def is_right(gold: str, label: str) -> bool:
    return known.metric([gold], [label]).get('accuracy', 0.0) > 50.0

  return is_right, ''
