# SPDX-License-Identifier: Apache-2.0
"""The norm's written-out gradient is the derived one."""

import jax
import jax.numpy as jnp
import numpy as np

from dsbs_jax.core import norm


def test_the_gradient_is_that_of_autodiff():
  random = np.random.default_rng(0)
  inputs, weights = (
    jnp.asarray(random.normal(size=(3, 5, 4)), jnp.float32) for _ in range(2)
  )
  scale = jnp.linspace(0.5, 2.0, 4)

  def plain(inputs, scale):
    mean_square = jnp.mean(jnp.square(inputs), axis=-1, keepdims=True)
    return scale * inputs / jnp.sqrt(mean_square + norm.EPSILON)

  def gradients(way):
    return jax.grad(lambda x, s: jnp.sum(weights * way(x, s)), (0, 1))(
      inputs, scale
    )

  for ours, expected in zip(
    gradients(norm.rms_norm), gradients(plain), strict=True
  ):
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=1e-6)
