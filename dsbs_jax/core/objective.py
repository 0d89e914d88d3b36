# SPDX-License-Identifier: Apache-2.0
"""The objective of Distilling Step-by-Step, exact for every batch layout.

  loss = sum over tasks of
         weight * (sum of the losses of its target tokens / their number)

The paper has two tasks, labels with the weight alpha and rationales with the
weight 1 - alpha; verdicts and counterfactuals are further ones. Sums and
numbers are those of the *whole* batch. A task without tokens contributes 0, and
one without a weight is no part of the program. Soft labels add a term of their
own:

       + soft_label_weight * mean over the label tokens with a soft target q of
         T^2 KL(q || softmax(logits / T)), with T the soft_label_temperature

and so does the contrast of rationales for right and wrong labels, see
`contrast`. `gradients` says how the parts of a batch are added up.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dsbs_jax import contract
from dsbs_jax.core import alpha_schedules, chunked_loss, cross_entropy

SOFT_IDS, SOFT_PROBS = 'decoder_soft_ids', 'decoder_soft_probs'
# Added to the factor of each target's loss: [B, T] float32, see `contrast`.
FURTHER_WEIGHTS = 'decoder_further_weights'
SOFT_LABELS = 'soft_labels'  # of the term, in counts and sums

Array = jax.Array
Rows = dict[str, Array]
Sums = dict[str, Array]
LogitsFn = Callable[[Any, Array], Array]


@dataclasses.dataclass(frozen=True)
class Distillation:
  """The weights of the loss.

  Attributes:
    alpha: weight of the label term, in [0, 1]; the rationale term has the
      weight 1 - alpha. The paper's lambda is (1 - alpha) / alpha.
    z_loss: factor of the squared log normalizer that is added to each token's
      loss, as in T5X (1e-4 there); 0 as in the paper.
    label_smoothing: probability mass spread evenly over all wrong tokens, in
      [0, 1); the entropy of the smoothed target is subtracted, so that a
      perfect prediction costs 0. 0 as in the paper.
    mi_weight: weight of the term that ties the rationale of an example to its
      label, see `core/mutual_information`; 0 as in the paper.
    verdict_weight: weight of the verdict task, see `data/task_forms`; 0, without
      that task, as in the paper. Liu et al. 2024 (Mind's Mirror, arXiv
      2311.09214) distil self-evaluation beside rationales in this way.
    counterfactual_weight: weight of the counterfactual task, see
      `data/task_forms`; 0, without that task, as in the paper. Wang et al. 2023
      (SCOTT, arXiv 2305.01879) mix it with their other loss by alpha = 0.5.
    contrast_weight: weight of the term that makes rationales for wrong labels
      less likely, see `core/contrast`; 0 as in the paper.
    contrast_margin: by how much less, in nats per token.
    soft_label_weight: weight of the term of soft labels, which pulls the
      student towards the LLM's probabilities, see `data/soft_labels`; 0 as in
      the paper.
    soft_label_temperature: T in it; more than 1 softens both sides.
    alpha_schedule: None, or how alpha varies over the run, see
      `core/alpha_schedules`; None as in the paper.

  Source: Hsieh et al. 2023, equations 1, 3 and 4, in the weighting of the
  original code.
  """

  alpha: float = 0.5
  z_loss: float = 0.0
  label_smoothing: float = 0.0
  mi_weight: float = 0.0
  verdict_weight: float = 0.0
  counterfactual_weight: float = 0.0
  contrast_weight: float = 0.0
  contrast_margin: float = 1.0
  soft_label_weight: float = 0.0
  soft_label_temperature: float = 1.0
  alpha_schedule: alpha_schedules.Schedule = None

  def __post_init__(self):
    for name, most, expected in (
      ('alpha', lambda value: value <= 1.0, 'in [0, 1]'),
      ('z_loss', math.isfinite, '>= 0'),
      ('label_smoothing', lambda value: value < 1.0, 'in [0, 1)'),
      ('mi_weight', lambda value: True, '>= 0'),
      ('verdict_weight', math.isfinite, '>= 0'),
      ('counterfactual_weight', math.isfinite, '>= 0'),
      ('contrast_weight', math.isfinite, '>= 0'),
      ('contrast_margin', math.isfinite, '>= 0'),
      ('soft_label_weight', math.isfinite, '>= 0'),
      (
        'soft_label_temperature',
        lambda value: 0 < value < math.inf,
        '> 0',
      ),
    ):
      value = getattr(self, name)
      if not (isinstance(value, int | float) and value >= 0 and most(value)):
        raise contract.UserError(
          f'{name} is {value!r}, expected a number {expected}.'
        )
    schedule = alpha_schedules.checked(self.alpha_schedule)
    object.__setattr__(self, 'alpha_schedule', schedule)

  def weights(self, alpha: Array | None = None) -> dict[str, float | Array]:
    """Task -> weight of its term, in the order in which they are added up.

    Args:
      alpha: float32 scalar, of a step whose alpha follows a schedule; None:
        the attribute.
    """
    if alpha is None:
      alpha = self.alpha
    found = {'label': alpha, 'rationale': 1.0 - alpha}
    for task in self.further_tasks:
      found[task] = getattr(self, f'{task}_weight')
    return found

  @property
  def further_tasks(self) -> tuple[str, ...]:
    """The tasks with a weight beside labels and rationales, in their order."""
    further = 'verdict', 'counterfactual'
    return tuple(task for task in further if getattr(self, f'{task}_weight'))

  @property
  def further_views(self) -> tuple[str, ...]:
    """The views that these and the contrastive term need."""
    contrast = (contract.CONTRAST_VIEW,) if self.contrast_weight else ()
    return self.further_tasks + contrast

  @property
  def needs_pair_ids(self) -> bool:
    """Whether a term ties the views of an example together."""
    return bool(self.mi_weight or self.contrast_weight)

  @property
  def terms(self) -> dict[str, int]:
    """Task -> the task id of its target tokens, of tasks with a weight."""
    return {task: contract.TASK_IDS[task] for task in self.weights()}


def token_counts(distillation: Distillation, batch: dict[str, Rows]) -> Sums:
  """Target tokens of each term in the whole batch, over all of its views.

  Args:
    distillation: says which terms there are.
    batch: view -> row group, as in `contract`.

  Returns:
    term -> float32 scalar, the sum of `decoder_loss_weights` of the term; of
    soft labels the number of tokens with a soft target.
  """
  soft = {}
  if distillation.soft_label_weight:
    found = [_has_soft(rows) for rows in batch.values() if SOFT_PROBS in rows]
    soft[SOFT_LABELS] = sum(map(jnp.sum, found), jnp.zeros([]))
  return soft | {
    term: sum(
      jnp.sum(_weights_of_term(rows, task_id)) for rows in batch.values()
    )
    for term, task_id in distillation.terms.items()
  }


def token_weights(
  distillation: Distillation,
  rows: Rows,
  counts: Sums,
  *,
  alpha: Array | None = None,
) -> Array:
  """The factor of each target's loss, [B, T] float32, 0 on padding.

  Args:
    distillation: the weights of the terms.
    rows: one row group, or a part of one.
    counts: `token_counts` of the whole batch that the rows belong to.
    alpha: as in `Distillation.weights`.
  """
  return sum(
    _weights_of_term(rows, contract.TASK_IDS[term])
    * jnp.where(
      counts[term] > 0,
      weight / jnp.maximum(counts[term], 1e-9),
      0.0,
    )
    for term, weight in distillation.weights(alpha).items()
  )


def rows_loss(
  distillation: Distillation,
  hidden: Array,
  rows: Rows,
  *,
  counts: Sums,
  logits_fn: LogitsFn,
  logits_params: Any,
  alpha: Array | None = None,
  chunk_tokens: int = 0,
  logits_loss: Callable[[Array], tuple[Array, Sums]] | None = None,
) -> tuple[Array, Sums]:
  """What one row group contributes to the loss, and its metric sums.

  With `chunk_tokens`, target positions are visited in chunks, and only the
  logits of one chunk exist at a time: see `chunked_loss`.

  Args:
    distillation: the weights of the terms.
    hidden: [B, T, D] final decoder states, in the activation dtype.
    rows: the row group's targets, loss weights and task ids, [B, T].
    counts: `token_counts` of the whole batch.
    logits_fn: (logits_params, hidden [..., D]) -> logits [..., V] float32; must
      not close over traced values.
    logits_params: the parameters that `logits_fn` uses.
    alpha: as in `token_weights`.
    chunk_tokens: about how many tokens' logits exist at once; 0: all.
    logits_loss: all logits [B * T, V] -> a further part of the loss, and its
      sums; without chunks only.

  Returns:
    loss: float32 scalar. The gradient flows through it alone.
    sums: `{label,rationale}/{loss_sum,tokens,correct}`, float32 scalars, and
      those of every other task that has a weight.

  Raises:
    UserError: chunk_tokens is negative, or used together with logits_loss.
  """
  if chunk_tokens < 0:
    raise contract.UserError(
      f'chunk_tokens is {chunk_tokens}, expected 0 (no chunks) or the number'
      ' of tokens whose logits may exist at once.'
    )
  if chunk_tokens and logits_loss is not None:
    raise contract.UserError(
      f'chunk_tokens is {chunk_tokens}, expected 0 with a loss of all logits.'
    )
  chunk_loss = functools.partial(
    _tokens_loss, distillation, logits_fn, logits_loss=logits_loss
  )
  tokens = {
    'targets': rows['decoder_target_tokens'],
    'weights': token_weights(distillation, rows, counts, alpha=alpha),
  } | {
    term: _weights_of_term(rows, task_id)
    for term, task_id in distillation.terms.items()
  }
  if distillation.soft_label_weight and SOFT_PROBS in rows:
    count = jnp.maximum(counts[SOFT_LABELS], 1e-9)
    tokens |= {
      'soft_ids': rows[SOFT_IDS],
      'soft_probs': rows[SOFT_PROBS],
      'soft': _has_soft(rows),
      'soft_weights': _has_soft(rows) * distillation.soft_label_weight / count,
    }
  if FURTHER_WEIGHTS in rows:
    tokens['weights'] += rows[FURTHER_WEIGHTS]
  return chunked_loss.of(
    chunk_loss,
    logits_params,
    (hidden, tokens),
    num_chunks=chunked_loss.number(tokens['targets'].shape, chunk_tokens),
  )


def _has_soft(rows: Rows) -> Array:
  """1 where a target has a soft target, else 0; [B, T] float32."""
  mass = jnp.sum(rows[SOFT_PROBS], axis=-1)
  real = rows['decoder_loss_weights'] > 0
  return jnp.where(real & (mass > 0), 1.0, 0.0)


def _weights_of_term(rows: Rows, task_id: int) -> Array:
  """The loss weights of one term's tokens, 0 elsewhere; [B, T] float32."""
  weights = rows['decoder_loss_weights'].astype(jnp.float32)
  return jnp.where(rows['decoder_task_ids'] == task_id, weights, 0.0)


