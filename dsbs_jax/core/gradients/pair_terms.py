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


@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no hash
class Pass:
  """The pass without gradient.

  Attributes:
    params: the network's parameter tree.
    config: the network.
    distillation: the weights of the terms, and the contrastive term's margin.
    num_shards: data shards that the parts are cut into.
    num_pairs: P, examples in a batch at most.
    chunk_tokens: as in `weighted_loss.rows_loss`, for the contrastive term; 0
      with the other.
  """

  params: Any
  config: network.Config
  distillation: objective.Distillation
  num_shards: int
  num_pairs: int
  chunk_tokens: int

  def __post_init__(self):
    mi_weight = self.distillation.mi_weight
    if self.num_pairs < 1 or (mi_weight and self.chunk_tokens):
      raise contract.UserError(
        f'mi_weight is {mi_weight} and contrast_weight'
        f' {self.distillation.contrast_weight} with chunk_tokens'
        f' {self.chunk_tokens} and num_pairs {self.num_pairs}, expected no'
        ' chunks, because mutual information needs all targets of a rationale'
        ' at once, and the number of pairs. Set chunk_tokens=0 and'
        ' num_pairs=batch size.'
      )

  def terms(self, batch: dict[str, Rows], parts: Parts) -> PairTerms:
    """The terms that have a weight.

    Args:
      batch: the views that the terms tie together, with decoder_pair_ids.
      parts: the same, cut as `batch_gradient` does.

    Raises:
      ValueError: the mutual-information term meets a batch that is not paired.
      UserError: the rows have no decoder_pair_ids.
    """
    logits_losses, constant, sums = {}, 0.0, {}
    if self.distillation.mi_weight:
      logits_losses = self._mutual_information_losses(batch, parts)
    if self.distillation.contrast_weight:
      parts, constant, sums = self._add_contrast(batch, parts)
    return PairTerms(parts, logits_losses, constant, sums)

  def _total(self, function: Callable[[Rows, Array], Array], parts) -> Array:
    """The sum of function(rows, keys) over all parts of a view."""
    added = batch_parts.add_up(function, parts, num_shards=self.num_shards)
    return batch_parts.sum_shards(added, self.num_shards)

  def _mutual_information_losses(
    self, batch: dict[str, Rows], parts: Parts
  ) -> dict[str, LogitsLoss]:
    """As `PairTerms.logits_losses`."""
    count = mutual_information.count_pairs(batch)

    def pool(logits, rows):
      return mutual_information.pool(
        logits, rows[PAIR_IDS], num_pairs=self.num_pairs
      )

    def pooled_labels(rows, keys):  # zeros for labels of other parts
      logits = network.apply(self.params, self.config, rows, dropout_key=keys)
      return pool(logits, rows)

    labels = self._total(pooled_labels, parts[contract.LABEL_VIEW])  # [P, V]

    def rationale_loss(rows, logits):
      value = mutual_information.cross_entropy(
        labels, pool(logits, rows), count=count
      )
      weighted = self.distillation.mi_weight * value
      return weighted, {mutual_information.METRIC: value}

    def label_loss(rows, logits):  # so that both views have the same sums
      del rows, logits
      return 0.0, {mutual_information.METRIC: jnp.zeros([])}

    return {
      contract.LABEL_VIEW: label_loss,
      contract.RATIONALE_VIEW: rationale_loss,
    }

  def _add_contrast(
    self, batch: dict[str, Rows], parts: Parts
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
      counts[view] = contrast.sum_pairs(weights, rows[PAIR_IDS], self.num_pairs)
      losses[view] = self._total(self._pair_losses, parts[view])
    factors, constant, sums = contrast.hinges(self.distillation, losses, counts)
    weighed = dict(parts)
    for view, factor in factors.items():
      rows, keys = parts[view]
      further = {weighted_loss.FURTHER_WEIGHTS: factor[rows[PAIR_IDS]]}
      weighed[view] = rows | further, keys
    return weighed, constant, sums

  def _pair_losses(self, rows: Rows, keys: Array) -> Array:
    """[P], the token losses of each pair, summed; keys are of dropout."""
    hidden = network.hidden(self.params, self.config, rows, dropout_key=keys)
    rows = unpadding.unpad_targets(rows)
    tokens = {
      'targets': rows['decoder_target_tokens'],
      'weights': rows['decoder_loss_weights'].astype(jnp.float32),
      'pairs': rows[PAIR_IDS],
    }
    _, sums = chunked_loss.of(
      self._chunk_sums,
      network.logits_params(self.params, self.config),
      (hidden, tokens),
      chunk_tokens=self.chunk_tokens,
    )
    return sums['pairs']

  def _chunk_sums(
    self, logits_params: Any, hidden: Array, tokens: Rows
  ) -> tuple[Array, weighted_loss.Sums]:
    """No loss, and the sums of `_pair_losses` of some target positions."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    losses, _ = cross_entropy.token_losses(
      network.logits(logits_params, self.config, flat),
      tokens['targets'].reshape(-1),
      z_loss=self.distillation.z_loss,
      label_smoothing=self.distillation.label_smoothing,
    )
    losses = losses * tokens['weights'].reshape(-1)
    found = contrast.sum_pairs(losses, tokens['pairs'], self.num_pairs)
    return jnp.zeros([]), {'pairs': found}
