# SPDX-License-Identifier: Apache-2.0
"""Eight devices compute what one computes, however the mesh splits the work.

Dropout is on: masks, too, must depend on neither mesh nor microbatches. Where
there are microbatches, padding is not computed.

Devices are simulated, which JAX must know before it starts: the test runs this
file as a program of its own and reads the losses that it prints.
"""

import dataclasses
import gc
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

STEPS = 20
PAIRS = 8
# name -> mesh, rule table, optimizer, microbatches, whether the batch is paired
# and its views are tied by the mutual-information term, whether LoRA trains.
CASES = {
  '8x1, two microbatches': ('8x1', 'standard_rules', 'adamw_hf', 2),
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
  '2x4 gemma3': ('2x4', 'fully_sharded_rules', 'adamw_hf', 2),
  '2x4 t5gemma2': ('2x4', 'fully_sharded_rules', 'adamw_hf', 2),
  '2x4 LoRA': ('2x4', 'standard_rules', 'adamw_hf', 1, False, True),
  '4x2 fully sharded LoRA, two microbatches': (
    '4x2',
    'fully_sharded_rules',
    'adamw_hf',
    2,
    False,
    True,
  ),
}
GEMMAS = ('gemma3', 't5gemma2')
# How far losses may be apart, relatively. A T5Gemma 2 of this size enlarges
# rounding: on one device, with initial parameters changed by 6e-8, losses moved
# by 1.3e-5. Without dropout the first one is 1.3e-2 higher.
ROUNDING = {'2x4 t5gemma2': 1e-4}
REFERENCES = {
  'adamw_hf': ('1x1', 'standard_rules', 'adamw_hf', 1),
  'adafactor': ('1x1', 'standard_rules', 'adafactor', 1),
  'tied': ('1x1', 'standard_rules', 'adamw_hf', 1, True),
  'gemma3': ('1x1', 'standard_rules', 'adamw_hf', 1),
  't5gemma2': ('1x1', 'standard_rules', 'adamw_hf', 1),
  'lora': ('1x1', 'standard_rules', 'adamw_hf', 1, False, True),
}


# Compiling takes most of the time.
LONG = tuple(
  case
  for case in CASES
  if case != '2x4 fully sharded, adafactor, two microbatches'
)


@pytest.fixture(scope='module')
def losses():
  return run(*(case for case in CASES if case not in LONG))


@pytest.fixture(scope='module')
def more_losses():
  return run(*LONG)


