# SPDX-License-Identifier: Apache-2.0
"""A plan is complete, quoted, and finds mistakes before anything runs."""

import pathlib
import shlex
import shutil

import pytest

from dsbs_jax.experiments import jobs, sweep_plan
from dsbs_jax.experiments import sweep as sweep_lib
from dsbs_jax.preparing import prepare
from dsbs_jax.runtime.configuration import gin_config

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def _sweep(tmp_path, **changed):
  given = {
    'benchmarks': ('cqa',),
    'methods': ('gt_finetune', 'gt_dsbs'),
    'models': ('gin/models/tiny.gin',),
    'runs_dir': str(tmp_path / 'runs'),
    'source': str(tmp_path),
    'vocabulary': 'bytes',
    'gin_bindings': ('VOCAB_SIZE = 384', 'TRAIN_STEPS = 20'),
    'search_paths': (str(REPOSITORY),),
  }
  return sweep_plan.Sweep(**{**given, **changed})


def _bindings(job):
  words = (word.removeprefix('--gin.') for word in job.command)
  return dict(word.split('=', 1) for word in words if '=' in word)


def test_every_point_has_a_run_and_every_subset_is_prepared_once(tmp_path):
  plan = sweep_plan.plan(
    _sweep(tmp_path, fractions=('0.25', '1'), seeds=('0', '1', '2'))
  )
  assert len(plan.jobs) == 2 * 2 * 3
  assert len({job.path for job in plan.jobs}) == 12
  # A subset per seed, and the whole for all of them.
  places = [pathlib.Path(subset.data_dir).name for subset in plan.subsets]
  assert places == [
    'fraction-0.25-seed-0',
    'fraction-1',
    'fraction-0.25-seed-1',
    'fraction-0.25-seed-2',
  ]
  for job in plan.jobs:
    assert job.subset.fraction == job.point.fraction
    assert job.subset.subset_seed == (
      job.point.seed if job.point.fraction < 1 else 0
    )
  flags = plan.subsets[2].command
  assert '--fraction=0.25' in flags
  assert '--subset_seed=1' in flags
  assert f'--source={tmp_path}' in flags


def test_each_run_trains_its_own_coordinates(tmp_path):
  (job,) = sweep_plan.plan(
    _sweep(tmp_path, methods=('llm_dsbs',), seeds=(4,))
  ).jobs
  bindings = _bindings(job)
  assert bindings['MIXTURE_OR_TASK_NAME'] == "'cqa_llm_dsbs'"
  assert bindings['SEED'] == '4'
  assert bindings['TRAIN_STEPS'] == '20'
  assert bindings['VOCABULARY'] == "'bytes'"
  assert bindings['MODEL_DIR'] == repr(str(job.path))
  assert job.macros['EMB_DIM'] == 128
  assert job.train_steps == 20


def test_a_pretrained_start_is_evaluated_once(tmp_path):
  (tmp_path / 'pre.gin').write_text(
    "include 'gin/models/tiny.gin'\nINITIAL_CHECKPOINT_PATH = '/models/t5'\n"
  )
  models = ('gin/models/tiny.gin', str(tmp_path / 'pre.gin'))
  sweep = _sweep(tmp_path, models=models, seeds=(0, 1), fractions=('0.5', '1'))
  plan = sweep_plan.plan(sweep)
  (command,) = sweep_lib.untouched_commands(plan, sweep.runs_dir)
  assert command == [
    *('dsbs', 'eval', '/models/t5', '--task=cqa_gt_label'),
    f'--data_dir={tmp_path}/runs/data/fraction-0.5-seed-0',
    f'--out={tmp_path}/runs/untouched-cqa-pre',
    *('--vocabulary=bytes', '--max_decode_len=64'),
  ]


