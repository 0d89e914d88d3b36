# SPDX-License-Identifier: Apache-2.0
"""Reads a run's folder: its config, its metrics, whether it is finished."""

import ast
import collections
import json
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data.prepared import store, views
from dsbs_jax.data.source import json_reader
from dsbs_jax.runs import checkpoint_folders, metrics_log
from dsbs_jax.runtime.configuration import gin_texts

CONFIG_FILE = 'config.gin'
METRICS_FILE = metrics_log.METRICS_FILE
# Says who trains here; a run that was killed leaves it.
LOCK_FILE = 'train.lock'
# What a sweep writes beside a run, or a subset, that failed.
FAILURE_FILE = 'failed.json'
TRAIN, VALIDATION, TEST = 'train', 'validation', 'test'

Metrics = Mapping[str, float]

_MACRO = re.compile(r'[A-Z][A-Z0-9_]*')


def find(folder: str | pathlib.Path, name: str) -> list[pathlib.Path]:
  """The files of this name at any depth, each once, sorted.

  Links to folders are followed, as runs are moved to larger disks; a file that
  lies there without one keeps that path.
  """
  found, seen, todo = [], set(), [str(folder)]
  for start in todo:  # which grows
    for place, below, files in os.walk(start):
      if (real := os.path.realpath(place)) in seen:
        below.clear()
        continue
      seen.add(real)
      if name in files:
        found.append(pathlib.Path(place, name))
      paths = (os.path.join(place, each) for each in below)
      # The name of a run says what it is; 'latest' comes behind it.
      todo += sorted(filter(os.path.islink, paths), key=_is_renamed)
  return sorted(found)


def _is_renamed(link: str) -> bool:
  return os.path.basename(link) != os.path.basename(os.path.realpath(link))


def read_macros(path: pathlib.Path) -> dict[str, Any]:
  """The macros of an operative gin config; references stay text."""
  if not path.is_file():
    raise contract.UserError(
      f'{path} does not exist, expected the config that a run writes at its'
      ' start. Remove the folder, or run it again.'
    )
  return parse_macros(_read(path))


def read_settings(path: pathlib.Path) -> dict[str, Any]:
  """`parse_settings` of a file that exists."""
  return parse_settings(_read(path))


def _read(path: pathlib.Path) -> str:
  text = json_reader.decode_text(
    path.read_bytes(), str(path), 'Remove the folder, or run it again.'
  )
  return text.replace('\r\n', '\n')


def parse_macros(text: str) -> dict[str, Any]:
  """The macros in the text of a gin config; references stay text."""
  settings = parse_settings(text)
  return {n: value for n, value in settings.items() if _MACRO.fullmatch(n)}


def parse_settings(text: str) -> dict[str, Any]:
  """The macros and parameters; references stay text."""
  return {name: _literal(value) for name, value in gin_texts.bindings(text)}


def _literal(value: str) -> Any:
  try:
    return ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return value  # a reference such as @optimizer.adamw_hf


def read_metrics(
  path: pathlib.Path,
) -> tuple[dict[int, Metrics], dict[str, dict[int, Metrics]]]:
  """Reads metrics.jsonl, of which a running process may still write the end.

  Returns:
    step -> train metrics, and split -> step -> metrics of evaluations.

  Raises:
    UserError: a line before the last is damaged.
  """
  trained = {}
  evaluated = collections.defaultdict(dict)
  lines = _read(path).split('\n')
  # What follows the last newline is empty, or a line still being written.
  for number, line in enumerate(lines[:-1], start=1):
    try:
      entry = json.loads(line)
      step, split = int(entry.pop('step')), entry.pop('split')
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise contract.UserError(
        f'{path}:{number} reads {line[:60]!r}, expected a JSON object with'
        f' step and split ({error}). Remove the line, or run again.'
      ) from error
    # The train split may be evaluated too, and then has lines of both kinds.
    is_training = split == TRAIN and 'loss' in entry
    (trained if is_training else evaluated[split])[step] = entry
  return trained, dict(evaluated)


def evaluations(model_dir: str, step: int) -> dict[str, Metrics]:
  """The splits of a run that were evaluated at a step -> their metrics."""
  path = pathlib.Path(model_dir) / METRICS_FILE
  if not path.is_file():
    return {}
  _, evaluated = read_metrics(path)
  return {s: steps[step] for s, steps in evaluated.items() if step in steps}


def last_step(
  trained: Mapping[int, Metrics], evaluated: Mapping[str, Mapping[int, Metrics]]
) -> int:
  """The last step of any line, 0 where there is none."""
  return max([0, *trained, *(s for steps in evaluated.values() for s in steps)])


def accuracy(metrics: Metrics) -> float | None:
  """Accuracy in percent; None where there is none, or it is no number."""
  found = metrics.get('accuracy')
  return found if found is not None and math.isfinite(found) else None


def best_step(evaluated: Mapping[str, Mapping[int, Metrics]]) -> int | None:
  """The step of the highest accuracy on validation, the newest of equals.

  Test is never looked at.
  """
  scores = [
    (found, step)
    for step, metrics in evaluated.get(VALIDATION, {}).items()
    if (found := accuracy(metrics)) is not None
  ]
  return max(scores)[1] if scores else None


def expected_splits(
  macros: Mapping[str, Any], evaluated: Mapping[str, Any]
) -> tuple[str, ...]:
  """The splits that the run evaluates: those asked for and prepared.

  Where the data is gone, those that were evaluated so far.
  """
  asked = macros.get('EVAL_SPLITS', ())
  name = views.own_name(macros.get('MIXTURE_OR_TASK_NAME', ''))
  data = name and prepared(name.benchmark, macros.get('DATA_DIR'))
  known = evaluated if data is None else data.splits
  return tuple(split for split in asked if split in known)


def is_finished(
  path: pathlib.Path, *, train_steps: float, splits: Sequence[str]
) -> bool:
  """Whether a run has done all its steps, evaluated them, saved them and ended.

  The last step needs its train line and a line of every split. Its checkpoint
  is needed too, unless no checkpoint of any step is left: they were removed
  to save space.
  """
  metrics = path / METRICS_FILE
  if not metrics.is_file() or (path / LOCK_FILE).exists():
    return False
  trained, evaluated = read_metrics(metrics)
  last = last_step(trained, evaluated)
  if last < train_steps or last not in trained:
    return False
  if any(last not in evaluated.get(split, {}) for split in splits):
    return False
  saved = list(path.glob(f'{checkpoint_folders.PREFIX}_*'))
  return not saved or path / f'{checkpoint_folders.PREFIX}_{last}' in saved


def prepared(name: str, data_dir: str | None) -> store.Prepared | None:
  """The prepared data of a benchmark, None where it cannot be found."""
  if not data_dir or not store.exists(name, data_dir):
    return None
  return store.read(name, data_dir)
