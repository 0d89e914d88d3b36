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

import jax
import jax.numpy as jnp

from dsbs_jax import contract
from dsbs_jax.core import objective

Array = jax.Array

# Which way the losses of a view's tokens are pushed.
SIGNS = {contract.RATIONALE_VIEW: 1.0, contract.CONTRAST_VIEW: -1.0}


def hinges(
  distillation: objective.Distillation,
  losses: dict[str, Array],
  counts: dict[str, Array],
) -> tuple[dict[str, Array], Array, dict[str, Array]]:
  """The term, as factors of the losses of each pair's tokens.

  Args:
    distillation: weight and margin.
    losses: view of `SIGNS` -> [P] float32, summed over each pair's tokens.
    counts: view -> [P] float32, how many tokens those are; 0 for none.

  Returns:
    view -> [P + 1] float32, the factors, that of padding first; the constant
    of the loss; `contrast/{loss_sum,tokens,correct}`: over the pairs, their
    hinges, their number, and how many have the right order.
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


def sum_pairs(values: Array, pair_ids: Array, num_pairs: int) -> Array:
  """The sums of values of the pairs 1 to P, [P] float32.

  Args:
    values: float32 of any shape.
    pair_ids: int32 of that shape, the pair of each value; 0 on padding.
    num_pairs: P, pairs in a batch at most.
  """
  return jax.ops.segment_sum(
    values.reshape(-1), pair_ids.reshape(-1), num_segments=num_pairs + 1
  )[1:]
