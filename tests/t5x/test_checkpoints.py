# SPDX-License-Identifier: Apache-2.0
"""Checkpoints pass both ways between T5X itself and this project."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from dsbs_jax.core import lora, network, optimizer, steps
from dsbs_jax.interop import t5x_read_checkpoint, t5x_write_checkpoint
from dsbs_jax.runs import checkpoints as run_checkpoints
from tests import models


@pytest.fixture(scope='module')
def run(parts):
  """T5X's Adafactor, its empty state and a state at step 7."""
  from t5x import adafactor

  definition = adafactor.Adafactor(
    decay_rate=0.8,
    logical_factor_rules=adafactor.standard_logical_factor_rules(),
  )
  model = parts.model(definition)
  mesh = parts.partitioner()
  initializer = parts.initializer(model, mesh)
  state = initializer.from_scratch(jax.random.PRNGKey(0))
  gradients = jax.tree.map(lambda leaf: 0.1 * leaf + 0.01, state.params)
  state = jax.jit(lambda s, g: s.apply_gradient(g, learning_rate=1e-3))(
    state, gradients
  )
  return parts.config(), mesh, initializer, state


def manager(run, folder):
  from t5x import checkpoints

  _, mesh, initializer, _ = run
  folder.mkdir(exist_ok=True, parents=True)
  return checkpoints.OrbaxCheckpointManagerInterface(
    str(folder),
    initializer.global_train_state_shape,
    mesh,
    restore_dtype=np.float32,
  )


def test_we_read_what_t5x_writes(run, parts, tmp_path):
  from t5x import checkpoints

  config, mesh, _, state = run
  checkpoints.Checkpointer(state, mesh, str(tmp_path / 'legacy')).save(state)
  saver = manager(run, tmp_path / 'orbax')
  saver.save(state)
  saver.close()
  for kind in ('legacy', 'orbax'):
    path = str(tmp_path / kind)
    models.assert_equal(
      t5x_read_checkpoint.load_params(path, config),
      parts.to_numpy(state.params),
    )
    assert models.t5x_step(path) == 1
    inferred = t5x_read_checkpoint.infer_config(path)
    assert network.param_shapes(inferred) == network.param_shapes(config)


def test_t5xs_float_steps_are_read(run, tmp_path):
  """After an Orbax restore T5X saves its step as float32."""
  _, _, _, state = run
  saver = manager(run, tmp_path)
  saver.save(state)
  saver.wait_until_finished()
  restored = saver.restore(step=1)
  again = manager(run, tmp_path / 'again')
  again.save(restored)
  again.close()
  assert models.t5x_step(str(tmp_path / 'again')) == 1


@pytest.mark.parametrize('legacy', [False, True])
def test_t5x_restores_what_we_write(run, parts, tmp_path, legacy):
  """Parameters, step and every optimizer state, as finetune.gin asks."""
  config, _, _, state = run
  params = parts.to_numpy(state.params)
  moments = t5x_write_checkpoint.fresh_moments(network.param_shapes(config))
  expected = parts.to_numpy(state.param_states)
  written = t5x_write_checkpoint.save(
    str(tmp_path), params, config, step=3, moments=moments, legacy=legacy
  )
  restored = manager(run, tmp_path / 'unused').restore(path=written)
  models.assert_equal(parts.to_numpy(restored.params), params)
  assert int(restored.step) == 3
  states = models.flat(traverse_util.unflatten_dict(_states(restored)))
  assert {name: leaf.shape for name, leaf in states.items()} == {
    name: leaf.shape
    for name, leaf in models.flat(
      traverse_util.unflatten_dict(_states(state))
    ).items()
  }
  assert not any(leaf.any() for leaf in states.values())
  assert expected


def test_t5x_evaluates_what_lora_has_trained(run, parts, tmp_path):
  """Its checkpoints hold merged kernels where T5X looks for kernels."""
  config, mesh, _, _ = run
  settings = lora.LoRA(rank=2, targets=('.*/kernel',))
  state = steps.init_state(
    jax.random.key(0), config, optimizer.adamw_hf(1e-3), lora=settings
  )
  trained = jax.tree.map(lambda leaf: leaf + 0.1, state.params)
  state = state.replace(step=np.int32(3), params=trained)
  kernels = lora.base_kernels(state.frozen, trained)
  merged = lora.replace(
    state.frozen, lora.merged_kernels(kernels, trained, settings)
  )
  saved = run_checkpoints.Checkpoints(tmp_path / 'run')
  saved.save(state, position={}, run={}, params=merged)
  saved.close()
  initializer = parts.initializer(parts.model(None), mesh)  # as t5x.eval does
  reader = manager((config, mesh, initializer, None), tmp_path / 'unused')
  restored = reader.restore(path=str(tmp_path / 'run' / 'checkpoint_3'))
  models.assert_equal(parts.to_numpy(restored.params), jax.device_get(merged))


def test_lora_under_t5x_is_refused(parts):
  made = parts.model(None)
  with pytest.raises(
    ValueError, match='LORA_RANK is 8, expected 0: T5X trains'
  ):
    type(made)(
      objective=made.objective,
      lora_rank=8,
      module=made.module,
      input_vocabulary=made.input_vocabulary,
      output_vocabulary=made.output_vocabulary,
      optimizer_def=None,
    )


def _states(state):
  tree = state.state_dict()['state']['param_states']
  return traverse_util.flatten_dict(tree)


def test_scalable_t5_is_read(parts, tmp_path):
  """A scanned model of T5X, its bias tables made equal, computes the same."""
  from t5x import checkpoints, models, utils
  from t5x.examples.scalable_t5 import network as scalable

  size = {
    'vocab_size': 64,
    'emb_dim': 32,
    'num_heads': 2,
    'head_dim': 16,
    'mlp_dim': 48,
    'num_encoder_layers': 2,
    'num_decoder_layers': 2,
    'mlp_activations': ('gelu', 'linear'),
    'logits_via_embedding': False,
    'dropout_rate': 0.0,
  }
  module = scalable.Transformer(
    config=scalable.T5Config(**size, dtype='float32')
  )
  model = models.EncoderDecoderModel(module, None, None, None)
  mesh = parts.partitioner()
  shapes = {
    key: (2, 8) for key in ('encoder_input_tokens', 'decoder_input_tokens')
  }
  initializer = utils.TrainStateInitializer(
    None, model.get_initial_variables, shapes, mesh
  )
  state = initializer.from_scratch(jax.random.PRNGKey(0))
  tree = parts.to_numpy(state.params)
  for stack in ('encoder', 'decoder'):
    table = tree[stack][stack]['relpos_bias']['rel_embedding'].copy()
    table[:] = table[:, :1]
    tree[stack][stack]['relpos_bias']['rel_embedding'] = table
  state = state.replace_params(tree)
  checkpoints.Checkpointer(state, mesh, str(tmp_path)).save(state)
  config = network.T5Config(**size)
  ours = t5x_read_checkpoint.load_params(str(tmp_path), config)
  random = np.random.default_rng(0)
  batch = {
    'encoder_input_tokens': random.integers(3, 60, (2, 8)),
    'decoder_input_tokens': random.integers(3, 60, (2, 8)),
    'decoder_target_tokens': random.integers(3, 60, (2, 8)),
  }
  theirs = model._compute_logits(tree, batch)
  np.testing.assert_allclose(
    network.apply(ours, config, batch), theirs, atol=1e-5, rtol=0
  )
