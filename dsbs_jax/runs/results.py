# SPDX-License-Identifier: Apache-2.0
"""Reads finished and running runs back: settings, metrics, coordinates.

A run is read from its folder: settings from `config.gin`, metrics from
`metrics.jsonl`, and its coordinates in a sweep from the folder's name. A run
outside a sweep has a free name: its model is named by its size, and its
share of the training data is read from the prepared data.
"""

import collections
import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from dsbs_jax import contract
from dsbs_jax.core import network
from dsbs_jax.data.prepared import store
from dsbs_jax.runs import run_folder, run_names

# Macros that may differ between seeds: where, how fast and how often, and what
# the coordinates tell.
_FREE = (
  *('MODEL_DIR', 'DATA_DIR', 'MIXTURE_OR_TASK_NAME', 'SEED'),
  *('VOCABULARY', 'MODULE', 'ALLOW_PICKLE', 'MATMUL_PRECISION', 'REMAT'),
  *('SCAN_LAYERS', 'MICROBATCHES', 'CHUNK_TOKENS', 'SKIP_PADDING', 'MESH'),
  *('SHARDING_RULES', 'EVAL_PERIOD', 'EVAL_SPLITS', 'EVAL_BATCH_SIZE'),
  *('LOG_PERIOD', 'KEEP_CHECKPOINTS', 'MAX_NONFINITE_STEPS', 'PROFILE_STEPS'),
)
# What prepare was given that is the same for all seeds of a setting.
_OF_DATA = ('files', 'teacher', 'keep', 'clean', 'rationalized')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """One run as its folder tells it; accuracies are in percent."""

  path: pathlib.Path
  coordinates: run_names.Coordinates
  macros: Mapping[str, Any]  # of its config.gin
  trained: Mapping[int, run_folder.Metrics]  # means of the steps up to a step
  evaluated: Mapping[str, Mapping[int, run_folder.Metrics]]  # by split, step
  finished: bool  # whether its last step is trained, evaluated and saved
  num_params: int | None  # None where the config does not tell

  @property
  def last_step(self) -> int:
    """The last step that was logged or evaluated, 0 before any."""
    return run_folder.last_step(self.trained, self.evaluated)

  @property
  def best_step(self) -> int | None:
    """See `run_folder.best_step`; None where nothing validates."""
    return run_folder.best_step(self.evaluated)

  @property
  def chosen_step(self) -> int:
    """The best step on validation, or the last where nothing validates."""
    best = self.best_step
    return self.last_step if best is None else best

  def accuracy(self, split: str, step: int | None) -> float | None:
    """Accuracy in percent, None where it was not evaluated."""
    return run_folder.accuracy(self.evaluated.get(split, {}).get(step, {}))

  @property
  def data(self) -> store.Prepared | None:
    """The prepared data of the run, None where it is not there any more."""
    return run_folder.prepared(
      self.coordinates.benchmark, self.macros.get('DATA_DIR')
    )

  @property
  def train_examples(self) -> int | None:
    """Number of training examples, None where the data is not there."""
    data = self.data
    if data is None or run_folder.TRAIN not in data.splits:
      return None
    return data.num_examples(run_folder.TRAIN)


def read_all(folder: str | pathlib.Path) -> list[Run]:
  """Every run below a folder that wrote a line, in the order of their paths.

  Raises:
    UserError: there is none, or one cannot be read.
  """
  paths = run_folder.find(folder, run_folder.METRICS_FILE)
  runs = [read(path.parent) for path in paths if path.stat().st_size]
  if not runs:
    raise contract.UserError(
      f'there is no run in {str(folder)!r}, expected folders with a'
      f' {run_folder.METRICS_FILE} that has lines. Give the folder of a sweep'
      ' or the MODEL_DIR of a run.'
    )
  return runs


def told_apart(runs: Sequence[Run]) -> list[Run]:
  """Runs that differ in more than their seed become settings of their own.

  They are named by what differs; those of the same coordinates and settings,
  by their folders.
  """
  groups = collections.defaultdict(list)
  for run in runs:
    groups[dataclasses.replace(run.coordinates, seed=0)].append(run)
  settings = {}
  for members in groups.values():
    settings |= _settings(members)
  named = [_of_setting(run, *settings[run.path]) for run in runs]
  count = collections.Counter(run.coordinates for run in named)
  return [
    run if count[run.coordinates] == 1 else _of_setting(run, str(run.path))
    for run in named
  ]


