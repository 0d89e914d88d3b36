# SPDX-License-Identifier: Apache-2.0
"""One training step and one evaluation step, as plain functions to be jitted.

The views of a batch are visited one after the other, each in its own forward
and backward pass, and each in microbatches: gradients add up in float32. All
token weights are known before the first pass, so the sum is the gradient of the
whole batch's objective, whatever it was cut into.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from dsbs_jax import contract
from dsbs_jax.core import network, objective, optimizer

Batch = dict[str, dict[str, jax.Array]]
Metrics = dict[str, jax.Array]

# Folded into the dropout key. Labels alone, be it as one view of a pair or as
# the only view of a batch, draw the same masks: alpha = 1 equals finetuning.
_VIEW_KEYS = {
  contract.LABEL_VIEW: 0,
  contract.MIXTURE_VIEW: 0,
  contract.RATIONALE_VIEW: 1,
}


@flax.struct.dataclass
class TrainState:
  """All that training changes.

  Attributes:
    step: int32 scalar, steps taken so far.
    params: parameter tree, float32.
    opt_state: the optimizer's state.
  """

  step: jax.Array
  params: Any
  opt_state: Any


def init_state(
  key: jax.Array,
  config: network.T5Config,
  transformation: optax.GradientTransformation,
) -> TrainState:
  """A fresh state: random parameters, zero moments, step 0."""
  return state_of(network.init(key, config), transformation)


def state_of(
  params: Any, transformation: optax.GradientTransformation
) -> TrainState:
  """A state at step 0 that starts from the given parameters."""
  return TrainState(
    step=jnp.zeros([], jnp.int32),
    params=params,
    opt_state=transformation.init(params),
  )


def make_train_step(
  config: network.T5Config,
  distillation: objective.Distillation,
  transformation: optax.GradientTransformation,
  *,
  run_key: jax.Array,
  num_microbatches: int = 1,
  chunk_tokens: int = 0,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Makes the function that takes one optimizer step.

  Args:
    config: the network.
    distillation: the objective.
    transformation: the optimizer.
    run_key: typed key of the run; masks depend on it, the step, the view and
      the microbatch alone.
    num_microbatches: parts into which the rows of each view are cut, to save
      memory. Part i is every num_microbatches-th row, so that rows sharded over
      devices stay where they are.
    chunk_tokens: target tokens of a part whose logits exist at once; 0: all.
      See `objective.batch_loss`.

  Returns:
    (state, batch) -> (new state, metrics). Metrics are float32 scalars:
    `{label,rationale}/{loss_sum,tokens,correct}` over the batch, `loss` (the
    objective), `grad_norm` (before clipping), `finite` (1 if both are finite,
    else 0), and `learning_rate` if the optimizer's state tells it.

  Raises:
    ValueError: num_microbatches is below 1; later, when the step is traced, a
      batch with unknown views or with rows that do not divide.
  """
  if num_microbatches < 1:
    raise ValueError(
      f'num_microbatches is {num_microbatches}, expected a number >= 1.'
    )

  def train_step(state, batch):
    gradients, loss, sums = _batch_gradients(
      config,
      distillation,
      state.params,
      batch,
      dropout_key=jax.random.fold_in(run_key, state.step),
      num_microbatches=num_microbatches,
      chunk_tokens=chunk_tokens,
    )
    updates, opt_state = transformation.update(
      gradients, state.opt_state, state.params
    )
    norm = optax.tree_utils.tree_norm(gradients)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    metrics = sums | {
      'loss': loss,
      'grad_norm': norm,
      'finite': finite.astype(jnp.float32),
    }
    rate = optimizer.learning_rate_of(opt_state)
    if rate is not None:
      metrics['learning_rate'] = rate
    new_state = TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
    )
    return new_state, metrics

  return train_step


