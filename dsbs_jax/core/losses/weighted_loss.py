# SPDX-License-Identifier: Apache-2.0
"""The loss of a row group, exact for every layout of its batch.

Every target token has a weight that is known before the first forward pass, so
the loss is one sum over tokens: see `objective` for the terms.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dsbs_jax import contract
from dsbs_jax.core.losses import chunked_loss, cross_entropy
from dsbs_jax.core.objective import Distillation

SOFT_IDS, SOFT_PROBS = 'decoder_soft_ids', 'decoder_soft_probs'
# Added to the factor of each target's loss: [B, T] float32, see `contrast`.
FURTHER_WEIGHTS = 'decoder_further_weights'
SOFT_LABELS = 'soft_labels'  # of the term, in counts and sums

Array = jax.Array
Rows = dict[str, Array]
Sums = dict[str, Array]
LogitsFn = Callable[[Any, Array], Array]
LogitsLoss = Callable[[Array], tuple[Array, Sums]]


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
    * jnp.where(counts[term] > 0, weight / jnp.maximum(counts[term], 1e-9), 0.0)
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
  logits_loss: LogitsLoss | None = None,
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
    UserError: chunk_tokens is negative.
  """
  if chunk_tokens < 0:
    raise contract.UserError(
      f'chunk_tokens is {chunk_tokens}, expected 0 (no chunks) or the number'
      ' of tokens whose logits may exist at once.'
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
    weight = distillation.soft_label_weight
    tokens |= _soft_tokens(rows, weight, counts[SOFT_LABELS])
  if FURTHER_WEIGHTS in rows:
    tokens['weights'] += rows[FURTHER_WEIGHTS]
  return chunked_loss.of(
    chunk_loss,
    logits_params,
    (hidden, tokens),
    chunk_tokens=chunk_tokens,
  )


def _soft_tokens(rows: Rows, weight: float, count: Array) -> dict[str, Array]:
  """What `_tokens_loss` reads of the rows' soft targets.

  `soft_ids` and `soft_probs` [B, T, W], `soft` [B, T], 1 where there is one,
  and `soft_weights` [B, T] of their losses in the objective.
  """
  has_soft = _has_soft(rows)
  return {
    'soft_ids': rows[SOFT_IDS],
    'soft_probs': rows[SOFT_PROBS],
    'soft': has_soft,
    'soft_weights': has_soft * weight / jnp.maximum(count, 1e-9),
  }


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
  logits_loss: LogitsLoss | None,
) -> tuple[Array, Sums]:
  """Loss and sums of some target positions, all of their logits at once.

  `tokens` are `targets` [B, t] int32, `weights` [B, t] float32 of their losses
  in the objective, and per term the loss weights of its tokens; those of soft
  labels are as `_soft_tokens` returns them.
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
