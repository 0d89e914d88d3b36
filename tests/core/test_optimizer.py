# SPDX-License-Identifier: Apache-2.0
"""Optimizers against slow float64 arithmetic, one parameter at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dsbs_jax.core import network, optimizer
from tests import models

STEPS = 20


def make_params():
  random = np.random.default_rng(0)
  return {
    'encoder': {
      'layers_0': {
        'mlp': {'wo': {'kernel': random.normal(size=(6, 4))}},
        'norm': {'scale': 1 + random.normal(size=6)},
      }
    },
    'token_embedder': {'embedding': random.normal(size=(5, 7))},
  }


def make_gradients(params):
  """Gradients of every step; some tiny, so that epsilon shows."""
  random = np.random.default_rng(1)
  return [
    jax.tree.map(
      lambda p: (
        random.normal(size=p.shape)
        * 10.0 ** random.uniform(-9, 0, size=p.shape)
      ),
      params,
    )
    for _ in range(STEPS)
  ]


def trained(transformation, params, gradients):
  params = jax.tree.map(np.float32, params)
  state = jax.jit(transformation.init)(params)

  @jax.jit
  def step(params, state, gradient):
    updates, state = transformation.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  for gradient in gradients:
    params, state = step(params, state, jax.tree.map(np.float32, gradient))
  return params, state


def slow_clip(gradient, max_norm):
  norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(gradient)))
  return jax.tree.map(
    lambda g: g * min(1.0, max_norm / (norm + 1e-6)), gradient
  )


def slow_adamw(params, gradients, rate, *, hf, decay, max_norm):
  """AdamW in float64; `hf` chooses transformers' order of operations."""
  leaves, structure = jax.tree.flatten(params)
  names = [p[-1].key for p, _ in jax.tree_util.tree_leaves_with_path(params)]
  leaves = [leaf.copy() for leaf in leaves]
  mean = [np.zeros_like(leaf) for leaf in leaves]
  square = [np.zeros_like(leaf) for leaf in leaves]
  for step, gradient in enumerate(gradients):
    gradient = jax.tree.leaves(slow_clip(gradient, max_norm))
    lr, t = rate(step), step + 1
    for i, g in enumerate(gradient):
      mean[i] = 0.9 * mean[i] + 0.1 * g
      square[i] = 0.999 * square[i] + 0.001 * g**2
      decayed = lr * decay * (names[i] != 'scale')
      if hf:
        size = lr * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        leaves[i] = leaves[i] - size * mean[i] / (np.sqrt(square[i]) + 1e-8)
        leaves[i] = leaves[i] * (1 - decayed)
      else:
        root = np.sqrt(square[i] / (1 - 0.999**t)) + 1e-8
        leaves[i] = leaves[i] * (1 - decayed)
        leaves[i] = leaves[i] - lr * mean[i] / (1 - 0.9**t) / root
  return structure.unflatten(leaves)


def assert_close(ours, expected, start, tolerance):
  """Compares the way travelled from the start, relative to its length."""

  def compare(ours, expected, start):
    moved = np.max(np.abs(expected - start))
    assert moved > 0
    assert np.max(np.abs(np.asarray(ours) - expected)) <= tolerance * moved

  jax.tree.map(compare, ours, expected, start)


@pytest.mark.parametrize('decay', [0.0, 0.5])
@pytest.mark.parametrize('name', ['adamw', 'adamw_hf'])
def test_adamw_equals_slow_arithmetic(name, decay):
  params = make_params()
  gradients = make_gradients(params)
  schedule = optimizer.linear_decay(0.1, total_steps=STEPS)
  ours, _ = trained(
    getattr(optimizer, name)(schedule, weight_decay=decay, clip_norm=1.0),
    params,
    gradients,
  )
  slow = {
    hf: slow_adamw(
      params,
      gradients,
      lambda step: 0.1 * (1 - step / STEPS),
      hf=hf,
      decay=decay,
      max_norm=1.0,
    )
    for hf in (True, False)
  }
  assert_close(ours, slow[name == 'adamw_hf'], params, 3e-6)
  with pytest.raises(AssertionError):  # the two places of epsilon differ
    assert_close(ours, slow[name != 'adamw_hf'], params, 3e-4)


