# SPDX-License-Identifier: Apache-2.0
"""The planner against truth: bytes, FLOPs, memory in use, and its advice."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from dsbs_jax.core import flops, partitioning
from dsbs_jax.core.t5 import network
from dsbs_jax.data.batching import row_shapes
from dsbs_jax.hardware import (
  accelerators,
  batch_shapes,
  memory,
  memory_options,
  planner,
  time_and_cost,
  tpu_compiler,
)
from dsbs_jax.runs import results
from dsbs_jax.runtime import gin_config
from dsbs_jax.training import step_functions, train_config
from tests import models

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
VIEWS = {
  'label': row_shapes.Shape(8, 32, 16),
  'rationale': row_shapes.Shape(8, 32, 32),
}
ONE_VIEW = {'label': row_shapes.Shape(32, 64, 32)}
SMALL = (
  "ACTIVATION_DTYPE = 'float32'",
  'NUM_ENCODER_LAYERS = 4',
  'NUM_DECODER_LAYERS = 4',
  'VOCAB_SIZE = 1024',
  'EMB_DIM = 64',
  'NUM_HEADS = 2',
  'HEAD_DIM = 32',
  'MLP_DIM = 128',
)


def build(model='nano', *, bindings=()):
  return gin_config.build(
    train_config.TrainConfig,
    gin_files=['gin/train.gin', 'gin/plan.gin', f'gin/models/{model}.gin'],
    gin_bindings=bindings,
    search_paths=[str(REPOSITORY)],
  )


@pytest.fixture(scope='module')
def run():
  return build(bindings=SMALL)


def test_flops_are_those_that_xla_counts():
  """XLA also counts what is no product; here that is below a tenth."""
  config_ = models.t5(
    vocab_size=512,
    emb_dim=256,
    num_heads=4,
    head_dim=64,
    mlp_dim=512,
    num_encoder_layers=2,
  )
  batch = {
    name: jax.ShapeDtypeStruct((4, 48 if 'encoder' in name else 24), np.int32)
    for name in (
      'encoder_input_tokens',
      'decoder_input_tokens',
      'decoder_target_tokens',
    )
  }
  forward = jax.jit(lambda p, rows: network.apply(p, config_, rows))
  lowered = forward.lower(network.param_shapes(config_), batch)
  counted = lowered.compile().cost_analysis()['flops']
  assert flops.forward(config_, 48, 24, rows=4) == pytest.approx(
    counted, rel=0.1
  )


def test_step_flops_add_up_views_and_both_passes(run):
  total = time_and_cost.step_flops(run, VIEWS)
  expected = sum(
    3 * flops.forward(run.model, s.inputs, s.targets, rows=s.rows)
    for s in VIEWS.values()
  )
  assert total == expected


def test_a_forecast_follows_from_its_own_numbers(run):
  given = time_and_cost.forecast(
    run,
    accelerators.device('v5e'),
    num_devices=4,
    views=VIEWS,
    utilisation=(0.25, 0.5),
    price_per_device_hour=2.0,
  )
  slow, fast = given.step_seconds
  assert slow == pytest.approx(given.flops_per_step / (0.25 * 4 * 197e12))
  assert slow == pytest.approx(2 * fast)
  assert given.hours[0] == pytest.approx(slow * run.train_steps / 3600)
  assert given.price[0] == pytest.approx(given.hours[0] * 4 * 2.0)
  assert given.examples_per_second[1] == pytest.approx(run.batch_size / fast)
  places = 8 * (32 + 16) + 8 * (32 + 32)
  assert given.tokens_per_second[1] == pytest.approx(places / fast)


def test_float32_halves_the_rate_of_gpus_alone(run):
  model = dataclasses.replace(run.model, dtype='float32')
  wide = dataclasses.replace(run, model=model)
  for name, expected in (('h200', 989 / 2), ('v5p', 459)):
    given = time_and_cost.forecast(
      wide, accelerators.device(name), num_devices=1, views=VIEWS
    )
    assert given.peak_tflops == expected


def test_advice_is_the_first_change_that_fits(run, monkeypatch):
  """A device that is a little too small for the step as it is asked for."""
  mesh = partitioning.make_mesh('1x1', devices=jax.devices()[:1])
  monkeypatch.setattr(memory, 'mesh_of', lambda device, shape: mesh)
  asked = memory_options.Option(run, '1x1')
  shapes = lambda run, mesh: ONE_VIEW  # noqa: E731
  roomy = accelerators.Device('roomy', 10.0, 1.0)
  plain = memory_options.compile_option(asked, roomy, shapes=shapes)
  assert plain.fits(roomy)
  tight = accelerators.Device(
    'tight', (plain.compiled.peak - 1) / accelerators.GIB, 1.0
  )
  assert not plain.fits(tight)
  options = list(memory_options.options(asked, tight))
  assert options[0].changes == ('--gin.REMAT="\'full\'"',)
  assert options[0].run.model.remat == 'full'
  result = memory_options.compile_option(options[0], tight, shapes=shapes)
  assert result.compiled.peak < plain.compiled.peak and result.fits(tight)
  # Shapes alone rule it out: nothing is compiled.
  hopeless = accelerators.Device('hopeless', 1e-4, 1.0)
  assert (
    memory_options.compile_option(asked, hopeless, shapes=shapes).compiled
    is None
  )


def test_the_ladder_never_repeats_what_is_asked(run):
  tuned = build(
    bindings=(
      *SMALL,
      "REMAT = 'full'",
      'SHARDING_RULES = @partitioning.fully_sharded_rules',
      'MICROBATCHES = 4',
      'OPTIMIZER = @optimizer.adafactor',
    )
  )
  device = accelerators.device('v5e')
  changes = [
    option.changes
    for option in memory_options.options(
      memory_options.Option(tuned, '4x2'), device
    )
  ]
  assert changes == [
    ('--gin.MICROBATCHES=8',),
    ('--gin.MICROBATCHES=8', '--gin.MESH="\'8x2\'"'),
    ('--gin.MICROBATCHES=8', '--gin.MESH="\'16x2\'"'),
  ]


def test_microbatches_need_rows_that_divide(run):
  option = memory_options.Option(
    dataclasses.replace(run, microbatches=3), '1x1'
  )
  device = accelerators.Device('any', 10.0, 1.0)
  assert (
    memory_options.compile_option(
      option, device, shapes=lambda run, mesh: VIEWS
    )
    is None
  )


def test_shapes_of_batches_are_read_and_checked():
  found = batch_shapes.given(['label:32x128/16', 'rationale:24x256/176'])
  assert found['label'] == row_shapes.Shape(32, 128, 16)
  assert found['rationale'] == row_shapes.Shape(24, 256, 176)
  assert batch_shapes.given(['8x64/8']) == {
    'mixture': row_shapes.Shape(8, 64, 8)
  }
  for text in ('32x128', 'gold:32x128/16', '0x128/16', 'label:32x128/0'):
    with pytest.raises(ValueError, match=r'expected \[view:\]ROWSxINPUTS'):
      batch_shapes.given([text])


def test_typical_shapes_follow_the_task(run):
  both = batch_shapes.typical(run, multiple=24)
  assert {view: shape.rows for view, shape in both.items()} == {
    'label': 48,
    'rationale': 48,
  }
  plain = dataclasses.replace(run, mixture_or_task_name='cqa_gt_finetune')
  assert list(batch_shapes.typical(plain, multiple=1)) == ['label']


def test_a_mesh_must_be_a_slice():
  assert accelerators.layout(accelerators.device('v4'), 16) == '2x2x4'
  with pytest.raises(ValueError, match='24 chips, but slices of v5e have'):
    accelerators.layout(accelerators.device('v5e'), 24)
  with pytest.raises(ValueError, match="--device is 'tpu9'"):
    accelerators.device('tpu9')


def test_questions_are_checked():
  for wrong, message in (
    ({'mesh': ''}, '--mesh is not given'),
    ({'mesh': '8'}, 'expected data x model shards'),
    ({'utilisation': (0.5, 0.2)}, '--utilisation is'),
    ({'price_per_device_hour': -1.0}, 'expected a number >= 0'),
  ):
    with pytest.raises(ValueError, match=message):
      planner.PlanRequest(**{'mesh': '4x2', 'device': 'v5e', **wrong})


def door(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'dsbs_jax.plan', *arguments],
    cwd=REPOSITORY,
    env=os.environ
    | {'PYTHONPATH': os.pathsep.join(path for path in sys.path if path)},
    capture_output=True,
    text=True,
    check=False,
  )


def test_the_command_plans_for_gpus_that_are_not_there():
  smaller = (
    *SMALL,
    'SCAN_LAYERS = False',
    'NUM_ENCODER_LAYERS = 1',
    'NUM_DECODER_LAYERS = 1',
  )
  bindings = [f'--gin.{line.replace(" = ", "=")}' for line in smaller]
  done = door(
    '--gin_file=gin/models/nano.gin',
    *bindings,
    '--mesh=2x2',
    '--device=h200',
    '--batch=label:8x32/16',
    '--json',
  )
  assert done.returncode == 0, done.stderr
  plan = json.loads(done.stdout)
  assert plan['fits'] and plan['compiled']['compiler'] == 'cpu'
  parts = plan['parts']
  assert plan['compiled']['peak'] > parts['params'] + parts['optimizer']
  assert plan['views'] == {'label': [8, 32, 16, 0, 0]}
  assert plan['num_params'] == results.num_params(build(bindings=smaller).model)


def test_the_command_says_what_is_wrong_in_one_line():
  done = door('--gin_file=gin/models/nano.gin', '--mesh=3x1', '--device=v5e')
  assert done.returncode == 2
  if tpu_compiler.is_installed():
    assert 'slices of v5e have 1, 4, 8' in done.stderr
  else:
    assert "pip install -c constraints.txt -e '.[tpu]'" in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1


def measured_peak(model):
  """(planned, measured) bytes of a train step, in a process of its own."""
  done = subprocess.run(
    [sys.executable, __file__, model],
    cwd=REPOSITORY,
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
  run = build(model, bindings=["ACTIVATION_DTYPE = 'float32'"])
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
