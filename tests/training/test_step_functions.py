# SPDX-License-Identifier: Apache-2.0
"""Train steps of all sizes lower on all kinds of meshes, from shapes alone.

Each lowering takes seconds, so the normal suite lowers for other platforms on
one mesh, with the smallest model and one view (on another mesh one trains in
tests/claims/test_meshes.py), and looks at the parameters of all sizes on all
meshes; `make test-long` lowers all with all.

Devices are simulated, which JAX must know before it starts: the test runs this
file as a program of its own and reads what it prints.
"""

import functools
import gc
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
MODELS = sorted(path.stem for path in (REPOSITORY / 'gin/models').glob('*.gin'))
MESHES = {
  '1x1': '1x1',
  '8x1': '8x1',
  '4x2': '4x2',
  '2x4': '2x4',
  'fully sharded': '4x2',
}
# Enough where it is not sizes that are looked at, and traced sooner.
ONE_LAYER = 'NUM_ENCODER_LAYERS = 1'
DEVICES = {'1x1': 1, '8x1': 8, '4x2': 8, '2x4': 8, 'fully sharded': 8}


def run_program(*arguments):
  """Runs this file with eight simulated devices; the JSON that it prints."""
  done = subprocess.run(
    [sys.executable, __file__, *arguments],
    env=os.environ
    | {
      'JAX_PLATFORMS': 'cpu',
      'JAX_NUM_CPU_DEVICES': '8',
      'PYTHONPATH': os.pathsep.join(path for path in sys.path if path),
    },
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope='module')
def found():
  return run_program()


@pytest.mark.long
def test_train_steps_of_all_sizes_lower_on_all_meshes():
  partitions = run_program('all')['partitions']
  assert partitions == {
    f'{model} {mesh}': DEVICES[mesh] for model in MODELS for mesh in MESHES
  }


def test_every_model_is_split_as_its_mesh_says(found):
  """Bytes per device fall with the axes that split, for all sizes."""
  assert set(found['bytes_per_device']) == set(MODELS)
  for model, sizes in found['bytes_per_device'].items():
    whole = sizes['1x1']
    assert sizes['8x1'] == whole, model
    assert sizes['4x2'] == pytest.approx(whole / 2, rel=0.01), model
    assert sizes['2x4'] == pytest.approx(whole / 4, rel=0.02), model
    assert sizes['fully sharded'] == pytest.approx(whole / 8, rel=0.05), model


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
def test_the_train_step_lowers_for_other_platforms(found, platform):
  assert platform in found['platforms']


@pytest.mark.parametrize('optimizer', ['adamw_hf', 'adafactor'])
def test_planned_bytes_are_those_of_real_arrays(found, optimizer):
  planned, real = found['bytes'][optimizer]
  assert planned == real
  assert min(planned) > 0


def main():
  """Prints what the tests look at, as JSON."""
  from dsbs_jax.core import partitioning

  meshes = {name: make_mesh(name) for name in MESHES}
  if sys.argv[1:] == ['all']:
    partitions = {
      f'{model} {mesh}': lower(model, meshes[mesh], mesh)
      for model in MODELS
      for mesh in MESHES
    }
    print(json.dumps({'partitions': partitions}))
    return
  found = {
    'bytes_per_device': {
      model: {name: params_bytes(model, meshes[name], name) for name in MESHES}
      for model in MODELS
    },
    'bytes': {
      name: measure(name, partitioning.make_mesh('4x2'))
      for name in ('adamw_hf', 'adafactor')
    },
    'platforms': cross_lower(meshes['4x2']),
  }
  print(json.dumps(found))


def make_mesh(name):
  import jax

  from dsbs_jax.core import partitioning

  devices = jax.devices()
  assert len(devices) == 8
  devices = devices[: DEVICES[name]]
  return partitioning.make_mesh(MESHES[name], devices=devices)


def rules_of(mesh_name):
  return 'fully_sharded' if mesh_name == 'fully sharded' else 'standard'


@functools.cache
def build(model, rules, *bindings):
  """The settings of a training run, as the planner builds them."""
  from dsbs_jax.runtime.configuration import gin_config
  from dsbs_jax.training import train_config

  return gin_config.build(
    train_config.TrainConfig,
    gin_files=[
      'gin/train.gin',
      'gin/plan.gin',
      f'gin/models/{model}.gin',
    ],
    gin_bindings=[f'SHARDING_RULES = @partitioning.{rules}_rules', *bindings],
    search_paths=[str(REPOSITORY)],
  )


def lower(model, mesh, mesh_name):
  """Lowers a train step; the partitions that the program asks for."""
  from dsbs_jax.hardware import batch_shapes
  from dsbs_jax.training import lowered_step

  run = build(model, rules_of(mesh_name))
  views = batch_shapes.typical(run, multiple=8)
  text = lowered_step.lower_train_step(run, mesh, views).as_text()
  return int(re.search(r'mhlo.num_partitions = (\d+)', text)[1])


@functools.cache
def param_shapes(model):
  from dsbs_jax.core import network

  return network.param_shapes(build(model, 'standard').model)


def params_bytes(model, mesh, mesh_name):
  """Bytes of the parameters on one device."""
  from dsbs_jax.core import partitioning
  from dsbs_jax.hardware import memory
  from dsbs_jax.runs import checkpoints

  shapes = param_shapes(model)
  rules = getattr(partitioning, f'{rules_of(mesh_name)}_rules')()
  shardings = partitioning.shardings(shapes, mesh, rules)
  return memory.bytes_per_device(
    checkpoints.shapes_with_shardings(shapes, shardings)
  )


def cross_lower(mesh):
  """Lowers a train step for platforms that are not there."""
  import jax
  import jax.export

  from dsbs_jax.hardware import batch_shapes
  from dsbs_jax.training import lowered_step, step_functions

  run = build('nano', 'standard', ONE_LAYER)
  described = step_functions.state(run, mesh)
  step = step_functions.train_step(run, mesh, any_platform=True)
  views = batch_shapes.typical(run, multiple=8)
  batch = lowered_step.batch_shapes({'rationale': views['rationale']}, mesh)
  exported = jax.export.export(step, platforms=('cuda', 'tpu'))(
    described.like, batch, jax.random.key_data(jax.random.key(0))
  )
  assert exported.nr_devices == 8 and exported.mlir_module_serialized
  return exported.platforms


def measure(optimizer, mesh):
  """(planned, real) bytes of parameters and optimizer on the first device."""
  import jax

  from dsbs_jax.core import steps
  from dsbs_jax.hardware import batch_shapes, memory
  from dsbs_jax.training import step_functions

  chosen = f'OPTIMIZER = @optimizer.{optimizer}'
  run = build('nano', 'fully_sharded', ONE_LAYER, chosen)
  parts = memory.parts(run, mesh, batch_shapes.typical(run, multiple=8))
  state = jax.jit(
    lambda key: steps.init_state(key, run.model, run.transformation()),
    out_shardings=step_functions.state(run, mesh).shardings,
  )(jax.random.key(0))

  def held(tree):
    return sum(
      leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree)
    )

  planned = (parts.params, parts.optimizer)
  return planned, (held(state.params), held(state.opt_state))


if __name__ == '__main__':
  # Garbage is looked for seldom, as in tests/conftest.py: tracing makes much.
  gc.set_threshold(50_000, 20, 20)
  main()
