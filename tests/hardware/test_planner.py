# SPDX-License-Identifier: Apache-2.0
"""The command plans for hardware that is not there, and refuses what cannot be."""

import json
import os
import subprocess
import sys

import pytest

from dsbs_jax.hardware import planner, tpu_compiler
from dsbs_jax.runs import results
from dsbs_jax.runtime import device_specs
from tests.claims import doors
from tests.hardware import small_run

SMALLER = (
  *small_run.SMALL,
  'SCAN_LAYERS = False',
  'NUM_ENCODER_LAYERS = 1',
  'NUM_DECODER_LAYERS = 1',
)


def test_a_mesh_must_be_a_slice():
  assert device_specs.layout(device_specs.device('v4'), 16) == '2x2x4'
  with pytest.raises(ValueError, match='24 chips, but slices of v5e have'):
    device_specs.layout(device_specs.device('v5e'), 24)
  with pytest.raises(ValueError, match="--device is 'tpu9'"):
    device_specs.device('tpu9')


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
    cwd=small_run.REPOSITORY,
    env=os.environ
    | {'PYTHONPATH': os.pathsep.join(path for path in sys.path if path)},
    capture_output=True,
    text=True,
    check=False,
  )


def test_the_command_plans_for_gpus_that_are_not_there():
  bindings = [f'--gin.{line.replace(" = ", "=")}' for line in SMALLER]
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
  assert plan['num_params'] == results.num_params(
    small_run.build(bindings=SMALLER).model
  )


def test_lora_is_planned(capsys):
  """Frozen weights have no gradients and no optimizer state."""
  more = ('LORA_RANK = 4', "LORA_BASE_DTYPE = 'bfloat16'")
  request = planner.PlanRequest(
    mesh='1x1', device='l4', batch=('label:8x32/16',)
  )
  plan = planner.make(small_run.build(bindings=(*SMALLER, *more)), request)
  assert planner.show(plan, as_json=False) == 0
  said = ' '.join(capsys.readouterr().out.split())
  assert 'LORA_RANK=4' in said
  assert 'per device, frozen bfloat16 and adapters' in said
  assert 'of the adapters alone' in said


def test_the_command_says_what_is_wrong_in_one_line():
  done = doors.call(
    'dsbs_jax.plan',
    f'--gin_search_paths={small_run.REPOSITORY}',
    *('--gin_file=gin/models/nano.gin', '--mesh=3x1', '--device=v5e'),
  )
  assert done.status == 2
  if tpu_compiler.is_installed():
    assert 'slices of v5e have 1, 4, 8' in done.stderr
  else:
    assert "pip install -c constraints.txt -e '.[tpu]'" in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1
