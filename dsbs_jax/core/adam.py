# SPDX-License-Identifier: Apache-2.0
"""Adam: mean gradients over the root of mean squared gradients.

Both differ from `optax.scale_by_adam` in the bias corrections, 1 - beta^t: they
have 8 digits at every t, optax's float32 difference has 5 at t = 1.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax


def scale_by_adam(
  *, beta1: float, beta2: float, epsilon: float
) -> optax.GradientTransformation:
  """Scales to m_hat / (sqrt(v_hat) + epsilon), as torch and optax do.

  Args:
    beta1: decay rate of the mean gradient m.
    beta2: decay rate of the mean squared gradient v.
    epsilon: added to the root.

  Returns:
    A transformation to updates of ascent, before the learning rate. Its state
    is an `optax.ScaleByAdamState`, moments in float32.
  """

  def divide(mean, square, correction1, correction2):
    root = jnp.sqrt(square) / jnp.sqrt(correction2)
    return mean / correction1 / (root + epsilon)

  return _with_moments(beta1, beta2, divide)


def scale_by_adam_hf(
  *, beta1: float, beta2: float, epsilon: float
) -> optax.GradientTransformation:
  """Scales to sqrt(c2) / c1 * m / (sqrt(v) + epsilon), as transformers' AdamW.

  c1 and c2 are the bias corrections, so epsilon weighs 1 / sqrt(c2) times as
  much as in `scale_by_adam`: 32 times in the first step. Arguments and result
  are those of `scale_by_adam`.
  """

  def divide(mean, square, correction1, correction2):
    scale = jnp.sqrt(correction2) / correction1
    return scale * (mean / (jnp.sqrt(square) + epsilon))

  return _with_moments(beta1, beta2, divide)


def _with_moments(
  beta1: float, beta2: float, divide: Callable[..., jax.Array]
) -> optax.GradientTransformation:
  """Keeps the two moments, in float32, and hands them to `divide`."""

  def init(params):
    def zeros():
      return jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)

    return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), zeros(), zeros())

  def update(gradients, state, params=None):
    del params
    count = state.count + 1
    mean = jax.tree.map(
      lambda m, g: beta1 * m + (1.0 - beta1) * g, state.mu, gradients
    )
    square = jax.tree.map(
      lambda v, g: beta2 * v + (1.0 - beta2) * jnp.square(g),
      state.nu,
      gradients,
    )
    corrections = _bias_correction(beta1, count), _bias_correction(beta2, count)
    updates = jax.tree.map(
      lambda m, v: divide(m, v, *corrections), mean, square
    )
    return updates, optax.ScaleByAdamState(count, mean, square)

  return optax.GradientTransformation(init, update)


def _bias_correction(beta: float, count: jax.Array) -> jax.Array:
  """1 - beta^count without cancellation, as beta is near 1."""
  if beta == 0.0:
    return jnp.float32(1.0)
  return -jnp.expm1(count.astype(jnp.float32) * math.log(beta))
