# SPDX-License-Identifier: Apache-2.0
"""Dot-product attention: scores of all pairs, softmax, weighted mean of values.

Two forms with the same result, see `platform`. The plain one is differentiated
by JAX. The one for CPUs has its gradient written out, which passes over
[B, H, T, S] fewer times: contexts are divided by the softmax's sum, not
probabilities, and masked pairs need no second mask, as their probability is 0.

  e = exp(scores - max), z = sum_s e, context = (e V) / z
  dV = e^T (dC / z), dscores = e * (dC / z V^T - sum_k (dC / z) * context)
"""

import jax
import jax.numpy as jnp

from dsbs_jax.core import matmul_precision, platform

# Score of a masked pair. T5X adds it; selecting it gives the same softmax,
# because float32 cannot hold both it and a score.
MASKED_SCORE = -1e10


def dot_product_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  bias: jax.Array | None,
  mask: jax.Array,
) -> jax.Array:
  """Averages the values of the keys that each query attends to.

  T5 does not divide the scores by sqrt(K).

  Args:
    query: [B, H, T, K] in the activation dtype.
    key: [B, H, S, K] in the activation dtype.
    value: [B, H, S, K] in the activation dtype.
    bias: [1, H, T, S] float32, added to the scores; or None.
    mask: bool, broadcast to [B, H, T, S]; True where the query may attend. A
      query without any such key averages all values, and its gradient is that
      of an unmasked one, as in T5X.

  Returns:
    [B, H, T, K] in the activation dtype; scores and softmax are float32.
  """
  return platform.choose(
    query, key, value, bias, mask, cpu=attention_for_cpu, others=plain_attention
  )


def _scores(query, key, bias):
  """[B, H, T, S] float32, nothing masked."""
  scores = jnp.einsum(
    'BHTK,BHSK->BHTS',
    query,
    key,
    precision=matmul_precision.of(query.dtype),
    preferred_element_type=jnp.float32,
  )
  return scores if bias is None else scores + bias


def plain_attention(query, key, value, bias, mask):
  """As its formula says; Args: as in `dot_product_attention`."""
  scores = _scores(query, key, bias)
  # Added, so that a query without keys has the gradient of an unmasked one.
  scores += jnp.where(mask, 0.0, MASKED_SCORE).astype(jnp.float32)
  probabilities = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
  return jnp.einsum(
    'BHTS,BHSK->BHTK',
    probabilities,
    value,
    precision=matmul_precision.of(query.dtype),
  )


@jax.custom_vjp
def attention_for_cpu(query, key, value, bias, mask):
  """Its gradient is written out; Args: as in `dot_product_attention`."""
  return _forward(query, key, value, bias, mask)[0]


def _forward(query, key, value, bias, mask):
  scores = jnp.where(mask, _scores(query, key, bias), MASKED_SCORE)
  largest = jnp.max(scores, axis=-1, keepdims=True)
  unscaled = jnp.exp(scores - largest)
  total = jnp.sum(unscaled, axis=-1, keepdims=True)  # [B, H, T, 1]
  unscaled = unscaled.astype(query.dtype)
  summed = jnp.einsum(
    'BHTS,BHSK->BHTK', unscaled, value, preferred_element_type=jnp.float32
  )
  context = (summed / total).astype(query.dtype)
  return context, (query, key, value, bias, unscaled, total, context)


def _backward(residuals, gradient):
  query, key, value, bias, unscaled, total, context = residuals
  dtype = query.dtype
  scaled = (gradient.astype(jnp.float32) / total).astype(dtype)  # [B, H, T, K]
  product = scaled.astype(jnp.float32) * context.astype(jnp.float32)
  mean = jnp.sum(product, axis=-1, keepdims=True)
  value_gradient = jnp.einsum('BHTS,BHTK->BHSK', unscaled, scaled)
  scores_gradient = jnp.einsum(
    'BHTK,BHSK->BHTS', scaled, value, preferred_element_type=jnp.float32
  )
  scores_gradient = (scores_gradient - mean) * unscaled.astype(jnp.float32)
  bias_gradient = None
  if bias is not None:
    # The sum over rows as a product: XLA's CPU backend takes many times as
    # long for the plain sum, 7 % of a small T5's step.
    ones = jnp.ones([len(query)], jnp.float32)
    bias_gradient = jnp.einsum('B,BHTS->HTS', ones, scores_gradient)[None]
  scores_gradient = scores_gradient.astype(dtype)
  query_gradient = jnp.einsum('BHTS,BHSK->BHTK', scores_gradient, key)
  key_gradient = jnp.einsum('BHTS,BHTK->BHSK', scores_gradient, query)
  return query_gradient, key_gradient, value_gradient, bias_gradient, None


attention_for_cpu.defvjp(_forward, _backward)
