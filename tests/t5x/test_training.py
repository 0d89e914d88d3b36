# SPDX-License-Identifier: Apache-2.0
"""Same parameters, same batches: both engines see the same losses."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest


@pytest.mark.parametrize('packed', [False, True], ids=['padded', 'packed'])
@pytest.mark.parametrize('name', ['adamw_hf', 'adafactor'])
def test_twenty_steps_agree(cqa, name, packed):
  from tests.t5x import engines

  found = engines.compare(
    data_dir=cqa.data_dir, vocabulary=cqa.vocabulary, name=name, packed=packed
  )
  ours, theirs = found['ours'], found['t5x']
  assert ours[-1][0] < ours[0][0] - 0.5  # it learns, so rounding could grow
  difference = engines.worst((ours, theirs))
  print(f'{name} packed={packed}: {difference:.2e}')
  assert difference < 1e-5


@pytest.mark.parametrize('packed', [False, True], ids=['padded', 'packed'])
def test_microbatches_change_nothing(cqa, packed):
  """Four of T5X against the whole batch at once of ours."""
  from tests.t5x import engines

  found = engines.compare(
    data_dir=cqa.data_dir,
    vocabulary=cqa.vocabulary,
    name='adamw_hf',
    packed=packed,
    num_steps=5,
    num_microbatches=4,
  )
  assert engines.worst((found['ours'], found['t5x'])) < 1e-5


@pytest.mark.long
def test_four_devices_give_the_same_losses(cqa, tmp_path):
  """A 2 x 2 mesh in both engines against one device."""
  from tests.t5x import engines

  arguments = {
    'data_dir': cqa.data_dir,
    'vocabulary': cqa.vocabulary,
    'name': 'adamw_hf',
    'packed': True,
    'num_microbatches': 2,
    'row_multiple': 2,
  }
  alone = engines.compare(**arguments)
  flags = os.environ.get('XLA_FLAGS', '')
  result = tmp_path / 'result.json'
  subprocess.run(
    [
      sys.executable,
      '-m',
      'tests.t5x.engines',
      json.dumps(arguments | {'mesh': '2x2'}),
      str(result),
    ],
    check=True,
    cwd=pathlib.Path(__file__).resolve().parents[2],
    env={
      **os.environ,
      'XLA_FLAGS': f'{flags} --xla_force_host_platform_device_count=4',
    },
  )
  spread = json.loads(result.read_text())
  for engine in ('ours', 't5x'):
    assert engines.worst((alone['ours'], spread[engine])) < 1e-5, engine
  assert np.shape(spread['t5x']) == (20, 3)
