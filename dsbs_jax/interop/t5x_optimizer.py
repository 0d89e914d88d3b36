# SPDX-License-Identifier: Apache-2.0
"""This project's optimizers inside T5X.

T5X wraps an optax transformation if it knows the type of its state. Here the
axes of a state are read off the state itself: an array that lies under a
parameter's path and has its shape is cut like the parameter, everything else
(steps, row and column moments) is kept whole on every device, as T5X does
with Adafactor's.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from t5x import optimizers


class OptaxOptimizer(optimizers.OptaxWrapper):
  """T5X's wrapper around any of our optax transformations."""

  def derive_logical_axes(self, optimizer, param_logical_axes):
    """The axes of parameters and state, for T5X's partitioner."""
    shapes = _flat(optimizer.target)
    axes = _flat(param_logical_axes)
    state = optimizer.state_dict()['state']
    state_axes = {
      path: _axes_of(path, leaf, shapes, axes)
      for path, leaf in _flat(state).items()
    }
    return optimizer.restore_state(
      {
        'target': flax.core.unfreeze(param_logical_axes),
        'state': traverse_util.unflatten_dict(state_axes, sep='/'),
      }
    )

  def restore_state(self, opt_target, opt_state, state_dict):
    """As T5X's; counts that it stored as floats are whole numbers again."""
    reference = _flat(flax.serialization.to_state_dict(opt_state))
    restored = {
      path: _as_count(leaf, reference.get(path))
      for path, leaf in _flat(state_dict['state']).items()
    }
    state = traverse_util.unflatten_dict(restored, sep='/')
    return super().restore_state(
      opt_target, opt_state, {**state_dict, 'state': state}
    )


def wrap(
  *,
  optimizer: Callable[..., optax.GradientTransformation],
  schedule: Callable[..., Any],
  learning_rate: float,
  total_steps: int,
  clip_norm: float | None,
) -> OptaxOptimizer:
  """For `optimizer_def`: what the built-in engine builds of the same macros.

  Args:
    optimizer: schedule and clip_norm -> gradient transformation.
    schedule: peak rate and total_steps -> learning rate at a step.
    clip_norm: global norm to which gradients are clipped, None for never.
  """
  rate = schedule(learning_rate, total_steps=total_steps)
  return OptaxOptimizer(optimizer(rate, clip_norm=clip_norm))


def learning_rate_fn(
  *, schedule: Callable[..., Any], learning_rate: float, total_steps: int
) -> Callable[[Any], Any]:
  """The same schedule for `Trainer.learning_rate_fn`, which logs it."""
  rate = schedule(learning_rate, total_steps=total_steps)
  return lambda step: jnp.asarray(rate(step), jnp.float32)


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
  return traverse_util.flatten_dict(flax.core.unfreeze(tree), sep='/')


def _axes_of(path: str, leaf: Any, shapes: Mapping, axes: Mapping) -> Any:
  """The axes of the parameter whose path ends `path`, if its shape fits."""
  parts = path.split('/')
  for start in range(len(parts)):
    name = '/'.join(parts[start:])
    if name in shapes:
      return axes[name] if np.shape(shapes[name]) == np.shape(leaf) else None
  return None


def _as_count(leaf: Any, reference: Any) -> Any:
  """An int32 again, where the state has one and the checkpoint a float."""
  whole = isinstance(reference, int)
  dtype = jnp.int32 if whole else getattr(reference, 'dtype', jnp.float32)
  if hasattr(leaf, 'dtype') and jnp.issubdtype(dtype, jnp.integer):
    return leaf.astype(dtype)
  return leaf
