# SPDX-License-Identifier: Apache-2.0
"""The optimizers, as optax transformations with a learning-rate schedule.

Every optimizer's state has a `learning_rate` field, the rate of its latest
update; `learning_rate_of` reads it for the step's metrics. Moments are float32.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dsbs_jax import contract
from dsbs_jax.core import factored_rms, schedules

Rate = float | schedules.Schedule
# Gin files name schedules beside the optimizers: @optimizer.linear_decay.
linear_decay = schedules.linear_decay
constant = schedules.constant
rsqrt = schedules.rsqrt

# Norm scales and relative biases, which weight decay leaves alone.
UNDECAYED = ('scale', 'rel_embedding')


class ScheduleState(NamedTuple):
  """Updates so far (int32 scalar), and the rate of the latest (float32)."""

  count: jax.Array
  learning_rate: jax.Array


def adamw_hf(
  learning_rate: Rate,
  *,
  beta1: float = 0.9,
  beta2: float = 0.999,
  epsilon: float = 1e-8,
  weight_decay: float = 0.0,
  clip_norm: float | None = 1.0,
) -> optax.GradientTransformation:
  """The paper's optimizer: transformers' own AdamW (its default until 4.30).

  update = -lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + epsilon)

  Differs from `adamw` in epsilon, which is added to sqrt(v) before the bias
  correction, so that it weighs 32 times as much in the first step, and in
  weight decay, which acts on the parameter after its step. Norm scales and
  relative biases do not decay, as in its Trainer.

  Args:
    learning_rate: a schedule or a constant.
    beta1: decay rate of the mean gradient m.
    beta2: decay rate of the mean squared gradient v.
    epsilon: added to sqrt(v).
    weight_decay: factor of lr * parameter that is subtracted.
    clip_norm: largest global gradient norm; None: no clipping.
  """
  schedules.check_ranges(positive=True, epsilon=epsilon)

  def divide(mean, square, correction1, correction2):
    scale = jnp.sqrt(correction2) / correction1
    return scale * (mean / (jnp.sqrt(square) + epsilon))

  return _chain(
    clip_norm,
    _scale_by_moments(beta1, beta2, divide),
    _scale_by_learning_rate(learning_rate, weight_decay, decay_after_step=True),
  )


def adamw(
  learning_rate: Rate,
  *,
  beta1: float = 0.9,
  beta2: float = 0.999,
  epsilon: float = 1e-8,
  weight_decay: float = 0.0,
  clip_norm: float | None = 1.0,
) -> optax.GradientTransformation:
  """AdamW as in torch and optax: -lr * m_hat / (sqrt(v_hat) + epsilon).

  Args: as in `adamw_hf`.
  """
  schedules.check_ranges(positive=True, epsilon=epsilon)

  def divide(mean, square, correction1, correction2):
    root = jnp.sqrt(square) / jnp.sqrt(correction2)
    return mean / correction1 / (root + epsilon)

  return _chain(
    clip_norm,
    _scale_by_moments(beta1, beta2, divide),
    _scale_by_learning_rate(
      learning_rate, weight_decay, decay_after_step=False
    ),
  )


def adafactor(
  learning_rate: Rate,
  *,
  decay_exponent: float = 0.8,
  step_offset: int = 0,
  clipping_threshold: float = 1.0,
  min_dim_size_to_factor: int = 128,
  scale_by_parameter: bool = True,
  epsilon1: float = 1e-30,
  epsilon2: float = 1e-3,
  clip_norm: float | None = None,
) -> optax.GradientTransformation:
  """Adafactor without momentum, numerically that of T5X.

  Matrices whose sides are both >= min_dim_size_to_factor have one moment per
  row and one per column, with the shorter side as the rows; other parameters
  have one moment per entry. The layer axis of stacked layers is a batch axis:
  moments, clipping and parameter scale are per layer, so stacked and unrolled
  layers train alike.

  Args:
    learning_rate: a schedule or a constant, relative to each parameter's RMS.
    decay_exponent: step s, from 0, keeps 1 - (s + 1)^-decay_exponent of the
      moments.
    step_offset: subtracted from s; 0 or less, as a run's steps count from 0.
    clipping_threshold: largest RMS of an update before scaling.
    min_dim_size_to_factor: see above.
    scale_by_parameter: whether updates are multiplied by the parameter's RMS.
    epsilon1: added to squared gradients.
    epsilon2: smallest parameter RMS that scales.
    clip_norm: largest global gradient norm; None (as in T5X): no clipping.

  Source: Shazeer and Stern 2018, algorithm 4 without momentum.
  """
  schedules.check_ranges(decay_exponent=decay_exponent, epsilon2=epsilon2)
  schedules.check_ranges(
    positive=True, clipping_threshold=clipping_threshold, epsilon1=epsilon1
  )
  if type(step_offset) is not int or step_offset > 0:
    raise contract.UserError(
      f'step_offset is {step_offset!r}, expected a whole number <= 0: steps'
      " count from 0 in a run that starts from a checkpoint's parameters, too."
    )
  return _chain(
    clip_norm,
    factored_rms.scale_by_factored_rms(
      decay_exponent=decay_exponent,
      step_offset=step_offset,
      clipping_threshold=clipping_threshold,
      min_dim_size_to_factor=min_dim_size_to_factor,
      scale_by_parameter=scale_by_parameter,
      epsilon1=epsilon1,
      epsilon2=epsilon2,
    ),
    _scale_by_learning_rate(learning_rate, 0.0, decay_after_step=False),
  )


def learning_rate_of(opt_state: Any) -> jax.Array | None:
  """The rate of the latest update, or None if the state does not hold it."""
  return optax.tree_utils.tree_get(opt_state, 'learning_rate', default=None)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
  """Scales gradients by min(1, max_norm / (norm + 1e-6)), as torch does.

  Raises:
    UserError: max_norm is not a positive number.
  """
  if not max_norm > 0:
    raise contract.UserError(
      f'clip_norm is {max_norm}, expected a number > 0 or None.'
    )

  def clip(gradients, _):
    norm = optax.tree_utils.tree_norm(gradients)
    factor = jnp.minimum(1.0, max_norm / (norm + 1e-6))
    return jax.tree.map(lambda g: factor * g, gradients)

  return optax.stateless(clip)


def _chain(
  clip_norm: float | None, *transformations: optax.GradientTransformation
) -> optax.GradientTransformation:
  """Clips first, unless clip_norm is None, then applies the others."""
  if clip_norm is not None:
    transformations = (clip_by_global_norm(clip_norm), *transformations)
  return optax.chain(*transformations)


def _scale_by_moments(
  beta1: float, beta2: float, divide: Callable[..., jax.Array]
) -> optax.GradientTransformation:
  """Adam's two moments and their bias corrections, handed to `divide`.

  Differs from `optax.scale_by_adam` in the corrections, 1 - beta^t: they have 8
  digits at every t, optax's float32 difference has 5 at t = 1. The state is an
  `optax.ScaleByAdamState`, moments in float32.
  """

  schedules.check_ranges(below=1, beta1=beta1, beta2=beta2)

  def init(params):
    mean, square = (
      optax.tree.zeros_like(params, dtype=jnp.float32) for _ in range(2)
    )
    return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), mean, square)

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


def _scale_by_learning_rate(
  learning_rate: Rate, weight_decay: float, *, decay_after_step: bool
) -> optax.GradientTransformation:
  """Multiplies by the negative rate and subtracts rate * weight_decay * param.

  Parameters named in UNDECAYED never decay. `decay_after_step` decays the
  updated parameter, as transformers does, else the one before, as torch does.
  """
  schedules.check_ranges(weight_decay=weight_decay)
  schedule = (
    learning_rate if callable(learning_rate) else constant(learning_rate)
  )

  def init(params):
    del params
    return ScheduleState(jnp.zeros([], jnp.int32), jnp.zeros([], jnp.float32))

  def update(ascents, state, params=None):
    rate = jnp.asarray(schedule(state.count), jnp.float32)
    updates = jax.tree.map(lambda a: -rate * a, ascents)

    def decay(path, step, param):
      if path[-1].key in UNDECAYED:
        return step
      decayed = param + step if decay_after_step else param
      return step - rate * weight_decay * decayed

    if weight_decay:
      updates = jax.tree_util.tree_map_with_path(decay, updates, params)
    return updates, ScheduleState(state.count + 1, rate)

  return optax.GradientTransformation(init, update)
