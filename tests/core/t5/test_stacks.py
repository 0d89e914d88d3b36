# SPDX-License-Identifier: Apache-2.0
"""Ways to run the layers agree; dropout falls where T5 has it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsbs_jax.core import network
from dsbs_jax.core.t5 import network as t5_network
from tests import models
from tests.core import tiny_t5

pytestmark = pytest.mark.usefixtures('strict_promotion')


@pytest.mark.parametrize(
  'config',
  [
    pytest.param(tiny_t5.GATED, marks=pytest.mark.long, id='gated'),
    pytest.param(tiny_t5.PER_LAYER, id='per_layer'),
  ],
)
def test_scanned_and_rematerialised_layers_have_the_same_gradients(config):
  params, rows = tiny_t5.params(config), tiny_t5.padded(tiny_t5.examples())
  plain = tiny_t5.value_and_grad(params, config, rows)
  scanned = dataclasses.replace(config, scan_layers=True, remat='minimal')
  stacked = network.stack_layers(params, config)
  loss, gradient = tiny_t5.value_and_grad(stacked, scanned, rows)
  gradient = network.unstack_layers(gradient, scanned)
  tiny_t5.assert_trees_close((loss, gradient), plain, rtol=1e-4, atol=1e-5)


def test_scanned_and_rematerialised_layers_draw_the_same_dropout():
  """A recomputed layer with new masks would have another gradient."""
  params, rows = (
    tiny_t5.params(tiny_t5.GATED),
    tiny_t5.padded(tiny_t5.examples()),
  )
  key = {'dropout_key': jax.random.key(7)}
  plain = tiny_t5.value_and_grad(params, tiny_t5.GATED, rows, **key)
  again = dataclasses.replace(tiny_t5.GATED, remat='full')
  found = tiny_t5.value_and_grad(params, again, rows, **key)
  tiny_t5.assert_trees_close(found, plain, rtol=1e-4, atol=1e-5)
  scanned = dataclasses.replace(tiny_t5.GATED, scan_layers=True)
  stacked = network.stack_layers(params, tiny_t5.GATED)
  np.testing.assert_allclose(
    tiny_t5.apply(stacked, scanned, rows, **key),
    tiny_t5.apply(params, tiny_t5.GATED, rows, **key),
    rtol=1e-5,
    atol=1e-5,
  )


def test_dropout_follows_its_key_and_rate():
  params, rows = (
    tiny_t5.params(tiny_t5.GATED),
    tiny_t5.padded(tiny_t5.examples()),
  )
  first, second = jax.random.split(jax.random.key(1))
  dropped = tiny_t5.apply(params, tiny_t5.GATED, rows, dropout_key=first)
  again = tiny_t5.apply(params, tiny_t5.GATED, rows, dropout_key=first)
  np.testing.assert_array_equal(dropped, again)
  other = tiny_t5.apply(params, tiny_t5.GATED, rows, dropout_key=second)
  assert np.abs(dropped - other).max() > 0.1
  off = dataclasses.replace(tiny_t5.GATED, dropout_rate=0.0)
  np.testing.assert_allclose(
    tiny_t5.apply(params, off, rows, dropout_key=first),
    tiny_t5.apply(params, tiny_t5.GATED, rows),
    atol=1e-6,
  )


def test_dropout_masks_are_shared_by_the_positions_of_a_row():
  """Equal tokens without position or neighbours to tell them apart."""
  params = tiny_t5.params(
    dataclasses.replace(tiny_t5.GATED, num_encoder_layers=1)
  )
  config = dataclasses.replace(tiny_t5.GATED, num_encoder_layers=1)
  table = params['encoder']['relpos_bias']
  table['rel_embedding'] = jnp.zeros_like(table['rel_embedding'])
  rows = {'encoder_input_tokens': np.full((2, 8), 5, np.int32)}
  encoded = models.jit(
    lambda key: t5_network.encode(params, config, rows, dropout_key=key)
  )(jax.random.key(2))
  # After the encoder's last norm, and only there, positions differ: each
  # value is either dropped or what the other positions of the row have.
  encoded = np.asarray(encoded)
  assert (encoded == 0).any(axis=1).sum() > (encoded == 0).all(axis=1).sum()
  nearly = {'rtol': 1e-5, 'atol': 1e-5}
  for row in encoded:
    largest = row[np.abs(row).argmax(axis=0), np.arange(row.shape[1])]
    np.testing.assert_allclose(row, np.where(row == 0, 0, largest), **nearly)
  assert np.abs(encoded[0] - encoded[1]).max() > 0.1
