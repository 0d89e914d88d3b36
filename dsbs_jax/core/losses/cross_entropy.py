# SPDX-License-Identifier: Apache-2.0
"""The cross entropy of single tokens, with its gradient written out.

On every platform, as in T5X: nothing but the logits is kept for the gradient,
which is one elementwise expression. On a CPU this halves the memory that the
derived gradient needs.
"""

import functools
import math

import jax
import jax.numpy as jnp

from dsbs_jax.core import platform


def token_losses(
  logits: jax.Array,
  targets: jax.Array,
  *,
  z_loss: float = 0.0,
  label_smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """Cross entropy of each token, with z-loss and smoothing where asked for.

  Args:
    logits: [..., V] float32.
    targets: [...] int32.
    z_loss: factor of the squared log normalizer.
    label_smoothing: probability mass spread evenly over all wrong tokens.

  Returns:
    losses: [...] float32, in nats; NaN for a target outside of the vocabulary.
    correct: [...] float32, 1 where no logit exceeds the target's.

  Source: with z = logsumexp(logits), q the smoothed one-hot target and H its
  entropy, loss = z - sum_v q_v logits_v + z_loss z^2 - H(q), as in T5X.
  """
  return _token_losses(z_loss, label_smoothing, logits, targets)


def soft_losses(
  logits: jax.Array, ids: jax.Array, probs: jax.Array, *, temperature: float
) -> jax.Array:
  """How far each token's prediction is from a soft target, at a temperature.

  Args:
    logits: [..., V] float32.
    ids: [..., W] int32, the tokens that the soft target has mass on.
    probs: [..., W] float32, its mass, softened already; 0 where there is none.
    temperature: T, that the logits are divided by.

  Returns:
    [...] float32, T^2 KL(probs || softmax(logits / T)), in nats; 0 without a
    soft target.

  Source: Hinton et al. 2015, arXiv:1503.02531, whose factor T^2 keeps gradients
  of one size at every temperature.
  """
  log_predicted = jax.nn.log_softmax(logits / temperature, axis=-1)
  picked = jnp.take_along_axis(log_predicted, ids, axis=-1)
  entropy = jax.scipy.special.xlogy(probs, probs)
  return temperature**2 * jnp.sum(entropy - probs * picked, axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _token_losses(z_loss, smoothing, logits, targets):
  return _forward(z_loss, smoothing, logits, targets)[0]


def _forward(z_loss, smoothing, logits, targets):
  largest = jnp.max(logits, axis=-1)
  log_normalizer = largest + jnp.log(
    jnp.sum(jnp.exp(logits - largest[..., None]), axis=-1)
  )
  picked = platform.choose(logits, targets, cpu=gathered, others=selected)
  expected = picked
  if smoothing:
    kept, others = _smoothed(smoothing, logits)
    expected = (kept - others) * picked + others * jnp.sum(logits, axis=-1)
    expected -= kept * math.log(kept) + (1.0 - kept) * math.log(others)
  losses = log_normalizer - expected
  losses += z_loss * jnp.square(log_normalizer)
  correct = (picked >= largest).astype(jnp.float32)
  return (losses, correct), (logits, targets, log_normalizer)


def gathered(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """The logit of each target, [...]; NaN outside of the vocabulary.

  Args: as in `token_losses`.
  """
  return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


def selected(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """`gathered` as a sum, which accelerators add to that of the exponentials.

  A gather of its own would be one more pass over all logits. Args: as there.
  """
  chosen = _classes(logits) == targets[..., None]
  found = jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1)
  known = (targets >= 0) & (targets < logits.shape[-1])
  return jnp.where(known, found, jnp.nan)


def _classes(logits):
  return jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)


def _backward(z_loss, smoothing, residuals, cotangents):
  """`correct` is a count and carries no gradient."""
  logits, targets, log_normalizer = residuals
  factor = cotangents[0][..., None]
  scale = 1.0 + 2.0 * z_loss * log_normalizer
  probabilities = jnp.exp(logits - log_normalizer[..., None])
  kept, others = _smoothed(smoothing, logits)
  wanted = jnp.where(_classes(logits) == targets[..., None], kept, others)
  return factor * (scale[..., None] * probabilities - wanted), None


_token_losses.defvjp(_forward, _backward)


def _smoothed(smoothing: float, logits: jax.Array) -> tuple[float, float]:
  """The smoothed probability of the target, and of each other token."""
  return 1.0 - smoothing, smoothing / (logits.shape[-1] - 1)
