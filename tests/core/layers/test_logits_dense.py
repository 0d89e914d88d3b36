# SPDX-License-Identifier: Apache-2.0
"""The projection to the vocabulary in both forms, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsbs_jax.core.layers import logits_dense
from dsbs_jax.core.t5 import attention


@pytest.mark.parametrize(
  ('dtype', 'tolerance'), [('float32', 1e-5), ('bfloat16', 2e-2)]
)
@pytest.mark.parametrize(
  'project',
  [logits_dense.plain_logits_dense, logits_dense.logits_dense_for_cpu],
)
def test_the_projection_to_the_vocabulary_has_the_gradient_of_a_product(
  project, dtype, tolerance
):
  rng = np.random.default_rng(0)
  inputs = jnp.asarray(rng.normal(size=(3, 5, 8)), dtype)
  kernel = jnp.asarray(rng.normal(size=(8, 40)), jnp.float32)
  weights = jnp.asarray(rng.normal(size=(3, 5, 40)), jnp.float32)

  def total(project):
    return lambda *factors: jnp.sum(weights * project(*factors))

  logits = project(inputs, kernel)
  assert logits.dtype == jnp.float32
  found = jax.grad(total(project), (0, 1))(inputs, kernel)
  assert [array.dtype for array in found] == [inputs.dtype, jnp.float32]
  exact = inputs.astype(jnp.float32), kernel
  wanted = jax.grad(total(attention.dense), (0, 1))(*exact)
  for ours, best in zip(
    (logits, *found), (attention.dense(*exact), *wanted), strict=True
  ):
    off = np.linalg.norm(ours.astype(jnp.float32) - best)
    assert off <= tolerance * np.linalg.norm(best)
