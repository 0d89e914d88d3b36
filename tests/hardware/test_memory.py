# SPDX-License-Identifier: Apache-2.0
"""Planned memory is what a real step takes."""

import gc
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from dsbs_jax.core import lora, partitioning
from dsbs_jax.hardware import batch_shapes, memory
from dsbs_jax.runs import results
from dsbs_jax.runtime import device_specs
from dsbs_jax.training import lowered_step, step_functions
from tests.hardware import small_run

LORA = (
  'LORA_RANK = 8',
  "LORA_TARGETS = ('.*/layers/.*/kernel',)",
  "LORA_BASE_DTYPE = 'bfloat16'",
)
ONE_LAYER = 'NUM_ENCODER_LAYERS = 1', 'NUM_DECODER_LAYERS = 1'
# What a run on one card of 24 GB is planned with.
CARD = ("REMAT = 'full'", 'MICROBATCHES = 8')


def measured_peak(model, *bindings):
  """(planned, measured) bytes of a train step, in a process of its own."""
  done = subprocess.run(
    [sys.executable, __file__, model, *bindings],
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
  not os.path.exists('/proc/self/clear_refs'), reason='needs Linux'
)
@pytest.mark.parametrize(
  ('model', 'bindings'),
  [
    ('tiny', ('DROPOUT_RATE = 0.0', *ONE_LAYER)),
    pytest.param('tiny', ('DROPOUT_RATE = 0.1',), marks=pytest.mark.long),
    pytest.param('small', ('DROPOUT_RATE = 0.1',), marks=pytest.mark.long),
  ],
)
def test_planned_memory_is_what_a_step_takes(model, bindings):
  planned, measured = measured_peak(model, *bindings)
  print(f'{model}: planned {planned:,}, measured {measured:,}')
  assert planned == pytest.approx(measured, rel=0.2)


@pytest.mark.skipif(
  not os.path.exists('/proc/self/clear_refs'), reason='needs Linux'
)
@pytest.mark.long
def test_planned_memory_of_lora_is_what_a_step_takes():
  planned, measured = measured_peak('tiny', *LORA)
  print(f'tiny with LoRA: planned {planned:,}, measured {measured:,}')
  assert planned == pytest.approx(measured, rel=0.2)


def plan_xl(*bindings):
  """The settings of T5 xl, and its bytes on one device."""
  run = small_run.build('xl', bindings=[*CARD, *bindings])
  mesh = partitioning.make_mesh('1x1', devices=jax.devices()[:1])
  shapes = batch_shapes.typical(run, multiple=run.microbatches)
  return run, mesh, shapes, memory.parts(run, mesh, shapes)


def test_t5_xl_is_too_large_for_24_gb_unless_its_weights_are_frozen():
  card = device_specs.device('l4').memory
  *_, whole = plan_xl()
  assert whole.held > card
  run, *_, parts = plan_xl(*LORA)
  sizes = lora.sizes(run.model, run.lora)
  adapters = 4 * sum(sizes.values())
  assert parts.gradients == adapters
  assert parts.optimizer == pytest.approx(2 * adapters, rel=1e-3)
  # Two bytes per parameter, but for the norms.
  frozen = 2 * results.num_params(run.model)
  assert parts.params == pytest.approx(frozen + adapters, rel=1e-3)
  assert parts.total < card / 3


@pytest.mark.long
def test_a_step_of_t5_xl_with_lora_fits_24_gb():
  """Compiled for a CPU, which makes float32 copies that no GPU needs."""
  run, mesh, shapes, parts = plan_xl(*LORA)
  lowered = lowered_step.lower_train_step(run, mesh, shapes, join_views=True)
  peak = memory.compile_program(lowered, mesh).peak
  print(f'peak {peak:,}, of which by shapes {parts.total:,}')
  assert parts.total < peak < device_specs.device('l4').memory


def kernels_count(name):
  """What the kernel counts of this process's memory, in bytes."""
  status = pathlib.Path('/proc/self/status').read_text()
  return 1024 * int(re.search(rf'{name}:\s+(\d+)', status)[1])


def main(model, *bindings):
  """Takes real steps and prints planned and measured bytes."""
  bindings = ["ACTIVATION_DTYPE = 'float32'", *bindings]
  run = small_run.build(model, bindings=bindings)
  shapes = batch_shapes.typical(run, multiple=1)
  views = {'rationale': shapes['rationale']}
  mesh = partitioning.make_mesh('1x1', devices=jax.devices()[:1])
  lowered = lowered_step.lower_train_step(run, mesh, views)
  planned = memory.compile_program(lowered, mesh).peak
  step = lowered.compile(compiler_options=memory.QUICK)
  state = step_functions.state(run, mesh)
  arrays = jax.tree.map(
    lambda leaf: jax.device_put(np.ones(leaf.shape, leaf.dtype), leaf.sharding),
    (state.like, lowered_step.batch_shapes(views, mesh)),
  )
  key_data = jax.random.key_data(jax.random.key(run.seed))
  held = memory.bytes_per_device(arrays)
  state, batch = jax.block_until_ready(arrays)
  del arrays
  # The first step alone: its temporaries may stay with the allocator.
  pathlib.Path('/proc/self/clear_refs').write_text('5')  # the peak is now
  before = kernels_count('VmRSS')
  jax.block_until_ready(step(state, batch, key_data))
  print(json.dumps([planned, held + kernels_count('VmHWM') - before]))


if __name__ == '__main__':
  # Garbage is looked for seldom, as in tests/conftest.py: tracing makes much.
  gc.set_threshold(50_000, 20, 20)
  main(*sys.argv[1:])
