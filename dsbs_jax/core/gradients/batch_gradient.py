# SPDX-License-Identifier: Apache-2.0
"""The loss of Distilling Step-by-Step and its gradient, for a whole batch.

  loss = alpha * (mean cross entropy of the batch's label tokens)
       + (1 - alpha) * (mean cross entropy of its rationale tokens)

and so on for every further task that has a weight (`objective`). A batch (see
contract.py) holds one or more views, row groups of B rows with S source and T
target tokens: labels and rationales of the same examples, or one mixture of
both. The means are over the *whole* batch: all views,
microbatches and devices. How it is computed:

1. Count. N_label and N_rationale, float32 scalars, are the numbers of target
   tokens of each term in the whole batch (`weighted_loss.token_counts`). They
   need no forward pass, so every target token has a known weight from the start:

     w = alpha / N_label  or  (1 - alpha) / N_rationale, 0 on padding   [B, T]

   and the loss is a plain sum of w * cross entropy over all tokens.

2. Cut. A sum may be cut anywhere and added up again, so padded, packed, paired,
   mixed and accumulated batches give the same loss and gradient. The rows of
   each view, [B, ...], are cut into

     [num_microbatches, num_shards, B / (num_microbatches * num_shards), ...]

   where a shard's rows are neighbours in the batch, and so lie on one device.

3. Accumulate. Views, or both as one (`joined_views`), and the microbatches of
   each (`jax.lax.scan`), pass through the network one after the other, all
   shards at once (`jax.vmap`):

     rows [b, S], [b, T] -> hidden [b, T, D] -> logits [b, T, V] -> loss []
     gradient: a float32 tree like the parameters, per shard

   Losses, metric sums and gradients are added to the running totals. Logits may
   exist in chunks of target positions only: `weighted_loss.rows_loss`.

4. Reduce. After the last microbatch the shards' totals are summed: devices talk
   once per step, not once per view and microbatch. Where parameters are split
   over the data axis no shard has a whole gradient; num_shards is then 1, and
   the compiler places the sums (`partitioning.gradient_shards`).

What the mutual-information and the contrastive term need (both off by default)
is computed before step 3: `pair_terms`.

Source: Hsieh et al. 2023, equations 1, 3 and 4; weighted as in its code.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from dsbs_jax import contract
from dsbs_jax.core import network, objective
from dsbs_jax.core.gradients import batch_parts, joined_views, pair_terms
from dsbs_jax.core.layers import dropout, unpadding
from dsbs_jax.core.losses import weighted_loss

Array = jax.Array
Params = dict[str, Any]
Rows = dict[str, Array]
Batch = dict[str, Rows]
Sums = dict[str, Array]

# Folded into the dropout key. Labels draw the same masks as one view of a pair
# and as the only view of a batch: alpha = 1 equals standard finetuning.
_VIEW_KEYS = {view: task_id - 1 for view, task_id in contract.TASK_IDS.items()}
_VIEW_KEYS[contract.MIXTURE_VIEW] = _VIEW_KEYS[contract.LABEL_VIEW]


def batch_value_and_grad(
  params: Params,
  batch: Batch,
  *,
  config: network.Config,
  distillation: objective.Distillation,
  dropout_key: Array,
  num_microbatches: int = 1,
  num_shards: int = 1,
  chunk_tokens: int = 0,
  num_pairs: int = 0,
  join_views: bool = False,
  network_params: Callable[[Params], Params] = lambda params: params,
  alpha: Array | None = None,
) -> tuple[tuple[Array, Sums], Params]:
  """The loss of a whole batch, its metric sums, and its gradient.

  As `jax.value_and_grad(..., has_aux=True)` of the loss above; the result is
  the same for every num_microbatches, num_shards and chunk_tokens, to rounding.

  Args:
    params: what is trained, float32: the network's parameter tree, unless
      network_params says otherwise.
    batch: view -> row group of B rows; B is a multiple of num_microbatches *
      num_shards.
    config: the network.
    distillation: alpha and the other weights of the loss.
    dropout_key: typed key of this step. A row's masks depend on it, on the view
      and on the row's place in the batch, not on how the batch is cut.
    num_microbatches: parts that each view passes through the network in, one
      after the other, to save memory.
    num_shards: data shards that add up gradients of their own; 1 leaves the
      sums over devices to the compiler.
    chunk_tokens: target tokens of a part whose logits exist at once; 0: all.
    num_pairs: pairs in a batch at most, for the mutual-information and the
      contrastive term.
    join_views: whether the views of a packed batch pass through the network
      together, see `joined_views`. Not where label or rationale has no weight
      in the whole run, nor with soft labels, which one view alone has, the
      mutual-information or the contrastive term.
    network_params: params -> the network's parameter tree, for LoRA. What else
      it reads is constant, and no gradient of it is computed.
    alpha: float32 scalar, of a step whose alpha follows a schedule; None: that
      of `distillation`.

  Returns:
    (loss, sums): float32 scalar; `{label,rationale}/{loss_sum,tokens,correct}`
      as float32 scalars, also of other tasks with a weight, and
      `mutual_information` and `contrast/...` where these have one.
    gradient: a tree like `params`, float32.

  Raises:
    UserError: num_microbatches is below 1, or a term that ties views together
      has no pairs or meets chunks.
    ValueError: a view is unknown, its rows do not divide, or the
      mutual-information term meets a batch that is not paired.
  """
  counts = weighted_loss.token_counts(distillation, batch)
  parts = _cut(batch, dropout_key, num_microbatches, num_shards)
  two_terms = alpha is not None or 0.0 < distillation.alpha < 1.0
  further = distillation.needs_pair_ids or distillation.soft_label_weight
  if join_views and two_terms and not further:
    parts = joined_views.join_parts(parts)

  terms = pair_terms.PairTerms(parts)
  if distillation.needs_pair_ids:
    terms = pair_terms.Pass(
      network_params(params),
      config,
      distillation,
      num_shards=num_shards,
      num_pairs=num_pairs,
      chunk_tokens=chunk_tokens,
    ).terms(batch, parts)

  loss_fn = functools.partial(
    _view_loss,
    config=config,
    distillation=distillation,
    counts=counts,
    alpha=alpha,
    chunk_tokens=chunk_tokens,
    network_params=network_params,
  )
  total = _add_up_views(loss_fn, params, terms, num_shards)
  (loss, sums), gradient = batch_parts.sum_shards(total, num_shards)
  if terms.sums:
    loss, sums = loss + terms.constant, sums | terms.sums
  return (loss, sums), gradient


def _cut(
  batch: Batch, dropout_key: Array, num_microbatches: int, num_shards: int
) -> pair_terms.Parts:
  """Each view's parts, and the dropout keys of their rows; step 2 above."""
  unknown = sorted(set(batch) - set(contract.VIEWS))
  if unknown or not batch:
    raise ValueError(
      f'batch has the views {sorted(batch)}, expected some of'
      f' {contract.VIEWS}. A batch is a dict of row groups, see contract.py.'
    )
  parts = {}
  for view in (view for view in contract.VIEWS if view in batch):
    rows = batch[view]
    view_key = jax.random.fold_in(dropout_key, _VIEW_KEYS[view])
    keys = dropout.row_keys(view_key, len(rows['decoder_target_tokens']))
    parts[view] = batch_parts.cut(
      (rows, keys), view, num_parts=num_microbatches, num_shards=num_shards
    )
  return parts


