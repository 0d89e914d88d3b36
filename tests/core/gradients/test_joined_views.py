# SPDX-License-Identifier: Apache-2.0
"""Views that pass through the network together give the step of views apart."""

import dataclasses

import numpy as np
import pytest

from dsbs_jax.contract import (
  COUNTERFACTUAL_ID,
  LABEL_ID,
  RATIONALE_ID,
  VERDICT_ID,
)
from dsbs_jax.core.gradients import joined_views
from tests.core import test_steps
from tests.core.layers import test_unpadding

DROPPING = dataclasses.replace(test_steps.CONFIG, dropout_rate=0.2)


def make_batch(shards=1, parts=1, *, label_length=9):
  """Twice as many rows of labels, with other lengths than rationales have."""
  label = test_steps.make_rows(0, longest=4, term=LABEL_ID, length=label_length)
  rationale = test_steps.make_rows(
    1, longest=11, term=RATIONALE_ID, num_rows=4, length=11
  )
  return test_unpadding.with_token_index(
    {'label': label, 'rationale': rationale}, shards, parts
  )


def steps_of(batch, config=test_steps.CONFIG, **options):
  """(state, metrics) of a step with views apart, and with joined ones."""
  return [
    test_steps.jitted_step(config, join_views=join_views, **options)(
      test_steps.fresh_state(), batch
    )
    for join_views in (False, True)
  ]


def check(apart, joined):
  test_steps.assert_trees_close(joined[1], apart[1])
  test_steps.assert_steps_agree(joined[0], apart[0])


@pytest.mark.parametrize(
  ('cells', 'options'),
  [
    # tests/claims/test_trajectory.py retraces recorded steps with joined views.
    pytest.param((1, 1), {}, marks=pytest.mark.long),
    # Parameters are sharded, so gradients are not added up.
    pytest.param((2, 1), {}, marks=pytest.mark.long),
    # As four views are joined below.
    pytest.param(
      (2, 2),
      {'num_microbatches': 2, 'num_shards': 2},
      marks=pytest.mark.long,
    ),
  ],
)
def test_joined_views_give_the_step_of_views_apart(cells, options):
  check(*steps_of(make_batch(*cells), **options))


@pytest.mark.parametrize(
  ('config', 'lengths', 'tasks'),
  [
    # Of the same lengths; the masks of keys depend on the number of keys.
    pytest.param(DROPPING, (11, 11), ('counterfactual',), id='dropout'),
    pytest.param(
      DROPPING,
      (11, 11),
      ('verdict', 'counterfactual'),
      id='four with dropout',
      marks=pytest.mark.long,
    ),
    pytest.param(
      test_steps.CONFIG,
      (9, 13),
      ('verdict', 'counterfactual'),
      id='lengths',
      marks=pytest.mark.long,
    ),
  ],
)
def test_more_views_are_joined_as_two_are(config, lengths, tasks):
  """In microbatches on two shards, and apart in none: rows keep their masks."""
  batch = make_batch(2, 2, label_length=lengths[0])
  verdict = test_steps.make_rows(
    2, longest=2, term=VERDICT_ID, length=lengths[1]
  )
  argued = test_steps.make_rows(3, longest=9, term=COUNTERFACTUAL_ID)
  read = np.arange(11) < 3
  argued['decoder_loss_weights'] *= ~read
  argued['decoder_task_ids'] *= ~read
  further = {'verdict': verdict, 'counterfactual': argued}
  batch |= test_unpadding.with_token_index(
    {task: further[task] for task in tasks}, 2, 2
  )
  all_weights = {'verdict': 0.4, 'counterfactual': 0.6}
  weights = {f'{task}_weight': all_weights[task] for task in tasks}
  apart = test_steps.jitted_step(config, **weights)(
    test_steps.fresh_state(), test_unpadding.with_token_index(batch)
  )
  joined = test_steps.jitted_step(
    config, **weights, join_views=True, num_microbatches=2, num_shards=2
  )(test_steps.fresh_state(), batch)
  check(apart, joined)
  _, metrics = joined
  means = {
    task: metrics[f'{task}/loss_sum'] / metrics[f'{task}/tokens']
    for task in ('label', 'rationale', *tasks)
  }
  expected = 0.3 * means['label'] + 0.7 * means['rationale']
  expected += sum(all_weights[task] * means[task] for task in tasks)
  np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-5)


@pytest.mark.long
def test_rows_keep_their_dropout_masks():
  """Of the same lengths; the masks of keys depend on the number of keys."""
  check(*steps_of(make_batch(label_length=11), DROPPING))


def test_where_one_term_has_no_weight_nothing_is_joined():
  """alpha = 1 has the masks of standard finetuning, whatever the lengths."""
  apart, joined = (
    str(
      test_steps.jitted_step(DROPPING, alpha=1.0, join_views=join_views)
      .trace(test_steps.fresh_state(), make_batch())
      .jaxpr
    )
    for join_views in (False, True)
  )
  assert joined == apart


@pytest.mark.long
def test_masks_of_other_lengths_differ_where_views_are_joined():
  """So that the test above could fail."""
  apart, joined = steps_of(make_batch(), DROPPING, alpha=0.3)
  assert abs(apart[1]['loss'] - joined[1]['loss']) > 1e-4


def test_only_pairs_without_their_padding_are_joined():
  pair = make_batch()
  assert joined_views.can_join(pair)
  assert not joined_views.can_join({'label': pair['label']})
  assert not joined_views.can_join(test_steps.make_batch())
