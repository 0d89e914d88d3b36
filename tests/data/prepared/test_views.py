# SPDX-License-Identifier: Apache-2.0
"""Further tasks beside labels and rationales: which rows have them, and how."""

import dataclasses

import numpy as np
import pytest

from dsbs_jax import contract
from dsbs_jax.data.batching import batch_order, layouts, loader
from dsbs_jax.data.prepared import tokens, views
from tests.data import small_prepared


@pytest.fixture(scope='module')
def judged(source, tmp_path_factory):
  """Prepared examples, two of three with a verdict or a counterfactual."""
  folder = tmp_path_factory.mktemp('judged')
  small_prepared.write_judged(folder, small_prepared.examples('train'))
  return tokens.Source(str(folder), source.vocabulary)


def test_a_verdicts_input_is_the_rationale_behind_the_input(judged):
  found = tokens.load('cqa_verdict', 'train', judged)
  examples = small_prepared.judged(small_prepared.examples('train'))
  for position, example in enumerate(examples):
    if not example.verdict:
      assert not len(found.inputs[position]) + len(found.targets[position])
      continue
    assert found.target_text(position) == example.verdict
    text = f'[verdict] {example.input} {example.rationale}'
    assert found.input_text(position) == text
    assert found.targets[position][-1] == contract.EOS_ID
  assert found.term == contract.VERDICT_ID


def test_other_tasks_are_the_same_with_verdicts_and_without(source, judged):
  for task in ('cqa_gt_label', 'cqa_rationale'):
    one, other = (tokens.load(task, 'train', s) for s in (source, judged))
    for side in ('inputs', 'targets'):
      np.testing.assert_array_equal(
        getattr(one, side).flat, getattr(other, side).flat
      )


@pytest.mark.parametrize('spec', [None, 'bytes'])
def test_a_counterfactuals_rationale_is_read_and_its_label_trained(
  judged, spec
):
  source = dataclasses.replace(judged, vocabulary=spec or judged.vocabulary)
  found = tokens.load('cqa_counterfactual', 'train', source)
  examples = small_prepared.judged(small_prepared.examples('train'))
  for position, example in enumerate(examples):
    task_ids = found.task_ids[position]
    target = found.targets[position]
    assert len(task_ids) == len(target)
    if not example.counterfactual:
      assert not len(found.inputs[position]) + len(target)
      continue
    label, rationale = example.counterfactual
    text = f'{rationale} [label] {label}'
    assert found.target_text(position) == text
    assert found.input_text(position) == f'[counterfactual] {example.input}'
    assert found.vocabulary.decode(target) == text.strip()
    trained = target[task_ids == contract.COUNTERFACTUAL_ID]
    assert found.vocabulary.decode(trained).strip() == label
    assert trained[-1] == contract.EOS_ID
    read = target[task_ids == 0]
    assert found.vocabulary.decode(read) == f'{rationale} [label]'


@pytest.mark.parametrize('layout', [layouts.Padded(), layouts.Packed()])
def test_targets_that_are_read_have_no_weight(judged, layout):
  order = batch_order.BatchOrder(batch_size=8, seed=3)
  name, further = 'cqa_gt_single', ('verdict', 'counterfactual')
  opened = loader.open(
    name, judged, order, layout=layout, further_views=further
  )
  batch = opened.batch(1)
  # SCOTT's two losses; a single task has no verdicts.
  assert list(batch) == ['label', 'counterfactual']
  rows = batch['counterfactual']
  real = rows['decoder_target_tokens'] > 0
  trained = rows['decoder_task_ids'] == contract.COUNTERFACTUAL_ID
  np.testing.assert_array_equal(rows['decoder_loss_weights'], trained)
  assert not rows['decoder_task_ids'][~trained].any()
  assert 0 < trained.sum() < real.sum() / 2
  # What is read stands before what is trained on.
  np.testing.assert_array_equal(
    rows['decoder_input_tokens'][:, 1:][real[:, :-1] & trained[:, 1:]],
    rows['decoder_target_tokens'][:, :-1][real[:, :-1] & trained[:, 1:]],
  )
  table = tokens.load('cqa_counterfactual', 'train', judged)
  contrast = tokens.load('cqa_contrast', 'train', judged)
  rationale = tokens.load('cqa_rationale', 'train', judged)
  for position, wrong in enumerate(contrast.targets.lengths):
    inputs = rationale.inputs[position].tolist() if wrong else []
    assert contrast.inputs[position].tolist() == inputs
    assert bool(wrong) == bool(table.targets.lengths[position])
  expected = [i for p in opened.positions(1) for i in table.targets[p]]
  found = rows['decoder_target_tokens'][real].tolist()
  assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
  'layout', [layouts.Padded(), layouts.Packed(), layouts.Bucketed()]
)
def test_a_batch_has_the_verdicts_of_its_rows(judged, layout):
  order = batch_order.BatchOrder(batch_size=8, seed=3)
  opened = loader.open(
    'cqa_gt_dsbs',
    judged,
    order,
    layout=layout,
    further_views=('verdict',),
    skip_padding=True,
  )
  plain = loader.open('cqa_gt_dsbs', judged, order, layout=layout)
  assert set(plain.batch(2)) == {'label', 'rationale'}
  table = tokens.load('cqa_verdict', 'train', judged)
  batch = opened.batch(2)
  assert list(batch) == ['label', 'rationale', 'verdict']
  rows = batch['verdict']
  expected = [
    target
    for position in opened.positions(2)
    for target in table.targets[position]
  ]
  real = rows['decoder_loss_weights'] > 0
  found = rows['decoder_target_tokens'][real]
  assert sorted(found.tolist()) == sorted(expected)
  assert set(rows['decoder_task_ids'][real]) == {contract.VERDICT_ID}
  for view in ('label', 'rationale'):
    np.testing.assert_array_equal(
      batch[view]['decoder_target_tokens'],
      opened.packers[view].pack(opened.positions(2))['decoder_target_tokens'],
    )


def test_a_sampled_mixture_has_the_task_too(judged):
  found, rates = views.load(
    'cqa_gt_dsbs', 'train', judged, paired=False, further_views=('verdict',)
  )
  names = [part.name for part in found['mixture']]
  assert names == ['cqa_gt_label', 'cqa_rationale', 'cqa_verdict']
  assert rates == [1 / 3] * 3


def test_data_without_counterfactuals_is_refused(source):
  with pytest.raises(ValueError, match='for wrong labels.* --counterfactuals'):
    views.load(
      'cqa_gt_dsbs', 'train', source, further_views=('counterfactual',)
    )


def test_data_without_verdicts_is_refused(source):
  with pytest.raises(ValueError, match='has no verdicts .* dsbs extract'):
    views.load('cqa_gt_dsbs', 'train', source, further_views=('verdict',))