def _add_up_views(
  loss_fn: Callable[..., tuple[Array, Sums]],
  params: Params,
  terms: pair_terms.PairTerms,
  num_shards: int,
) -> tuple[tuple[Array, Sums], Params]:
  """((loss, sums), gradient) of each shard's rows, over all views; step 3."""
  total = None
  for view, parts in terms.parts.items():
    value_and_grad = jax.value_and_grad(
      functools.partial(loss_fn, logits_loss=terms.logits_losses.get(view)),
      has_aux=True,
    )
    total = batch_parts.add_up(
      lambda rows, keys, of=value_and_grad: of(params, rows, dropout_key=keys),
      parts,
      num_shards=num_shards,
      total=total,
    )
  return total


def _view_loss(
  params: Params,
  rows: Rows,
  *,
  config: network.Config,
  distillation: objective.Distillation,
  dropout_key: Array,
  logits_loss: pair_terms.LogitsLoss | None,
  network_params: Callable[[Params], Params],
  **options: Any,
) -> tuple[Array, Sums]:
  """What b rows of one view contribute to the loss and the metric sums.

  `dropout_key` is one per row, [b], `logits_loss` one of
  `PairTerms.logits_losses`, and `options` are those of `rows_loss`.
  """
  params = network_params(params)
  hidden = network.hidden(params, config, rows, dropout_key=dropout_key)
  rows = unpadding.unpad_targets(rows)
  return weighted_loss.rows_loss(
    distillation,
    hidden,
    rows,
    logits_fn=lambda some, hidden: network.logits(some, config, hidden),
    logits_params=network.logits_params(params, config),
    logits_loss=logits_loss and functools.partial(logits_loss, rows),
    **options,
  )
