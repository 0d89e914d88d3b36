# SPDX-License-Identifier: Apache-2.0
"""Planned memory is what a real step takes."""

import json
import os
import pathlib
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from dsbs_jax.core import partitioning
from dsbs_jax.hardware import batch_shapes, memory
from dsbs_jax.training import step_functions
from tests.hardware import small_run


def measured_peak(model):
  """(planned, measured) bytes of a train step, in a process of its own."""
  done = subprocess.run(
    [sys.executable, __file__, model],
    cwd=small_run.REPOSITORY,
    env=os.environ
    | {'PYTHONPATH': os.pathsep.join(path for path in sys.path if path)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(
  not os.path.exists('/proc/self/statm'), reason='needs Linux'
)
@pytest.mark.parametrize(
  'model', ['tiny', pytest.param('small', marks=pytest.mark.long)]
)
def test_planned_memory_is_what_a_step_takes(model):
  planned, measured = measured_peak(model)
  print(f'{model}: planned {planned:,}, measured {measured:,}')
  assert planned == pytest.approx(measured, rel=0.2)


def resident():
  """Memory of this process that is in use, in bytes."""
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  return pages * os.sysconf('SC_PAGE_SIZE')


def highest_while(action):
  """The most memory that was in use while an action ran."""
  samples, done = [resident()], threading.Event()

  def watch():
    while not done.wait(0.002):
      samples.append(resident())

  watcher = threading.Thread(target=watch)
  watcher.start()
  try:
    action()
  finally:
    done.set()
    watcher.join()
  return max(samples)


def main(model):
  """Takes real steps and prints planned and measured bytes."""
  run = small_run.build(model, bindings=["ACTIVATION_DTYPE = 'float32'"])
  shapes = batch_shapes.typical(run, multiple=1)
  views = {'rationale': shapes['rationale']}
  mesh = partitioning.make_mesh('1x1', devices=jax.devices()[:1])
  lowered = step_functions.lower_train_step(run, mesh, views)
  planned = memory.compile_program(lowered, mesh).peak
  step = lowered.compile(compiler_options=memory.QUICK)
  state = step_functions.state(run, mesh)
  arrays = jax.tree.map(
    lambda leaf: jax.device_put(np.ones(leaf.shape, leaf.dtype), leaf.sharding),
    (state.like, step_functions.batch_shapes(views, mesh)),
  )
  key_data = jax.random.key_data(jax.random.key(run.seed))
  held = memory.bytes_per_device(arrays)
  state, batch = jax.block_until_ready(arrays)
  del arrays
  # The first step alone: its temporaries may stay with the allocator.
  before = resident()
  highest = highest_while(
    lambda: jax.block_until_ready(step(state, batch, key_data))
  )
  print(json.dumps([planned, held + highest - before]))


if __name__ == '__main__':
  main(sys.argv[1])
