# SPDX-License-Identifier: Apache-2.0
"""Ordinary seqio mixtures: the objective, and what the plain model makes."""

import jax
import numpy as np
import pytest

import gin
from dsbs_jax import contract
from dsbs_jax.core import network

LENGTHS = {'inputs': 96, 'targets': 64}


@pytest.fixture(scope='module')
def mixture(cqa):
  """The vocabulary of cqa_gt_dsbs, whose tasks are then registered."""
  from dsbs_jax.interop import t5x_batches

  return t5x_batches.vocabulary(
    spec=cqa.vocabulary,
    data_dir=cqa.data_dir,
    prefixes=None,
    task='cqa_gt_dsbs',
  )


def open_batch(layout, converter, *, batch_size=8, **further):
  from t5x import utils

  from dsbs_jax.interop import t5x_batches

  cfg = utils.DatasetConfig(
    mixture_or_task_name='cqa_gt_dsbs',
    task_feature_lengths=LENGTHS,
    split='train',
    batch_size=batch_size,
    shuffle=True,
    seed=0,
  )
  data = t5x_batches.get_dataset(
    *(cfg, 0, 1, converter),
    paired=False,
    layout=layout,
    lengths=None,
    **further,
  )
  return next(iter(data.as_numpy_iterator()))


def reference(logits, batch, alpha):
  """The objective in float64, token by token."""
  terms = {}
  for term, task in (('label', 1), ('rationale', 2)):
    losses = []
    for row, column in np.argwhere(batch['decoder_task_ids'] == task):
      scores = np.asarray(logits[row, column], np.float64)
      top = scores.max()
      target = batch['decoder_target_tokens'][row, column]
      losses.append(top + np.log(np.exp(scores - top).sum()) - scores[target])
    terms[term] = np.mean(losses), len(losses)
  loss = alpha * terms['label'][0] + (1 - alpha) * terms['rationale'][0]
  return loss, terms


@pytest.mark.parametrize('packed', [False, True], ids=['padded', 'packed'])
def test_the_objective_on_a_mixture(mixture, packed):
  from dsbs_jax.data.batching import layouts
  from dsbs_jax.data.seqio_tasks import features
  from tests.t5x import engines

  # As a gin file's @layouts.Packed: gin hands over a class derived from it.
  layout = gin.external_configurable(
    layouts.Packed if packed else layouts.Padded, module='t5x_tests'
  )
  batch = open_batch(layout, features.DistillationFeatureConverter)
  assert ('decoder_segment_ids' in batch) == packed
  ids, targets = batch['decoder_task_ids'], batch['decoder_target_tokens']
  np.testing.assert_array_equal(ids != 0, targets != 0)
  assert set(np.unique(ids)) == {0, contract.LABEL_ID, contract.RATIONALE_ID}
  params = engines.initial_params()
  model = engines.make_model(None, alpha=0.3)
  loss, metrics = jax.jit(lambda p, b: model.loss_fn(p, b, None))(params, batch)
  logits = jax.jit(lambda p, b: network.apply(p, engines.CONFIG, b))(
    params, batch
  )
  expected, terms = reference(np.asarray(logits), batch, 0.3)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  for term, (mean, count) in terms.items():
    np.testing.assert_allclose(
      metrics[f'{term}/loss'].compute(), mean, rtol=1e-5
    )
    assert metrics[f'{term}/target_tokens'].total == count


def test_a_single_task_trains_on_its_plain_loss(mixture):
  """Half of it would be clipped at another norm than the built-in engine's."""
  from dsbs_jax.data.batching import layouts
  from dsbs_jax.data.seqio_tasks import features
  from tests.t5x import engines

  params = engines.initial_params()
  batch = open_batch(layouts.Padded, features.DistillationFeatureConverter)
  for task, term in (
    ('cqa_gt_finetune', 'label'),
    ('cqa_rationale', 'rationale'),
  ):
    model = engines.make_model(None, alpha=0.3, task=task)
    loss_fn = jax.jit(lambda p, b, model=model: model.loss_fn(p, b, None))
    loss, metrics = loss_fn(params, batch)
    np.testing.assert_allclose(
      loss, metrics[f'{term}/loss'].compute(), rtol=1e-6
    )


