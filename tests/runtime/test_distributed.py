# SPDX-License-Identifier: Apache-2.0
"""Two processes train as one does, and stop together."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from dsbs_jax import contract
from dsbs_jax.interop import checksums
from dsbs_jax.preparing import prepare
from dsbs_jax.runs import metrics_log, run_folder
from dsbs_jax.runtime import distributed, folder_lock, signals
from tests import small_runs

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SMALL = (
  "VOCABULARY='bytes'",
  'VOCAB_SIZE=384',
  'BATCH_SIZE=16',
  'DROPOUT_RATE=0.0',
  'LEARNING_RATE=1e-3',
  'MAX_DECODE_LEN=4',
  'LOG_PERIOD=5',
)
FIFTY = ('TRAIN_STEPS=50', 'EVAL_PERIOD=50', 'LOG_PERIOD=1')


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('prepared')
  prepare.prepare(
    prepare.PrepareConfig(
      benchmark='parcels',
      source=str(REPOSITORY / 'examples/parcels'),
      data_dir=str(folder),
    )
  )
  return folder


_STARTED = []


@pytest.fixture(autouse=True)
def _nothing_is_left_running():
  yield
  for process in _STARTED:
    process.kill()
    process.wait()
    process.stderr.close()
  _STARTED.clear()


def _start(model_dir, data_dir, *bindings, devices=1, **environment):
  command = ['-m', 'dsbs_jax.train']
  command += ['--gin_file=gin/train.gin', '--gin_file=gin/models/nano.gin']
  command += ['--gin_file=gin/benchmarks/parcels.gin']
  folders = (f"MODEL_DIR='{model_dir}'", f"DATA_DIR='{data_dir}'")
  command += [f'--gin.{text}' for text in (*folders, *SMALL, *bindings)]
  return _start_command(command, devices=devices, **environment)


def _start_command(command, *, devices=1, **environment):
  if environment:
    command = [*command, '--distributed']
  flags = os.environ.get('XLA_FLAGS', '')
  flags += f' --xla_force_host_platform_device_count={devices}'
  process = subprocess.Popen(
    [sys.executable, *command],
    cwd=REPOSITORY,
    env={**os.environ, 'XLA_FLAGS': flags, **environment},
    stderr=subprocess.PIPE,
    text=True,
  )
  _STARTED.append(process)
  return process


def _start_two(start, *arguments, devices=1):
  """Starts both processes of a run by a function that starts one."""
  address = small_runs.coordinator_address()
  return [
    start(
      *arguments,
      devices=devices,
      JAX_COORDINATOR_ADDRESS=address,
      JAX_NUM_PROCESSES='2',
      JAX_PROCESS_ID=str(index),
    )
    for index in range(2)
  ]


def _finish(*processes):
  for process in processes:
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def _lines(model_dir):
  text = (model_dir / metrics_log.METRICS_FILE).read_text()
  return [json.loads(line) for line in text.splitlines()]


def _same(alone, together):
  for single, joint in zip(alone, together, strict=True):
    assert single.pop('split') == joint.pop('split')
    assert single == pytest.approx(joint, rel=1e-5)


_SLOW_CHECK = """
import sys, time
from dsbs_jax.runs import checkpoint_validation
from dsbs_jax.runtime import distributed
import jax
distributed.join(True)
jax.devices()
time.sleep(40 * (1 - jax.process_index()))
assert checkpoint_validation.latest_valid_step(sys.argv[1]) is None
"""


@pytest.mark.long
def test_others_wait_while_a_large_checkpoint_is_checked(tmp_path):
  """Longer than Gloo waits for a process at the first collective, 30 s."""
  command = ['-c', _SLOW_CHECK, str(tmp_path)]
  _finish(*_start_two(_start_command, command))


_SHARED_CHECK = """
import sys
from dsbs_jax.runs import checkpoint_validation
from dsbs_jax.runtime import distributed
distributed.join(True)
assert checkpoint_validation.latest_valid_step(sys.argv[1]) == 1
"""


@pytest.mark.long
def test_damage_in_the_share_of_another_process_is_found(tmp_path):
  """Files are read by turns: `b` is the second process's."""
  for step in (1, 2):
    folder = tmp_path / f'checkpoint_{step}' / 'state'
    folder.mkdir(parents=True)
    for name in 'abc':
      (folder / name).write_text(name * step)
    checksums.write(folder.parent)
  (tmp_path / 'checkpoint_2' / 'state' / 'b').write_text('xx')
  first, second = _start_two(
    _start_command, ['-c', _SHARED_CHECK, str(tmp_path)]
  )
  _finish(second)
  _, errors = first.communicate()
  assert first.returncode == 0, errors
  assert 'state/b holds other bytes than were saved' in errors
  assert (tmp_path / 'checkpoint_2.damaged').is_dir()


