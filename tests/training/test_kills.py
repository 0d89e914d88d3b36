# SPDX-License-Identifier: Apache-2.0
"""25 times SIGKILL, at random moments of one run: nothing is lost.

Nor is it by two processes in one folder, or a kill after a polite signal. Some
of the moments are drawn from the CPU time of a process, which a busy machine
does not change much, the others from steps, evaluations and saves, which are
too short to be met by chance. Where each kill fell is read off what it left.
`pytest -m long -s` prints the figures.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import psutil
import pytest

from dsbs_jax.core import steps
from dsbs_jax.inference import evaluator
from dsbs_jax.preparing import prepare
from dsbs_jax.runs import checkpoints, metrics_log, run_folder
from dsbs_jax.runtime.configuration import gin_config
from dsbs_jax.training import train_config
from tests import small_runs
from tests.recordings import hf_folders

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
FILES = ('gin/train.gin', 'gin/models/nano.gin', 'gin/benchmarks/parcels.gin')
VOCABULARY = str(hf_folders.BUNDLED / 'spiece.model')
NUM_KILLS = 25
# No kill lets more than four periods pass, few more than two.
TRAIN_STEPS, EVAL_PERIOD = 800, 10
BINDINGS = (
  f'TRAIN_STEPS = {TRAIN_STEPS}',
  f'EVAL_PERIOD = {EVAL_PERIOD}',
  'LOG_PERIOD = 1',
  'BATCH_SIZE = 4',
  "EVAL_SPLITS = ('validation',)",
  'MAX_DECODE_LEN = 8',
  'LEARNING_RATE = 1e-3',
)
FIRST_STEP = 'first step after'
PHASES = ('start-up', 'step', 'evaluation', 'save')


# The same command with an evaluation that never ends.
SLOW_EVALUATION = """
import time
from dsbs_jax import train
from dsbs_jax.inference import evaluator
from dsbs_jax.runtime import command
def predict(self, *unused, **options):
  while True:
    time.sleep(1)
evaluator.Evaluator.predict = predict
command.run(train.main)
"""


class Run:
  """A run on the bundled benchmark, in processes that can be killed.

  Its embedding is that of T5's 32,000 pieces, so that saves take their time.
  """

  def __init__(self, folder, data_dir):
    self.folder = folder
    self.errors = folder.with_suffix('.log')
    self.bindings = [
      f"MODEL_DIR = '{folder}'",
      f"DATA_DIR = '{data_dir}'",
      f"VOCABULARY = '{VOCABULARY}'",
      *BINDINGS,
    ]

  def start(self, *program):
    """Starts the command, or starts it again."""
    command = [sys.executable, *(program or ('-m', 'dsbs_jax.train'))]
    command += [f'--gin_file={file}' for file in FILES]
    command += [f'--gin.{text}' for text in self.bindings]
    with self.errors.open('w') as errors:
      return subprocess.Popen(command, cwd=REPOSITORY, stderr=errors)

  def said(self) -> str:
    """What the latest process has printed."""
    return self.errors.read_text()

  def saving(self) -> bool:
    """Whether a checkpoint is half written."""
    return any(self.folder.glob('checkpoint_*tmp*'))

  def phases(self) -> set[str]:
    """What the process is at, or was when it was killed.

    A save goes on beside evaluations and steps.
    """
    if FIRST_STEP not in self.said():
      return {'start-up'}
    last = self.said().splitlines()[-1]
    phases = {'evaluation' if last.startswith('evaluating') else 'step'}
    return phases | {'save'} if self.saving() else phases

  def done(self) -> int:
    """The last step whose metrics are written."""
    path = self.folder / metrics_log.METRICS_FILE
    lines = path.read_text().splitlines() if path.exists() else []
    whole = [line for line in lines if line.endswith('}')]
    return json.loads(whole[-1])['step'] if whole else 0

  def saved(self) -> int:
    """The newest checkpoint's step."""
    names = (path.name for path in self.folder.glob('checkpoint_*'))
    numbers = [name.removeprefix('checkpoint_') for name in names]
    return max((int(n) for n in numbers if n.isdigit()), default=0)

  def state(self):
    """Parameters, optimizer and position of the last checkpoint."""
    run = gin_config.build(
      train_config.TrainConfig,
      gin_files=FILES,
      gin_bindings=self.bindings,
      search_paths=[str(REPOSITORY)],
    )
    shapes = jax.eval_shape(
      lambda key: steps.init_state(key, run.model, run.transformation()),
      jax.random.key(0),
    )
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = checkpoints.shapes_with_shardings(
      shapes, jax.tree.map(lambda _: device, shapes)
    )
    return checkpoints.Checkpoints(self.folder).restore(TRAIN_STEPS, like)

  def files(self) -> dict[str, str]:
    """Metrics and predictions."""
    paths = [
      self.folder / metrics_log.METRICS_FILE,
      *(self.folder / evaluator.PREDICTIONS).iterdir(),
    ]
    return {path.name: path.read_text() for path in paths}


def _wait(process, condition):
  deadline = time.monotonic() + 900
  while process.poll() is None and not condition():
    assert time.monotonic() < deadline, 'nothing happens'
    time.sleep(0.003)


def _cpu_seconds(process) -> float:
  """What a process has used so far, 0 once it has ended."""
  try:
    times = psutil.Process(process.pid).cpu_times()
  except psutil.NoSuchProcess:
    return 0.0
  return times.user + times.system


