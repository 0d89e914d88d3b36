# SPDX-License-Identifier: Apache-2.0
"""Attention against loops in NumPy, buckets against the published formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsbs_jax.core.layers import dropout
from dsbs_jax.core.t5 import attention
from tests import models

pytestmark = pytest.mark.usefixtures('strict_promotion')


def _bucket_by_logarithm(distance, bidirectional, num_buckets, max_distance):
  """The paper's rule for one distance, in double precision."""
  upper = 0
  if bidirectional:
    num_buckets //= 2
    if distance > 0:
      upper = num_buckets
    distance = abs(distance)
  else:
    distance = max(-distance, 0)
  exact = num_buckets // 2
  if distance < exact:
    return upper + distance
  share = np.log(distance / exact) / np.log(max_distance / exact)
  # The tolerance decides distances that lie exactly on a border.
  wide = int(share * (num_buckets - exact) + 1e-9)
  return upper + min(exact + wide, num_buckets - 1)


@pytest.mark.parametrize('bidirectional', [True, False])
@pytest.mark.parametrize('sizes', [(32, 128), (16, 64), (8, 100)])
def test_buckets_follow_the_logarithm(bidirectional, sizes):
  num_buckets, max_distance = sizes
  distances = np.arange(-2000, 2001)
  buckets = attention.relative_position_bucket(
    distances,
    bidirectional=bidirectional,
    num_buckets=num_buckets,
    max_distance=max_distance,
  )
  expected = [
    _bucket_by_logarithm(d, bidirectional, num_buckets, max_distance)
    for d in distances
  ]
  np.testing.assert_array_equal(buckets, expected)
  assert buckets.max() == num_buckets - 1


def test_buckets_equal_the_float32_formula_of_other_t5s():
  """T5X and Hugging Face take float32 logarithms; 32 buckets up to 128."""
  behind = np.arange(1, 2001)
  with np.errstate(divide='ignore'):
    for bidirectional, exact in ((True, 8), (False, 16)):
      share = np.log(behind.astype(np.float32) / exact) / np.log(128 / exact)
      wide = np.minimum(exact + (share * exact).astype(int), 2 * exact - 1)
      expected = np.where(behind < exact, behind, wide)
      buckets = attention.relative_position_bucket(
        -behind, bidirectional=bidirectional
      )
      np.testing.assert_array_equal(buckets, expected)


@pytest.mark.parametrize('lengths', [(1, 6), (7, 7), (9, 4)])
@pytest.mark.parametrize('bidirectional', [True, False])
def test_bias_is_a_table_lookup_and_so_is_its_gradient(lengths, bidirectional):
  length, num_keys = lengths
  key = jax.random.key(0)
  table = jax.random.normal(key, (3, 8), jnp.float32)
  weights = jax.random.normal(key, (1, 3, length, num_keys), jnp.float32)

  def bias(table):
    return attention.relative_position_bias(
      table, length, num_keys, bidirectional=bidirectional, max_distance=16
    )

  expected = np.zeros((1, 3, length, num_keys), np.float32)
  gradient = np.zeros((3, 8))
  for t in range(length):
    for s in range(num_keys):
      bucket = _bucket_by_logarithm(s - t, bidirectional, 8, 16)
      expected[0, :, t, s] = table[:, bucket]
      gradient[:, bucket] += weights[0, :, t, s]
  np.testing.assert_array_equal(jax.jit(bias)(table), expected)
  found = jax.jit(jax.grad(lambda table: jnp.sum(bias(table) * weights)))(table)
  np.testing.assert_allclose(found, gradient, rtol=1e-5, atol=1e-6)


def _params(key, width, joined):
  keys = jax.random.split(key, 4)
  shapes = {name: (width, joined) for name in ('query', 'key', 'value')}
  shapes['out'] = (joined, width)
  return {
    name: {'kernel': 0.3 * jax.random.normal(k, shapes[name], jnp.float32)}
    for k, name in zip(keys, shapes, strict=True)
  }


def _attend_in_loops(params, queries, memory, mask, bias, num_heads):
  """One row: queries [T, D], memory [S, D], mask [T, S], bias [H, T, S]."""
  kernels = {name: np.float64(leaf['kernel']) for name, leaf in params.items()}
  width = kernels['query'].shape[1] // num_heads
  output = np.zeros_like(queries, np.float64)
  for head in range(num_heads):
    columns = slice(head * width, (head + 1) * width)
    keys = memory @ kernels['key'][:, columns]
    values = memory @ kernels['value'][:, columns]
    for t, query in enumerate(queries @ kernels['query'][:, columns]):
      visible = np.flatnonzero(mask[t])
      scores = keys[visible] @ query + bias[head, t, visible]
      weights = np.exp(scores - scores.max())
      context = (weights / weights.sum()) @ values[visible]
      output[t] += context @ kernels['out'][columns]
  return output


def _random_case(seed, *, batch=2, length=5, num_keys=7):
  rng = np.random.default_rng(seed)
  queries = rng.normal(size=(batch, length, 12)).astype(np.float32)
  memory = rng.normal(size=(batch, num_keys, 12)).astype(np.float32)
  mask = rng.random((batch, 1, length, num_keys)) < 0.6
  mask[..., 0] = True
  bias = rng.normal(size=(1, 3, length, num_keys)).astype(np.float32)
  return _params(jax.random.key(seed), 12, 9), queries, memory, mask, bias


