# SPDX-License-Identifier: Apache-2.0
"""T5's norm, in two forms with the same result: see `platform`."""

import jax
import jax.numpy as jnp

from dsbs_jax.core import platform

EPSILON = 1e-6


def rms_norm(inputs: jax.Array, scale: jax.Array) -> jax.Array:
  """Divides by the root mean square over D, in float32; no mean, no bias.

  Args:
    inputs: [..., D] in the activation dtype, which the result has, too.
    scale: [D] float32.
  """
  return platform.choose(
    inputs, scale, cpu=rms_norm_for_cpu, others=plain_rms_norm
  )


def plain_rms_norm(inputs: jax.Array, scale: jax.Array) -> jax.Array:
  """As its formula says; Args: as in `rms_norm`."""
  return _forward(inputs, scale)[0]


@jax.custom_vjp
def rms_norm_for_cpu(inputs: jax.Array, scale: jax.Array) -> jax.Array:
  """Its gradient is written out; Args: as in `rms_norm`.

  The scale's gradient, a sum over all tokens, is written as a product: XLA's
  CPU backend is slow at sums over leading axes.
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
    'T,TD->D', inverse.reshape(-1), product.reshape(-1, product.shape[-1])
  )
  mean = jnp.mean(product * scale, axis=-1, keepdims=True)
  inputs_gradient = gradient * scale * inverse - wide * (mean * inverse**3)
  return (
    inputs_gradient.astype(inputs.dtype),
    scale_gradient.astype(scale.dtype),
  )


rms_norm_for_cpu.defvjp(_forward, _backward)