def _kill(process, run, aim, draw, start_up):
  """Kills a process at a moment drawn for the aim; returns whether it lived.

  Args:
    process: it, just started.
    run: the run that it trains.
    aim: 'any', or 'step', 'save' or 'evaluation'.
    draw: the random numbers.
    start_up: CPU seconds until the first step.
  """
  before = run.saved()
  if aim == 'any':
    used, most = draw.uniform(0, 1.5 * start_up), before + 2 * EVAL_PERIOD
    _wait(process, lambda: _cpu_seconds(process) >= used or run.saved() >= most)
  else:
    # After one more save, so that the run gets on.
    _wait(process, lambda: run.saved() > before and not run.saving())
    most = run.saved() + EVAL_PERIOD
    _wait(process, lambda: aim in run.phases() or run.saved() > most)
    if aim == 'save':
      time.sleep(draw.uniform(0, 0.05))
  alive = process.poll() is None
  process.send_signal(signal.SIGKILL)
  process.wait()
  return alive


def _finish(run):
  process = run.start()
  assert process.wait(timeout=1800) == 0, run.said()


def _prepare(data_dir):
  prepare.prepare(
    prepare.PrepareConfig(
      benchmark='parcels',
      source=str(REPOSITORY / 'examples' / 'parcels'),
      data_dir=str(data_dir),
      vocabulary=VOCABULARY,
    )
  )


@pytest.mark.long
def test_25_kills_change_nothing(tmp_path):
  data_dir = tmp_path / 'data'
  _prepare(data_dir)
  seed = int(os.environ.get('DSBS_KILL_SEED', '7'))
  draw = random.Random(seed)
  unbroken = Run(tmp_path / 'unbroken', data_dir)
  _finish(unbroken)  # compiles; the second is the one that is timed
  unbroken = Run(tmp_path / 'again', data_dir)
  began = time.monotonic()
  process = unbroken.start()
  _wait(process, lambda: FIRST_STEP in unbroken.said())
  start_up = _cpu_seconds(process)
  assert process.wait(timeout=1800) == 0, unbroken.said()
  whole = time.monotonic() - began

  run = Run(tmp_path / 'killed', data_dir)
  aims = ['any'] * 10 + ['step', 'save', 'evaluation'] * 5
  draw.shuffle(aims)
  fell, redone = [], []
  began = time.monotonic()
  for aim in aims:
    assert _kill(run.start(), run, aim, draw, start_up), 'it ended too early'
    fell.append(run.phases())
    # In start-up the lines of the run before are still there.
    redone.append(0 if 'start-up' in fell[-1] else run.done() - run.saved())
  _finish(run)
  taken = time.monotonic() - began

  counts = {phase: sum(phase in each for each in fell) for phase in PHASES}
  print(
    f'\nseed {seed}: {len(fell)} kills: {counts}; steps redone: {sum(redone)} of'
    f' {TRAIN_STEPS}, at most {max(redone)} per kill (a checkpoint every'
    f' {EVAL_PERIOD}); unbroken {whole:.0f} s, start-up {start_up:.1f} CPU s;'
    f' killed {taken:.0f} s: {(taken - whole) / len(fell):.1f} s per kill'
  )
  assert len(fell) == NUM_KILLS and all(counts.values())
  for phases, lost in zip(fell, redone, strict=True):
    # Steps go on while a save is written, so a kill then takes them, too.
    assert lost <= EVAL_PERIOD * (2 if 'save' in phases else 1)
  _assert_same(run, unbroken)
  assert not list(run.folder.glob('*.damaged*'))


def _assert_same(run, unbroken):
  assert run.files() == unbroken.files()
  points = small_runs.points(run.folder)
  assert points == small_runs.points(unbroken.folder)
  assert len(points) == len(set(points))
  (left, here), (right, there) = run.state(), unbroken.state()
  jax.tree.map(np.testing.assert_array_equal, left, right)
  assert here == there


@pytest.mark.long
def test_a_kill_after_a_signal_in_an_evaluation_loses_one_period_at_most(
  tmp_path,
):
  """As where machines are taken away: SIGTERM, and SIGKILL soon after."""
  _prepare(tmp_path / 'data')
  unbroken = Run(tmp_path / 'unbroken', tmp_path / 'data')
  _finish(unbroken)
  run = Run(tmp_path / 'killed', tmp_path / 'data')
  process = run.start('-c', SLOW_EVALUATION)
  _wait(process, lambda: 'evaluating' in run.said())
  process.send_signal(signal.SIGTERM)
  _wait(process, lambda: run.saved() == EVAL_PERIOD)  # the save was under way
  process.kill()
  process.wait()
  assert run.done() - run.saved() <= EVAL_PERIOD
  print(f'\n{run.done()} steps done, {run.saved()} saved')
  assert run.saved() == run.done() == EVAL_PERIOD
  _finish(run)
  assert f'resuming {run.folder} from step {EVAL_PERIOD}' in run.said()
  _assert_same(run, unbroken)


@pytest.mark.long
def test_a_second_process_harms_a_run_neither_alive_nor_killed(tmp_path):
  _prepare(tmp_path / 'data')
  unbroken = Run(tmp_path / 'unbroken', tmp_path / 'data')
  _finish(unbroken)
  run = Run(tmp_path / 'run', tmp_path / 'data')
  first = run.start()
  for begun in (
    (run.folder / run_folder.LOCK_FILE).exists,  # and no more: it compiles
    lambda: run.saved() > 0,
  ):
    _wait(first, begun)
    first.send_signal(signal.SIGSTOP)  # else it may end before the second
    second = Run(run.folder, tmp_path / 'data')
    second.errors = tmp_path / 'second.log'
    process = second.start()
    assert process.wait(timeout=900) == 2, second.said()
    said = second.said().splitlines()[-1]
    assert f'is being trained by process {first.pid} on' in said
    if not run.saved():
      first.send_signal(signal.SIGCONT)
  assert first.poll() is None
  first.kill()
  first.wait()
  _finish(run)
  assert f'was left by process {first.pid} on' in run.said()
  _assert_same(run, unbroken)
