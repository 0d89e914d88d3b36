# SPDX-License-Identifier: Apache-2.0
"""Multi-head attention with T5's relative position bias, and its KV cache.

T5's attention has no bias vectors and does not divide the scores by sqrt(K):
the query's initial values carry that factor. Letters: see contract.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dsbs_jax.core import dot_product_attention, dropout
from dsbs_jax.core.unpadding import Unpadding


class KeyValue(NamedTuple):
  """Keys and values of one attention layer, in the activation dtype.

  Attributes:
    key: [B, H, S, K].
    value: [B, H, S, K].
  """

  key: jax.Array
  value: jax.Array


def relative_position_bucket(
  distances: np.ndarray,
  *,
  bidirectional: bool,
  num_buckets: int = 32,
  max_distance: int = 128,
) -> np.ndarray:
  """Sorts relative positions into buckets that widen with distance.

  Half of the buckets (of one direction) hold one distance each, the others
  grow geometrically up to `max_distance`; the last takes everything beyond.
  The borders are found in integers: a logarithm in float32 decides distances
  that lie exactly on a border by its rounding.

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
  """Computes the bias that all layers of a stack add to their scores.

  The bias depends on s - t alone, so each distance is looked up once and the
  rows are shifted copies: repeating a row of T + S values at a stride of one
  less than its length moves it by one position per query. Its gradient is
  then a sum over rows, not a scatter of T * S * H numbers.

  Args:
    table: [H, num_buckets] float32.
    query_length: T.
    key_length: S.
    bidirectional: True in the encoder, False in the decoder.
    max_distance: see `relative_position_bucket`.

  Returns:
    [1, H, T, S] float32.
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
  query_real: jax.Array,
  key_real: jax.Array,
  *,
  query_segments: jax.Array | None = None,
  key_segments: jax.Array | None = None,
) -> jax.Array:
  """Says which query may look at which key.

  Args:
    query_real: [B, T] bool, False on padding.
    key_real: [B, S] bool.
    query_segments: [B, T] int32 example number within a packed row, or None.
    key_segments: [B, S] int32, given together with `query_segments`.

  Returns:
    [B, 1, T, S] bool.
  """
  mask = query_real[:, None, :, None] & key_real[:, None, None, :]
  if query_segments is not None:
    same = query_segments[:, :, None] == key_segments[:, None, :]
    mask &= same[:, None]
  return mask


def make_causal_mask(length: int) -> jax.Array:
  """[1, 1, T, T] bool: a position sees itself and what is before it."""
  positions = jnp.arange(length)
  return (positions[:, None] >= positions[None, :])[None, None]


def project(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
  """[..., D] x [D, E] -> [..., E] in the dtype of the inputs.

  The rows are flattened first: with two leading axes, XLA's CPU backend
  transposes copies for the kernel's gradient, 1.5 times the time of an MLP.
  """
  flat = inputs.reshape(-1, inputs.shape[-1]) @ kernel.astype(inputs.dtype)
  return flat.reshape(*inputs.shape[:-1], kernel.shape[-1])


@jax.custom_vjp
def logits_dense(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
  """`project` to the vocabulary, with its gradient written out.

  The kernel's gradient takes a transposed copy of the inputs. Without one XLA's
  CPU backend copies the other factor, the gradient of all logits, of 100 MB.

  Args:
    inputs: [..., D] float32.
    kernel: [D, V] float32.

  Returns:
    [..., V] float32.
  """
  return project(inputs, kernel)


def _logits_dense_forward(inputs, kernel):
  return project(inputs, kernel), (inputs, kernel)


def _logits_dense_backward(residuals, gradient):
  inputs, kernel = residuals
  flat = inputs.reshape(-1, inputs.shape[-1])
  # The barrier keeps the copy: XLA would take it into the product.
  transposed = jax.lax.optimization_barrier(flat.T)
  of_kernel = transposed @ gradient.reshape(-1, gradient.shape[-1])
  return project(gradient, kernel.T), of_kernel


logits_dense.defvjp(_logits_dense_forward, _logits_dense_backward)


def split_heads(joined: jax.Array, num_heads: int) -> jax.Array:
  """[B, L, H * K] -> [B, H, L, K]; a head is a contiguous block."""
  batch, length, width = joined.shape
  heads = joined.reshape(batch, length, num_heads, width // num_heads)
  return jnp.swapaxes(heads, 1, 2)


def project_kv(
  params: dict,
  memory: jax.Array,
  num_heads: int,
  *,
  unpadding: Unpadding | None = None,
) -> KeyValue:
  """Projects what is attended to.

  Args:
    params: one attention layer's parameters.
    memory: [B, S, D], or flat.
    num_heads: H.
    unpadding: of the memory where it is flat.

  Returns:
    KeyValue of [B, H, S, K].
  """
  # 2-D products, heads split afterwards: 1.3 to 1.5 times faster on CPU than
  # contracting with a [D, H, K] kernel.
  key, value = (
    split_heads(_rows(joined, unpadding), num_heads)
    for joined in (
      project(memory, params[name]['kernel']) for name in ('key', 'value')
    )
  )
  return KeyValue(key, value)


def _rows(joined: jax.Array, unpadding: Unpadding | None) -> jax.Array:
  return joined if unpadding is None else unpadding.rows(joined)


def update_cache(cache: KeyValue, new: KeyValue, index: jax.Array) -> KeyValue:
  """Puts the keys and values of one position, [B, H, 1, K], at `index`."""
  key, value = (
    jax.lax.dynamic_update_slice_in_dim(whole, one, index, axis=2)
    for whole, one in zip(cache, new, strict=True)
  )
  return KeyValue(key, value)


def attend(
  params: dict,
  queries: jax.Array,
  memory: KeyValue,
  *,
  mask: jax.Array,
  bias: jax.Array | None = None,
  dropout_rate: float = 0.0,
  dropout_keep: jax.Array | None = None,
  unpadding: Unpadding | None = None,
) -> jax.Array:
  """Attends from `queries` to `memory` and projects back to the model width.

  Args:
    params: one attention layer's parameters, kernels [D, H*K] and [H*K, D].
    queries: [B, T, D] in the activation dtype. B may be a multiple G of the
      memory's rows: G consecutive query rows (beams, answer options) then
      share one memory row, and `mask` has a T of 1.
    memory: keys and values, [B, H, S, K] or [B / G, H, S, K].
    mask: bool, broadcast to [B, H, T, S].
    bias: float32, [1, H, T, S], or None.
    dropout_rate: of the attention probabilities.
    dropout_keep: [B, H, 1, S] bool, the same for all queries as T5 has it, or
      None for no dropout.
    unpadding: of the queries where they are flat, [C * n, D].

  Returns:
    An array like `queries`.
  """
  num_rows, num_heads, _, _ = memory.key.shape
  joined = _rows(project(queries, params['query']['kernel']), unpadding)
  batch, length, _ = joined.shape
  joined = joined.reshape(num_rows, -1, joined.shape[-1])  # [B/G, G*T, H*K]
  query = split_heads(joined, num_heads)

  value = memory.value
  if dropout_keep is not None:
    # A key that all queries drop is a value of 0: S * K products, not T * S.
    keep = jnp.swapaxes(dropout_keep, 2, 3)
    value = dropout.dropout(value, keep, rate=dropout_rate)
  context = dot_product_attention.dot_product_attention(
    query, memory.key, value, bias, mask
  )
  context = jnp.swapaxes(context, 1, 2).reshape(batch, length, -1)
  if unpadding is not None:
    context = unpadding.flat(context)
  return project(context, params['out']['kernel'])
