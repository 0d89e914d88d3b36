# SPDX-License-Identifier: Apache-2.0
"""The gradient of a whole batch's objective, view by view and part by part.

The views of a batch are visited one after the other, each in its own forward
and backward pass, and each in microbatches: gradients add up in float32. All
token weights are known before the first pass, so the sum is the gradient of the
whole batch's objective, whatever it was cut into. The mutual-information term
needs what the labels say, so that is computed before the rationales' pass.

Where parameters are replicated over the data axis of a mesh, each data shard
adds up its own gradient, and the shards' are summed once, at the end: devices
then talk once per step, not once per view and microbatch.
"""

import functools

import jax
import jax.numpy as jnp

from dsbs_jax import contract
from dsbs_jax.core import dropout, mutual_information, objective, unpadding
from dsbs_jax.core.t5 import network

Batch = dict[str, dict[str, jax.Array]]

# Folded into the dropout key. Labels alone, be it as one view of a pair or as
# the only view of a batch, draw the same masks: alpha = 1 equals finetuning.
_VIEW_KEYS = {
  contract.LABEL_VIEW: 0,
  contract.MIXTURE_VIEW: 0,
  contract.RATIONALE_VIEW: 1,
}


def batch_views(batch: Batch) -> list[tuple[str, dict[str, jax.Array]]]:
  """The batch's views in the order of `contract.VIEWS`."""
  unknown = sorted(set(batch) - set(contract.VIEWS))
  if unknown or not batch:
    raise contract.UserError(
      f'batch has the views {sorted(batch)}, expected some of'
      f' {contract.VIEWS}. A batch is a dict of row groups, see contract.py.'
    )
  return [(view, batch[view]) for view in contract.VIEWS if view in batch]


def view_loss(
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
    dropout_key: typed keys of the rows, None for no dropout.
    chunk_tokens: as in `objective.batch_loss`.
    extra_loss: rows and their logits -> a further part of the loss, and sums.

  Returns:
    float32 scalar, and sums.
  """
  hidden = network.hidden(params, config, rows, dropout_key=dropout_key)
  rows = unpadding.unpad_targets(rows)

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


def batch_value_and_grad(
  config,
  distillation,
  params,
  batch,
  *,
  dropout_key,
  num_microbatches,
  num_shards,
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
    num_microbatches: as in `steps.make_train_step`, as the next three.
    num_shards: see there.
    chunk_tokens: see there.
    num_pairs: see there.

  Returns:
    A tree like the parameters, a float32 scalar, and float32 sums.
  """
  counts = objective.token_counts(batch)
  extra_losses = {}

  def part_gradients(view, rows, keys):
    (loss, sums), gradients = jax.value_and_grad(
      lambda p: view_loss(
        config,
        distillation,
        p,
        rows,
        counts,
        keys,
        chunk_tokens,
        extra_losses.get(view),
      ),
      has_aux=True,
    )(params)
    return gradients, loss, sums

  def over_parts(function, total, view):
    view_key = jax.random.fold_in(dropout_key, _VIEW_KEYS[view])
    keys = dropout.row_keys(view_key, len(batch[view]['decoder_target_tokens']))
    parts = _cut(view, (batch[view], keys), num_shards, num_microbatches)
    if num_shards > 1:
      function = jax.vmap(function)
    return _accumulate(function, total, parts)

  if distillation.mi_weight:
    extra_losses = _mutual_information(
      config,
      distillation,
      params,
      batch,
      over_parts=lambda *parts: _of_shards(over_parts(*parts), num_shards),
      num_pairs=num_pairs,
    )
  total = None
  for view, _ in batch_views(batch):
    total = over_parts(functools.partial(part_gradients, view), total, view)
  return _of_shards(total, num_shards)


def _mutual_information(
  config, distillation, params, batch, *, over_parts, num_pairs
):
  """What the mutual-information term adds to the loss of each view's rows."""
  if set(batch) != {contract.LABEL_VIEW, contract.RATIONALE_VIEW}:
    raise contract.UserError(
      f'batch has the views {sorted(batch)}, expected label and rationale,'
      ' which the mutual-information term ties together.'
    )
  weight = distillation.mi_weight
  count = mutual_information.count_pairs(batch[contract.LABEL_VIEW])

  def pool(rows, logits):
    ids = rows[mutual_information.PAIR_IDS]
    return mutual_information.pool(logits, ids, num_pairs=num_pairs)

  def pool_labels(rows, keys):  # with the masks that the label's loss has
    return pool(rows, network.apply(params, config, rows, dropout_key=keys))

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


def _accumulate(function, total, parts):
  """Adds what the function says of each part to the total, part by part."""
  first = jax.tree.map(lambda array: array[0], parts)
  if len(jax.tree.leaves(parts)[0]) == 1:
    only = function(*first)
    return only if total is None else _add(total, only)
  if total is None:
    shapes = jax.eval_shape(function, *first)
    total = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  def visit(carry, part):
    return _add(carry, function(*part)), None

  return jax.lax.scan(visit, total, parts)[0]


def _of_shards(total, num_shards):
  """The sum over the shards' leading axis, where there is one."""
  if num_shards == 1:
    return total
  return jax.tree.map(lambda array: jnp.sum(array, axis=0), total)


def _cut(view, tree, num_shards, num_parts):
  """Deals rows, [B, ...], into parts: [parts, B / parts, ...].

  With shards [parts, shards, B / parts / shards, ...]; a shard's rows are next
  to each other in the batch, and so on one device. The cells of places are
  dealt likewise.
  """
  for array in jax.tree.leaves(tree):
    if len(array) % (num_shards * num_parts):
      raise contract.UserError(
        f'view {view!r} has {len(array)} rows or cells, which {num_parts}'
        f' microbatches of {num_shards} data shards do not divide. Change one of'
        ' the two.'
      )

  def deal(array):
    dealt = array.reshape(num_shards, -1, num_parts, *array.shape[1:])
    dealt = jnp.moveaxis(dealt, 2, 0)
    return dealt if num_shards > 1 else dealt[:, 0]

  return jax.tree.map(deal, tree)


def _add(left, right):
  return jax.tree.map(jnp.add, left, right)