def test_points_go_seed_by_seed_and_each_is_there_once(tmp_path):
  sweep = _sweep(
    tmp_path,
    benchmarks=('cqa', 'svamp'),
    methods=('gt_dsbs', 'llm_dsbs'),
    fractions=('0.5', '1'),
    seeds=('0', '1', '2'),
    vary=('ALPHA=0.5,1',),
  )
  points = sweep.points()
  assert len(points) == len({p.name for p in points}) == 2 * 2 * 2 * 3 * 2
  assert [p.seed for p in points] == sorted(p.seed for p in points)


def test_alpha_weighs_two_terms_only(tmp_path):
  plan = sweep_plan.plan(_sweep(tmp_path, vary=('ALPHA=0.3,0.7',)))
  alphas = {job.name: job.macros['ALPHA'] for job in plan.jobs}
  assert alphas == {
    'cqa_gt_finetune-tiny-f1-s0': 1.0,
    'cqa_gt_dsbs-tiny-f1-s0-ALPHA=0.3': 0.3,
    'cqa_gt_dsbs-tiny-f1-s0-ALPHA=0.7': 0.7,
  }
  plan = sweep_plan.plan(_sweep(tmp_path, vary=('MI_WEIGHT=0.0,0.1',)))
  weights = {job.name: job.macros['MI_WEIGHT'] for job in plan.jobs}
  assert weights == {
    'cqa_gt_finetune-tiny-f1-s0': 0.0,
    'cqa_gt_dsbs-tiny-f1-s0-MI_WEIGHT=0.0': 0.0,
    'cqa_gt_dsbs-tiny-f1-s0-MI_WEIGHT=0.1': 0.1,
  }
  plan = sweep_plan.plan(_sweep(tmp_path, vary=('ALPHA_SCHEDULE=tscl',)))
  schedules = {job.name: job.macros['ALPHA_SCHEDULE'] for job in plan.jobs}
  assert schedules == {
    'cqa_gt_finetune-tiny-f1-s0': None,
    'cqa_gt_dsbs-tiny-f1-s0-ALPHA_SCHEDULE=tscl': 'tscl',
  }


def test_printed_lines_are_the_commands(tmp_path):
  folder = tmp_path / 'o\'clock $HOME `x` "y"'
  plan = sweep_plan.plan(_sweep(tmp_path, runs_dir=str(folder)))
  commands = plan.commands()
  assert ['prepare' in c[2] for c in commands] == [True, False, False]
  for command in commands:
    line = jobs.shell_line(command)
    assert '\n' not in line
    words = shlex.split(line)
    assert words[:3] == ['cd', str(pathlib.Path.cwd()), '&&']
    assert words[3:] == command


