# SPDX-License-Identifier: Apache-2.0
"""Our Adafactor is T5X's; our states find their axes under T5X."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from dsbs_jax.core import network, optimizer


def test_adafactor_is_t5xs(parts):
  """Ten updates with factored, unfactored and clipped parameters."""
  from t5x import adafactor, optimizers

  config = parts.config()
  random = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: random.standard_normal(leaf.shape, np.float32),
    network.param_shapes(config),
  )
  theirs = adafactor.Adafactor(learning_rate=0.02)
  ours = optimizer.adafactor(optimizer.constant(0.02), clip_norm=None)
  state = jax.jit(ours.init)(params)
  mine, their = (
    params,
    optimizers.Optimizer(theirs, theirs.init_state(params), params),
  )
  our_update = jax.jit(ours.update)
  their_update = jax.jit(lambda opt, grads: opt.apply_gradient(grads))
  for step in range(10):
    scale = np.float32(10.0 ** (step % 3))
    gradients = jax.tree.map(
      lambda leaf, scale=scale: (
        scale * random.standard_normal(leaf.shape, np.float32)
      ),
      params,
    )
    updates, state = our_update(gradients, state, mine)
    mine = jax.tree.map(np.add, mine, updates)
    their = their_update(their, gradients)
  for name, leaf in traverse_util.flatten_dict(mine, sep='/').items():
    expected = traverse_util.flatten_dict(their.target, sep='/')[name]
    np.testing.assert_allclose(
      leaf, expected, atol=2e-6, rtol=2e-6, err_msg=name
    )


@pytest.mark.parametrize('name', ['adamw_hf', 'adamw', 'adafactor'])
def test_states_are_cut_like_their_parameters(parts, name):
  from dsbs_jax.interop import t5x_optimizer

  definition = t5x_optimizer.wrap(
    optimizer=getattr(optimizer, name),
    schedule=optimizer.linear_decay,
    learning_rate=1e-3,
    total_steps=10,
    clip_norm=1.0,
  )
  model = parts.model(definition)
  initializer = parts.initializer(model, parts.partitioner())
  shapes = _flat(initializer.global_train_state_shape)
  axes = _flat(initializer.train_state_axes)
  moments = 0
  for path, leaf in shapes.items():
    if not path.startswith('state/'):
      continue
    owner = next((p for p in shapes if _owns(p, path)), None)
    if owner is not None and shapes[owner].shape == leaf.shape:
      assert axes[path] == axes[owner], path
      moments += 1
    else:
      assert not axes[path], path  # kept whole on every device
  # Two per parameter; of Adafactor only those that are not factored.
  assert moments == {'adafactor': 14}.get(name, 2 * 52)


def _flat(state):
  return traverse_util.flatten_dict(state.state_dict(), sep='/')


def _owns(parameter, path):
  return parameter.startswith('target/') and path.endswith(
    parameter.removeprefix('target')
  )
