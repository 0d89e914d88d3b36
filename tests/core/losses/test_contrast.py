# SPDX-License-Identifier: Apache-2.0
"""The contrastive term: its formula, its gradient, any batch layout."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsbs_jax.contract import CONTRAST_ID, LABEL_ID, RATIONALE_ID
from dsbs_jax.core import network, objective
from dsbs_jax.core.gradients import batch_gradient
from dsbs_jax.core.losses import contrast
from dsbs_jax.data.batching import layouts, token_table
from dsbs_jax.data.prepared import ragged
from tests import models
from tests.core import test_steps

NUM_PAIRS = 6
WITHOUT = 2  # the example that has no rationale for a wrong label
WEIGHT, ALPHA = 0.7, 0.3
PADDED = layouts.Padded()
PACKED = layouts.Packed(lengths={'inputs': 24, 'targets': 16})
VIEWS = {'label': LABEL_ID, 'rationale': RATIONALE_ID, 'contrast': CONTRAST_ID}


def make_batch(layout, multiple=1):
  """Six examples as labels, as rationales, and as wrong ones but for one."""
  random = np.random.default_rng(8)
  positions = np.array([4, 0, 5, 2, 3])  # the batch may be smaller than usual

  def rows(least, most):
    sizes = random.integers(least, most + 1, NUM_PAIRS)
    return [[*random.integers(2, 50, n - 1), 1] for n in sizes]

  found, inputs = {}, rows(3, 8)
  for view, term in VIEWS.items():
    own, targets = list(inputs), rows(1, 3 if view == 'label' else 9)
    if view == 'contrast':
      own[WITHOUT] = targets[WITHOUT] = []
    table = token_table.TokenTable(
      ragged.pack(own, np.int32),
      ragged.pack(targets, np.int32),
      np.full(NUM_PAIRS, term, np.int32),
    )
    packer = layout.packer(
      table, [positions], batch_size=NUM_PAIRS, multiple=multiple
    )
    found[view] = dataclasses.replace(packer, pair_ids=True).pack(positions)
  return found


@functools.cache
def value_and_grad(margin, weight=WEIGHT, **options):
  return models.jit(
    functools.partial(
      batch_gradient.batch_value_and_grad,
      config=test_steps.CONFIG,
      distillation=objective.Distillation(
        alpha=ALPHA, contrast_weight=weight, contrast_margin=margin
      ),
      dropout_key=test_steps.RUN_KEY,
      num_pairs=NUM_PAIRS,
      **options,
    )
  )


def params_of():
  """Larger than at the start, so that rationales differ in likelihood."""
  return jax.tree.map(
    lambda leaf: 2 * np.asarray(leaf), test_steps.fresh_state().params
  )


def slow_gaps(params, batch):
  """s'_i - s_i of each pair in float64, one target at a time."""
  means = {}
  for view in ('rationale', 'contrast'):
    rows, losses = batch[view], {}
    logits = np.asarray(test_steps.logits_of(params, rows), np.float64)
    for place in zip(*np.nonzero(rows['decoder_loss_weights']), strict=True):
      scores = logits[place]
      loss = np.log(np.sum(np.exp(scores)))
      loss -= scores[rows['decoder_target_tokens'][place]]
      losses.setdefault(int(rows['decoder_pair_ids'][place]), []).append(loss)
    means[view] = {pair: np.mean(found) for pair, found in losses.items()}
  return [
    means['rationale'][pair] - wrong
    for pair, wrong in means['contrast'].items()
  ]


def margin_of(gaps):
  """One that two pairs keep and the others do not."""
  kept = np.sort(gaps)[1:3]
  return float(-np.mean(kept))