def run(*cases, script=__file__):
  """{case: losses} that a script prints of these cases and their references."""
  flags = os.environ.get('XLA_FLAGS', '')
  done = subprocess.run(
    [sys.executable, script, *cases],
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
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize('case', [case for case in CASES if case not in LONG])
def test_a_mesh_has_the_losses_of_one_device(losses, case):
  check(losses, case)


@pytest.mark.long
@pytest.mark.parametrize('case', LONG)
def test_other_meshes_have_the_losses_of_one_device(more_losses, case):
  check(more_losses, case)


def check(losses, case):
  """Asserts that a case has its reference's losses."""
  expected = np.array(losses[reference_of(case)])
  ours = np.array(losses[case])
  assert ours.shape == (STEPS,)
  assert ours[-1] < 0.9 * ours[0]  # it trains, so that 20 steps are a test
  worst = np.max(np.abs(ours / expected - 1))
  print(f'{case}: {worst:.1e}')
  assert worst <= ROUNDING.get(case, 1e-5)


def test_gradients_are_reduced_once_per_step(losses):
  """Though layers, microbatches and views are loops and passes of their own."""
  assert losses['data'] == {
    'sums in loops': 0,
    'gathers in loops': 0,
    'sums of gradients': 1,
  }


def test_split_heads_and_features_stay_split(losses):
  """Dropout on: in a layer, model shards talk in sums alone."""
  assert losses['model']['sums in loops'] > 0
  assert losses['model']['gathers in loops'] == 0


def reference_of(case):
  """The name of the run on one device that a case is held against."""
  _, _, optimizer, _, tied, with_lora, *_ = *CASES[case], False, False
  if case.endswith(GEMMAS):
    return case.split()[-1]
  return 'tied' if tied else 'lora' if with_lora else optimizer


def main(*cases):
  """Trains on these meshes in turn and prints {case: losses} as JSON."""
  import jax

  from tests import models

  config = models.t5(vocab_size=64, num_heads=4, head_dim=4)
  configs = {name: gemma(name) for name in GEMMAS}
  assert jax.device_count() == 8
  losses = {}
  for case in cases:
    name = reference_of(case)
    of_case = configs.get(name, config)
    losses[case] = train(of_case, *CASES[case])[0]
    if name not in losses:
      losses[name] = train(of_case, *REFERENCES[name])[0]
  scanned = dataclasses.replace(config, scan_layers=True, num_encoder_layers=2)
  for axis, mesh in (('data', '8x1'), ('model', '2x4')):
    _, program = train(scanned, mesh, 'standard_rules', 'adamw_hf', 2, steps=0)
    losses[axis] = count_talk(program)
  print(json.dumps(losses))


def gemma(family):
  """A small one, with dropout, whose keys have fewer heads than shards."""
  from dsbs_jax.core import network

  return network.GemmaConfig(
    family=family,
    vocab_size=64,
    emb_dim=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    mlp_dim=32,
    num_layers=2,
    window=3,
    global_period=2,
    query_scale_dim=4,
    dropout_rate=0.1,
  )


def count_talk(program):
  """All-reduces and all-gathers of a compiled step; scalars left out."""
  loops = set(re.findall(r'body=%?([\w.]+)', program))
  found = {'sums in loops': 0, 'gathers in loops': 0, 'sums of gradients': 0}
  for computation in re.split(r'\n(?=\S)', program):
    sums = re.findall(r'= (.*?) all-reduce(?:-start)?\(', computation)
    name = re.match(r'(?:ENTRY )?%?([\w.]*)', computation)[1]
    if name in loops:
      found['sums in loops'] += len(sums)
      found['gathers in loops'] += computation.count(' all-gather')
    else:
      of_arrays = [text for text in sums if re.search(r'\[\d', text)]
      found['sums of gradients'] += len(of_arrays)
  return found


def train(
  config,
  mesh_shape,
  rules,
  optimizer_name,
  num_microbatches,
  tied=False,
  with_lora=False,
  *,
  steps=STEPS,
):
  """The losses on one mesh, state born in its shardings; the program.

  Without steps, it is compiled all the same.
  """
  import jax

  from dsbs_jax.core import lora, objective, optimizer, partitioning, platform
  from dsbs_jax.core import steps as steps_lib
  from dsbs_jax.core.gradients import batch_parts

  devices = jax.devices()[:1] if mesh_shape == '1x1' else None
  mesh = partitioning.make_mesh(mesh_shape, devices=devices)
  transformation = getattr(optimizer, optimizer_name)(
    optimizer.linear_decay(0.01, total_steps=2 * STEPS)
  )

  settings = lora.LoRA(rank=8 * with_lora, targets=('.*/kernel',))

  def init():
    return steps_lib.init_state(
      jax.random.key(0), config, transformation, lora=settings
    )

  layout = partitioning.state_shardings(
    jax.eval_shape(init), mesh, getattr(partitioning, rules)()
  )
  rows_layout = partitioning.batch_sharding(mesh)
  step = jax.jit(
    steps_lib.make_train_step(
      config,
      objective.Distillation(mi_weight=0.3 if tied else 0.0),
      transformation,
      run_key=jax.random.key(1),
      num_microbatches=num_microbatches,
      num_shards=partitioning.gradient_shards(
        mesh, getattr(partitioning, rules)()
      ),
      num_pairs=PAIRS,
      lora=settings,
    ),
    in_shardings=(layout, rows_layout),
    out_shardings=(layout, None),
    donate_argnums=0,
  )

  def batch_of(index):
    batch = make_batch(index)
    if tied:
      batch = pairs(batch['mixture'])
    if num_microbatches > 1:
      batch = with_token_index(batch, mesh, num_microbatches)
    batch_parts.check_batch(batch, mesh, num_microbatches=num_microbatches)
    return jax.device_put(batch, rows_layout)

  with platform.traced_for('cpu'):
    program = step.lower(jax.eval_shape(init), batch_of(0)).compile()
  losses = []
  if steps:
    state = jax.jit(init, out_shardings=layout)()
  for index in range(steps):
    state, metrics = program(state, batch_of(index))
    losses.append(float(metrics['loss']))
  return losses, program.as_text()


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


def with_token_index(batch, mesh, num_microbatches):
  """The batch with its tokens' indices: padding is not computed."""
  from dsbs_jax.core import partitioning
  from dsbs_jax.data.batching import batch_grid

  grid = batch_grid.BatchGrid(
    mesh.shape[partitioning.DATA_AXIS], num_microbatches
  )
  (rows,) = batch.values()
  real = {
    'encoder': rows['encoder_input_tokens'] > 0,
    'decoder': rows['decoder_loss_weights'] > 0,
  }
  token_index = {
    f'{side}_token_index': grid.token_index(
      np.flatnonzero(array.reshape(-1)), shape=array.shape, slots=array.size
    )
    for side, array in real.items()
  }
  return {'mixture': rows | token_index}


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
  # Garbage is looked for seldom, as in tests/conftest.py: tracing makes much.
  gc.set_threshold(50_000, 20, 20)
  main(*sys.argv[1:])