def _tokens_loss(
  distillation: Distillation,
  logits_fn: LogitsFn,
  logits_params: Any,
  hidden: Array,
  tokens: dict[str, Array],
  *,
  logits_loss: Callable[[Array], tuple[Array, Sums]] | None = None,
) -> tuple[Array, Sums]:
  """Loss and sums of some target positions, all of their logits at once.

  `tokens` are `targets` [B, t] int32, `weights` [B, t] float32 of their losses
  in the objective, and per term the loss weights of its tokens; with soft
  labels `soft_ids` and `soft_probs` [B, t, W], `soft_weights` of their losses
  and `soft` [B, t], 1 where there is one; the other
  arguments are those of `rows_loss`.
  """
  # A product of two matrices is faster than one with [B, t, D].
  hidden = hidden.reshape(-1, hidden.shape[-1])  # [B * t, D]
  tokens = jax.tree.map(
    lambda array: array.reshape(-1, *array.shape[2:]), tokens
  )
  logits = logits_fn(logits_params, hidden)
  losses, correct = cross_entropy.token_losses(
    logits,
    tokens['targets'],
    z_loss=distillation.z_loss,
    label_smoothing=distillation.label_smoothing,
  )
  loss = jnp.sum(tokens['weights'] * losses)
  sums = {}
  for term in distillation.terms:
    sums[f'{term}/loss_sum'] = jnp.sum(tokens[term] * losses)
    sums[f'{term}/tokens'] = jnp.sum(tokens[term])
    sums[f'{term}/correct'] = jnp.sum(tokens[term] * correct)
  if distillation.soft_label_weight:
    soft = {'loss_sum': jnp.zeros([]), 'tokens': jnp.zeros([])}
    if 'soft' in tokens:
      losses = cross_entropy.soft_losses(
        logits,
        tokens['soft_ids'],
        tokens['soft_probs'],
        temperature=distillation.soft_label_temperature,
      )
      loss += jnp.sum(tokens['soft_weights'] * losses)
      soft['loss_sum'] = jnp.sum(tokens['soft'] * losses)
      soft['tokens'] = jnp.sum(tokens['soft'])
    sums |= {f'{SOFT_LABELS}/{name}': value for name, value in soft.items()}
  if logits_loss is not None:
    extra, extra_sums = logits_loss(logits)
    loss, sums = loss + extra, sums | extra_sums
  return loss, jax.lax.stop_gradient(sums)
