# SPDX-License-Identifier: Apache-2.0
"""A T5 small enough for float64 loops, with examples and compiled calls."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dsbs_jax.core import network
from tests import models

GATED = models.t5(
  vocab_size=30,
  head_dim=6,
  mlp_dim=20,
  num_encoder_layers=2,
  num_decoder_layers=2,
  num_buckets=8,
  max_distance=12,
  dropout_rate=0.2,
)


TIED = dataclasses.replace(
  GATED, mlp_activations=('relu',), logits_via_embedding=True
)
# umT5's.
PER_LAYER = dataclasses.replace(GATED, relpos_bias_per_layer=True)


def params(config, seed=0):
  """Parameters of a plausible size, the norms not all ones."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    if path[-1].key == 'scale':
      return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    std = 1.0 if path[-1].key != 'kernel' else leaf.shape[-2] ** -0.5
    return rng.normal(scale=std, size=leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, network.param_shapes(config))


def examples(seed=0, num=3):
  """Pairs of (source, target) ids, each target with its end token."""
  rng = np.random.default_rng(seed)
  return [
    (
      rng.integers(2, 30, rng.integers(4, 9)),
      np.append(rng.integers(2, 30, rng.integers(2, 6)), 1),
    )
    for _ in range(num)
  ]


def padded(examples, source_length=12, target_length=9):
  sources = np.zeros((len(examples), source_length), np.int32)
  targets = np.zeros((len(examples), target_length), np.int32)
  for row, (source, target) in enumerate(examples):
    sources[row, : len(source)] = source
    targets[row, : len(target)] = target
  return {
    'encoder_input_tokens': sources,
    'decoder_input_tokens': np.pad(targets[:, :-1], ((0, 0), (1, 0))),
    'decoder_target_tokens': targets,
  }


def packed(examples, source_length=30, target_length=20):
  """All examples in one row."""
  names = ('encoder_input_tokens', 'encoder_segment_ids')
  rows = {name: np.zeros((1, source_length), np.int32) for name in names}
  for name in ('input_tokens', 'target_tokens', 'segment_ids'):
    rows[f'decoder_{name}'] = np.zeros((1, target_length), np.int32)
  s = t = 0
  for number, (source, target) in enumerate(examples, 1):
    places = slice(s, s + len(source)), slice(t, t + len(target))
    rows['encoder_input_tokens'][0, places[0]] = source
    rows['encoder_segment_ids'][0, places[0]] = number
    rows['decoder_input_tokens'][0, places[1]] = [0, *target[:-1]]
    rows['decoder_target_tokens'][0, places[1]] = target
    rows['decoder_segment_ids'][0, places[1]] = number
    s, t = places[0].stop, places[1].stop
  return rows


@functools.cache
def _apply_function(config):
  @models.jit
  def apply(params, rows, dropout_key):
    return network.apply(params, config, rows, dropout_key=dropout_key)

  return apply


@functools.cache
def _loss_function(config):
  @models.jit
  @jax.value_and_grad
  def loss(params, rows, dropout_key):
    logits = network.apply(params, config, rows, dropout_key=dropout_key)
    targets = rows['decoder_target_tokens']
    picked = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    token_loss = jax.nn.logsumexp(logits, axis=-1) - picked
    return jnp.sum(jnp.where(targets > 0, token_loss, 0.0))

  return loss


def apply(params, config, rows, *, dropout_key=None):
  return _apply_function(config)(params, rows, dropout_key)


def value_and_grad(params, config, rows, *, dropout_key=None):
  return _loss_function(config)(params, rows, dropout_key)


def assert_trees_close(found, expected, **tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **tolerance),
    found,
    expected,
  )