def _settings(members: Sequence[Run]) -> dict[pathlib.Path, list[str]]:
  """By what each of some runs differs from others in what it learns."""
  macros = [member.macros for member in members]
  known = set.intersection(*map(set, macros)) - set(_FREE)
  names = sorted(n for n in known if any(m[n] != macros[0][n] for m in macros))
  found = {run.path: [f'{n}={run.macros[n]}' for n in names] for run in members}
  places = {}  # what data holds -> where the first run has it
  for run in members:
    if data := _contents(run):
      places.setdefault(data, run.macros['DATA_DIR'])
  for run in members if len(places) > 1 else ():
    if data := _contents(run):
      found[run.path].append(f'DATA_DIR={places[data]}')
  return found


def _contents(run: Run) -> tuple[str, ...] | None:
  """What a run's data was made of, None where it is not there any more."""
  data = run.data
  return data and tuple(str(data.metadata.get(name)) for name in _OF_DATA)


def _of_setting(run: Run, *setting: str) -> Run:
  """The run with more that was varied."""
  point = run.coordinates
  point = dataclasses.replace(point, setting=(*point.setting, *setting))
  return dataclasses.replace(run, coordinates=point)


def read(path: pathlib.Path) -> Run:
  """Reads one run's folder.

  Raises:
    UserError: its config is missing, is no config of a run, contradicts its
      name, or its metrics are damaged.
  """
  macros = run_folder.read_macros(path / run_folder.CONFIG_FILE)
  trained, evaluated = run_folder.read_metrics(path / run_folder.METRICS_FILE)
  config = _model(macros)
  return Run(
    path=path,
    coordinates=_coordinates(path, macros),
    macros=macros,
    trained=trained,
    evaluated=evaluated,
    finished=run_folder.is_finished(
      path,
      train_steps=macros.get('TRAIN_STEPS', math.inf),
      splits=run_folder.expected_splits(macros, evaluated),
    ),
    num_params=None if config is None else num_params(config),
  )


def _coordinates(
  path: pathlib.Path, macros: Mapping[str, Any]
) -> run_names.Coordinates:
  task = macros.get('MIXTURE_OR_TASK_NAME')
  seed = macros.get('SEED', 0)
  if not isinstance(task, str):
    raise contract.UserError(
      f'{path / run_folder.CONFIG_FILE} names no MIXTURE_OR_TASK_NAME, expected'
      ' the operative config of a training run. Remove the folder from the'
      ' report.'
    )
  named = run_names.parse(path.name)
  if named is None:
    return _by_hand(path, task, seed, macros)
  if (named.task, named.seed) != (task, seed):
    raise contract.UserError(
      f'{path} is named as {named.task} with seed {named.seed}, but its config'
      f' trains {task} with seed {seed}. Rename the folder.'
    )
  return named


def _by_hand(
  path: pathlib.Path, task: str, seed: int, macros: Mapping[str, Any]
) -> run_names.Coordinates:
  """Coordinates of a run whose folder's name is free."""
  parts = contract.parse_task_name(task)
  if parts.label_source is None:
    raise contract.UserError(
      f'{path} trains {task}, which predicts no labels to report. Move it out'
      ' of the folder.'
    )
  config = _model(macros)
  data = run_folder.prepared(parts.benchmark, macros.get('DATA_DIR'))
  return run_names.Coordinates(
    benchmark=parts.benchmark,
    method=f'{parts.label_source}_{parts.form}',
    model='model' if config is None else size_text(num_params(config)),
    fraction=float(data.metadata.get('fraction', 1.0)) if data else 1.0,
    seed=seed,
  )


def _model(macros: Mapping[str, Any]) -> network.Config | None:
  is_gemma = 'NUM_KV_HEADS' in macros
  family = network.GemmaConfig if is_gemma else network.T5Config
  names = [field.name for field in dataclasses.fields(family)]
  known = {n: macros[n.upper()] for n in names if n.upper() in macros}
  try:
    return family(**known)
  except TypeError:
    return None  # a config that sets its sizes without macros


@functools.cache
def num_params(config: network.Config) -> int:
  """The number of parameters of a network."""
  return sum(x.size for x in jax.tree.leaves(network.param_shapes(config)))


def size_text(number: int) -> str:
  """A number of parameters in three digits: 958k, 1.21M, 248M, 2.85B."""
  for unit, divisor in (('B', 1e9), ('M', 1e6), ('k', 1e3)):
    if number >= divisor:
      value = number / divisor
      return f'{value:.3g}{unit}' if value < 999.5 else f'{value:.0f}{unit}'
  return str(number)
