# SPDX-License-Identifier: Apache-2.0
"""What a plan is made of: subsets to prepare and runs to train."""

import dataclasses
import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence

from dsbs_jax.data import store
from dsbs_jax.run import coordinates as coordinates_lib
from dsbs_jax.run import folders

NEW, RESUME, FINISHED = 'new', 'resume', 'finished'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
  """One subset to prepare.

  Attributes:
    benchmark: the benchmark's name.
    data_dir: where it is prepared.
    command: the command that prepares it.
  """

  benchmark: str
  data_dir: str
  command: Sequence[str]

  @property
  def done(self) -> bool:
    """Whether the data is there."""
    return store.exists(self.benchmark, self.data_dir)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """One run of the plan.

  Attributes:
    point: its coordinates.
    path: its folder.
    preparation: the subset that it trains on.
    gin_files: engine, model, others.
    gin_bindings: all of them.
    search_paths: folders of relative gin files.
    macros: the macros that it reads.
    train_steps: its number of steps.
    state: NEW, RESUME or FINISHED, when it was planned.
    step: the newest saved step.
  """

  point: coordinates_lib.Coordinates
  path: pathlib.Path
  preparation: Preparation
  gin_files: Sequence[str]
  gin_bindings: Sequence[str]
  search_paths: Sequence[str]
  macros: Mapping[str, object]
  train_steps: int
  state: str
  step: int

  @property
  def name(self) -> str:
    """The name of the run."""
    return self.point.name

  @property
  def command(self) -> list[str]:
    """The command that trains it, or goes on with it."""
    return [
      sys.executable,
      '-m',
      'dsbs_jax.train',
      *(f'--gin_file={file}' for file in self.gin_files),
      *(f'--gin_bindings={binding}' for binding in self.gin_bindings),
      *_search_flag(self.search_paths),
    ]

  def is_finished(self) -> bool:
    """Whether the run has ended by now."""
    return is_finished(self.path, self.macros, self.train_steps)


@dataclasses.dataclass(frozen=True)
class Plan:
  """All runs of a sweep and the subsets that they need, in order."""

  preparations: Sequence[Preparation]
  jobs: Sequence[Job]

  @property
  def open_jobs(self) -> list[Job]:
    """The runs that were not finished when the plan was made."""
    return [job for job in self.jobs if job.state != FINISHED]

  @property
  def open_preparations(self) -> list[Preparation]:
    """The missing subsets of runs that are not finished."""
    needed = {job.preparation.data_dir for job in self.open_jobs}
    return [
      preparation
      for preparation in self.preparations
      if preparation.data_dir in needed and not preparation.done
    ]


def is_finished(
  path: pathlib.Path, macros: Mapping[str, object], train_steps: int
) -> bool:
  """Whether a run with these macros has ended in this folder."""
  splits = folders.expected_splits(macros, macros.get('EVAL_SPLITS', ()))
  return folders.is_finished(path, train_steps=train_steps, splits=splits)


def shell_line(command: Sequence[str]) -> str:
  """A command as one line for a shell, in the folder of this process."""
  return f'cd {shlex.quote(str(pathlib.Path.cwd()))} && {shlex.join(command)}'


def _search_flag(paths: Sequence[str]) -> list[str]:
  return (
    [] if tuple(paths) == ('.',) else [f'--gin_search_paths={",".join(paths)}']
  )
