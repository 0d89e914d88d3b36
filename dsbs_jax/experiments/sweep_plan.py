# SPDX-License-Identifier: Apache-2.0
"""Plans a sweep: method x fraction of the data x model x seed.

Every run has a folder named by its coordinates and a command of its own, so a
plan can be run here or printed for the queue of a cluster. Planning reads the
gin files of every run: a typo is found before the first run starts.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence

from dsbs_jax import contract
from dsbs_jax.data import register
from dsbs_jax.data.remote import buckets, object_store
from dsbs_jax.experiments import jobs
from dsbs_jax.runs import checkpoint_folders, run_folder, run_names
from dsbs_jax.runtime.configuration import gin_config
from dsbs_jax.training import start, train_config

# Macros that the plan sets in every run.
RESERVED = ('MODEL_DIR', 'DATA_DIR', 'MIXTURE_OR_TASK_NAME', 'SEED')
# Weights of the terms of a pair's objective -> the plain loss of one term, as
# in the original.
_OF_TWO_TERMS = {
  'ALPHA': 1.0,
  'ALPHA_SCHEDULE': None,
  'MI_WEIGHT': 0.0,
  'VERDICT_WEIGHT': 0.0,
  'COUNTERFACTUAL_WEIGHT': 0.0,
  'CONTRAST_WEIGHT': 0.0,
}
# Macros that may differ when a run is resumed: how often it evaluates and on
# which devices, but not what it computes.
_FREE = RESERVED + (
  'EVAL_PERIOD',
  'EVAL_BATCH_SIZE',
  'LOG_PERIOD',
  'KEEP_CHECKPOINTS',
  'MICROBATCHES',
  'MESH',
  'SHARDING_RULES',
  'REMAT',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
  """What `dsbs sweep` is asked to do; its flags say what each attribute is."""

  benchmarks: Sequence[str]
  methods: Sequence[str]
  models: Sequence[str]
  fractions: Sequence[str | float] = (1.0,)
  seeds: Sequence[str | int] = (0,)
  vary: Sequence[str] = ()
  runs_dir: str
  data_dir: str | None = None
  source: str | None = None
  vocabulary: str | None = None
  prepare_flags: Sequence[str] = ()
  gin_files: Sequence[str] = ('gin/train.gin',)
  gin_bindings: Sequence[str] = ()
  search_paths: Sequence[str] = ('.',)

  def __post_init__(self):
    for name in ('benchmarks', 'methods', 'models', 'fractions', 'seeds'):
      values = getattr(self, name)
      if not values or len(set(values)) != len(values):
        raise contract.UserError(
          f'--{name} is {",".join(map(str, values))!r}, expected one value or'
          ' more, each once.'
        )
    names = list(map(model_name, self.models))
    if len(set(names)) < len(names):  # the runs of one would take its place
      raise contract.UserError(
        f'--models names files called {", ".join(names)}, expected names of'
        ' their own, by which runs are told apart. Rename one.'
      )
    if not self.runs_dir:
      raise contract.UserError(
        '--runs_dir is missing. Name the folder of the runs.'
      )
    if self.source and '://' in self.source:
      raise contract.UserError(
        f'--source is {self.source!r}, expected a folder or a zip file: every'
        ' subset would download it again. Download it once.'
      )
    for binding in (*self.gin_bindings, *self.vary):
      name = binding.partition('=')[0].strip()
      if name in RESERVED:
        raise contract.UserError(
          f'{name} is set for each run by the sweep. Remove {binding!r}.'
        )

  def points(self) -> list[run_names.Coordinates]:
    """All runs of the sweep, in the order in which they are run."""
    fractions = [_number(float, f, 'fractions') for f in self.fractions]
    axes = {
      # First, so that first curves come early.
      'seed': [_number(int, seed, 'seeds') for seed in self.seeds],
      'benchmark': self.benchmarks,
      'model': [model_name(file) for file in self.models],
      'fraction': fractions,
      'method': self.methods,
      'setting': list(itertools.product(*map(_values, self.vary))),
    }
    points = {}
    for values in itertools.product(*axes.values()):
      point = run_names.Coordinates(**dict(zip(axes, values, strict=True)))
      # ALPHA does nothing where there is one term: such points are one run.
      idle = _without_effect(point)
      kept = tuple(s for s in point.setting if s.split('=')[0] not in idle)
      points[dataclasses.replace(point, setting=kept)] = None
    return list(points)


def plan(sweep: Sweep) -> jobs.SweepPlan:
  """All runs of a sweep with their state. Nothing on disk is changed.

  Raises:
    UserError: a coordinate or gin file is wrong, two runs would share a folder,
      or data is missing, or data or a run of other settings is there.
  """
  buckets.fetch(sweep.runs_dir, arrays=False)
  files = {model_name(file): file for file in sweep.models}
  subsets, planned = {}, {}
  for point in sweep.points():
    wanted = _subset(sweep, point)
    subset = subsets.setdefault((wanted.benchmark, wanted.data_dir), wanted)
    job = _job(sweep, point, files[point.model], subset)
    if job.name in planned:
      raise contract.UserError(
        f'two runs would be named {job.name}. Give values to --vary, and'
        ' names to model files, that differ in letters and digits.'
      )
    planned[job.name] = job
  found = jobs.SweepPlan(list(subsets.values()), list(planned.values()))
  _check_data(sweep, found)
  return found


def _job(
  sweep: Sweep,
  point: run_names.Coordinates,
  model_file: str,
  subset: jobs.Subset,
) -> jobs.Job:
  runs_dir = object_store.absolute(sweep.runs_dir).rstrip('/')
  model_dir = f'{runs_dir}/{point.name}'
  path = pathlib.Path(model_dir)
  if object_store.is_bucket(model_dir):
    path = buckets.local_path(model_dir)
  engine, *others = sweep.gin_files
  gin_files = [engine, model_file, *others]
  bindings = list(sweep.gin_bindings)
  if sweep.vocabulary:
    bindings.append(f'VOCABULARY = {start.absolute_spec(sweep.vocabulary)!r}')
  bindings += [setting.replace('=', ' = ', 1) for setting in point.setting]
  bindings += [f'{name} = {v}' for name, v in _without_effect(point).items()]
  values = model_dir, subset.data_dir, point.task, point.seed
  bindings += [f'{n} = {v!r}' for n, v in zip(RESERVED, values, strict=True)]
  settings = gin_config.build(
    train_config.TrainConfig,
    gin_files=gin_files,
    gin_bindings=bindings,
    search_paths=sweep.search_paths,
  )
  config_text = gin_config.operative_text()
  macros = run_folder.parse_macros(config_text)
  _check_settings(path, settings, run_folder.parse_settings(config_text))
  step = max(checkpoint_folders.folders(path), default=0)
  job = jobs.Job(
    point=point,
    path=path,
    subset=subset,
    gin_files=gin_files,
    gin_bindings=bindings,
    search_paths=sweep.search_paths,
    macros=macros,
    train_steps=settings.train_steps,
    state=jobs.RESUME if step else jobs.NEW,
    step=step,
  )
  finished = job.is_finished()
  return dataclasses.replace(job, state=jobs.FINISHED) if finished else job


def _subset(sweep: Sweep, point: run_names.Coordinates) -> jobs.Subset:
  """The data of a run; runs on all of the data share one folder."""
  root = object_store.absolute(sweep.data_dir or f'{sweep.runs_dir}/data')
  folder = f'fraction-{run_names.decimal_text(point.fraction)}'
  subset_seed = 0
  if point.fraction < 1:
    subset_seed = point.seed
    folder += f'-seed-{subset_seed}'
  return jobs.Subset(
    benchmark=point.benchmark,
    source=object_store.absolute(sweep.source) if sweep.source else '',
    data_dir=f'{root.rstrip("/")}/{folder}',
    fraction=point.fraction,
    subset_seed=subset_seed,
    vocabulary=sweep.vocabulary and start.absolute_spec(sweep.vocabulary),
    flags=tuple(sweep.prepare_flags),
  )


def _check_settings(
  path: pathlib.Path,
  run: train_config.TrainConfig,
  values: Mapping[str, object],
) -> None:
  """Raises UserError if the folder holds a run with other settings."""
  file = path / run_folder.CONFIG_FILE
  if not file.is_file():
    return
  before = run_folder.read_settings(file)
  free = set(_FREE)
  longer = before.get('TRAIN_STEPS', run.train_steps) < run.train_steps
  if longer and not run.depends_on_train_steps():
    free.add('TRAIN_STEPS')
  changed = [
    f'{name}: {before[name]!r} -> {value!r}'
    for name, value in sorted(values.items())
    if name not in free and name in before and before[name] != value
  ]
  if changed:
    raise contract.UserError(
      f'{path} holds a run with other settings: {"; ".join(changed)}. Restore'
      ' the settings, take another --runs_dir, or remove the folder.'
    )


def _check_data(sweep: Sweep, found: jobs.SweepPlan) -> None:
  jobs.check_subsets(found.subsets)
  if missing := [] if sweep.source else found.open_subsets:
    name = missing[0].benchmark
    register.benchmark(name, data_dir=sweep.data_dir)  # or it is misspelt
    raise contract.UserError(
      f'{name} is not prepared in {missing[0].data_dir}'
      f' ({len(missing)} missing in all). Give --source, so that the sweep can'
      ' prepare it.'
    )


def _without_effect(point: run_names.Coordinates) -> dict[str, float | None]:
  """The weights that do nothing in a run, as it is trained without them."""
  if point.method.endswith('_dsbs'):
    return {}
  used = 'COUNTERFACTUAL_WEIGHT' if point.method.endswith('_single') else ''
  return {n: plain for n, plain in _OF_TWO_TERMS.items() if n != used}


def model_name(file: str) -> str:
  """The name of a model by its gin file: 'gin/models/base.gin' is 'base'."""
  return pathlib.PurePath(file).name.removesuffix('.gin')


def _values(binding: str) -> list[str]:
  """'ALPHA=0.1,0.5' -> ['ALPHA=0.1', 'ALPHA=0.5']."""
  name, equals, values = binding.partition('=')
  if not equals or not values.strip():
    raise contract.UserError(
      f'--vary is {binding!r}, expected NAME=VALUE,VALUE.'
    )
  return [f'{name.strip()}={value.strip()}' for value in values.split(',')]


def _number(kind, value: str | float, flag: str):
  try:
    return kind(value)
  except ValueError as error:
    raise contract.UserError(
      f'--{flag} has {value!r}, expected numbers with commas between.'
    ) from error
