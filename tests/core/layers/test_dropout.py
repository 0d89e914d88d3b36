# SPDX-License-Identifier: Apache-2.0
"""What dropout keeps: the share that the rate says, in every kind of mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsbs_jax.core.layers import dropout, unpadding
from tests import models


def test_every_kind_of_mask_keeps_one_minus_the_rate():
  config = models.t5(emb_dim=1000, num_heads=4, mlp_dim=1000, dropout_rate=0.1)
  num_rows = 80
  like = np.zeros((num_rows, 4, 250), np.float32)
  index = np.arange(num_rows * 4, dtype=np.int32)[None]

  @models.jit
  def drawn(key):
    keys = dropout.row_keys(key, num_rows)
    rows = {'encoder_input_tokens': like[..., 0], 'encoder_token_index': index}
    flat = unpadding.make_unpadding(rows, 'encoder')
    return [
      *dropout.feature_masks(keys, config, (1000, 1000)),
      *dropout.feature_masks(keys, config, (1000,), unpadding=flat),
      dropout.position_masks(keys, config, jnp.asarray(like)),
      dropout.position_masks(keys, config, flat.unpad(like), unpadding=flat),
      *dropout.layer_masks(keys, config, 250, 250),
      *dropout.layer_masks(keys, config, 250, unpadding=flat),
    ]

  masks = jax.tree.leaves(drawn(jax.random.key(0)))
  assert len(masks) == 15
  for mask in masks:
    assert np.mean(mask) == pytest.approx(0.9, abs=0.01)


def test_masks_of_a_layer_are_drawn_apart():
  config = models.t5(emb_dim=1000, num_heads=4, mlp_dim=1000, dropout_rate=0.5)

  @models.jit
  def drawn(key):
    return dropout.layer_masks(dropout.row_keys(key, 40), config, 250, 250)

  heads, mlp, outputs = drawn(jax.random.key(0))
  masks = [np.ravel(mask) for mask in (*heads, mlp, *outputs)]
  for i, mask in enumerate(masks):
    for other in masks[:i]:
      assert np.mean(mask == other) == pytest.approx(0.5, abs=0.02)