def _attend(params, queries, memory, mask, bias, **options):
  @models.jit
  def attend(params, queries, memory, mask, bias):
    memory = attention.project_kv(params, memory, 3)
    return attention.multi_head_attention(
      params, queries, memory, mask=mask, bias=bias, **options
    )

  return attend(params, queries, memory, mask, bias)


def test_attention_equals_loops_over_heads_and_positions():
  params, queries, memory, mask, bias = _random_case(0)
  found = _attend(params, queries, memory, mask, bias)
  for row in range(2):
    expected = _attend_in_loops(
      params, queries[row], memory[row], mask[row, 0], bias[0], 3
    )
    np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-5)


def test_masked_keys_are_inert():
  params, queries, memory, mask, bias = _random_case(1)
  mask[..., 4:] = False
  changed = memory.copy()
  changed[:, 4:] = 1e3
  np.testing.assert_array_equal(
    _attend(params, queries, memory, mask, bias),
    _attend(params, queries, changed, mask, bias),
  )


def test_the_bias_gathers_the_gradients_of_all_rows():
  params, *case = _random_case(3, batch=3)
  weights = np.random.default_rng(3).normal(size=(3, 5, 12))

  @models.jit
  @jax.grad
  def gradient(bias, queries, memory, mask, weights):
    memory = attention.project_kv(params, memory, 3)
    output = attention.multi_head_attention(
      params, queries, memory, mask=mask, bias=bias
    )
    return jnp.sum(output * weights)

  *rows, bias = (*case[:3], weights.astype(np.float32), case[3])
  alone = [gradient(bias, *(a[i : i + 1] for a in rows)) for i in range(3)]
  together = gradient(bias, *rows)
  assert together.shape == bias.shape
  np.testing.assert_allclose(together, sum(alone), rtol=1e-5, atol=1e-6)


def test_query_rows_that_share_a_memory_row_equal_repeated_memory():
  params, queries, memory, mask, bias = _random_case(2, batch=6, length=4)
  memory, mask = memory[::3], mask[::3, :, :1]
  shared = _attend(params, queries, memory, mask, bias[:, :, :1])
  repeated = _attend(
    params,
    queries,
    np.repeat(memory, 3, axis=0),
    np.repeat(mask, 3, axis=0),
    bias[:, :, :1],
  )
  np.testing.assert_allclose(shared, repeated, rtol=1e-5, atol=1e-5)


def test_masks_say_who_sees_whom():
  tokens = np.array([[5, 6, 7, 8, 0], [5, 0, 0, 0, 0]])
  segments = np.array([[1, 1, 2, 2, 0], [1, 0, 0, 0, 0]])
  rows = {
    'decoder_target_tokens': jnp.asarray(tokens),
    'decoder_segment_ids': jnp.asarray(segments),
  }
  packed = attention.make_attention_mask(rows, 'decoder', 'decoder')
  causal = attention.make_target_mask(rows)
  for row in range(2):
    for t in range(5):
      for s in range(5):
        both = tokens[row, t] > 0 and tokens[row, s] > 0
        same = segments[row, t] == segments[row, s]
        assert packed[row, 0, t, s] == (both and same)
        assert causal[row, 0, t, s] == (both and same and s <= t)


def test_a_written_position_replaces_only_itself():
  cache = attention.KeyValue(jnp.ones((2, 3, 5, 4)), jnp.ones((2, 3, 5, 4)))
  new = attention.KeyValue(
    jnp.full((2, 3, 1, 4), 7.0), jnp.full((2, 3, 1, 4), 8.0)
  )
  written = attention.update_cache(cache, new, jnp.int32(3))
  expected = np.ones((2, 3, 5, 4))
  expected[:, :, 3] = 7.0
  np.testing.assert_array_equal(written.key, expected)
  expected[:, :, 3] = 8.0
  np.testing.assert_array_equal(written.value, expected)


def test_dropout_keeps_the_mean_and_the_dtype():
  inputs = jnp.full((2, 3, 4), 3.0, jnp.bfloat16)
  keep = np.arange(8).reshape(2, 1, 4) % 4 > 0
  dropped = dropout.dropout(inputs, jnp.asarray(keep), rate=0.25)
  assert dropped.dtype == jnp.bfloat16
  expected = np.where(keep, 4.0, 0.0).repeat(3, axis=1)
  np.testing.assert_array_equal(np.float32(dropped), expected)
  assert dropout.dropout(inputs, None, rate=0.25) is inputs


def test_dropped_probabilities_are_left_out_of_the_sum():
  params, queries, memory, mask, bias = _random_case(4)
  mask[:] = True
  keep = np.random.default_rng(4).random((2, 3, 1, 7)) < 0.5
  found = _attend(
    params,
    queries,
    memory,
    mask,
    bias,
    dropout_rate=0.5,
    dropout_mask=jnp.asarray(keep),
  )
  query, key, value = (
    (x @ np.asarray(params[name]['kernel'])).reshape(2, -1, 3, 3)
    for x, name in ((queries, 'query'), (memory, 'key'), (memory, 'value'))
  )
  scores = np.exp(np.einsum('BTHK,BSHK->BHTS', query, key) + bias)
  probabilities = scores / scores.sum(-1, keepdims=True) * np.where(keep, 2, 0)
  context = np.einsum('BHTS,BSHK->BTHK', probabilities, value)
  expected = context.reshape(2, 5, 9) @ np.asarray(params['out']['kernel'])
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