@pytest.mark.long
def test_two_processes_of_two_devices_have_the_losses_of_one(
  data_dir, tmp_path
):
  steps = ('TRAIN_STEPS=10', 'EVAL_PERIOD=10')
  mesh = "MESH='2x2'"  # each model shard is within, each data shard across
  _finish(
    _start(tmp_path / 'one', data_dir, *steps),
    *_start_two(_start, tmp_path / 'two', data_dir, *steps, mesh, devices=2),
  )
  alone = _lines(tmp_path / 'one')
  assert len(alone) == 4  # two lines of training, two evaluated splits
  _same(alone, _lines(tmp_path / 'two'))


@pytest.fixture(scope='module')
def fifty_alone(data_dir, tmp_path_factory):
  """The metrics of every one of 50 steps on one device."""
  folder = tmp_path_factory.mktemp('runs') / 'one'
  _finish(_start(folder, data_dir, *FIFTY))
  return _lines(folder)


@pytest.mark.long
@pytest.mark.parametrize('mesh', ['4x1', '2x2'])
@pytest.mark.parametrize('processes', [1, 2])
def test_fifty_losses_are_those_of_one_device(
  fifty_alone, data_dir, tmp_path, mesh, processes
):
  bindings = (*FIFTY, f"MESH='{mesh}'")
  if processes == 1:
    _finish(_start(tmp_path, data_dir, *bindings, devices=4))
  else:
    _finish(*_start_two(_start, tmp_path, data_dir, *bindings, devices=2))
  train = [line for line in fifty_alone if line['split'] == 'train']
  assert [line['step'] for line in train] == list(range(1, 51))
  _same([dict(line) for line in fifty_alone], _lines(tmp_path))


def _wait_for(process, beginning):
  """Reads what process 0 says until a line begins so."""
  said = []
  for line in process.stderr:
    said.append(line)
    if line.startswith(beginning):
      return
  pytest.fail(f'it ended before {beginning!r}: {"".join(said)}')


def _wait_for_first_step(process):
  _wait_for(process, 'first step after')


@pytest.mark.long
def test_one_signal_ends_an_evaluation_of_both(data_dir, tmp_path):
  steps = ('TRAIN_STEPS=2', 'EVAL_PERIOD=1', 'EVAL_BATCH_SIZE=2')
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  _finish(*_start_two(_start, whole, data_dir, *steps))
  processes = _start_two(_start, broken, data_dir, *steps)
  _wait_for(processes[0], 'evaluating')
  processes[1].send_signal(signal.SIGTERM)
  for process in processes:
    _, errors = process.communicate()
    assert process.returncode == signals.INTERRUPTED_STATUS, errors
  assert [line['split'] for line in _lines(broken)] == ['train']
  assert (broken / 'checkpoint_1').is_dir()
  _finish(*_start_two(_start, broken, data_dir, *steps))
  assert _lines(broken) == _lines(whole)
  assert (broken / 'checkpoint_1/metrics/metrics').exists()


