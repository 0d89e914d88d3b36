# SPDX-License-Identifier: Apache-2.0
"""The contrastive term: a wrong label's rationale becomes the less likely one.

  loss += weight * mean over pairs i of max(0, margin - s_i + s'_i)

  s_i   the mean of log p over the target tokens of i's own rationale
  s'_i  the same of the rationale that the LLM wrote for a wrong label of i

both for the input of the rationale task. Pairs are the examples of the batch
that have both. With Z_LOSS or LABEL_SMOOTHING, -log p is the token's loss with
these.

It is a margin, so a rationale that is unlikely enough is not pushed on, and
what the two have in common, words and grammar, cancels out.

Which pairs are within the margin is found by a pass without gradient, whose
dropout masks are those of the loss. Each of the N pairs is then a sum over
tokens of known weights, +weight / (N n_i) for the n_i tokens of the rationale
and -weight / (N n'_i) for the others, plus a constant; its gradient is that of
the hinge. So packing, microbatches and devices change nothing.

Source: Liu et al. 2022, BRIO, arXiv:2203.16804, with two candidates and length
penalty 1; RankingLoss in github.com/yixinL7/BRIO at 0fe0117. SCOTT,
arXiv:2305.01879, contrasts rationales for right and wrong labels when the
teacher decodes.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dsbs_jax import contract
from dsbs_jax.core import (
  batch_parts,
  chunked_loss,
  cross_entropy,
  mutual_information,
  network,
  objective,
)
from dsbs_jax.core.layers import unpadding

Array = jax.Array
Rows = dict[str, Array]

# Which way the losses of a view's tokens are pushed.
SIGNS = {contract.RATIONALE_VIEW: 1.0, contract.CONTRAST_VIEW: -1.0}
PAIR_IDS = mutual_information.PAIR_IDS


def of_batch(
  params: Any,
  batch: dict[str, Rows],
  parts: dict[str, tuple[Rows, Array]],
  *,
  config: network.Config,
  distillation: objective.Distillation,
  num_shards: int,
  num_pairs: int,
  chunk_tokens: int = 0,
) -> tuple[dict[str, tuple[Rows, Array]], Array, objective.Sums]:
  """The parts with weights of their tokens in the term, and what else it adds.

  Args:
    params: the network's parameter tree.
    batch: the views of `SIGNS`, with decoder_pair_ids.
    parts: the same, cut as `gradients` does.
    config: the network.
    distillation: weight and margin.
    num_shards: data shards that the parts are cut into.
    num_pairs: P, examples in a batch at most.
    chunk_tokens: as in `objective.rows_loss`.

  Returns:
    The parts, those of the two views with `objective.FURTHER_WEIGHTS`; the
    constant of the loss; `contrast/{loss_sum,tokens,correct}`: over the pairs,
    their hinges, their number, and how many have the right order.

  Raises:
    UserError: the rows have no decoder_pair_ids.
  """
  for view in SIGNS:
    if PAIR_IDS not in batch[view]:
      raise contract.UserError(
        f'the rows have no {PAIR_IDS}, by which the contrastive term pairs'
        ' rationales. Open the loader with pair_ids=True.'
      )
  losses, counts = {}, {}
  for view in SIGNS:
    rows = batch[view]
    weights = rows['decoder_loss_weights'].astype(jnp.float32)
    counts[view] = _of_pairs(weights, rows[PAIR_IDS], num_pairs)

    def summed(rows, keys):
      hidden = network.hidden(params, config, rows, dropout_key=keys)
      return _pair_losses(
        params,
        hidden,
        unpadding.unpad_targets(rows),
        config=config,
        distillation=distillation,
        num_pairs=num_pairs,
        chunk_tokens=chunk_tokens,
      )

    total = batch_parts.add_up(summed, parts[view], num_shards=num_shards)
    losses[view] = batch_parts.sum_shards(total, num_shards)
  factors, constant, sums = hinges(distillation, losses, counts)
  weighed = dict(parts)
  for view, factor in factors.items():
    rows, keys = parts[view]
    further = {objective.FURTHER_WEIGHTS: factor[rows[PAIR_IDS]]}
    weighed[view] = rows | further, keys
  return weighed, constant, sums


def hinges(
  distillation: objective.Distillation,
  losses: dict[str, Array],
  counts: dict[str, Array],
) -> tuple[dict[str, Array], Array, objective.Sums]:
  """The term, as factors of the losses of each pair's tokens.

  Args:
    distillation: weight and margin.
    losses: view of `SIGNS` -> [P] float32, summed over each pair's tokens.
    counts: view -> [P] float32, how many tokens those are; 0 for none.

  Returns:
    view -> [P + 1] float32, the factors, that of padding first; the constant
    and the sums as in `of_batch`.
  """
  right, wrong = SIGNS
  means = {
    view: losses[view] / jnp.maximum(counts[view], 1.0) for view in SIGNS
  }
  paired = (counts[right] > 0) & (counts[wrong] > 0)
  number = jnp.sum(paired.astype(jnp.float32))
  each = distillation.contrast_weight / jnp.maximum(number, 1.0)
  gap = means[right] - means[wrong]  # s' - s
  hinge = jnp.where(
    paired, jnp.maximum(distillation.contrast_margin + gap, 0.0), 0.0
  )
  within = (hinge > 0).astype(jnp.float32)
  factors = {
    view: jnp.pad(sign * each * within / jnp.maximum(counts[view], 1.0), (1, 0))
    for view, sign in SIGNS.items()
  }
  constant = distillation.contrast_margin * each * jnp.sum(within)
  sums = {
    'contrast/loss_sum': jnp.sum(hinge),
    'contrast/tokens': number,
    'contrast/correct': jnp.sum((paired & (gap < 0)).astype(jnp.float32)),
  }
  return factors, constant, sums


def _pair_losses(
  params: Any,
  hidden: Array,
  rows: Rows,
  *,
  config: network.Config,
  distillation: objective.Distillation,
  num_pairs: int,
  chunk_tokens: int,
) -> Array:
  """[P], the token losses of each pair, summed over some rows."""

  def chunk_sums(logits_params, hidden, tokens):
    flat = hidden.reshape(-1, hidden.shape[-1])
    logits = network.logits(logits_params, config, flat)
    losses, _ = cross_entropy.token_losses(
      logits,
      tokens['targets'].reshape(-1),
      z_loss=distillation.z_loss,
      label_smoothing=distillation.label_smoothing,
    )
    losses = losses * tokens['weights'].reshape(-1)
    found = _of_pairs(losses, tokens['pairs'], num_pairs)
    return jnp.zeros([]), {'pairs': found}

  tokens = {
    'targets': rows['decoder_target_tokens'],
    'weights': rows['decoder_loss_weights'].astype(jnp.float32),
    'pairs': rows[PAIR_IDS],
  }
  _, sums = chunked_loss.of(
    chunk_sums,
    network.logits_params(params, config),
    (hidden, tokens),
    num_chunks=chunked_loss.number(tokens['targets'].shape, chunk_tokens),
  )
  return sums['pairs']


def _of_pairs(values: Array, pair_ids: Array, num_pairs: int) -> Array:
  """[P], the sums of values of the pairs 1 to P; any shape, both the same."""
  return jax.ops.segment_sum(
    values.reshape(-1), pair_ids.reshape(-1), num_segments=num_pairs + 1
  )[1:]
