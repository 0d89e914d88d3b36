# SPDX-License-Identifier: Apache-2.0
"""The mutual-information term of Chen et al. 2024, for paired batches.

  loss += weight * mean over pairs i of - sum_v p_i(v) log softmax(q_i)(v)

  p_i(v) = max over i's label targets t of softmax(label logits t)(v)
  q_i(v) = max over i's rationale targets t of softmax(rationale logits t)(v)

The paper wants the representations of both tasks to share information, and
bounds that by a cross entropy between their predictions. The formula is that of
the authors' code, not of their text: p is constant, so rationales move towards
labels and not the other way; p is not normalised; q is a probability and goes
through a softmax all the same; the weight is 0.1. It differs in two points.
Padding is left out, while the authors' code pools a batch's shorter targets up
to the length of its longest. The mean is over the pairs of the whole batch,
however that is cut.

p needs no gradient, so it is computed first. Then each rationale row has all it
needs: packing, microbatches and devices change nothing.

Source: Chen et al. 2024, arXiv:2403.03348; TaskPrefixTrainer.compute_loss in
github.com/xinchen9/cot_distillation_ACL2024 at 59ca033.
"""

import jax
import jax.numpy as jnp

from dsbs_jax import contract

PAIR_IDS = 'decoder_pair_ids'
METRIC = 'mutual_information'


def count_pairs(batch: dict[str, dict[str, jax.Array]]) -> jax.Array:
  """The number of pairs in a whole batch, float32 scalar.

  Raises:
    ValueError: the batch is not paired, or has no decoder_pair_ids.
  """
  if set(batch) != {contract.LABEL_VIEW, contract.RATIONALE_VIEW}:
    raise ValueError(
      f'batch has the views {sorted(batch)}, expected label and rationale,'
      ' which the mutual-information term ties together.'
    )
  rows = batch[contract.LABEL_VIEW]
  if PAIR_IDS not in rows:
    raise contract.UserError(
      f'the rows have no {PAIR_IDS}, which the mutual-information term pairs'
      ' labels and rationales by. Open the loader with pair_ids=True.'
    )
  return jnp.max(rows[PAIR_IDS]).astype(jnp.float32)


def pool(
  logits: jax.Array, pair_ids: jax.Array, *, num_pairs: int
) -> jax.Array:
  """The highest probability of every token among the targets of each pair.

  Args:
    logits: [B, T, V] or [B * T, V] float32.
    pair_ids: [B, T] int32, the pair of each target, from 1; 0 on padding.
    num_pairs: P, pairs in a batch at most.

  Returns:
    [P, V] float32, 0 for a pair that has no target among the rows.
  """
  probabilities = jax.nn.softmax(logits, axis=-1)
  pooled = jax.ops.segment_max(
    probabilities.reshape(-1, logits.shape[-1]),
    pair_ids.reshape(-1),
    num_segments=num_pairs + 1,
  )
  return jnp.maximum(pooled[1:], 0.0)  # -inf where there was nothing


def cross_entropy(
  labels: jax.Array, rationales: jax.Array, *, count: jax.Array
) -> jax.Array:
  """What some rationale rows contribute to the term, unweighted.

  Args:
    labels: [P, V] `pool` of the batch's labels.
    rationales: [P, V] `pool` of rationale rows, or of a part of them.
    count: `count_pairs` of the whole batch.

  Returns:
    float32 scalar; parts add up to the mean over the batch's pairs.
  """
  log_predicted = jax.nn.log_softmax(rationales, axis=-1)
  each = -jnp.sum(labels * log_predicted, axis=-1)  # [P]
  present = jnp.any(rationales > 0, axis=-1)
  return jnp.sum(jnp.where(present, each, 0.0)) / jnp.maximum(count, 1.0)
