# SPDX-License-Identifier: Apache-2.0
"""Scores of a checkpoint, which come after it, and which checkpoints stay.

A state is saved before it is evaluated. Its scores are added to the checkpoint
as one more file, `metrics/metrics`, and to the list of its checksums. They
count once the list has them.
"""

import contextlib
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dsbs_jax import contract
from dsbs_jax.interop import checksums
from dsbs_jax.runtime import files

ITEM = 'metrics'

_FILE = f'{ITEM}/metrics'
_NOT_EVALUATED = float('-inf')


class NewestAndBest:
  """Orbax asks it which checkpoints stay. Others add to the accuracies."""

  def __init__(self, keep: int, accuracies: Mapping[int, float]):
    self._keep, self._accuracies = keep, accuracies

  def should_preserve(
    self, checkpoints: Sequence[Any], *, context: Any
  ) -> list[bool]:
    """Whether each of the checkpoints, in the order of their steps, stays."""
    del context  # Orbax's
    return self.stay([checkpoint.step for checkpoint in checkpoints])

  def stay(self, steps: Sequence[int]) -> list[bool]:
    """The same, of steps in their order."""
    kept = {*steps[-self._keep :], best(self._accuracies, steps)}
    return [step in kept for step in steps]


def write(folder: pathlib.Path, scores: Mapping[str, float]) -> None:
  """Adds scores, '<split>/<metric>' -> value, to a checkpoint on disk."""
  path = folder / _FILE
  with files.writing(path):
    path.parent.mkdir(exist_ok=True)
    files.replace_text(path, json.dumps(dict(scores)))
    checksums.add(folder, _FILE)


def is_written(folder: pathlib.Path) -> bool:
  """Whether a checkpoint has its scores."""
  return _FILE in (checksums.digests(folder) or ())


def accuracies(saved: Mapping[int, pathlib.Path]) -> dict[int, float]:
  """The accuracy at each step that was evaluated, of step -> folder."""
  found = {}
  for step, folder in saved.items():
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
      found[step] = accuracy(json.loads((folder / _FILE).read_text()))
  return found


def accuracy(scores: Mapping[str, float]) -> float:
  """Accuracy on validation, else on the first split with one; -inf for none.

  One that is no number, as a metric of one's own may give, is none.
  """
  found = {k: v for k, v in scores.items() if k.endswith('/accuracy')}
  first = next(iter(found.values()), _NOT_EVALUATED)
  chosen = found.get('validation/accuracy', first)
  return chosen if math.isfinite(chosen) else _NOT_EVALUATED


def best(accuracies: Mapping[int, float], steps: Iterable[int]) -> int | None:
  """The one of the steps with the highest accuracy, the newest of equals.

  An accuracy of -inf is none.
  """
  found = [
    (accuracies[step], step)
    for step in steps
    if accuracies.get(step, _NOT_EVALUATED) != _NOT_EVALUATED
  ]
  return max(found)[1] if found else None


def best_step(saved: Mapping[int, pathlib.Path]) -> int:
  """The best step of checkpoints, step -> folder.

  Raises:
    UserError: none was evaluated, or scores are damaged.
  """
  for folder in saved.values():
    checksums.check(folder, below=f'{ITEM}/')
  found = accuracies(saved)
  chosen = best(found, found)
  if chosen is None:
    names = sorted(folder.name for folder in saved.values())
    raise contract.UserError(
      f"step is 'best', but none of {names} was evaluated (EVAL_SPLITS). Give"
      " 'latest' or a step."
    )
  return chosen
