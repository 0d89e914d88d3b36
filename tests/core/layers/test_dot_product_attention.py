# SPDX-License-Identifier: Apache-2.0
"""Both forms of attention and their gradients against plain float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsbs_jax.core.layers import dot_product_attention

B, H, T, S, K = 3, 2, 5, 7, 4

both_forms = pytest.mark.parametrize(
  'attend',
  [
    dot_product_attention.attention_for_cpu,
    dot_product_attention.plain_attention,
  ],
)


def draw(seed=0):
  random = np.random.default_rng(seed)
  query, key, value, cotangent = (
    random.normal(size=(B, H, length, K)) for length in (T, S, S, T)
  )
  mask = random.random((B, 1, T, S)) < 0.6
  mask[..., 0] = True  # each query may look somewhere
  return (query, key, value, random.normal(size=(1, H, T, S))), mask, cotangent


def slow(query, key, value, bias, mask):
  """Each query by itself, over the keys that it may look at."""
  out = np.zeros(query.shape)
  for row, head, at in np.ndindex(B, H, T):
    seen = np.flatnonzero(mask[row, 0, at])
    pairs = key[row, head, seen] @ query[row, head, at]
    pairs = pairs + (0 if bias is None else bias[0, head, at, seen])
    weights = np.exp(pairs) / np.exp(pairs).sum()
    out[row, head, at] = weights @ value[row, head, seen]
  return out


@pytest.mark.parametrize('with_bias', [True, False])
@both_forms
def test_values_are_averaged_over_the_keys_that_are_seen(attend, with_bias):
  arrays, mask, _ = draw()
  arrays = (*arrays[:3], arrays[3] if with_bias else None)
  ours = attend(*to_float32(arrays), mask)
  np.testing.assert_allclose(ours, slow(*arrays, mask), atol=1e-6)


@both_forms
def test_the_gradient_is_that_of_finite_differences(attend):
  arrays, mask, cotangent = draw()
  _, pull_back = jax.vjp(
    lambda *x: attend(*x, mask),
    *to_float32(arrays),
  )
  ours = pull_back(jnp.asarray(cotangent, jnp.float32))
  step = 1e-6
  for number, (array, gradient) in enumerate(zip(arrays, ours, strict=True)):
    for place in np.ndindex(array.shape):
      values = []
      for sign in (1, -1):
        moved = list(arrays)
        moved[number] = array.copy()
        moved[number][place] += sign * step
        values.append(np.sum(slow(*moved, mask) * cotangent))
      slope = (values[0] - values[1]) / (2 * step)
      np.testing.assert_allclose(gradient[place], slope, atol=2e-5)


@both_forms
def test_a_query_that_sees_nothing_averages_all_values(attend):
  arrays, mask, _ = draw()
  mask[1, 0, 2] = False
  query, key, value, bias = to_float32(arrays)
  ours = attend(query, key, value, bias, mask)
  np.testing.assert_allclose(ours[1, :, 2], value[1].mean(axis=1), atol=1e-6)


@both_forms
def test_large_scores_neither_overflow_nor_vanish(attend):
  (query, key, value, bias), mask, cotangent = draw()
  arrays = to_float32((300 * query, key, value, bias))
  ours, pull_back = jax.vjp(lambda *x: attend(*x, mask), *arrays)
  assert np.isfinite(ours).all()
  gradients = pull_back(jnp.asarray(cotangent, jnp.float32))
  assert all(np.isfinite(gradient).all() for gradient in gradients)


@both_forms
def test_low_precision_is_kept_to_activations(attend):
  (query, key, value, bias), mask, _ = draw()
  low = [jnp.asarray(x, jnp.bfloat16) for x in (query, key, value)]
  ours = attend(*low, jnp.asarray(bias, jnp.float32), mask)
  assert ours.dtype == jnp.bfloat16
  rounded = [np.asarray(x, np.float64) for x in low]
  np.testing.assert_allclose(
    np.asarray(ours, np.float64), slow(*rounded, bias, mask), atol=0.05
  )


@pytest.mark.parametrize('traced_for', [None], indirect=True)
def test_the_platform_chooses_the_form():
  arrays, mask, _ = draw()

  @jax.jit
  @jax.grad
  def gradient(query):
    attend = dot_product_attention.dot_product_attention
    _, key, value, bias = to_float32(arrays)
    return jnp.sum(attend(query, key, value, bias=bias, mask=mask))

  query = jax.ShapeDtypeStruct((B, H, T, K), jnp.float32)
  programs = {
    platform: gradient.trace(query).lower(lowering_platforms=(platform,))
    for platform in ('cpu', 'tpu', 'cuda')
  }
  texts = {name: program.as_text() for name, program in programs.items()}
  assert texts['tpu'] == texts['cuda'] != texts['cpu']


def test_both_forms_have_one_gradient_where_a_query_sees_nothing():
  arrays, mask, cotangent = draw()
  mask[1, 0, 2] = False
  on_cpu, plain = (
    jax.vjp(lambda *x, form=form: form(*x, mask), *to_float32(arrays))[1](
      jnp.asarray(cotangent, jnp.float32)
    )
    for form in (
      dot_product_attention.attention_for_cpu,
      dot_product_attention.plain_attention,
    )
  )
  for ours, expected in zip(on_cpu, plain, strict=True):
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


def to_float32(arrays):
  return [x if x is None else jnp.asarray(x, jnp.float32) for x in arrays]
