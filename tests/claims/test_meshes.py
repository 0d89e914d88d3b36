# SPDX-License-Identifier: Apache-2.0
"""Eight devices compute what one computes, however the mesh splits the work.

Dropout is on: masks, too, must not depend on the mesh.

Devices are simulated, which JAX must know before it starts: the test runs this
file as a program of its own and reads the losses that it prints.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

STEPS = 20
PAIRS = 8
# name -> mesh, rule table, optimizer, microbatches, whether the batch is paired
# and its views are tied by the mutual-information term.
CASES = {
  '8x1': ('8x1', 'standard_rules', 'adamw_hf', 1),
  '4x2': ('4x2', 'standard_rules', 'adamw_hf', 1),
  '2x4': ('2x4', 'standard_rules', 'adamw_hf', 1),
  '4x2 fully sharded': ('4x2', 'fully_sharded_rules', 'adamw_hf', 1),
  '2x4 fully sharded, adafactor, two microbatches': (
    '2x4',
    'fully_sharded_rules',
    'adafactor',
    2,
  ),
  '4x2 tied pairs': ('4x2', 'standard_rules', 'adamw_hf', 1, True),
}
# Microbatches draw dropout masks of their own, so the reference has them too.
REFERENCES = {
  'adamw_hf': ('1x1', 'standard_rules', 'adamw_hf', 1),
  'adafactor': ('1x1', 'standard_rules', 'adafactor', 2),
  'tied': ('1x1', 'standard_rules', 'adamw_hf', 1, True),
}


@pytest.fixture(scope='module')
def losses():
  flags = os.environ.get('XLA_FLAGS', '')
  run = subprocess.run(
    [sys.executable, __file__],
    env=os.environ
    | {
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': f'{flags} --xla_force_host_platform_device_count=8',
      'PYTHONPATH': os.pathsep.join(path for path in sys.path if path),
    },
    capture_output=True,
    text=True,
    check=False,
  )
  assert run.returncode == 0, run.stderr
  return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize('case', CASES)
def test_a_mesh_has_the_losses_of_one_device(losses, case):
  _, _, optimizer, _, *tied = CASES[case]
  expected = np.array(losses['tied' if tied else optimizer])
  ours = np.array(losses[case])
  assert ours.shape == (STEPS,)
  assert ours[-1] < 0.9 * ours[0]  # it trains, so that 20 steps are a test
  worst = np.max(np.abs(ours / expected - 1))
  print(f'{case}: {worst:.1e}')
  assert worst <= 1e-5


def main():
  """Trains on each mesh in turn and prints {case: losses} as JSON."""
  import jax

  from dsbs_jax.core import network

  config = network.T5Config(
    vocab_size=64,
    emb_dim=16,
    num_heads=4,
    head_dim=4,
    mlp_dim=32,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dropout_rate=0.1,
  )
  assert jax.device_count() == 8
  losses = {
    case: train(config, *settings)
    for case, settings in (REFERENCES | CASES).items()
  }
  print(json.dumps(losses))


def train(
  config, mesh_shape, rules, optimizer_name, num_microbatches, tied=False
):
  """The losses of 20 steps on one mesh, state born in its shardings."""
  import jax

  from dsbs_jax.core import objective, optimizer, partitioning, steps

  devices = jax.devices()[:1] if mesh_shape == '1x1' else None
  mesh = partitioning.make_mesh(mesh_shape, devices=devices)
  transformation = getattr(optimizer, optimizer_name)(
    optimizer.linear_decay(0.01, total_steps=2 * STEPS)
  )

  def init():
    return steps.init_state(jax.random.key(0), config, transformation)

  layout = partitioning.state_shardings(
    jax.eval_shape(init), mesh, getattr(partitioning, rules)()
  )
  rows_layout = partitioning.batch_sharding(mesh)
  step = jax.jit(
    steps.make_train_step(
      config,
      objective.Distillation(mutual_information=0.3 if tied else 0.0),
      transformation,
      run_key=jax.random.key(1),
      num_microbatches=num_microbatches,
      num_pairs=PAIRS,
    ),
    in_shardings=(layout, rows_layout),
    out_shardings=(layout, None),
    donate_argnums=0,
    compiler_options={'xla_backend_optimization_level': 0},
  )
  state = jax.jit(init, out_shardings=layout)()
  losses = []
  for index in range(STEPS):
    batch = make_batch(index)
    if tied:
      batch = pairs(batch['mixture'])
    partitioning.check_batch(batch, mesh, num_microbatches=num_microbatches)
    state, metrics = step(state, jax.device_put(batch, rows_layout))
    losses.append(float(metrics['loss']))
  return losses


def make_batch(seed):
  """Ragged rows of both terms that repeat their input, so that T5 can learn."""
  from dsbs_jax.contract import LABEL_ID, RATIONALE_ID

  random = np.random.default_rng(seed)
  inputs = random.integers(2, 12, (16, 8))
  real = np.arange(8) < random.integers(1, 9, (16, 1))
  term = np.where(np.arange(16) % 2, LABEL_ID, RATIONALE_ID)[:, None]
  targets = np.where(real, inputs, 0)
  shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  rows = {
    'encoder_input_tokens': inputs.astype(np.int32),
    'decoder_input_tokens': shifted.astype(np.int32),
    'decoder_target_tokens': targets.astype(np.int32),
    'decoder_loss_weights': real.astype(np.float32),
    'decoder_task_ids': np.where(real, term, 0).astype(np.int32),
  }
  return {'mixture': rows}


def pairs(rows):
  """Two rows of a mixture, a rationale's and a label's, as one pair."""
  views = {'rationale': 0, 'label': 1}
  numbers = np.arange(1, PAIRS + 1, dtype=np.int32)[:, None]
  return {
    view: {key: array[first::2] for key, array in rows.items()}
    | {
      'decoder_pair_ids': np.where(
        rows['decoder_task_ids'][first::2] > 0, numbers, 0
      )
    }
    for view, first in views.items()
  }


if __name__ == '__main__':
  main()