@pytest.mark.long
def test_a_lock_refuses_both(data_dir, tmp_path):
  lock = folder_lock.FolderLock(
    tmp_path / run_folder.LOCK_FILE, doing='trained', remedy=''
  )
  with folder_lock.hold(lock):
    processes = _start_two(_start, tmp_path, data_dir)
    for process in processes:
      _, errors = process.communicate()
      assert process.returncode == 2, errors
      assert f'is being trained by process {os.getpid()} on' in errors


@pytest.mark.long
@pytest.mark.parametrize(
  ('victim', 'named'), [(0, 'task 0'), (1, 'Task 1 heartbeat timeout')]
)
def test_a_killed_process_ends_the_other(data_dir, tmp_path, victim, named):
  processes = _start_two(_start, tmp_path, data_dir, 'TRAIN_STEPS=100000')
  _wait_for_first_step(processes[0])
  processes[victim].kill()
  _, errors = processes[1 - victim].communicate()
  assert processes[1 - victim].returncode not in (0, signals.INTERRUPTED_STATUS)
  assert named in errors


def _cut_in_half(checkpoint):
  largest = max(
    (path for path in (checkpoint / 'state').rglob('*') if path.is_file()),
    key=lambda path: path.stat().st_size,
  )
  largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


@pytest.mark.long
def test_all_go_by_what_process_0_finds_damaged(data_dir, tmp_path):
  steps = ('TRAIN_STEPS=4', 'EVAL_PERIOD=2')
  _finish(*_start_two(_start, tmp_path, data_dir, *steps))
  lines = _lines(tmp_path)
  _cut_in_half(tmp_path / 'checkpoint_4')
  _finish(*_start_two(_start, tmp_path, data_dir, *steps))
  assert (tmp_path / 'checkpoint_4.damaged').is_dir()
  assert (tmp_path / 'checkpoint_4').is_dir()
  assert _lines(tmp_path) == lines
  for step in (2, 4):
    _cut_in_half(tmp_path / f'checkpoint_{step}')
  processes = _start_two(_start, tmp_path, data_dir, *steps)
  said = [process.communicate()[1] for process in processes]
  assert 'are damaged. checkpoint_4: state/' in said[0]
  assert 'process 0 found no whole checkpoint' in said[1]
  assert [process.returncode for process in processes] == [2, 2]


def test_one_signal_stops_both_at_the_same_step(small_data, tmp_path):
  processes = _start_two(
    _start_command,
    small_runs.command(
      tmp_path,
      small_data,
      "MIXTURE_OR_TASK_NAME = 'svamp_gt_finetune'",  # one view to compile
      'TRAIN_STEPS = 100000',
      'EVAL_PERIOD = 100000',
      'EVAL_SPLITS = ()',
      'DROPOUT_RATE = 0.0',
    ),
  )
  _wait_for_first_step(processes[0])
  processes[1].send_signal(signal.SIGTERM)
  for process in processes:
    _, errors = process.communicate()
    assert process.returncode == signals.INTERRUPTED_STATUS, errors
  assert len(list(tmp_path.glob('checkpoint_*'))) == 1


def test_numbers_of_processes_are_numbers(monkeypatch):
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', '127.0.0.1:1')
  monkeypatch.setenv('JAX_NUM_PROCESSES', 'two')
  monkeypatch.setenv('JAX_PROCESS_ID', '0')
  with pytest.raises(contract.UserError, match="NUM_PROCESSES is 'two', expec"):
    distributed.join(True)


def test_half_an_address_is_an_error(monkeypatch):
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', '127.0.0.1:1')
  monkeypatch.delenv('JAX_NUM_PROCESSES', raising=False)
  monkeypatch.setenv('JAX_PROCESS_ID', '0')
  with pytest.raises(ValueError, match='JAX_NUM_PROCESSES is not set'):
    distributed.join(True)
