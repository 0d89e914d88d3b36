# SPDX-License-Identifier: Apache-2.0
"""The TPU compiler takes the real programs, and they fit into the chips.

No TPU is needed. Each case prints the row that docs/performance.md shows:

  python -m pytest -m long -s tests/hardware/test_tpu_compiler.py
"""

import dataclasses
import pathlib

import pytest

from dsbs_jax.core import decoding, partitioning
from dsbs_jax.hardware import batch_shapes, memory, tpu_compiler
from dsbs_jax.runtime import device_specs
from dsbs_jax.runtime.configuration import gin_config
from dsbs_jax.training import lowered_step, step_functions, train_config

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
GIB = device_specs.GIB

needs_compiler = pytest.mark.skipif(
  not tpu_compiler.is_installed(),
  reason="libtpu is not installed: pip install -e '.[tpu]'",
)


@dataclasses.dataclass(frozen=True)
class Case:
  """A model on a slice: how it is split, trained, and in what batches."""

  model: str
  device: str
  mesh: str
  rules: str = 'standard'
  optimizer: str = 'adamw_hf'
  remat: str = 'none'
  batch_size: int = 64

  def __str__(self):
    return f'{self.model}-{self.device}-{self.mesh}-{self.rules}'


TRAIN = (
  Case('tiny', 'v5e', '4x2'),
  Case('small', 'v6e', '1x1'),
  Case('base', 'v5p', '4x1'),
  Case('large', 'v4', '4x2'),
  Case('xl', 'v6e', '8x1', 'fully_sharded', 'adafactor', 'full'),
  Case('xxl', 'v5e', '16x4', 'fully_sharded', 'adafactor', 'full', 256),
  Case('xxl', 'v5e', '8x1', 'fully_sharded', 'adafactor', 'full', 32),
  Case('xxl', 'v4', '4x4', 'fully_sharded', 'adafactor', 'full'),
  Case('xxl', 'v5p', '8x1', 'fully_sharded', 'adamw_hf', 'full'),
)
DECODE = (
  Case('tiny', 'v5e', '4x2'),
  Case('base', 'v4', '4x1'),
  Case('large', 'v6e', '4x2'),
  Case('xxl', 'v5e', '16x4', 'fully_sharded'),
)


def build(case):
  return gin_config.build(
    train_config.TrainConfig,
    gin_files=[
      'gin/train.gin',
      'gin/plan.gin',
      f'gin/models/{case.model}.gin',
    ],
    gin_bindings=[
      f'SHARDING_RULES = @partitioning.{case.rules}_rules',
      f'OPTIMIZER = @optimizer.{case.optimizer}',
      f"REMAT = '{case.remat}'",
      f'BATCH_SIZE = {case.batch_size}',
    ],
    search_paths=[str(REPOSITORY)],
  )


def report(program, case, compiled, batch):
  device = device_specs.device(case.device)
  num = partitioning.mesh_sizes(case.mesh)
  layout = device_specs.layout(device, num[0] * num[1])
  print(
    f'\n| {program} | {case.model} | {case.device} {layout} | {case.mesh}'
    f' {case.rules} | {case.optimizer}, remat {case.remat} | {batch} |'
    f' {compiled.peak / GIB:.2f} ({compiled.allocated / GIB:.2f}) of'
    f' {device.memory_gib} |'
    f' {compiled.seconds:.0f} |'
  )


@needs_compiler
@pytest.mark.long
@pytest.mark.parametrize('case', TRAIN, ids=str)
def test_the_train_step_compiles_and_fits(case):
  run, device = build(case), device_specs.device(case.device)
  mesh = memory.mesh_of(device, case.mesh)
  views = batch_shapes.typical(run, multiple=mesh.shape[partitioning.DATA_AXIS])
  compiled = memory.compile_program(
    lowered_step.lower_train_step(run, mesh, views), mesh
  )
  batch = ' + '.join(map(str, views.values()))
  report('train', case, compiled, batch)
  parts = memory.parts(run, mesh, views)
  assert compiled.compiler == 'tpu' and compiled.fits(device.memory)
  assert parts.params + parts.optimizer < compiled.peak


def lower_decode(run, mesh):
  """Greedy decoding of one evaluation batch of 128 input tokens per row."""
  import jax

  params = step_functions.state(run, mesh).like.params
  rows = jax.ShapeDtypeStruct(
    (run.eval_batch_size, 128),
    'int32',
    sharding=partitioning.batch_sharding(mesh),
  )

  def decode(params, tokens):
    rows = {'encoder_input_tokens': tokens}
    return decoding.greedy(
      params, run.model, rows, max_decode_len=run.max_decode_len
    )

  replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  return jax.jit(decode, out_shardings=replicated).lower(params, rows)


@needs_compiler
@pytest.mark.long
@pytest.mark.parametrize('case', DECODE, ids=str)
def test_the_decode_step_compiles_and_fits(case):
  run, device = build(case), device_specs.device(case.device)
  mesh = memory.mesh_of(device, case.mesh)
  compiled = memory.compile_program(lower_decode(run, mesh), mesh)
  report('decode', case, compiled, f'{run.eval_batch_size} x 128/64')
  assert compiled.compiler == 'tpu' and compiled.fits(device.memory)


@needs_compiler
def test_a_step_that_is_too_large_is_told_so_by_the_compiler():
  """Two TPU v5e chips hold no 20 GiB, and the answer says how much it was."""
  import jax
  import jax.numpy as jnp

  mesh = memory.mesh_of(device_specs.device('v5e'), '4x1')
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  lowered = jax.jit(
    lambda x: jnp.flip(x) + 1.0, in_shardings=whole, out_shardings=whole
  ).lower(jax.ShapeDtypeStruct((20, 1 << 28), jnp.float32))
  compiled = memory.compile_program(lowered, mesh)
  assert not compiled.complete and compiled.peak > 16 * GIB
