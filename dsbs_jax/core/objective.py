# SPDX-License-Identifier: Apache-2.0
"""The objective of Distilling Step-by-Step, exact for every batch layout.

  loss = alpha * (sum of label-token losses / number of label tokens)
       + (1 - alpha) * (sum of rationale-token losses / number of such tokens)

Both numbers are those of the *global* batch: all views, all microbatches, all
devices. They are known before any forward pass, so the loss is a plain sum of
token losses, each times alpha / N_label or (1 - alpha) / N_rationale. Sums can
be cut anywhere, hence padded, packed, mixed and accumulated batches give one
and the same loss. A term without tokens contributes 0.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dsbs_jax import contract
from dsbs_jax.core import cross_entropy

TERMS = {'label': contract.LABEL_ID, 'rationale': contract.RATIONALE_ID}

Array = jax.Array
Rows = dict[str, Array]
Sums = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Distillation:
  """How a batch becomes one number.

  Attributes:
    alpha: weight of the label term, in [0, 1]; the rationale term has the
      weight 1 - alpha. The paper's lambda is (1 - alpha) / alpha.
    z_loss: factor of the squared log normalizer that is added to each token's
      loss, as in T5X (1e-4 there); 0 as in the paper.
    label_smoothing: probability mass spread evenly over all wrong tokens, in
      [0, 1); the entropy of the smoothed target is subtracted, so that a
      perfect prediction costs 0. 0 as in the paper.
    mi_weight: weight of the term that ties the rationale of an
      example to its label, see `core/mutual_information`; 0 as in the paper.

  Source: Hsieh et al. 2023, equations 1, 3 and 4, in the weighting of the
  original code.
  """

  alpha: float = 0.5
  z_loss: float = 0.0
  label_smoothing: float = 0.0
  mi_weight: float = 0.0

  def __post_init__(self):
    for name in ('alpha', 'z_loss', 'label_smoothing'):
      value = getattr(self, name)
      if not isinstance(value, int | float):
        raise contract.UserError(f'{name} is {value!r}, expected a number.')
    if not 0.0 <= self.alpha <= 1.0:
      raise contract.UserError(
        f'alpha is {self.alpha}, expected a number in [0, 1].'
      )
    if not 0.0 <= self.z_loss < float('inf'):
      raise contract.UserError(
        f'z_loss is {self.z_loss}, expected a number >= 0.'
      )
    if not 0.0 <= self.label_smoothing < 1.0:
      raise contract.UserError(
        f'label_smoothing is {self.label_smoothing}, expected a number in'
        ' [0, 1).'
      )
    if not self.mi_weight >= 0.0:
      raise contract.UserError(
        f'mi_weight is {self.mi_weight}, expected a number >= 0.'
      )

  @property
  def term_weights(self) -> dict[str, float]:
    """The weight of each term's token mean."""
    return {'label': self.alpha, 'rationale': 1.0 - self.alpha}


def token_counts(batch: dict[str, Rows]) -> Sums:
  """Target tokens of each term in the whole batch, over all of its views.

  Args:
    batch: view -> row group, as in `contract`.

  Returns:
    term -> float32 scalar, the sum of `decoder_loss_weights` of the term.
  """
  return {
    term: sum(jnp.sum(_in_term(rows, task_id)) for rows in batch.values())
    for term, task_id in TERMS.items()
  }


def token_weights(objective: Distillation, rows: Rows, counts: Sums) -> Array:
  """The factor of each target token's loss in the objective.

  Args:
    objective: the weights of the terms.
    rows: one row group, or a part of one.
    counts: `token_counts` of the whole batch that the rows belong to.

  Returns:
    [B, T] float32, 0 on padding.
  """
  return sum(
    _in_term(rows, task_id)
    * jnp.where(
      counts[term] > 0,
      objective.term_weights[term] / jnp.maximum(counts[term], 1e-9),
      0.0,
    )
    for term, task_id in TERMS.items()
  )


