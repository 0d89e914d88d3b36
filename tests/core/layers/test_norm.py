# SPDX-License-Identifier: Apache-2.0
"""The norm against float64; the form for CPUs has the derived gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from dsbs_jax.core.layers import norm


def draw():
  random = np.random.default_rng(0)
  inputs, weights = (
    jnp.asarray(random.normal(size=(3, 5, 4)), jnp.float32) for _ in range(2)
  )
  return inputs, jnp.linspace(0.5, 2.0, 4), weights


def test_the_norm_equals_its_formula_in_float64():
  inputs, scale, _ = (np.float64(array) for array in draw())
  mean_square = np.mean(inputs**2, axis=-1, keepdims=True)
  expected = scale * inputs / np.sqrt(mean_square + norm.EPSILON)
  found = norm.rms_norm(*draw()[:2])
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_both_forms_have_one_gradient():
  inputs, scale, weights = draw()
  on_cpu, derived = (
    jax.grad(lambda x, s, form=form: jnp.sum(weights * form(x, s)), (0, 1))(
      inputs, scale
    )
    for form in (norm.rms_norm_for_cpu, norm.plain_rms_norm)
  )
  for ours, expected in zip(on_cpu, derived, strict=True):
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=1e-6)