@pytest.mark.parametrize('name', ['adamw', 'adamw_hf'])
def test_weight_decay_spares_norm_scales_and_relative_biases(name):
  config = models.t5(logits_via_embedding=False)
  params = jax.tree.map(
    lambda shape: np.ones(shape.shape), network.param_shapes(config)
  )
  still = jax.tree.map(np.zeros_like, params)
  moved, _ = trained(
    getattr(optimizer, name)(0.1, weight_decay=0.5), params, [still]
  )
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(moved):
    found.setdefault(path[-1].key, set()).update(np.unique(leaf).tolist())
  decayed = {float(jnp.float32(1 - 0.1 * 0.5))}
  assert found == {
    'kernel': decayed,
    'embedding': decayed,
    'scale': {1.0},
    'rel_embedding': {1.0},
  }


def slow_adafactor(param, gradients, rate, *, min_size):
  """One parameter's Adafactor in float64 with explicit loops."""
  param = param.copy()
  shape = param.shape
  factored = param.ndim == 2 and min(shape) >= min_size
  full = np.zeros(shape)
  by_axis = [np.zeros(length) for length in shape]
  for step, gradient in enumerate(gradients):
    keep = 1 - (step + 1.0) ** -0.8
    squared = gradient**2 + 1e-30
    if factored:
      for axis in (0, 1):
        by_axis[axis] = keep * by_axis[axis] + (1 - keep) * np.mean(
          squared, axis=1 - axis
        )
      moment = np.outer(*by_axis) / np.mean(by_axis[0])
    else:
      full = keep * full + (1 - keep) * squared
      moment = full
    update = gradient / np.sqrt(moment)
    update = update / max(1.0, np.sqrt(np.mean(update**2)))
    scale = max(np.sqrt(np.mean(param**2)), 1e-3)
    param = param - rate(step) * scale * update
  return param


def test_adafactor_equals_slow_arithmetic():
  params = make_params()
  gradients = make_gradients(params)
  ours, state = trained(
    optimizer.adafactor(optimizer.constant(0.05), min_dim_size_to_factor=5),
    params,
    gradients,
  )
  expected = jax.tree.map(
    lambda param, *each: slow_adafactor(
      param, each, lambda step: 0.05, min_size=5
    ),
    params,
    *gradients,
  )
  assert_close(ours, expected, params, 3e-6)
  moments = state[0]
  assert moments.v_row['token_embedder']['embedding'].shape == (5,)
  assert moments.v_col['token_embedder']['embedding'].shape == (7,)
  assert moments.v['token_embedder']['embedding'].shape == (1,)
  kernel = moments.v['encoder']['layers_0']['mlp']['wo']['kernel']
  assert kernel.shape == (6, 4)


@pytest.mark.parametrize(
  ('make', 'given', 'expected'),
  [
    # A user of T5X's gives the checkpoint's step; all would become NaN.
    (optimizer.adafactor, {'step_offset': 1_000_000}, 'whole number <= 0'),
    # Updates would be 0, not unclipped.
    (optimizer.adafactor, {'clipping_threshold': 0}, 'a number > 0'),
    # NaN for rows of the embedding that no batch of the first step reads.
    (optimizer.adafactor, {'epsilon1': 0.0}, 'a number > 0'),
    (optimizer.adamw, {'epsilon': 0.0}, 'a number > 0'),
    (optimizer.adamw_hf, {'epsilon': 0}, 'a number > 0'),
  ],
)
def test_what_would_spoil_every_update_is_refused(make, given, expected):
  ((name, value),) = given.items()
  with pytest.raises(ValueError, match=f'{name} is {value}, .*{expected}'):
    make(1e-3, **given)