def make_eval_step(
  config: network.T5Config,
  distillation: objective.Distillation,
  *,
  chunk_tokens: int = 0,
) -> Callable[[Any, Batch], Metrics]:
  """Makes the function that scores one batch with teacher forcing.

  Args:
    config: the network.
    distillation: the objective; alpha plays no part in sums.
    chunk_tokens: as in `make_train_step`.

  Returns:
    (params, batch) -> `{label,rationale}/{loss_sum,tokens,correct}`, float32
    scalars without dropout, to be added up over batches and divided once.
  """

  def eval_step(params, batch):
    counts = objective.token_counts(batch)
    sums = [
      _rows_loss(
        config, distillation, params, rows, counts, None, chunk_tokens
      )[1]
      for _, rows in _views(batch)
    ]
    return jax.tree.map(lambda *terms: sum(terms), *sums)

  return eval_step


def _views(batch: Batch) -> list[tuple[str, dict[str, jax.Array]]]:
  """The batch's views in the order of `contract.VIEWS`."""
  unknown = sorted(set(batch) - set(contract.VIEWS))
  if unknown or not batch:
    raise ValueError(
      f'batch has the views {sorted(batch)}, expected some of'
      f' {contract.VIEWS}. A batch is a dict of row groups, see contract.py.'
    )
  return [(view, batch[view]) for view in contract.VIEWS if view in batch]


def _rows_loss(
  config, distillation, params, rows, counts, dropout_key, chunk_tokens
):
  """Loss and sums of one part of one view."""
  hidden = network.hidden(params, config, rows, dropout_key=dropout_key)

  def project(projection, states):
    return network.logits(projection, config, states)

  return objective.batch_loss(
    distillation,
    hidden,
    rows,
    counts=counts,
    project=project,
    projection=_projection(params, config),
    chunk_tokens=chunk_tokens,
  )


def _projection(params, config):
  """The part of the parameters that `network.logits` reads."""
  if config.logits_via_embedding:
    return {'token_embedder': params['token_embedder']}
  return {'decoder': {'logits_dense': params['decoder']['logits_dense']}}


def _batch_gradients(
  config,
  distillation,
  params,
  batch,
  *,
  dropout_key,
  num_microbatches,
  chunk_tokens,
):
  """Gradient, value and sums of the whole batch's objective."""
  counts = objective.token_counts(batch)

  def part_gradients(rows, key):
    (loss, sums), gradients = jax.value_and_grad(
      lambda p: _rows_loss(
        config, distillation, p, rows, counts, key, chunk_tokens
      ),
      has_aux=True,
    )(params)
    return gradients, loss, sums

  total = None
  for view, rows in _views(batch):
    view_key = jax.random.fold_in(dropout_key, _VIEW_KEYS[view])
    if num_microbatches == 1:
      part = part_gradients(rows, jax.random.fold_in(view_key, 0))
      total = part if total is None else _add(total, part)
      continue
    total = _accumulate(
      part_gradients, total, view_key, _cut(view, rows, num_microbatches)
    )
  return total


def _accumulate(part_gradients, total, view_key, parts):
  """Adds the gradients of all parts to the total, one part at a time."""
  num_parts = len(jax.tree.leaves(parts)[0])
  if total is None:
    first = jax.tree.map(lambda array: array[0], parts)
    shapes = jax.eval_shape(part_gradients, first, view_key)
    total = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  def visit(carry, indexed):
    index, rows = indexed
    key = jax.random.fold_in(view_key, index)
    return _add(carry, part_gradients(rows, key)), None

  return jax.lax.scan(visit, total, (jnp.arange(num_parts), parts))[0]


def _cut(view, rows, num_microbatches):
  """[B, ...] -> [microbatches, B / microbatches, ...], rows dealt in turn."""
  num_rows = len(rows['decoder_target_tokens'])
  if num_rows % num_microbatches:
    raise ValueError(
      f'view {view!r} has {num_rows} rows, which {num_microbatches}'
      ' microbatches do not divide. Change one of the two.'
    )

  def deal(array):
    dealt = array.reshape(-1, num_microbatches, *array.shape[1:])
    return jnp.moveaxis(dealt, 1, 0)

  return jax.tree.map(deal, rows)


def _add(left, right):
  return jax.tree.map(jnp.add, left, right)
