# SPDX-License-Identifier: Apache-2.0
"""Terms that tie the views of an example together: what is computed first.

The mutual-information term (`losses/mutual_information`) needs the
probabilities of a pair's label when its rationale is scored, the contrastive
term (`losses/contrast`) the losses of both rationales of a pair. Each takes a
pass without gradient over all parts of some views, with the dropout masks of
the loss; from then on a part's rows have all they need.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dsbs_jax import contract
from dsbs_jax.core import network, objective
from dsbs_jax.core.gradients import batch_parts
from dsbs_jax.core.layers import unpadding
from dsbs_jax.core.losses import (
  chunked_loss,
  contrast,
  cross_entropy,
  mutual_information,
  weighted_loss,
)

Array = jax.Array
Rows = dict[str, Array]
Parts = dict[str, tuple[Rows, Array]]
LogitsLoss = Callable[[Rows, Array], tuple[Array, weighted_loss.Sums]]

PAIR_IDS = mutual_information.PAIR_IDS


@dataclasses.dataclass(frozen=True)
class PairTerms:
  """What the pass with gradient needs of these terms.

  Attributes:
    parts: view -> rows and dropout keys, cut as `batch_gradient` does; with the
      contrastive term `weighted_loss.FURTHER_WEIGHTS` among the rows of two.
    logits_losses: view -> (rows, logits [b * T, V]) -> what the
      mutual-information term adds to the loss of these rows, and its sums.
    constant: of the loss, float32 scalar, see `contrast.hinges`.
    sums: further metric sums of the whole batch.
  """

  parts: Parts
  logits_losses: Mapping[str, LogitsLoss] = dataclasses.field(
    default_factory=dict
  )
  constant: Array | float = 0.0
  sums: Mapping[str, Array] = dataclasses.field(default_factory=dict)


def compute(
  params: Any,
  batch: dict[str, Rows],
  parts: Parts,
  *,
  config: network.Config,
  distillation: objective.Distillation,
  num_shards: int,
  num_pairs: int,
  chunk_tokens: int,
) -> PairTerms:
  """The terms that have a weight, from a pass without gradient.

  Args:
    params: the network's parameter tree.
    batch: the views that the terms tie together, with decoder_pair_ids.
    parts: the same, cut as `batch_gradient` does.
    config: the network.
    distillation: the weights of the terms, and the contrastive term's margin.
    num_shards: data shards that the parts are cut into.
    num_pairs: P, examples in a batch at most.
    chunk_tokens: as in `weighted_loss.rows_loss`, for the contrastive term.

  Raises:
    ValueError: the mutual-information term meets a batch that is not paired.
    UserError: the rows have no decoder_pair_ids.
  """
  logits_losses, constant, sums = {}, 0.0, {}
  if distillation.mi_weight:
    logits_losses = _mutual_information_losses(
      params,
      batch,
      parts,
      config=config,
      weight=distillation.mi_weight,
      num_shards=num_shards,
      num_pairs=num_pairs,
    )
  if distillation.contrast_weight:
    parts, constant, sums = _add_contrast(
      parts,
      batch,
      _pair_losses_fn(
        params,
        config,
        distillation,
        num_pairs=num_pairs,
        chunk_tokens=chunk_tokens,
      ),
      distillation=distillation,
      num_shards=num_shards,
      num_pairs=num_pairs,
    )
  return PairTerms(parts, logits_losses, constant, sums)


def _mutual_information_losses(
  params: Any,
  batch: dict[str, Rows],
  parts: Parts,
  *,
  config: network.Config,
  weight: float,
  num_shards: int,
  num_pairs: int,
) -> dict[str, LogitsLoss]:
  """As `PairTerms.logits_losses`."""
  count = mutual_information.count_pairs(batch)

  def pooled_labels(rows, keys):  # zeros for labels of other parts
    logits = network.apply(params, config, rows, dropout_key=keys)
    return mutual_information.pool(logits, rows[PAIR_IDS], num_pairs=num_pairs)

  labels = batch_parts.total(
    pooled_labels, parts[contract.LABEL_VIEW], num_shards=num_shards
  )  # [P, V]

  def rationale_loss(rows, logits):
    rationales = mutual_information.pool(
      logits, rows[PAIR_IDS], num_pairs=num_pairs
    )
    value = mutual_information.cross_entropy(labels, rationales, count=count)
    return weight * value, {mutual_information.METRIC: value}

  def label_loss(rows, logits):  # so that both views have the same sums
    del rows, logits
    return 0.0, {mutual_information.METRIC: jnp.zeros([])}

  return {
    contract.LABEL_VIEW: label_loss,
    contract.RATIONALE_VIEW: rationale_loss,
  }


def _add_contrast(
  parts: Parts,
  batch: dict[str, Rows],
  pair_losses: Callable[[Rows, Array], Array],
  *,
  distillation: objective.Distillation,
  num_shards: int,
  num_pairs: int,
) -> tuple[Parts, Array, weighted_loss.Sums]:
  """The parts with weights of their tokens in the term; constant and sums."""
  losses, counts = {}, {}
  for view in contrast.SIGNS:
    rows = batch[view]
    if PAIR_IDS not in rows:
      raise contract.UserError(
        f'the rows have no {PAIR_IDS}, by which the contrastive term pairs'
        ' rationales. Open the loader with pair_ids=True.'
      )
    weights = rows['decoder_loss_weights'].astype(jnp.float32)
    counts[view] = contrast.sum_pairs(weights, rows[PAIR_IDS], num_pairs)
    losses[view] = batch_parts.total(
      pair_losses, parts[view], num_shards=num_shards
    )
  factors, constant, sums = contrast.hinges(distillation, losses, counts)
  weighed = dict(parts)
  for view, factor in factors.items():
    rows, keys = parts[view]
    further = {weighted_loss.FURTHER_WEIGHTS: factor[rows[PAIR_IDS]]}
    weighed[view] = rows | further, keys
  return weighed, constant, sums


def _pair_losses_fn(
  params: Any,
  config: network.Config,
  distillation: objective.Distillation,
  *,
  num_pairs: int,
  chunk_tokens: int,
) -> Callable[[Rows, Array], Array]:
  """(rows, dropout keys) -> [P], the token losses of each pair, summed."""

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
    found = contrast.sum_pairs(losses, tokens['pairs'], num_pairs)
    return jnp.zeros([]), {'pairs': found}

  def pair_losses(rows, keys):
    hidden = network.hidden(params, config, rows, dropout_key=keys)
    rows = unpadding.unpad_targets(rows)
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

  return pair_losses