def direct_term(params, batch, margin):
  """The term as it is written, differentiated by JAX, for padded rows."""
  means = []
  for view in ('rationale', 'contrast'):
    rows = batch[view]
    logits = network.apply(params, test_steps.CONFIG, rows)
    log_probs = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(
      log_probs, rows['decoder_target_tokens'][..., None], axis=-1
    )[..., 0]
    weights = rows['decoder_loss_weights']
    number = np.maximum(np.sum(weights, 1), 1)
    means.append(jnp.sum(chosen * weights, 1) / number)
  kept = np.any(batch['contrast']['decoder_loss_weights'] > 0, axis=1)
  hinges = [
    jnp.maximum(0.0, margin - means[0][i] + means[1][i])
    for i in np.flatnonzero(kept)
  ]
  return sum(hinges) / len(hinges)


@pytest.fixture(scope='module')
def margin():
  gaps = slow_gaps(params_of(), make_batch(PADDED))
  found = margin_of(gaps)
  assert len(gaps) == 4 and found > 0
  return found


def test_the_term_equals_a_float64_reference(margin):
  batch, params = make_batch(PADDED), params_of()
  gaps = slow_gaps(params, batch)
  (loss, sums), _ = value_and_grad(margin)(params, batch)
  (plain, _), _ = value_and_grad(margin, weight=0.0)(
    params, {view: batch[view] for view in ('label', 'rationale')}
  )
  hinges = [max(0.0, margin + gap) for gap in gaps]
  assert sum(hinge > 0 for hinge in hinges) == 2
  expected = plain + WEIGHT * np.mean(hinges)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(
    sums['contrast/loss_sum'], np.sum(hinges), rtol=1e-4
  )
  assert sums['contrast/tokens'] == len(gaps)  # pairs
  assert sums['contrast/correct'] == sum(gap < 0 for gap in gaps)


def test_the_gradient_is_that_of_the_term_as_written(margin):
  batch, params = make_batch(PADDED), params_of()
  _, gradient = value_and_grad(margin)(params, batch)
  pair = {view: batch[view] for view in ('label', 'rationale')}
  _, plain = value_and_grad(margin, weight=0.0)(params, pair)
  term = models.jit(jax.grad(lambda params: direct_term(params, batch, margin)))
  expected = jax.tree.map(
    lambda one, other: np.asarray(one) + WEIGHT * np.asarray(other),
    plain,
    term(params),
  )
  test_steps.assert_trees_close(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ('layout', 'options'),
  [
    (PACKED, {'num_microbatches': 2, 'num_shards': 2, 'chunk_tokens': 20}),
    pytest.param(PADDED, {'chunk_tokens': 20}, marks=pytest.mark.long),
  ],
)
def test_layouts_microbatches_and_chunks_change_nothing(
  margin, layout, options
):
  params = params_of()
  expected = value_and_grad(margin)(params, make_batch(PADDED))
  batch = make_batch(layout, multiple=4 if layout is PACKED else 1)
  found = value_and_grad(margin, **options)(params, batch)
  test_steps.assert_trees_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('wrong', [5.0, 2.0, None])
def test_pairs_beyond_the_margin_are_left_alone(wrong):
  """One pair: its rationale costs 1 nat per token, the wrong one more."""
  config = objective.Distillation(contrast_weight=WEIGHT, contrast_margin=3.0)
  count = 0.0 if wrong is None else 2.0
  factors, constant, sums = contrast.hinges(
    config,
    {'rationale': np.array([4.0]), 'contrast': np.array([(wrong or 0) * 2])},
    {'rationale': np.array([4.0]), 'contrast': np.array([count])},
  )
  within = wrong == 2.0  # 1 + 3 > 2; of no pair all is 0
  assert sums['contrast/loss_sum'] == 2.0 * within
  assert sums['contrast/tokens'] == (wrong is not None)
  assert constant == pytest.approx(WEIGHT * 3.0 * within)
  expected = {'rationale': [0, WEIGHT / 4], 'contrast': [0, -WEIGHT / 2]}
  for view, factor in factors.items():
    np.testing.assert_allclose(factor, np.multiply(expected[view], within))


def test_rows_that_do_not_say_their_pair_are_refused():
  batch = make_batch(PADDED)
  del batch['contrast']['decoder_pair_ids']
  with pytest.raises(ValueError, match='pair_ids=True'):
    value_and_grad(0.5)(params_of(), batch)