def test_the_shorter_side_is_the_row_whichever_axis_it_is():
  params = {'wide': jnp.ones((128, 256)), 'tall': jnp.ones((256, 128))}
  state = optimizer.adafactor(1e-3).init(params)[0]
  for name in params:
    assert state.v_row[name].shape == (128,)
    assert state.v_col[name].shape == (256,)


def test_stacked_layers_train_as_unrolled_ones():
  random = np.random.default_rng(2)

  def layers():
    return [
      {
        'wo': {'kernel': scale * random.normal(size=(6, 5))},
        'norm': {'scale': scale * random.normal(size=6)},
      }
      for scale in (1.0, 10.0, 0.1)
    ]

  def unrolled(trees):
    return {'encoder': {f'layers_{i}': tree for i, tree in enumerate(trees)}}

  def stacked(trees):
    return {'encoder': {'layers': jax.tree.map(lambda *x: np.stack(x), *trees)}}

  params, gradients = layers(), [layers() for _ in range(5)]
  transformation = optimizer.adafactor(0.1, min_dim_size_to_factor=5)
  one, state_one = trained(
    transformation, unrolled(params), [unrolled(g) for g in gradients]
  )
  other, state_other = trained(
    transformation, stacked(params), [stacked(g) for g in gradients]
  )
  for tree_one, tree_other in [
    (one, other),
    (state_one[0].v_row, state_other[0].v_row),
    (state_one[0].v_col, state_other[0].v_col),
  ]:
    for i in range(3):
      kernel = tree_one['encoder'][f'layers_{i}']['wo']['kernel']
      np.testing.assert_allclose(
        tree_other['encoder']['layers']['wo']['kernel'][i], kernel, rtol=2e-6
      )
      scale = one['encoder'][f'layers_{i}']['norm']['scale']
      np.testing.assert_allclose(
        other['encoder']['layers']['norm']['scale'][i], scale, rtol=2e-6
      )


def test_clipping_scales_long_gradients_only():
  clip = optimizer.clip_by_global_norm(1.0)
  short = {'a': jnp.array([0.3, 0.4]), 'b': jnp.array([0.5])}
  clipped, _ = clip.update(short, clip.init(short))
  jax.tree.map(np.testing.assert_array_equal, clipped, short)
  long = jax.tree.map(lambda g: 10 * g, short)
  clipped, _ = clip.update(long, clip.init(long))
  norm = np.sqrt(50.0)
  np.testing.assert_allclose(
    clipped['a'], np.array([3.0, 4.0]) / (norm + 1e-6), rtol=1e-6
  )


@pytest.mark.parametrize(
  'make', [optimizer.adamw, optimizer.adamw_hf, optimizer.adafactor]
)
def test_the_state_tells_the_rate_that_was_used(make):
  params = make_params()
  transformation = make(optimizer.linear_decay(0.5, total_steps=10))
  _, state = trained(transformation, params, make_gradients(params)[:3])
  np.testing.assert_allclose(optimizer.learning_rate_of(state), 0.5 * 0.8)
  assert optimizer.learning_rate_of(optax.sgd(0.1).init(params)) is None


@pytest.mark.parametrize(
  'make', [optimizer.adamw, optimizer.adamw_hf, optimizer.adafactor]
)
def test_state_is_float32_whatever_the_gradients_are(make):
  params = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), make_params())
  transformation = make(0.1)
  shapes = jax.eval_shape(transformation.init, params)
  _, new_shapes = jax.eval_shape(transformation.update, params, shapes, params)
  dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(shapes)}
  assert dtypes == {'float32', 'int32'}
  assert jax.tree.structure(shapes) == jax.tree.structure(new_shapes)
  for old, new in zip(*map(jax.tree.leaves, (shapes, new_shapes)), strict=True):
    assert (old.shape, old.dtype) == (new.shape, new.dtype)
