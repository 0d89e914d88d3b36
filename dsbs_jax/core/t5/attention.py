# SPDX-License-Identifier: Apache-2.0
"""Multi-head attention with T5's relative position bias, and its KV cache.

T5's attention has no bias vectors and does not divide the scores by sqrt(K):
the query's initial values carry that factor. Letters: see contract.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dsbs_jax.core import matmul_precision
from dsbs_jax.core.layers import dot_product_attention, dropout, low_rank
from dsbs_jax.core.layers.unpadding import TOKENS, Unpadding


class KeyValue(NamedTuple):
  """Those of one attention layer, [B, H, S, K], in the activation dtype."""

  key: jax.Array
  value: jax.Array


def relative_position_bucket(
  distances: np.ndarray,
  *,
  bidirectional: bool,
  num_buckets: int = 32,
  max_distance: int = 128,
) -> np.ndarray:
  """Maps relative positions to buckets that widen with the distance.

  Half of the buckets (of one direction) hold one distance each, the others
  grow geometrically up to `max_distance`; the last takes everything beyond.
  Differs from T5X in that borders are computed with integers: its float32
  logarithm is at the mercy of rounding for distances exactly on a border.

  Args:
    distances: integers of any shape, key position minus query position.
    bidirectional: True gives keys after the query the upper half of the
      buckets; False puts them all into bucket 0.
    num_buckets: buckets of both directions together.
    max_distance: first distance of the last bucket, at the latest.

  Returns:
    int32 bucket numbers, shaped as `distances`.

  Source: Raffel et al. 2020 (arXiv:1910.10683), section 2.1.
  """
  distances = np.asarray(distances)
  if bidirectional:
    num_buckets //= 2
    offset = np.where(distances > 0, num_buckets, 0)
    behind = np.abs(distances)
  else:
    offset = 0
    behind = np.maximum(-distances, 0)
  exact = num_buckets // 2
  wide = num_buckets - exact
  # Border j is the first n with exact * (max / exact) ** (j / wide) <= n.
  borders = []
  candidate = exact
  for j in range(1, wide):
    while candidate**wide * exact**j < max_distance**j * exact**wide:
      candidate += 1
    borders.append(candidate)
  widened = exact + np.searchsorted(borders, behind, side='right')
  return (offset + np.where(behind < exact, behind, widened)).astype(np.int32)


def relative_position_bias(
  table: jax.Array,
  query_length: int,
  key_length: int,
  *,
  bidirectional: bool,
  max_distance: int = 128,
) -> jax.Array:
  """What all layers of a stack add to their scores, [1, H, T, S] float32.

  The bias depends on s - t only, so each distance is looked up once, and the
  rows are shifted copies of each other: repeating a row of T + S values and
  cutting the result every T + S - 1 values moves it by one position per query.
  The gradient is then a sum over rows, not a scatter of T * S * H numbers.

  Args:
    table: [H, num_buckets] float32.
    query_length: T.
    key_length: S.
    bidirectional: True in the encoder, False in the decoder.
    max_distance: as in `relative_position_bucket`.
  """
  num_heads, num_buckets = table.shape
  distances = np.arange(
    1 - query_length, key_length + 1
  )  # one spare at the end
  buckets = relative_position_bucket(
    distances,
    bidirectional=bidirectional,
    num_buckets=num_buckets,
    max_distance=max_distance,
  )
  values = table.astype(jnp.float32)[:, buckets]  # [H, T + S]
  stride = query_length + key_length - 1
  repeated = jnp.tile(values, (1, query_length))
  first = query_length - 1
  shifted = repeated[:, first : first + query_length * stride]
  rows = shifted.reshape(num_heads, query_length, stride)
  return rows[None, :, :, :key_length]


def make_attention_mask(
  rows: dict[str, jax.Array], queries: str, keys: str
) -> jax.Array:
  """[B, 1, T, S] bool: queries attend to real tokens of the same example.

  Args:
    rows: a row group, padded or packed.
    queries: the stack whose T tokens attend, 'encoder' or 'decoder'.
    keys: that of the S tokens attended to.
  """
  query_real, key_real = (rows[TOKENS[stack]] > 0 for stack in (queries, keys))
  mask = query_real[:, None, :, None] & key_real[:, None, None, :]
  query_segments = rows.get(f'{queries}_segment_ids')
  if query_segments is not None:
    key_segments = rows[f'{keys}_segment_ids']
    same = query_segments[:, :, None] == key_segments[:, None, :]
    mask &= same[:, None]
  return mask


def make_target_mask(rows: dict[str, jax.Array]) -> jax.Array:
  """[B, 1, T, T] bool: real targets attend to themselves and those before."""
  positions = jnp.arange(rows[TOKENS['decoder']].shape[1])
  causal = (positions[:, None] >= positions[None, :])[None, None]
  return causal & make_attention_mask(rows, 'decoder', 'decoder')


def dense(
  inputs: jax.Array, kernel: jax.Array | low_rank.LowRankKernel
) -> jax.Array:
  """[..., D] x [D, F] -> [..., F] in the dtype of the inputs.

  The leading axes are merged first: with two of them, XLA's CPU backend makes
  transposed copies for the kernel's gradient, 1.5 times the time of an MLP.

  Args:
    inputs: [..., D] in the activation dtype.
    kernel: [D, F] float32, or as LoRA splits it.
  """
  if isinstance(kernel, low_rank.LowRankKernel):
    correction = dense(dense(inputs, kernel.a), kernel.b)
    return dense(inputs, kernel.kernel) + correction
  flat = jnp.matmul(
    inputs.reshape(-1, inputs.shape[-1]),
    kernel.astype(inputs.dtype),
    precision=matmul_precision.of(inputs.dtype),
  )
  return flat.reshape(*inputs.shape[:-1], kernel.shape[-1])


def split_heads(joined: jax.Array, num_heads: int) -> jax.Array:
  """[B, L, H * K] -> [B, H, L, K]; a head is a contiguous block."""
  batch, length, width = joined.shape
  heads = joined.reshape(batch, length, num_heads, width // num_heads)
  return jnp.swapaxes(heads, 1, 2)


def project(
  params: dict,
  inputs: jax.Array,
  num_heads: int,
  *,
  unpadding: Unpadding | None = None,
) -> jax.Array:
  """One projection of an attention layer, [B, H, S, K].

  Args:
    params: the projection's, with a kernel [D, H*K].
    inputs: [B, S, D] in the activation dtype, or flat, [C * n, D].
    num_heads: H.
    unpadding: of the inputs where they are flat; else None.
  """
  return split_heads(
    _pad(dense(inputs, params['kernel']), unpadding), num_heads
  )


def project_kv(
  params: dict,
  inputs: jax.Array,
  num_heads: int,
  *,
  unpadding: Unpadding | None = None,
) -> KeyValue:
  """What is attended to, [B, H, S, K]; as `project`, of a whole layer."""
  return KeyValue(
    project(params['key'], inputs, num_heads, unpadding=unpadding),
    project(params['value'], inputs, num_heads, unpadding=unpadding),
  )


def _pad(inputs: jax.Array, unpadding: Unpadding | None) -> jax.Array:
  return inputs if unpadding is None else unpadding.pad(inputs)


def update_cache(cache: KeyValue, new: KeyValue, index: jax.Array) -> KeyValue:
  """The cache [B, H, L, K] with what is new, [B, H, 1, K], at a position."""
  key, value = (
    jax.lax.dynamic_update_slice_in_dim(whole, one, index, axis=2)
    for whole, one in zip(cache, new, strict=True)
  )
  return KeyValue(key, value)


def multi_head_attention(
  params: dict,
  inputs_q: jax.Array,
  inputs_kv: KeyValue,
  *,
  mask: jax.Array,
  bias: jax.Array | None = None,
  dropout_rate: float = 0.0,
  dropout_mask: jax.Array | None = None,
  unpadding: Unpadding | None = None,
) -> jax.Array:
  """Attends from `inputs_q` to `inputs_kv` and projects to the model width.

  Args:
    params: one attention layer's parameters, kernels [D, H*K] and [H*K, D].
    inputs_q: [B, T, D] in the activation dtype. B may be a multiple G of the
      rows of `inputs_kv`: G consecutive rows (beams, answer options) then share
      one row of keys and values, and `mask` has a T of 1.
    inputs_kv: keys and values, [B, H, S, K] or [B / G, H, S, K].
    mask: bool, broadcast to [B, H, T, S].
    bias: [1, H, T, S] float32, or None.
    dropout_rate: of the attention probabilities.
    dropout_mask: [B, H, 1, S] bool, True where kept, the same for all queries
      as T5 has it; None for no dropout.
    unpadding: of `inputs_q` where they are flat, [C * n, D]; else None. The
      result is like them.
  """
  num_rows, num_heads, _, _ = inputs_kv.key.shape
  query = _pad(dense(inputs_q, params['query']['kernel']), unpadding)
  batch, length, _ = query.shape
  query = query.reshape(num_rows, -1, query.shape[-1])  # [B/G, G*T, H*K]
  query = split_heads(query, num_heads)

  value = inputs_kv.value
  if dropout_mask is not None:
    # A key that all queries drop is a value of 0: S * K products, not T * S.
    value = dropout.dropout(
      value, jnp.swapaxes(dropout_mask, 2, 3), rate=dropout_rate
    )
  context = dot_product_attention.dot_product_attention(
    query, inputs_kv.key, value, bias=bias, mask=mask
  )
  context = jnp.swapaxes(context, 1, 2).reshape(batch, length, -1)
  if unpadding is not None:
    context = unpadding.unpad(context)
  return dense(context, params['out']['kernel'])