def _finish(job, *, saved=20):
  job.path.mkdir(parents=True, exist_ok=True)
  (job.path / 'config.gin').write_text(gin_config.operative_text())
  lines = ['{"step": 20, "split": "train", "loss": 1.0}']
  for split in ('validation', 'test'):
    lines.append(f'{{"step": 20, "split": "{split}", "accuracy": 5.0}}')
  (job.path / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
  (job.path / f'checkpoint_{saved}').mkdir()


def test_finished_runs_are_skipped_and_broken_ones_go_on(tmp_path):
  one = {'methods': ('gt_dsbs',)}
  (job,) = sweep_plan.plan(_sweep(tmp_path, **one)).jobs
  assert job.state == jobs.NEW
  _finish(job)
  plan = sweep_plan.plan(_sweep(tmp_path, **one))
  assert plan.jobs[0].state == jobs.FINISHED
  assert plan.commands() == []
  assert '1 finished' in sweep_lib.describe(plan)


def test_only_at_rates_that_stay_may_a_run_go_on_longer(tmp_path):
  def plan(steps, *bindings):
    given = ('VOCAB_SIZE = 384', f'TRAIN_STEPS = {steps}', *bindings)
    return sweep_plan.plan(
      _sweep(tmp_path, methods=('gt_dsbs',), gin_bindings=given)
    )

  constant = 'SCHEDULE = @optimizer.constant'
  _finish(plan(20, constant).jobs[0])
  assert plan(20, constant).jobs[0].state == jobs.FINISHED
  with pytest.raises(ValueError, match='TRAIN_STEPS: 20 -> 10'):
    plan(10, constant)  # not the run of 10 steps that is asked for
  longer = plan(40, constant)
  assert (longer.jobs[0].state, longer.jobs[0].step) == (jobs.RESUME, 20)
  assert 'resumes at step 20' in sweep_lib.describe(longer)
  assert '20 steps; 1 of 1 subsets' in sweep_lib.describe(longer)
  shutil.rmtree(longer.jobs[0].path)
  _finish(plan(20).jobs[0])
  for steps in (10, 40):
    with pytest.raises(ValueError, match=f'TRAIN_STEPS: 20 -> {steps}'):
      plan(steps)


def test_a_run_of_other_settings_is_never_taken_for_this_one(tmp_path):
  one = {'methods': ('gt_dsbs',)}
  (job,) = sweep_plan.plan(_sweep(tmp_path, **one)).jobs
  _finish(job)
  for binding in (
    'ALPHA = 0.9',
    'LEARNING_RATE = 1e-3',
    'BATCH_SIZE = 3',
    'optimizer.adamw_hf.weight_decay = 0.1',
    'optimizer.linear_decay.warmup_steps = 2',
  ):
    bindings = ('VOCAB_SIZE = 384', 'TRAIN_STEPS = 20', binding)
    with pytest.raises(ValueError, match=f'{binding.split()[0]}: .* -> '):
      sweep_plan.plan(_sweep(tmp_path, gin_bindings=bindings, **one))


def test_so_is_one_whose_setting_differs_in_a_later_line(tmp_path):
  def swept(targets):
    rationale = {'inputs': 128, 'targets': targets}
    lengths = {'label': {'inputs': 96, 'targets': 16}, 'rationale': rationale}
    return _sweep(
      tmp_path,
      methods=('gt_dsbs',),
      gin_bindings=('VOCAB_SIZE = 384', f'TASK_FEATURE_LENGTHS = {lengths}'),
    )

  (job,) = sweep_plan.plan(swept(64)).jobs
  assert job.macros['TASK_FEATURE_LENGTHS']['rationale']['targets'] == 64
  _finish(job)
  with pytest.raises(ValueError, match='TASK_FEATURE_LENGTHS: .* -> '):
    sweep_plan.plan(swept(32))


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'methods': ('dsbs',)}, "method is 'dsbs', expected one of"),
    ({'fractions': ('0.5', 'half')}, "--fractions has 'half'"),
    ({'fractions': ('1.5',)}, 'fraction is 1.5'),
    ({'seeds': ('0', '0')}, 'each once'),
    ({'runs_dir': ''}, '--runs_dir is missing'),
    ({'source': 'https://example.org/x.zip'}, 'Download it once'),
    ({'source': None}, 'is not prepared in .* Give --source'),
    ({'gin_bindings': ('SEED = 3',)}, 'SEED is set for each run'),
    ({'vary': ('DATA_DIR=1,2',)}, 'DATA_DIR is set for each run'),
    ({'vary': ('ALPHA',)}, 'expected NAME=VALUE,VALUE'),
    ({'gin_bindings': ('LERNING_RATE = 1',)}, 'read by nothing'),
    ({'models': ('gin/models/none.gin',)}, 'is not in'),
    (
      {'models': ('gin/models/tiny.gin', 'mine/tiny.gin')},
      '--models names files called tiny, tiny, expected names of',
    ),
    (
      {'vary': ('PREFIXES=\'code\',"code"',)},
      'two runs would be named',
    ),
  ],
)
def test_mistakes_are_found_before_anything_runs(tmp_path, changed, message):
  with pytest.raises(ValueError, match=message):
    sweep_plan.plan(_sweep(tmp_path, **changed))
  assert not (tmp_path / 'runs').exists()


