# SPDX-License-Identifier: Apache-2.0
"""A loss that is a sum over target positions, computed chunk by chunk.

Only the logits of one chunk exist at a time. A chunk's gradient is computed
together with its loss: as the weights of all tokens are known beforehand,
nothing later can change it but a common factor. So no logits are kept or
computed twice.

Chunks cut the target axis, never the row axis, so rows sharded over devices
stay where they are. Each chunk adds its gradient of the logits' parameters up
over the devices, so on many devices a few large chunks are better.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
Sums = dict[str, Array]
ChunkLoss = Callable[[Any, Array, dict[str, Array]], tuple[Array, Sums]]


def of(
  chunk_loss: ChunkLoss,
  logits_params: Any,
  targets: tuple[Array, dict[str, Array]],
  *,
  chunk_tokens: int,
) -> tuple[Array, Sums]:
  """The sum of a loss, and of its sums, over the chunks of some rows.

  Args:
    chunk_loss: (logits_params, hidden [B, t, D], tokens [B, t, ...]) -> float32
      loss and sums; must not close over traced values.
    logits_params: the parameters that it uses.
    targets: hidden [B, T, D], and tokens [B, T, ...] by name.
    chunk_tokens: about how many targets a chunk has; 0: all.
  """
  num_rows, length = targets[0].shape[:2]
  num_chunks = 1
  if chunk_tokens:
    num_chunks = -(-length // max(1, chunk_tokens // num_rows))
  if num_chunks == 1:
    return chunk_loss(logits_params, *targets)
  chunks = jax.tree.map(functools.partial(_cut, num_chunks=num_chunks), targets)
  return _chunked(chunk_loss, logits_params, *chunks)


def _cut(array: Array, num_chunks: int) -> Array:
  """[B, T, ...] -> [num_chunks, B, t, ...], padded by zeros at the end."""
  num_rows, length = array.shape[:2]
  positions = -(-length // num_chunks)
  widths = [(0, 0)] * array.ndim
  widths[1] = (0, num_chunks * positions - length)
  padded = jnp.pad(array, widths)
  return jnp.moveaxis(
    padded.reshape(num_rows, num_chunks, positions, *array.shape[2:]), 1, 0
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(
  chunk_loss: ChunkLoss,
  logits_params: Any,
  hidden: Array,
  tokens: dict[str, Array],
) -> tuple[Array, Sums]:
  """Sums `chunk_loss` over chunks, the leading axis of hidden and tokens."""

  def visit(totals, chunk):
    found = chunk_loss(logits_params, *chunk)
    return jax.tree.map(jnp.add, totals, found), None

  zeros = _zero_totals(chunk_loss, logits_params, hidden, tokens)
  return jax.lax.scan(visit, zeros, (hidden, tokens))[0]


def _chunked_forward(chunk_loss, logits_params, hidden, tokens):
  """As `_chunked`; the residuals are the gradients of the loss itself.

  Arguments are `jax.custom_derivatives.CustomVJPPrimal`s, which say what is
  differentiated: a frozen parameter (LoRA) gets no gradient.
  """
  flat, structure = jax.tree.flatten(logits_params)
  trained = [leaf.value for leaf in flat if leaf.perturbed]
  hidden, tokens = jax.tree.map(lambda leaf: leaf.value, (hidden, tokens))

  def params_of(trained):
    leaves = iter(trained)
    return structure.unflatten(
      next(leaves) if leaf.perturbed else leaf.value for leaf in flat
    )

  def visit(carry, chunk):
    totals, params_gradient = carry
    hidden_chunk, tokens_chunk = chunk
    loss, pull_back, sums = jax.vjp(
      lambda params, hidden: chunk_loss(
        params_of(params), hidden, tokens_chunk
      ),
      trained,
      hidden_chunk,
      has_aux=True,
    )
    gradient, hidden_gradient = pull_back(jnp.ones_like(loss))
    carry = jax.tree.map(
      jnp.add, (totals, params_gradient), ((loss, sums), gradient)
    )
    return carry, hidden_gradient

  zeros = _zero_totals(chunk_loss, params_of(trained), hidden, tokens)
  no_gradient = jax.tree.map(jnp.zeros_like, trained)
  (totals, params_gradient), hidden_gradient = jax.lax.scan(
    visit, (zeros, no_gradient), (hidden, tokens)
  )
  gradients = iter(params_gradient)
  params_gradient = structure.unflatten(
    next(gradients) if leaf.perturbed else None for leaf in flat
  )
  return totals, (params_gradient, hidden_gradient)


def _chunked_backward(chunk_loss, gradients, cotangents):
  """The gradients times the cotangent; the sums are metrics and have none."""
  del chunk_loss
  factor, _ = cotangents
  params_gradient, hidden_gradient = jax.tree.map(
    lambda gradient: (factor * gradient).astype(gradient.dtype), gradients
  )
  return params_gradient, hidden_gradient, None


_chunked.defvjp(_chunked_forward, _chunked_backward, symbolic_zeros=True)


def _zero_totals(chunk_loss, logits_params, hidden, tokens):
  """Zeros like the loss and the sums of one chunk."""
  first = jax.tree.map(lambda array: array[0], (hidden, tokens))
  shapes = jax.eval_shape(chunk_loss, logits_params, *first)
  return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
