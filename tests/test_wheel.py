# SPDX-License-Identifier: Apache-2.0
"""What is installed is whole: all verbs work from an empty folder, quietly."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ('dsbs_jax', 'gin', 'rationales', 'tasks')
# What libraries say at their start that is of no use to a user.
NOISE = ('cuda', 'tensorflow', 'orbax', 'absl', 'warning', '0000 00:00', 'xla')
MODULE = """
from dsbs_jax.data import benchmark, metrics, parsing, register

register.register(
  benchmark.Benchmark(
    name='mine',
    splits={'train': 'train.jsonl', 'test': 'test.jsonl'},
    render=lambda row: row['first'] + ' or ' + row['second'],
    label=lambda row: row['heavier'],
    parse=parsing.after_marker('So the answer is', label=r'(\\S+)\\.'),
    metric=metrics.exact_match,
    example_id=lambda row: row['id'],
  )
)
"""


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """A copy of what is installed: a build writes beside its source."""
  copy = tmp_path_factory.mktemp('source')
  for folder in FOLDERS:
    shutil.copytree(
      REPOSITORY / folder,
      copy / folder,
      ignore=shutil.ignore_patterns('__pycache__'),
    )
  for name in ('setup.py', 'MANIFEST.in'):
    shutil.copy(REPOSITORY / name, copy)
  return copy


def test_a_build_has_every_file_and_nothing_over_gin_config(source, tmp_path):
  subprocess.run(
    [sys.executable, 'setup.py', '-q', 'build_py', f'--build-lib={tmp_path}'],
    cwd=source,
    check=True,
    capture_output=True,
  )
  built = {
    str(path.relative_to(tmp_path))
    for path in tmp_path.rglob('*')
    if path.is_file()
  }
  kinds = ('.py', '.json', '.html', '.css', '.js', '.gin', '.flags')
  ours = {
    str(path.relative_to(source))
    for folder in FOLDERS
    for path in (source / folder).rglob('*')
    if path.suffix in kinds
  }
  expected = {
    f'dsbs_jax/{name}' if name.startswith('gin/') else name for name in ours
  }
  assert built == expected
  assert 'dsbs_jax/gin/models/mini.gin' in built


@pytest.fixture(scope='module')
def installed(source, tmp_path_factory):
  """Runs `dsbs` of a new environment, in an empty folder."""
  place = tmp_path_factory.mktemp('environment')
  pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '-q']
  offline = ['--no-deps', '--no-index', '--no-build-isolation']
  subprocess.run(
    [*pip, 'wheel', *offline, f'--wheel-dir={place}', str(source)], check=True
  )
  (wheel,) = place.glob('*.whl')
  python = place / 'venv' / 'bin' / 'python'
  subprocess.run(
    [sys.executable, '-m', 'venv', '--without-pip', place / 'venv'], check=True
  )
  subprocess.run(
    [*pip, f'--python={python}', 'install', *offline[:2], str(wheel)],
    check=True,
  )
  # What it depends on, without an editable install of ours beside it.
  packages = sysconfig.get_paths()['purelib']
  where = python.parents[1] / 'lib' / f'python{sys.version[:4]}'
  (where / 'site-packages' / 'dependencies.pth').write_text(packages)
  folder = tmp_path_factory.mktemp('empty')
  environment = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(('PYTHON', 'JAX_PLATFORMS', 'TF_', 'DSBS_'))
  }

  def run(line, below='.'):
    done = subprocess.run(
      [python.parent / 'dsbs', *line.split()],
      cwd=folder / below,
      env=environment,
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, f'{line}\n{done.stderr}'
    noise = [
      text
      for text in done.stderr.splitlines()
      if any(word in text.lower() for word in NOISE)
    ]
    assert not noise, f'{line}\n{noise}'
    return done

  run.folder = folder
  return run


@pytest.mark.long
def test_the_wheel_works_from_an_empty_folder(installed):
  rows = REPOSITORY / 'examples' / 'parcels'
  (installed.folder / 'mine.py').write_text(MODULE)
  # A user's own folders, with the names of ours.
  for name in ('tasks', 'rationales', 'gin'):
    (installed.folder / name).mkdir()
  for name in ('tasks', 'rationales'):
    (installed.folder / name / '__init__.py').write_text('raise SystemExit(9)')
  (installed.folder / 'below').mkdir()
  assert installed('--version').stdout.startswith('dsbs_jax ')
  installed('extract --help')
  (installed.folder / 'rows.csv').write_text(
    'q,a\n' + ''.join(f'is {n} odd?,{n % 2}\n' for n in range(40))
  )
  installed(
    'prepare --rows=rows.csv --input=q --label=a --data_dir=own'
    ' --vocabulary=bytes'
  )
  installed(
    f'prepare --benchmark=mine --module=mine.py --source={rows} --data_dir=data'
    ' --train_vocab=256'
  )
  done = installed(
    'train --benchmark=mine --module=mine.py --student=nano --data_dir=data'
    ' --out=runs/a --steps=2 --batch=8 --gin.EVAL_SPLITS=("test",)'
  )
  assert 'task        mine_gt_dsbs' in done.stderr
  assert 'mine.256.model' in done.stderr
  # From another folder: all is in the run.
  assert 'accuracy' in installed('eval ../runs/a --splits=test', 'below').stdout
  questions = installed.folder / 'questions.txt'
  questions.write_text('lamp or drum\n')
  assert '"label"' in installed('infer runs/a questions.txt').stdout
  done = installed(
    'sweep --flagfile=gin/sweeps/cpu_cqa.flags --runs_dir=s --vocabulary=bytes'
    f' --source={REPOSITORY}/tests/data/fixtures/archive --print',
    'below',
  )
  assert '--gin_file=gin/models/nano.gin' in done.stdout
  installed(
    'eval --gin_file=gin/eval.gin --gin_file=gin/models/nano.gin'
    ' --gin.MIXTURE_OR_TASK_NAME=mine_gt_dsbs --gin.MODULE=mine.py'
    ' --gin.CHECKPOINT_PATH=runs/a --gin.DATA_DIR=data --gin.VOCABULARY='
    'data/vocabularies/mine.256.model --gin.EVAL_SPLITS=("test",)'
  )
