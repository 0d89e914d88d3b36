# SPDX-License-Identifier: Apache-2.0
"""Processes without a shared disk train in a bucket as one does on a disk."""

import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from dsbs_jax.data.remote import buckets, object_store
from tests import small_runs
from tests.buckets import stores, test_runs

pytestmark = pytest.mark.long
data_dir = test_runs.data_dir


def _start(arguments, tmp_path, count, *, name):
  """The processes of a run, each with a cache of its own, on one device."""
  address = small_runs.coordinator_address()
  processes = []
  for index in range(count):
    environment = os.environ | {
      'DSBS_CACHE': str(tmp_path / f'cache-{name}-{index}'),
      'JAX_COORDINATOR_ADDRESS': address,
      'JAX_NUM_PROCESSES': str(count),
      'JAX_PROCESS_ID': str(index),
    }
    with (tmp_path / f'{name}-{index}.log').open('w') as log:
      processes.append(
        subprocess.Popen(
          [sys.executable, *arguments, '--distributed'],
          cwd=small_runs.REPOSITORY,
          env=environment,
          stdout=log,
          stderr=log,
        )
      )
  return processes


def _said(tmp_path, name, index=0):
  return (tmp_path / f'{name}-{index}.log').read_text()


@pytest.mark.parametrize('count', [2, 8])
def test_one_of_several_is_killed_and_they_go_on(
  store, data_dir, tmp_path, count
):
  run = small_runs.settings(
    f'{store.scheme}://{stores.BUCKET}/runs/a', data_dir
  )
  arguments = small_runs.command(run.model_dir, run.data_dir, 'BATCH_SIZE = 8')
  processes = _start(arguments, tmp_path, count, name='killed')

  def fails(method, path):
    """The last process dies when the second checkpoint is exchanged."""
    if 'checkpoint_12' in path and processes[-1].poll() is None:
      processes[-1].send_signal(signal.SIGKILL)
      processes[-1].wait()

  store.fails = fails
  for process in processes:
    process.wait(timeout=1800)
  assert all(process.returncode for process in processes)
  store.fails = lambda method, path: None
  processes = _start(arguments, tmp_path, count, name='again')
  for process in processes:
    assert process.wait(timeout=1800) == 0, _said(tmp_path, 'again')
  assert f'resuming {run.model_dir} from step 6' in _said(tmp_path, 'again')
  found = object_store.find(run.model_dir)
  assert not [url for url in found if 'parts' in url or 'incomplete' in url]

  unbroken = small_runs.settings(tmp_path / 'unbroken', tmp_path / 'data')
  local = small_runs.command(
    unbroken.model_dir, unbroken.data_dir, 'BATCH_SIZE = 8'
  )
  processes = _start(local, tmp_path, count, name='unbroken')
  for process in processes:
    assert process.wait(timeout=1800) == 0, _said(tmp_path, 'unbroken')
  here = small_runs.settings(buckets.fetch(run.model_dir), tmp_path / 'data')
  jax.tree.map(
    np.testing.assert_array_equal,
    small_runs.params(here, 12),
    small_runs.params(unbroken, 12),
  )
  assert small_runs.lines(here) == small_runs.lines(unbroken)
