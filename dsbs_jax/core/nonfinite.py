# SPDX-License-Identifier: Apache-2.0
"""A training step that leaves everything as it was where a loss is not finite."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dsbs_jax.core import steps

TrainStep = Callable[
  [steps.TrainState, steps.Batch], tuple[steps.TrainState, steps.Metrics]
]


def skip_updates(train_step: TrainStep) -> TrainStep:
  """Makes a step that drops an update of a loss or gradient that is not finite.

  Parameters and optimizer stay, its schedule included; the step is counted, so
  that the run goes on with the next batch. An update that is finite is taken as
  it is, bit for bit.

  Args:
    train_step: as `steps.make_train_step` makes it; its metric `finite`
      decides.

  Returns:
    The same function of the same arguments.
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


def all_finite(tree) -> jax.Array:
  """Whether every number of a tree is finite; a bool scalar."""
  return jnp.all(
    jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)])
  )
