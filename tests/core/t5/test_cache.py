# SPDX-License-Identifier: Apache-2.0
"""What decoding reads of the encoder is the same with and without padding."""

import dataclasses

import jax
import numpy as np
import pytest

from dsbs_jax.core import network
from dsbs_jax.core.t5 import cache
from tests import models
from tests.core import tiny_decoder


@pytest.mark.parametrize(
  'shares, left_out',
  [((0.75,), True), ((0.5,), False), ((0.25, 0.7), True), ((), False)],
)
@pytest.mark.parametrize('scan_layers', [False, True])
def test_padding_is_left_out_where_real_tokens_fit(
  shares, left_out, scan_layers
):
  """12 of 18 tokens are real; keys and values of padding are 0 or computed."""
  params = tiny_decoder.params()
  config = dataclasses.replace(tiny_decoder.TINY, scan_layers=scan_layers)
  if scan_layers:
    params = network.stack_layers(params, tiny_decoder.TINY)

  def prefill(token_shares):
    return models.jit(
      lambda params, rows: cache.prefill(
        params, config, rows, max_decode_len=4, token_shares=token_shares
      )
    )(params, tiny_decoder.ROWS)

  whole, found = prefill(()), prefill(shares)
  real = tiny_decoder.ROWS['encoder_input_tokens'] > 0
  for expected, got in zip(
    jax.tree.leaves(whole.cross_kv),
    jax.tree.leaves(found.cross_kv),
    strict=True,
  ):
    expected, got = (np.moveaxis(x, -3, -2) for x in (expected, got))
    np.testing.assert_allclose(
      got[..., real, :, :], expected[..., real, :, :], rtol=1e-5, atol=1e-6
    )
    assert np.all(expected[..., ~real, :, :] != 0)
    assert np.all((got[..., ~real, :, :] == 0) == left_out)