def test_data_of_other_files_or_flags_is_not_taken_for_this(tmp_path):
  source = tmp_path / 'source'
  shutil.copytree(REPOSITORY / 'tests/data/fixtures/archive', source)

  def plan(*flags, **changed):
    given = {'benchmarks': ('svamp',), 'source': str(source)}
    return sweep_plan.plan(
      _sweep(tmp_path, prepare_flags=flags, **given | changed)
    )

  (subset,) = plan('--keep=parsed').subsets
  prepare.prepare(
    prepare.PrepareConfig(
      benchmark='svamp',
      source=subset.source,
      data_dir=subset.data_dir,
      keep='parsed',
    )
  )
  assert not plan('--keep=parsed').open_subsets
  assert not plan(source=None).open_subsets  # whatever it was made of
  with pytest.raises(ValueError, match="other keep: {'keep': 'parsed'}, exp"):
    plan()
  with pytest.raises(ValueError, match='other clean'):
    plan('--keep=parsed', '--clean=drop')
  (rows,) = source.rglob('svamp_train.json')
  rows.write_text(rows.read_text() + '\n')
  with pytest.raises(ValueError, match='other files'):
    plan('--keep=parsed')


def test_print_writes_commands_and_runs_nothing(tmp_path, capsys):
  sweep = _sweep(tmp_path)
  assert sweep_lib.run(sweep, print_only=True) == 0
  out = capsys.readouterr().out.splitlines()
  assert [' -m dsbs_jax.prepare ' in line for line in out] == [True] + [
    False
  ] * 2
  sweep_lib.run(sweep, stage='train', print_only=True)
  assert capsys.readouterr().out.splitlines() == out[1:]
  sweep_lib.run(sweep, stage='prepare', print_only=True)
  assert capsys.readouterr().out.splitlines() == out[:1]
  assert not (tmp_path / 'runs').exists()


def _flags(path):
  """The flags of a file, those of the files that it names first."""
  flags = {'gin_bindings': []}
  for line in path.read_text().splitlines():
    if not line.startswith('--'):
      assert not line or line.startswith('#'), line
      continue
    name, _, value = line.removeprefix('--').partition('=')
    if name == 'flagfile':
      flags |= _flags(REPOSITORY / value)
    elif name in ('gin_bindings', 'vary'):
      flags.setdefault(name, []).append(value)
    elif name == 'vocabulary':
      flags[name] = value
    elif name != 'in_process':
      flags[name] = value.split(',')
  return flags


@pytest.mark.parametrize(
  ('name', 'count'),
  [
    ('figure4', 160),
    ('figure5', 160),
    ('figure6', 128),
    ('figure6_xxl', 64),
    ('ablation', 48),
    ('alpha', 42),
    ('alpha_schedule', 12),
    ('counterfactual', 18),
    ('notes', 24),
    ('rationales', 18),
    ('cpu', 45),
    ('cpu_cqa', 45),
  ],
)
def test_the_sweeps_that_come_along_resolve(tmp_path, name, count):
  flags = _flags(REPOSITORY / 'gin' / 'sweeps' / f'{name}.flags')
  # Every run is a point of the grid; the first of each kind is read in full.
  points = sweep_plan.Sweep(**flags, runs_dir=str(tmp_path)).points()
  assert len(points) == count
  few = {
    **flags,
    'seeds': flags['seeds'][:1],
    'fractions': flags['fractions'][:1],
  }
  sweep = sweep_plan.Sweep(
    **few,
    runs_dir=str(tmp_path),
    source=str(tmp_path),
    search_paths=(str(REPOSITORY),),
  )
  plan = sweep_plan.plan(sweep)
  assert len({job.name for job in plan.jobs}) == len(sweep.points())


def test_no_sweep_file_is_without_a_test():
  files = {path.stem for path in (REPOSITORY / 'gin/sweeps').iterdir()}
  (mark,) = test_the_sweeps_that_come_along_resolve.pytestmark
  assert files == {name for name, _ in mark.args[1]}
