# SPDX-License-Identifier: Apache-2.0
"""What a sweep consists of: subsets to prepare and runs to train."""

import dataclasses
import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence

from dsbs_jax import contract
from dsbs_jax.data import declared, register
from dsbs_jax.data.prepared import store
from dsbs_jax.data.remote import buckets
from dsbs_jax.preparing import prepare, source_digest
from dsbs_jax.runs import run_folder, run_names
from dsbs_jax.runtime.configuration import gin_config, gin_texts
from dsbs_jax.training import train_config

NEW, RESUME, FINISHED = 'new', 'resume', 'finished'
# Flags of prepare that decide examples, with their defaults.
_ASKED = {
  field.name: field.default
  for field in dataclasses.fields(prepare.PrepareConfig)
  if field.name in ('teacher', 'completions', 'keep', 'clean')
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subset:
  """A subset of a benchmark's data to prepare, by flags of prepare.

  Without source, which is '' then, it cannot be prepared.
  """

  benchmark: str
  source: str
  data_dir: str
  fraction: float
  subset_seed: int
  vocabulary: str | None = None
  flags: Sequence[str] = ()  # further ones

  @property
  def done(self) -> bool:
    """Whether the data is there."""
    return store.exists(self.benchmark, self.data_dir)

  @property
  def lock_file(self) -> pathlib.Path | str:
    """The file, or object, that says who prepares it."""
    return prepare.lock_file(self.benchmark, self.data_dir)

  @property
  def options(self) -> dict[str, object]:
    """What the further flags say: '--keep=correct' -> {'keep': 'correct'}."""
    kinds = {'train_vocab': int, 'splits': lambda text: text.split(',')}
    options = {}
    for flag in self.flags:
      name, equals, value = flag.removeprefix('--').partition('=')
      options[name] = kinds.get(name, str)(value) if equals else True
    return options

  @property
  def config(self) -> prepare.PrepareConfig:
    """The settings of its command."""
    return prepare.PrepareConfig(**self._settings, **self.options)

  @property
  def command(self) -> list[str]:
    """The command that prepares it."""
    fraction = run_names.decimal_text(self.fraction)
    values = self._settings | {'fraction': fraction}
    if not self.vocabulary:
      del values['vocabulary']
    given = [f'--{name}={value}' for name, value in values.items()]
    return [sys.executable, '-m', 'dsbs_jax.prepare', *given, *self.flags]

  @property
  def _settings(self) -> dict[str, object]:
    """All fields but the further flags: those that prepare has, too."""
    fields = (field.name for field in dataclasses.fields(self))
    return {name: getattr(self, name) for name in fields if name != 'flags'}


def check_subsets(subsets: Sequence[Subset]) -> None:
  """Checks that data which is there already is what its command prepares.

  Raises:
    UserError: it was prepared of other files or with other flags.
  """
  digests = {}  # of a zip it takes a while
  for subset in subsets:
    if not subset.source or not subset.done:
      continue
    found = store.read(subset.benchmark, subset.data_dir).metadata
    if declared.KEY in found:  # of rows that the sweep was not told of
      continue
    asked = {n: subset.options.get(n, value) for n, value in _ASKED.items()}
    if subset.benchmark not in digests:
      known = register.benchmark(subset.benchmark, data_dir=subset.data_dir)
      digests[subset.benchmark] = source_digest.digest(
        known, subset.source, asked['completions']
      )
    if digest := digests[subset.benchmark]:
      asked['files'] = digest
    changed = [n for n in asked if asked[n] != found.get(n, asked[n])]
    if changed:
      raise contract.UserError(
        f'{subset.benchmark} in {subset.data_dir} was prepared with other'
        f' {", ".join(changed)}: { {n: found[n] for n in changed} }, expected'
        f' { {n: asked[n] for n in changed} }. Give another --data_dir and'
        ' --runs_dir, or remove that data and the runs on it.'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """One training run of a sweep."""

  point: run_names.Coordinates
  path: pathlib.Path  # its folder; of one in a bucket, the copy here
  subset: Subset
  gin_files: Sequence[str]  # engine, model, others
  gin_bindings: Sequence[str]
  search_paths: Sequence[str]  # of relative gin files
  macros: Mapping[str, object]
  train_steps: int
  state: str  # NEW, RESUME or FINISHED at the time of planning
  step: int  # the newest that was saved

  @property
  def name(self) -> str:
    """The name of the run."""
    return self.point.name

  @property
  def lock_file(self) -> pathlib.Path | str:
    """The file, or object, that says who trains it."""
    file = self.path / run_folder.LOCK_FILE
    return buckets.url_of(file) or file

  @property
  def command(self) -> list[str]:
    """The command that starts or resumes it."""
    command = [sys.executable, '-m', 'dsbs_jax.train']
    command += [f'--gin_file={file}' for file in self.gin_files]
    command += map(gin_texts.flag, self.gin_bindings)
    if tuple(self.search_paths) != ('.',):
      command.append(f'--gin_search_paths={",".join(self.search_paths)}')
    return command

  def settings(self) -> train_config.TrainConfig:
    """The settings that its gin files and bindings build."""
    return gin_config.build(
      train_config.TrainConfig,
      gin_files=self.gin_files,
      gin_bindings=self.gin_bindings,
      search_paths=self.search_paths,
    )

  def is_finished(self) -> bool:
    """Whether the run is finished now."""
    asked = self.macros.get('EVAL_SPLITS', ())
    return run_folder.is_finished(
      self.path,
      train_steps=self.train_steps,
      splits=run_folder.expected_splits(self.macros, asked),
    )


@dataclasses.dataclass(frozen=True)
class SweepPlan:
  """All runs of a sweep, and the subsets of data that they need, in order."""

  subsets: Sequence[Subset]
  jobs: Sequence[Job]
  prepares: bool = True  # what is missing
  trains: bool = True

  @property
  def open_jobs(self) -> list[Job]:
    """The runs that were not finished when the plan was made."""
    return [job for job in self.jobs if job.state != FINISHED]

  @property
  def open_subsets(self) -> list[Subset]:
    """The missing subsets of runs that are not finished."""
    needed = [job.subset for job in self.open_jobs]
    return [s for s in self.subsets if s in needed and not s.done]

  def commands(self) -> list[list[str]]:
    """The commands that are left to run: subsets first."""
    subsets = self.open_subsets if self.prepares else []
    open_jobs = self.open_jobs if self.trains else []
    return [todo.command for todo in (*subsets, *open_jobs)]


def shell_line(command: Sequence[str]) -> str:
  """A command as one line for a shell, in the folder of this process."""
  words = ' '.join(map(quoted, command))
  return f'cd {quoted(str(pathlib.Path.cwd()))} && {words}'


def quoted(word: str) -> str:
  """A word for a shell; double quotes read better around gin's single ones."""
  if "'" in word and not set(word) & set('"$`\\!\n'):
    return f'"{word}"'
  return shlex.quote(word)