def test_other_rates_than_the_mixtures_are_refused(mixture):
  from dsbs_jax.data.batching import layouts

  rates = {'cqa_gt_label': 0.9, 'cqa_rationale': 0.1}
  with pytest.raises(contract.UserError, match='MIXTURE_RATES is .*0.9'):
    open_batch(layouts.Padded, None, rates=rates)


def test_padding_rows_are_inert(mixture):
  from dsbs_jax.data.batching import layouts
  from dsbs_jax.data.seqio_tasks import features
  from tests.t5x import engines

  batch = open_batch(layouts.Padded, features.DistillationFeatureConverter)
  longer = {
    key: np.concatenate([array, np.zeros_like(array)])
    for key, array in batch.items()
  }
  model = engines.make_model(None, alpha=0.3)
  loss = jax.jit(lambda p, b: model.loss_fn(p, b, None)[0])
  params = engines.initial_params()
  np.testing.assert_allclose(
    loss(params, longer), loss(params, batch), rtol=1e-6
  )


def test_the_plain_model_weighs_tokens_alike(mixture):
  """T5X's own converter and loss run on the mixture; labels count little."""
  import seqio

  from dsbs_jax.data.batching import layouts
  from dsbs_jax.data.seqio_tasks import features

  plain = open_batch(
    layouts.Packed, seqio.EncDecFeatureConverter, batch_size=64
  )
  assert 'decoder_task_ids' not in plain
  batch = open_batch(
    layouts.Packed, features.DistillationFeatureConverter, batch_size=64
  )
  np.testing.assert_array_equal(
    plain['decoder_target_tokens'], batch['decoder_target_tokens']
  )
  ids = batch['decoder_task_ids']
  share = np.sum(ids == contract.LABEL_ID) / np.sum(ids != 0)
  print(f'label share of target tokens: {share:.1%}')
  assert 0.05 < share < 0.15


def test_a_mixture_without_ids_says_what_to_do(mixture):
  import seqio

  from dsbs_jax.data.batching import layouts
  from dsbs_jax.data.seqio_tasks import features

  if 'plain_mix' not in seqio.MixtureRegistry.names():
    seqio.MixtureRegistry.add(
      'plain_mix', ['cqa_gt_label', 'cqa_rationale'], default_rate=1.0
    )
  with pytest.raises(ValueError, match='mixture_cls=providers.Mixture'):
    from t5x import utils

    from dsbs_jax.interop import t5x_batches

    t5x_batches.get_dataset(
      utils.DatasetConfig('plain_mix', LENGTHS, 'train', 8, True, 0),
      0,
      1,
      features.DistillationFeatureConverter,
      paired=False,
      layout=layouts.Padded,
      lengths=None,
    )


@pytest.mark.parametrize(
  ('further', 'named'),
  [
    ({'mi_weight': 0.1}, 'MI_WEIGHT is 0.1, expected 0'),
    ({'alpha_schedule': 'tscl'}, "ALPHA_SCHEDULE is 'tscl', expected None"),
    ({'verdict_weight': 0.1}, 'VERDICT_WEIGHT is 0.1, expected 0'),
    ({'counterfactual_weight': 0.1}, 'COUNTERFACTUAL_WEIGHT is 0.1, expe'),
    ({'contrast_weight': 0.1}, 'CONTRAST_WEIGHT is 0.1, expected 0'),
    ({'soft_label_weight': 0.1}, 'SOFT_LABEL_WEIGHT is 0.1, expected 0'),
  ],
)
def test_terms_that_t5x_does_not_train_are_refused(parts, further, named):
  with pytest.raises(contract.UserError, match=named):
    parts.model(None, **further)


@pytest.mark.parametrize(
  'task', ['cqa_verdict', 'cqa_counterfactual', 'cqa_contrast']
)
def test_further_tasks_are_refused(task):
  from dsbs_jax.interop import t5x_batches

  with pytest.raises(contract.UserError, match=f"'{task}', expected a ta"):
    t5x_batches.vocabulary(
      spec='bytes', data_dir=None, prefixes=None, task=task
    )
