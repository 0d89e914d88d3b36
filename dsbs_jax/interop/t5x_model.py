# SPDX-License-Identifier: Apache-2.0
"""The objective of Distilling Step-by-Step inside T5X.

`DistillationModel` is T5X's encoder-decoder model with this project's loss:
alpha times the mean over label tokens plus 1 - alpha times the mean over
rationale tokens, each mean over the whole batch. The batch is an ordinary
mixture's, packed or not, with the task id of every target token beside it, or
a paired one with both views of the same examples (see t5x_batch_format).

Without microbatches T5X hands `loss_fn` the whole batch and any trainer will
do. With microbatches it hands over parts, so the weights must be computed
before: bind `trainer_cls = @t5x_trainer.Trainer`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics
from t5x import metrics as t5x_metrics
from t5x import models

from dsbs_jax import contract
from dsbs_jax.core import network
from dsbs_jax.core import objective as objective_lib
from dsbs_jax.core.losses import cross_entropy, weighted_loss
from dsbs_jax.data.prepared import views
from dsbs_jax.data.seqio_tasks import features
from dsbs_jax.interop import t5x_batch_format

WEIGHTS = 'decoder_token_weights'
# Folded into the dropout key; labels draw the same masks with and without
# rationales beside them, as in core/steps.py.
_VIEW_KEYS = {
  contract.LABEL_VIEW: 0,
  contract.MIXTURE_VIEW: 0,
  contract.RATIONALE_VIEW: 1,
}
# T5X divides the loss by token counts in these; ours is a mean already.
_DIVIDED = ('loss_per_nonpadding_target_token', 'loss_per_all_target_tokens')


class DistillationModel(models.EncoderDecoderModel):
  """T5X's encoder-decoder model with the objective of this project.

  Args:
    objective: alpha, z-loss and label smoothing; those of T5X's own model
      (`z_loss`, `label_smoothing`, `loss_normalizing_factor`) are not used.
    task: what is trained; a single task of this project trains on its plain
      loss, as in the built-in engine.
    lora_rank: must be 0.
    feature_converter_cls: must keep the task ids beside the targets.
  """

  def __init__(
    self,
    *,
    objective: objective_lib.Distillation,
    task: str | None = None,
    lora_rank: int = 0,
    feature_converter_cls=features.DistillationFeatureConverter,
    **kwargs,
  ):
    super().__init__(feature_converter_cls=feature_converter_cls, **kwargs)
    _check_trained(objective, lora_rank)
    name = views.own_name(task)
    self.objective = objective.of_form(name.form) if name else objective
    ids = self.output_vocabulary.vocab_size
    rows = self.module.config.vocab_size
    if ids > rows:
      raise contract.UserError(
        f'the vocabulary has {ids} ids, but the model only {rows} rows'
        f' (VOCAB_SIZE). Set --gin.VOCAB_SIZE={-(-ids // 128) * 128}.'
      )

  def add_token_weights(
    self, groups: Mapping[str, t5x_batch_format.Rows]
  ) -> dict[str, Any]:
    """Adds the objective's weight of each target token to a whole batch."""
    counts = weighted_loss.token_counts(self.objective, groups)
    token_weights = functools.partial(
      weighted_loss.token_weights, self.objective, counts=counts
    )
    return {
      view: rows | {WEIGHTS: token_weights(rows)}
      for view, rows in groups.items()
    }

  def loss_fn(
    self, params: Any, batch: Mapping[str, Any], dropout_rng: jax.Array | None
  ) -> tuple[jax.Array, dict[str, clu_metrics.Metric]]:
    """The part of the objective that a batch or microbatch contributes.

    Args:
      batch: one row group, or one per view (`t5x_batch_format.views`): [B, S]
        inputs, [B, T] targets, weights and task ids.
      dropout_rng: None switches dropout off.

    Returns:
      The float32 loss, and sums and counts as clu metrics.

    Raises:
      UserError: the batch is one that only our trainer unpacks.
    """
    if t5x_batch_format.is_packed(batch):
      raise contract.UserError(
        'a batch of packed pairs reached a trainer that cannot read it,'
        ' expected train.trainer_cls = @t5x_trainer.Trainer.'
      )
    groups = t5x_batch_format.views(batch)
    if not all(WEIGHTS in rows for rows in groups.values()):
      groups = self.add_token_weights(groups)
    losses, metrics = [], []
    for view, rows in groups.items():
      key = dropout_rng
      if key is not None:
        key = jax.random.fold_in(key, _VIEW_KEYS[view])
      loss, view_metrics = self._rows_loss(params, rows, key)
      losses.append(loss)
      metrics.append(view_metrics)
    merged = functools.reduce(
      lambda left, right: {
        name: left[name].merge(right[name]) for name in left
      },
      metrics,
    )
    return sum(losses), merged

  def _rows_loss(self, params, rows, dropout_rng):
    # [1, B, T] -> [B, T]: our trainer's microbatches have one axis more.
    rows = {key: x.reshape(-1, x.shape[-1]) for key, x in rows.items()}
    logits = self._compute_logits(params, rows, dropout_rng)
    targets = rows['decoder_target_tokens']
    losses, correct = cross_entropy.token_losses(
      logits,
      targets,
      z_loss=self.objective.z_loss,
      label_smoothing=self.objective.label_smoothing,
    )
    loss = jnp.sum(rows[WEIGHTS] * losses)
    weights = rows['decoder_loss_weights'].astype(jnp.float32)
    metrics = models.compute_base_metrics(
      logits=logits,
      targets=targets,
      mask=weights,
      loss=loss,
      segment_ids=_segments(rows),
    )
    for name in _DIVIDED:
      metrics[name] = metrics[name].replace(total=jnp.sum(weights * losses))
    for term, task_id in self.objective.terms.items():
      in_term = weights * (rows['decoder_task_ids'] == task_id)
      metrics |= _term_metrics(term, in_term, losses, correct)
    return loss, metrics


