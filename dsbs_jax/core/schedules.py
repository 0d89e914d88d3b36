# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules: step (int32) -> rate (float32)."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dsbs_jax import contract

Schedule = Callable[[jax.Array], jax.Array]


def linear_decay(
  learning_rate: float = 5e-5,
  *,
  total_steps: int = 10_000,
  warmup_steps: int = 0,
) -> Schedule:
  """Rises linearly from 0 during the warm-up, then falls linearly to 0.

  Args:
    learning_rate: the peak, at step `warmup_steps`.
    total_steps: the first step with a rate of 0. Without warm-up, step k, from
      0, has learning_rate * (1 - k / total_steps).
    warmup_steps: steps of the rise.

  Raises:
    UserError: warm-up is no whole number, negative, or not shorter than the
      whole.
  """
  _check_warmup(warmup_steps)
  if warmup_steps >= total_steps:
    raise contract.UserError(
      f'warmup_steps is {warmup_steps} and total_steps {total_steps},'
      ' expected 0 <= warmup_steps < total_steps.'
    )

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    rise = step / max(1, warmup_steps)
    fall = (total_steps - step) / (total_steps - warmup_steps)
    factor = jnp.where(step < warmup_steps, rise, jnp.maximum(fall, 0.0))
    return learning_rate * factor

  return schedule


def constant(
  learning_rate: float = 1e-3,
  *,
  total_steps: int | None = None,
  warmup_steps: int = 0,
) -> Schedule:
  """One rate, after a linear rise from 0 during the warm-up.

  Args:
    learning_rate: the rate after the warm-up.
    total_steps: ignored.
    warmup_steps: steps of the rise.
  """
  del total_steps
  _check_warmup(warmup_steps)

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    rise = step / max(1, warmup_steps)
    return learning_rate * jnp.where(step < warmup_steps, rise, 1.0)

  return schedule


def rsqrt(
  learning_rate: float = 1.0,
  *,
  total_steps: int | None = None,
  warmup_steps: int = 10_000,
) -> Schedule:
  """learning_rate / sqrt(max(step, warmup_steps)): T5's pretraining rate.

  Args:
    learning_rate: the factor.
    total_steps: ignored.
    warmup_steps: steps, from 1, whose rate is that of the last of them.

  Raises:
    UserError: warmup_steps is below 1.
  """
  del total_steps
  _check_warmup(warmup_steps, 1, ': the rate of step 0 would be infinite')

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    return learning_rate * jax.lax.rsqrt(jnp.maximum(step, warmup_steps))

  return schedule


def _check_warmup(warmup_steps: int, least: int = 0, why: str = '') -> None:
  """Raises UserError for no number of steps, such as a share of the run."""
  if type(warmup_steps) is not int or warmup_steps < least:
    raise contract.UserError(
      f'warmup_steps is {warmup_steps!r}, expected a whole number of steps >='
      f' {least}{why}.'
    )


def check_ranges(
  *, below: float = math.inf, positive: bool = False, **values: float
) -> None:
  """Raises UserError unless these are numbers in [0, below)."""
  for name, value in values.items():
    if not isinstance(value, int | float) or not 0 <= value < below:
      raise contract.UserError(
        f'{name} is {value!r}, expected a number in [0, {below}).'
      )
    if positive and not value:
      raise contract.UserError(f'{name} is {value!r}, expected a number > 0.')
