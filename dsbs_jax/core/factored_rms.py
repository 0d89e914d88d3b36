# SPDX-License-Identifier: Apache-2.0
"""Adafactor: gradients over the root of factored second moments."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dsbs_jax import contract
from dsbs_jax.core import partitioning

Axes = tuple[int, int] | None


class AdafactorState(NamedTuple):
  """Adafactor's moments, each field a tree with one array per parameter.

  The layout of T5X's `param_states`, turned inside out.

  Attributes:
    count: int32 scalar, steps taken so far.
    v_row: the row moments where factored, else zeros of shape (1,).
    v_col: the column moments where factored, else zeros of shape (1,).
    v: all moments where not factored, else zeros of shape (1,).
  """

  count: jax.Array
  v_row: Any
  v_col: Any
  v: Any


def scale_by_factored_rms(
  *,
  decay_exponent: float,
  step_offset: int,
  clipping_threshold: float,
  min_dim_size_to_factor: int,
  scale_by_parameter: bool,
  epsilon1: float,
  epsilon2: float,
) -> optax.GradientTransformation:
  """Adafactor before the learning rate: to updates of ascent.

  Args: as in `optimizer.adafactor`.
  """

  def init(params):
    def zeros(index):
      return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.zeros(
          _moment_shapes(path, leaf.shape, min_dim_size_to_factor)[index],
          jnp.float32,
        ),
        params,
      )

    return AdafactorState(
      jnp.zeros([], jnp.int32), v_row=zeros(0), v_col=zeros(1), v=zeros(2)
    )

  def update(gradients, state, params):
    step = (state.count - step_offset).astype(jnp.float32)
    decay = 1.0 - (step + 1.0) ** -decay_exponent

    def update_one(path, gradient, param, *moments):
      axes = _factored_axes(path, param.shape, min_dim_size_to_factor)
      averaged = tuple(range(partitioning.is_stacked(path), param.ndim))
      ascent, moments = _precondition(
        gradient.astype(jnp.float32), moments, decay, axes, epsilon1
      )
      ascent /= jnp.maximum(1.0, _rms(ascent, averaged) / clipping_threshold)
      if scale_by_parameter:
        ascent *= jnp.maximum(_rms(param, averaged), epsilon2)
      return ascent, *moments

    results = jax.tree_util.tree_map_with_path(
      update_one, gradients, params, state.v_row, state.v_col, state.v
    )
    ascents, *moments = (
      jax.tree.map(lambda _, result, i=i: result[i], params, results)
      for i in range(4)
    )
    return ascents, AdafactorState(state.count + 1, *moments)

  return optax.GradientTransformation(init, update)


def _factored_axes(
  path: Sequence[Any], shape: Sequence[int], min_dim_size_to_factor: int
) -> Axes:
  """(row axis, column axis) of a parameter, or None if it is not factored.

  The shorter side is the row; of two equal ones the first is.
  """
  first = int(partitioning.is_stacked(path))
  if len(shape) - first < 2:
    return None
  if len(shape) - first > 2:
    raise contract.UserError(
      f'parameter {partitioning.path_name(path)} has shape {tuple(shape)},'
      ' expected a matrix or vector (per layer). Adafactor has no rule for'
      ' more dimensions: use AdamW.'
    )
  row, column = np.argsort(shape[first:], kind='stable') + first
  if shape[row] < min_dim_size_to_factor:
    return None
  return int(row), int(column)


def _moment_shapes(
  path: Sequence[Any], shape: Sequence[int], min_dim_size_to_factor: int
) -> tuple[tuple[int, ...], ...]:
  """The shapes of v_row, v_col and v."""
  axes = _factored_axes(path, shape, min_dim_size_to_factor)
  if axes is None:
    return (1,), (1,), tuple(shape)
  row, column = axes
  v_row = tuple(np.delete(shape, column).tolist())
  v_col = tuple(np.delete(shape, row).tolist())
  return v_row, v_col, (1,)


def _precondition(gradient, moments, decay, axes, epsilon1):
  """The gradient over the root of its updated moments, and these moments."""
  v_row, v_col, v = moments
  squared = jnp.square(gradient) + epsilon1
  if axes is None:
    v = decay * v + (1.0 - decay) * squared
    return gradient * jax.lax.rsqrt(v), (v_row, v_col, v)
  row, column = axes
  v_row = decay * v_row + (1.0 - decay) * jnp.mean(squared, axis=column)
  v_col = decay * v_col + (1.0 - decay) * jnp.mean(squared, axis=row)
  # v_row has no column axis, so its row axis may be one lower.
  row_mean = jnp.mean(v_row, axis=row - (column < row), keepdims=True)
  ascent = (
    gradient
    * jnp.expand_dims(jax.lax.rsqrt(v_row / row_mean), column)
    * jnp.expand_dims(jax.lax.rsqrt(v_col), row)
  )
  return ascent, (v_row, v_col, v)


def _rms(array, axes):
  return jnp.sqrt(jnp.mean(jnp.square(array), axis=axes, keepdims=True))
