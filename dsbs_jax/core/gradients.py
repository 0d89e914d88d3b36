# SPDX-License-Identifier: Apache-2.0
"""The gradient of a whole batch's objective, view by view and part by part.

The views of a batch are visited one after the other, each in its own forward
and backward pass, and each in microbatches: gradients add up in float32. All
token weights are known before the first pass, so the sum is the gradient of the
whole batch's objective, whatever it was cut into. The mutual-information term
needs what the labels say, so that is computed before the rationales' pass.
"""

import functools

import jax
import jax.numpy as jnp

from dsbs_jax import contract
from dsbs_jax.core import mutual_information, network, objective

Batch = dict[str, dict[str, jax.Array]]

# Folded into the dropout key. Labels alone, be it as one view of a pair or as
# the only view of a batch, draw the same masks: alpha = 1 equals finetuning.
_VIEW_KEYS = {
  contract.LABEL_VIEW: 0,
  contract.MIXTURE_VIEW: 0,
  contract.RATIONALE_VIEW: 1,
}


def views(batch: Batch) -> list[tuple[str, dict[str, jax.Array]]]:
  """The batch's views in the order of `contract.VIEWS`."""
  unknown = sorted(set(batch) - set(contract.VIEWS))
  if unknown or not batch:
    raise ValueError(
      f'batch has the views {sorted(batch)}, expected some of'
      f' {contract.VIEWS}. A batch is a dict of row groups, see contract.py.'
    )
  return [(view, batch[view]) for view in contract.VIEWS if view in batch]


def rows_loss(
  config,
  distillation,
  params,
  rows,
  counts,
  dropout_key,
  chunk_tokens,
  extra_loss=None,
):
  """Loss and sums of one part of one view.

  Args:
    config: the network.
    distillation: the objective.
    params: its parameters.
    rows: the row group, or a part of its rows.
    counts: `objective.token_counts` of the whole batch.
    dropout_key: typed key, None for no dropout.
    chunk_tokens: as in `objective.batch_loss`.
    extra_loss: rows and their logits -> a further part of the loss, and sums.

  Returns:
    float32 scalar, and sums.
  """
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
    logits_loss=extra_loss and functools.partial(extra_loss, rows),
  )


def _projection(params, config):
  """The part of the parameters that `network.logits` reads."""
  if config.logits_via_embedding:
    return {'token_embedder': params['token_embedder']}
  return {'decoder': {'logits_dense': params['decoder']['logits_dense']}}


def of_batch(
  config,
  distillation,
  params,
  batch,
  *,
  dropout_key,
  num_microbatches,
  chunk_tokens,
  num_pairs,
):
  """Gradient, value and sums of the whole batch's objective.

  Args:
    config: the network.
    distillation: the objective.
    params: its parameters.
    batch: view -> row group.
    dropout_key: typed key of this step.
    num_microbatches: as in `steps.make_train_step`, as the next two.
    chunk_tokens: see there.
    num_pairs: see there.

  Returns:
    A tree like the parameters, a float32 scalar, and float32 sums.
  """
  counts = objective.token_counts(batch)
  extra_losses = {}

  def part_gradients(view, rows, key):
    (loss, sums), gradients = jax.value_and_grad(
      lambda p: rows_loss(
        config,
        distillation,
        p,
        rows,
        counts,
        key,
        chunk_tokens,
        extra_losses.get(view),
      ),
      has_aux=True,
    )(params)
    return gradients, loss, sums

  def over_parts(function, total, view):
    view_key = jax.random.fold_in(dropout_key, _VIEW_KEYS[view])
    if num_microbatches == 1:
      part = function(batch[view], jax.random.fold_in(view_key, 0))
      return part if total is None else _add(total, part)
    parts = _cut(view, batch[view], num_microbatches)
    return _accumulate(function, total, view_key, parts)

  if distillation.mutual_information:
    extra_losses = _mutual_information(
      config,
      distillation,
      params,
      batch,
      over_parts=over_parts,
      num_pairs=num_pairs,
    )
  total = None
  for view, _ in views(batch):
    total = over_parts(functools.partial(part_gradients, view), total, view)
  return total


def _mutual_information(
  config, distillation, params, batch, *, over_parts, num_pairs
):
  """What the mutual-information term adds to the loss of each view's rows."""
  if set(batch) != {contract.LABEL_VIEW, contract.RATIONALE_VIEW}:
    raise ValueError(
      f'batch has the views {sorted(batch)}, expected label and rationale,'
      ' which the mutual-information term ties together.'
    )
  weight = distillation.mutual_information
  count = mutual_information.count_pairs(batch[contract.LABEL_VIEW])

  def pool(rows, logits):
    ids = rows[mutual_information.PAIR_IDS]
    return mutual_information.pool(logits, ids, num_pairs=num_pairs)

  def pool_labels(rows, key):  # with the masks that the label's loss has
    return pool(rows, network.apply(params, config, rows, dropout_key=key))

  # A pair's label is in one part, and is 0 in the others: their sum is it.
  labels = over_parts(pool_labels, None, contract.LABEL_VIEW)

  def rationale_loss(rows, logits):
    value = mutual_information.cross_entropy(
      labels, pool(rows, logits), count=count
    )
    return weight * value, {mutual_information.METRIC: value}

  def label_loss(rows, logits):  # so that both views have the same sums
    del rows, logits
    return 0.0, {mutual_information.METRIC: jnp.zeros([])}

  return {
    contract.LABEL_VIEW: label_loss,
    contract.RATIONALE_VIEW: rationale_loss,
  }


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
