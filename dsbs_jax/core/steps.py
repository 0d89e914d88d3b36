# SPDX-License-Identifier: Apache-2.0
"""The training step, as a pure function to be jitted.

The loss of a batch and its gradient: see `gradients/batch_gradient`.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from dsbs_jax.core import alpha_schedules, network, objective, optimizer
from dsbs_jax.core import lora as lora_lib
from dsbs_jax.core.gradients import batch_gradient
from dsbs_jax.core.layers import parameter_tree

Batch = dict[str, dict[str, jax.Array]]
Metrics = dict[str, jax.Array]

# Folded into the key of the initial parameters.
_ADAPTERS = 1


@flax.struct.dataclass
class TrainState:
  """All that training changes, and with LoRA what it does not.

  Attributes:
    step: int32 scalar, steps taken so far.
    params: what is trained, float32: the parameter tree, or LoRA's adapters.
    opt_state: the optimizer's state.
    frozen: with LoRA the network's parameter tree, which stays; else None.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  frozen: Any = None


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def init_state(
  key: jax.Array,
  config: network.Config,
  transformation: optax.GradientTransformation,
  *,
  lora: lora_lib.LoRA = lora_lib.OFF,
) -> TrainState:
  """A fresh state: random parameters by a typed key, zero moments, step 0.

  With a rank of LoRA, adapters are trained, and the parameters are frozen.
  """
  params = network.init(key, config)
  if not lora.rank:
    return state_from_params(params, transformation)
  adapters = lora_lib.init(jax.random.fold_in(key, _ADAPTERS), config, lora)
  state = state_from_params(adapters, transformation)
  return state.replace(
    frozen=parameter_tree.round_large(params, lora.base_dtype)
  )


def state_from_params(
  params: Any, transformation: optax.GradientTransformation
) -> TrainState:
  """A state at step 0 that starts from the given float32 parameters."""
  return TrainState(
    step=jnp.zeros([], jnp.int32),
    params=params,
    opt_state=transformation.init(params),
  )


def make_train_step(
  config: network.Config,
  distillation: objective.Distillation,
  transformation: optax.GradientTransformation,
  *,
  run_key: jax.Array,
  lora: lora_lib.LoRA = lora_lib.OFF,
  total_steps: int = 0,
  num_microbatches: int = 1,
  num_shards: int = 1,
  chunk_tokens: int = 0,
  num_pairs: int = 0,
  join_views: bool = False,
) -> TrainStep:
  """Makes the function that takes one optimizer step.

  Args:
    config: the network.
    distillation: the objective.
    transformation: the optimizer.
    run_key: typed key of the run. A row's dropout masks depend only on it, the
      step, the view and the row's place in the batch.
    lora: as in `init_state`.
    total_steps: of the run, which a named schedule of alpha divides.
    num_microbatches: as in `batch_gradient.batch_value_and_grad`.
    num_shards: likewise; see `partitioning.gradient_shards`.
    chunk_tokens: likewise; see `weighted_loss.rows_loss`.
    num_pairs: likewise, for the terms that need pairs.
    join_views: likewise; see `joined_views`.

  Returns:
    (state, batch) -> (new state, metrics). Metrics are float32 scalars:
    the sums of `batch_gradient.batch_value_and_grad`, `loss` (the objective),
    `grad_norm` (before clipping), `finite` (1 if both are finite, else 0),
    `update_norm`, `param_norm`, `relative_update`, their quotient,
    `learning_rate` if the optimizer's state has it, and `alpha` if it follows
    a schedule.

  Raises:
    UserError: a named schedule of alpha has no run to divide. What
      `batch_value_and_grad` raises comes when the step is traced.
  """
  alpha_at = alpha_schedules.make(
    distillation.alpha_schedule,
    alpha=distillation.alpha,
    total_steps=total_steps,
  )

  def train_step(state, batch):
    alpha = alpha_at and alpha_at(state.step)
    attach = functools.partial(lora_lib.attach, state.frozen, lora=lora)
    attached = {'network_params': attach} if lora.rank else {}
    (loss, sums), gradient = batch_gradient.batch_value_and_grad(
      state.params,
      batch,
      config=config,
      distillation=distillation,
      dropout_key=jax.random.fold_in(run_key, state.step),
      alpha=alpha,
      num_microbatches=num_microbatches,
      num_shards=num_shards,
      chunk_tokens=chunk_tokens,
      num_pairs=num_pairs,
      join_views=join_views,
      **attached,
    )
    updates, opt_state = transformation.update(
      gradient, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    metrics = sums | _loss_and_norms(loss, gradient, updates, params)
    rate = optimizer.learning_rate_of(opt_state)
    followed = {'learning_rate': rate, 'alpha': alpha}
    metrics |= {n: value for n, value in followed.items() if value is not None}
    step = state.step + 1
    return state.replace(step=step, params=params, opt_state=opt_state), metrics

  return train_step


def _loss_and_norms(
  loss: jax.Array, gradient: Any, updates: Any, params: Any
) -> Metrics:
  """The objective, the gradient's norm, and how large an update is.

  What was added is `updates`: clipped, preconditioned, with the learning rate
  and weight decay. The parameters after the step are read, since those before
  it were donated, and a second reader would keep them from being overwritten.
  """
  norm, update_norm, param_norm = map(
    optax.tree_utils.tree_norm, (gradient, updates, params)
  )
  finite = jnp.isfinite(loss) & jnp.isfinite(norm)
  return {
    'loss': loss,
    'grad_norm': norm,
    'finite': finite.astype(jnp.float32),
    'update_norm': update_norm,
    'param_norm': param_norm,
    'relative_update': update_norm / param_norm,
  }


def skip_updates(train_step: TrainStep) -> TrainStep:
  """Makes a step that skips an update whose loss or gradient is not finite.

  Parameters and optimizer state, its schedule included, then stay as they were;
  the step is counted, so that the run continues with the next batch. A finite
  update is applied bit for bit. `optax.apply_if_finite` differs in looking at
  the gradient only; here the metric `finite` of the given step decides.
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
