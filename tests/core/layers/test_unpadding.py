# SPDX-License-Identifier: Apache-2.0
"""Padding that is not computed changes nothing but the time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsbs_jax.core import network
from dsbs_jax.core.layers import unpadding
from tests import models
from tests.core import test_steps, tiny_t5

SPARE = 3  # slots without a token, in the fullest cell


def token_index_of(rows, side, shards=1, parts=1):
  """Where the tokens of each cell are, one token at a time."""
  name = {'encoder': 'encoder_input_tokens', 'decoder': 'decoder_loss_weights'}
  real = np.asarray(rows[name[side]]) > 0
  num_rows, length = real.shape
  each = num_rows // shards
  cells = []
  for shard in range(shards):
    for part in range(parts):
      own = real[shard * each : (shard + 1) * each][part::parts]
      cells.append(np.flatnonzero(own.reshape(-1)))
  slots = max(map(len, cells)) + SPARE
  beyond = num_rows * length // len(cells)
  return np.array(
    [np.pad(c, (0, slots - len(c)), constant_values=beyond) for c in cells],
    np.int32,
  )


def with_token_index(batch, shards=1, parts=1):
  return {
    view: rows
    | {
      f'{side}_token_index': token_index_of(rows, side, shards, parts)
      for side in ('encoder', 'decoder')
    }
    for view, rows in batch.items()
  }


@pytest.mark.parametrize('cells', [1, 2])
def test_flat_tokens_are_the_real_ones_in_order_and_come_back(cells):
  rows = test_steps.make_rows(5, longest=7, term=1)
  tokens = rows['encoder_input_tokens']
  of_rows = np.arange(1, 9).reshape(8, 1, 1)

  @jax.jit
  def there_and_back(index, tokens):
    converter = unpadding.make_unpadding(
      {'encoder_input_tokens': tokens, 'encoder_token_index': index}, 'encoder'
    )
    flat = converter.unpad(tokens)
    numbers = converter.unpad(jnp.broadcast_to(of_rows, (*tokens.shape, 1)))
    repeated = converter.repeat_rows(of_rows)
    return flat, converter.pad(flat), numbers, repeated

  flats, back, expected, repeated = map(
    np.asarray,
    there_and_back(token_index_of(rows, 'encoder', cells), tokens),
  )
  for flat, own in zip(
    np.split(flats, cells), np.split(tokens, cells), strict=True
  ):
    real = own[own > 0]
    np.testing.assert_array_equal(flat[: len(real)], real)
    assert not flat[len(real) :].any()
  np.testing.assert_array_equal(back, tokens)
  each = np.where(expected > 0, repeated, 0)
  np.testing.assert_array_equal(each, expected)


def test_gradients_go_back_the_way_they_came():
  rows = test_steps.make_rows(5, longest=7, term=1)
  real = rows['encoder_input_tokens'] > 0
  index = token_index_of(rows, 'encoder', 2)
  random = np.random.default_rng(0)
  there = random.normal(size=(*real.shape, 3)).astype(np.float32)
  cotangent = random.normal(size=(index.size, 3)).astype(np.float32)

  @jax.jit
  def back(there, cotangent):
    converter = unpadding.make_unpadding(
      {'encoder_input_tokens': real, 'encoder_token_index': index}, 'encoder'
    )
    flat, pull_back = jax.vjp(converter.unpad, there)
    _, pull_pad_back = jax.vjp(converter.pad, flat)
    return (
      (pull_back(cotangent)[0], converter.pad(cotangent)),
      (pull_pad_back(there)[0], flat),
    )

  for found, expected in back(there, cotangent):
    np.testing.assert_array_equal(found, expected)


CASES = {
  'plain': {},
  'two microbatches': {'num_microbatches': 2},
  'two shards of two microbatches': {'num_microbatches': 2, 'num_shards': 2},
  'logits in chunks': {'chunk_tokens': 16},
}


@pytest.mark.parametrize(
  'case',
  [
    # Cells of one shard and one microbatch are cells.
    pytest.param('plain', marks=pytest.mark.long),
    'two shards of two microbatches',
    # Recorded steps are retraced with chunks and without padding.
    pytest.param('logits in chunks', marks=pytest.mark.long),
    # Shards of microbatches are microbatches, too.
    pytest.param('two microbatches', marks=pytest.mark.long),
  ],
)
def test_a_step_without_padding_is_a_step_with_it(case):
  """Dropout on: the masks are those of the rows, however they are cut."""
  options = CASES[case]
  config = dataclasses.replace(test_steps.CONFIG, dropout_rate=0.2)
  batch = test_steps.make_mixture()
  unpadded = with_token_index(
    batch, options.get('num_shards', 1), options.get('num_microbatches', 1)
  )
  state = test_steps.fresh_state()
  expected, expected_metrics = test_steps.jitted_step(config)(state, batch)
  ours, metrics = test_steps.jitted_step(config, **options)(state, unpadded)
  test_steps.assert_trees_close(metrics, expected_metrics)
  test_steps.assert_steps_agree(ours, expected)


def test_scanned_layers_take_flat_tokens_too():
  config = dataclasses.replace(
    test_steps.CONFIG, scan_layers=True, num_encoder_layers=2, remat='full'
  )
  params = tiny_t5.params(config)
  rows = test_steps.make_rows(5, longest=7, term=1)

  def loss(params, rows):
    logits = network.apply(params, config, rows)
    return jnp.sum(rows['decoder_loss_weights'] * jnp.max(logits, axis=-1))

  gradient = models.jit(jax.grad(loss))
  test_steps.assert_trees_close(
    gradient(params, with_token_index({'x': rows})['x']),
    gradient(params, rows),
    rtol=1e-4,
    atol=1e-6,
  )
