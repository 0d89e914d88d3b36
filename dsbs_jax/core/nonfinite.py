# SPDX-License-Identifier: Apache-2.0
"""A training step that skips updates whose loss or gradient is not finite."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dsbs_jax.core import steps

TrainStep = Callable[
  [steps.TrainState, steps.Batch], tuple[steps.TrainState, steps.Metrics]
]


def skip_updates(train_step: TrainStep) -> TrainStep:
  """Makes a step that skips an update whose loss or gradient is not finite.

  Parameters and optimizer state, its schedule included, then stay as they were;
  the step is counted, so that the run continues with the next batch. A finite
  update is applied bit for bit. `optax.apply_if_finite` differs in looking at
  the gradient only.

  Args:
    train_step: from `steps.make_train_step`; its metric `finite` decides.

  Returns:
    A function of the same arguments.
  """

  def guarded(state, batch):
    new_state, metrics = train_step(state, batch)
    finite = metrics['finite'] > 0

    def choose(new, old):
      return jnp.where(finite, new, old)

    return new_state.replace(
      params=jax.tree.map(choose, new_state.params, state.params),
      opt_state=jax.tree.map(choose, new_state.opt_state, state.opt_state),
    ), metrics

  return guarded


def all_finite(tree: Any) -> jax.Array:
  """Whether every number of a tree is finite; a bool scalar."""
  return jnp.all(
    jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)])
  )