def batch_loss(
  objective: Distillation,
  hidden: Array,
  rows: Rows,
  *,
  counts: Sums,
  project: Callable[[Any, Array], Array],
  projection: Any,
  chunk_tokens: int = 0,
  logits_loss: Callable[[Array], tuple[Array, Sums]] | None = None,
) -> tuple[Array, Sums]:
  """The part of the objective that one row group contributes, and its sums.

  With `chunk_tokens`, target positions are visited in chunks and the logits of
  one chunk exist at a time. A chunk's gradient is taken at once, while its
  logits are there: the weights are known, so nothing later can change it but a
  common factor. No logits are kept or computed twice.

  Chunks cut the target axis, never the row axis, so rows sharded over devices
  stay where they are. Each chunk then adds its gradient of the projection up
  over the devices, so on many devices a few large chunks are better than many.

  Args:
    objective: the weights of the terms.
    hidden: [B, T, D] final decoder states.
    rows: the row group's targets, loss weights and task ids.
    counts: `token_counts` of the whole batch.
    project: (projection, hidden) -> logits [..., V] float32; must not close
      over traced values.
    projection: the parameters that `project` uses.
    chunk_tokens: logits of about this many tokens exist at once; 0: of all.
    logits_loss: all logits [B * T, V] -> a further part of the loss, and its
      sums; without chunks only.

  Returns:
    loss: float32 scalar. The gradient flows through it alone.
    sums: `{term}/loss_sum`, `{term}/tokens`, `{term}/correct`, float32.

  Raises:
    UserError: chunk_tokens is negative, or meets logits_loss.
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
    _rows_loss, objective, project, logits_loss=logits_loss
  )
  tokens = {
    'targets': rows['decoder_target_tokens'],
    'weights': token_weights(objective, rows, counts),
  } | {term: _in_term(rows, task_id) for term, task_id in TERMS.items()}
  num_rows, length = tokens['targets'].shape
  num_chunks = 1
  if chunk_tokens:
    positions = max(1, chunk_tokens // num_rows)
    num_chunks = -(-length // positions)
  if num_chunks <= 1:
    return chunk_loss(projection, hidden, tokens)
  chunks = jax.tree.map(
    functools.partial(_cut, num_chunks=num_chunks), (hidden, tokens)
  )
  return _chunked(chunk_loss, projection, *chunks)


def _in_term(rows: Rows, task_id: int) -> Array:
  """The loss weights of one term's tokens, 0 elsewhere; [B, T] float32."""
  weights = rows['decoder_loss_weights'].astype(jnp.float32)
  return jnp.where(rows['decoder_task_ids'] == task_id, weights, 0.0)


def _rows_loss(
  objective, project, projection, hidden, tokens, *, logits_loss=None
):
  """Loss and sums of the given positions, all of their logits at once."""
  # One axis of tokens: products of matrices are faster than of [B, T, D].
  hidden = hidden.reshape(-1, hidden.shape[-1])
  tokens = jax.tree.map(jnp.ravel, tokens)
  logits = project(projection, hidden)
  losses, correct = cross_entropy.token_losses(
    logits,
    tokens['targets'],
    z_loss=objective.z_loss,
    label_smoothing=objective.label_smoothing,
  )
  loss = jnp.sum(tokens['weights'] * losses)
  sums = {}
  for term in TERMS:
    sums[f'{term}/loss_sum'] = jnp.sum(tokens[term] * losses)
    sums[f'{term}/tokens'] = jnp.sum(tokens[term])
    sums[f'{term}/correct'] = jnp.sum(tokens[term] * correct)
  if logits_loss is not None:
    extra, extra_sums = logits_loss(logits)
    loss, sums = loss + extra, sums | extra_sums
  return loss, jax.lax.stop_gradient(sums)


def _cut(array: Array, num_chunks: int) -> Array:
  """[B, T, ...] -> [chunks, B, positions, ...], zeros after the last one."""
  num_rows, length = array.shape[:2]
  positions = -(-length // num_chunks)
  widths = [(0, 0)] * array.ndim
  widths[1] = (0, num_chunks * positions - length)
  padded = jnp.pad(array, widths)
  return jnp.moveaxis(
    padded.reshape(num_rows, num_chunks, positions, *array.shape[2:]), 1, 0
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(chunk_loss, projection, hidden, tokens):
  """Sums `chunk_loss` over the leading axis of hidden and tokens."""

  def visit(totals, chunk):
    return jax.tree.map(jnp.add, totals, chunk_loss(projection, *chunk)), None

  zeros = _zero_totals(chunk_loss, projection, hidden, tokens)
  return jax.lax.scan(visit, zeros, (hidden, tokens))[0]


def _chunked_forward(chunk_loss, projection, hidden, tokens):
  """As `_chunked`; the residuals are the gradients of a unit loss."""

  def visit(carry, chunk):
    totals, projection_gradient = carry
    hidden_chunk, tokens_chunk = chunk
    loss, pull_back, sums = jax.vjp(
      lambda *args: chunk_loss(*args, tokens_chunk),
      projection,
      hidden_chunk,
      has_aux=True,
    )
    gradient, hidden_gradient = pull_back(jnp.ones_like(loss))
    carry = jax.tree.map(
      jnp.add, (totals, projection_gradient), ((loss, sums), gradient)
    )
    return carry, hidden_gradient

  zeros = _zero_totals(chunk_loss, projection, hidden, tokens)
  no_gradient = jax.tree.map(jnp.zeros_like, projection)
  (totals, projection_gradient), hidden_gradient = jax.lax.scan(
    visit, (zeros, no_gradient), (hidden, tokens)
  )
  return totals, (projection_gradient, hidden_gradient)


def _chunked_backward(chunk_loss, gradients, cotangents):
  """Scales the unit gradients; the sums are metrics and carry none."""
  del chunk_loss
  factor, _ = cotangents
  projection_gradient, hidden_gradient = jax.tree.map(
    lambda gradient: (factor * gradient).astype(gradient.dtype), gradients
  )
  return projection_gradient, hidden_gradient, None


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _zero_totals(chunk_loss, projection, hidden, tokens):
  first = jax.tree.map(lambda array: array[0], (hidden, tokens))
  shapes = jax.eval_shape(chunk_loss, projection, *first)
  return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