def _check_trained(
  objective: objective_lib.Distillation, lora_rank: int
) -> None:
  """Raises UserError where a setting asks for what T5X does not train."""
  reasons = {
    'mi_weight': 'T5X gives each view its own loss',
    **{
      f'{view}_weight': f'T5X pairs labels and rationales, not {view}s'
      for view in objective.further_views
    },
    'soft_label_weight': "T5X's batches have no soft labels",
    'alpha_schedule': 'T5X evaluates the objective without knowing the step',
  }
  default = objective_lib.Distillation()
  settings = {
    name.upper(): (getattr(objective, name), getattr(default, name), reason)
    for name, reason in reasons.items()
  } | {'LORA_RANK': (lora_rank, 0, 'T5X trains all parameters')}
  for name, (value, expected, reason) in settings.items():
    if value:
      raise contract.UserError(
        f'{name} is {value!r}, expected {expected}: {reason}. Take the built-in'
        ' engine, python -m dsbs_jax.train.'
      )


def to_config(model: models.EncoderDecoderModel) -> network.T5Config:
  """The size of a T5X model, as this project describes it."""
  config = model.module.config
  ours = {field.name for field in dataclasses.fields(network.T5Config)}
  shared = {name: v for name, v in vars(config).items() if name in ours}
  shared['mlp_activations'] = tuple(config.mlp_activations)
  shared['dtype'] = jnp.dtype(config.dtype).name
  return network.T5Config(**shared)


def _segments(rows: t5x_batch_format.Rows) -> dict[str, jax.Array]:
  """What T5X counts packed examples and padding by."""
  if 'decoder_segment_ids' in rows:
    return {
      side: rows[f'{side}_segment_ids'] for side in ('encoder', 'decoder')
    }
  return {
    key: rows[key] != 0
    for key in ('encoder_input_tokens', 'decoder_target_tokens')
  }


def _term_metrics(term, in_term, losses, correct):
  tokens = jnp.sum(in_term)
  return {
    f'{term}/loss': clu_metrics.Average(
      total=jnp.sum(in_term * losses), count=tokens
    ),
    f'{term}/accuracy': clu_metrics.Average(
      total=jnp.sum(in_term * correct), count=tokens
    ),
    f'{term}/target_tokens': t5x_metrics.AveragePerStep(total=tokens),
  }
