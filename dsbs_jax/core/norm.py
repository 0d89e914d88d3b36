# SPDX-License-Identifier: Apache-2.0
"""T5's norm, with its gradient written out."""

import jax
import jax.numpy as jnp

EPSILON = 1e-6


@jax.custom_vjp
def rms_norm(inputs: jax.Array, scale: jax.Array) -> jax.Array:
  """Divides by the root mean square over D, in float32; no mean, no bias.

  The scale's gradient, a sum over all tokens, is written as a product: XLA's CPU
  backend is slow at sums over leading axes.

  Args:
    inputs: [..., D].
    scale: [D].

  Returns:
    An array like `inputs`.
  """
  return _forward(inputs, scale)[0]


def _forward(inputs, scale):
  wide = inputs.astype(jnp.float32)
  mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
  inverse = jax.lax.rsqrt(mean_square + EPSILON)
  normed = (wide * inverse).astype(inputs.dtype)
  return normed * scale.astype(inputs.dtype), (inputs, scale, inverse)


def _backward(residuals, gradient):
  inputs, scale, inverse = residuals
  wide = inputs.astype(jnp.float32)
  gradient = gradient.astype(jnp.float32)
  product = gradient * wide
  scale_gradient = jnp.einsum(
    'N,ND->D',
    inverse.reshape(-1),
    product.reshape(-1, product.shape[-1]),
    precision='highest',
  )
  mean = jnp.mean(product * scale, axis=-1, keepdims=True)
  of_inputs = gradient * scale * inverse - wide * (mean * inverse**3)
  return of_inputs.astype(inputs.dtype), scale_gradient.astype(scale.dtype)


rms_norm.defvjp(_forward, _backward)
