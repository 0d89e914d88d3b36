# SPDX-License-Identifier: Apache-2.0
"""Attention in the ways that are compared: ours, and those of libraries."""

import functools

import jax
import jax.numpy as jnp

from dsbs_jax.core.layers import dot_product_attention


def of_library(query, key, value, bias, mask, implementation=None):
  """`dot_product_attention` by `jax.nn.dot_product_attention`.

  Args:
    query: [B, H, T, K].
    key: [B, H, S, K].
    value: [B, H, S, K].
    bias: [1 or B, H, T, S] float32, or None.
    mask: [B, 1, T or 1, S] bool.
    implementation: None, 'xla' or 'cudnn'.
  """
  shape = *mask.shape[:2], query.shape[2], key.shape[2]
  query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
  context = jax.nn.dot_product_attention(
    query,
    key,
    value,
    bias=None if bias is None else bias.astype(query.dtype),
    mask=jnp.broadcast_to(mask, shape),
    scale=1.0,
    implementation=implementation,
  )
  return jnp.swapaxes(context, 1, 2)


# Name -> (query, key, value, bias, mask) -> context, see
# `dot_product_attention`.
WAYS = {
  'plain': dot_product_attention.plain_attention,
  'written_out': dot_product_attention.attention_for_cpu,
  'library': of_library,
  # For bfloat16: scores stay on the chip.
  'cudnn': functools.partial(of_library, implementation='cudnn'),
}
