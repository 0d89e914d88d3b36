# SPDX-License-Identifier: Apache-2.0
"""One token's loss and gradient against float64 and at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsbs_jax.core.losses import cross_entropy

VOCAB = 11


def slow_loss(logits, target, z_loss, smoothing):
  """Straight from the formula, in float64."""
  log_normalizer = np.log(np.sum(np.exp(logits)))
  wanted = np.full(VOCAB, smoothing / (VOCAB - 1))
  wanted[target] = 1 - smoothing
  entropy = -sum(q * np.log(q) for q in wanted if q > 0)
  loss = -np.sum(wanted * (logits - log_normalizer))
  return loss + z_loss * log_normalizer**2 - entropy


@pytest.mark.parametrize('z_loss', [0.0, 0.01])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_loss_and_gradient_equal_the_float64_formula(z_loss, smoothing):
  random = np.random.default_rng(0)
  logits = 3 * random.normal(size=(4, VOCAB))
  targets = random.integers(0, VOCAB, 4)

  def total(logits):
    losses, _ = cross_entropy.token_losses(
      logits, jnp.array(targets), z_loss=z_loss, label_smoothing=smoothing
    )
    return jnp.sum(losses), losses

  (_, losses), gradient = jax.value_and_grad(total, has_aux=True)(
    jnp.array(logits, jnp.float32)
  )
  for row, target in enumerate(targets):
    expected = slow_loss(logits[row], target, z_loss, smoothing)
    np.testing.assert_allclose(losses[row], expected, rtol=1e-6)
    for column in range(VOCAB):
      nudge = 1e-5 * np.eye(VOCAB)[column]
      slope = (
        slow_loss(logits[row] + nudge, target, z_loss, smoothing)
        - slow_loss(logits[row] - nudge, target, z_loss, smoothing)
      ) / 2e-5
      np.testing.assert_allclose(gradient[row, column], slope, atol=1e-6)


def test_an_added_constant_changes_nothing():
  logits = jnp.array([[0.5, -1.0, 2.0]])
  losses, _ = cross_entropy.token_losses(logits, jnp.array([2]))
  moved, _ = cross_entropy.token_losses(logits + 64.0, jnp.array([2]))
  np.testing.assert_allclose(moved, losses, rtol=1e-5)


def test_a_perfect_prediction_costs_nothing_when_smoothed():
  wanted = np.full(VOCAB, 0.1 / (VOCAB - 1), np.float32)
  wanted[3] = 0.9
  losses, correct = cross_entropy.token_losses(
    jnp.log(wanted)[None], jnp.array([3]), label_smoothing=0.1
  )
  assert abs(float(losses[0])) < 1e-6
  assert correct[0] == 1


def test_large_logits_neither_overflow_nor_lose_the_gradient():
  logits = jnp.array([[1e4, 0.0, -1e4]])

  def loss_of(logits):
    return cross_entropy.token_losses(logits, jnp.array([1]))[0][0]

  loss, gradient = jax.value_and_grad(loss_of)(logits)
  assert loss == 1e4
  np.testing.assert_array_equal(gradient, [[1.0, -1.0, 0.0]])


def test_a_target_outside_of_the_vocabulary_is_not_a_number():
  losses, _ = cross_entropy.token_losses(
    jnp.zeros((2, VOCAB)), jnp.array([VOCAB, 0])
  )
  assert np.isnan(losses[0]) and np.isfinite(losses[1])


def test_both_forms_find_the_same_logit():
  logits = jnp.array([[1.0, -2.0, 3.0]] * 4 + [[jnp.inf, -jnp.inf, -0.5]])
  targets = jnp.array([0, 1, 2, 3, 2])
  expected = np.array([1.0, -2.0, 3.0, np.nan, -0.5])
  for form in (cross_entropy.gathered, cross_entropy.selected):
    np.testing.assert_array_equal(form(logits, targets), expected)
