# SPDX-License-Identifier: Apache-2.0
"""Predictions of evaluations, read back, and which of them are right."""

import functools
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data import register
from dsbs_jax.inference import evaluator
from dsbs_jax.runs import results, run_folder

# Whether a label (second) is right, given the human label (first).
IsRight = Callable[[str, str], bool]


def file_of(run: results.Run, task: str, step: int) -> pathlib.Path | None:
  """The file with a run's predictions on test, None where it is not there.

  Args:
    run: the run.
    task: what was evaluated.
    step: of the checkpoint.
  """
  name = f'{task}-{run_folder.TEST}-{step:06}.jsonl'
  file = run.path / evaluator.PREDICTIONS / name
  return file if file.is_file() else None


def labels_at(run: results.Run, step: int) -> pathlib.Path | None:
  """The file with the labels that a run predicted at a step.

  Args:
    run: the run.
    step: of training.
  """
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


def right(path: pathlib.Path, is_right: IsRight) -> dict[int, bool]:
  """Index of an example -> whether its prediction in a file is right.

  Args:
    path: file of predictions.
    is_right: target and prediction -> whether that counts.
  """
  return {
    index: is_right(line['target'], line['prediction'])
    for index, line in read(path).items()
  }


def label_metric(name: str, runs: Iterable[results.Run]) -> tuple[IsRight, str]:
  """The benchmark's metric for single labels, and a note for the reader.

  Args:
    name: the benchmark's.
    runs: runs on it, one of which knows where the data lies.
  """
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
