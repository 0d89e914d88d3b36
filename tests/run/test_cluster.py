# SPDX-License-Identifier: Apache-2.0
"""Two processes train as one does, and stop together."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from dsbs_jax.run import cluster, journal, preparation, signals

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


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('prepared')
  preparation.prepare(
    preparation.Preparation(
      benchmark='parcels',
      source=str(REPOSITORY / 'examples/parcels'),
      data_dir=str(folder),
    )
  )
  return folder


def _start(model_dir, data_dir, *bindings, **environment):
  command = [sys.executable, '-m', 'dsbs_jax.train']
  command += ['--gin_file=gin/train.gin', '--gin_file=gin/models/nano.gin']
  command += ['--gin_file=gin/benchmarks/parcels.gin']
  folders = (f"MODEL_DIR='{model_dir}'", f"DATA_DIR='{data_dir}'")
  command += [f'--gin.{text}' for text in (*folders, *SMALL, *bindings)]
  if environment:
    command.append('--distributed')
  return subprocess.Popen(
    command,
    cwd=REPOSITORY,
    env={**os.environ, **environment},
    stderr=subprocess.PIPE,
    text=True,
  )


def _start_two(model_dir, data_dir, *bindings):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  return [
    _start(
      model_dir,
      data_dir,
      *bindings,
      JAX_COORDINATOR_ADDRESS=address,
      JAX_NUM_PROCESSES='2',
      JAX_PROCESS_ID=str(index),
    )
    for index in range(2)
  ]


def _lines(model_dir):
  text = (model_dir / journal.METRICS_FILE).read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_two_processes_have_the_losses_of_one(data_dir, tmp_path):
  steps = ('TRAIN_STEPS=10', 'EVAL_PERIOD=10')
  one = _start(tmp_path / 'one', data_dir, *steps)
  two = _start_two(tmp_path / 'two', data_dir, *steps)
  for process in (one, *two):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
  alone, together = _lines(tmp_path / 'one'), _lines(tmp_path / 'two')
  assert len(alone) == 4  # two lines of training, two evaluated splits
  for single, joint in zip(alone, together, strict=True):
    assert single.pop('split') == joint.pop('split')
    assert single == pytest.approx(joint, rel=1e-5)


def test_one_signal_stops_both_at_the_same_step(data_dir, tmp_path):
  processes = _start_two(tmp_path, data_dir, 'TRAIN_STEPS=100000')
  metrics = tmp_path / journal.METRICS_FILE
  deadline = time.monotonic() + 240
  while not (metrics.exists() and metrics.read_text()):
    assert time.monotonic() < deadline, 'no metrics after four minutes'
    time.sleep(0.2)
  processes[1].send_signal(signal.SIGTERM)
  for process in processes:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == signals.INTERRUPTED_STATUS, errors
  assert len(list(tmp_path.glob('checkpoint_*'))) == 1


def test_half_an_address_is_an_error(monkeypatch):
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', '127.0.0.1:1')
  monkeypatch.delenv('JAX_NUM_PROCESSES', raising=False)
  monkeypatch.setenv('JAX_PROCESS_ID', '0')
  with pytest.raises(ValueError, match='JAX_NUM_PROCESSES is not set'):
    cluster.join(True)
