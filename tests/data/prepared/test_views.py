# SPDX-License-Identifier: Apache-2.0
"""The verdict task beside labels and rationales: which rows have it, and how."""

import numpy as np
import pytest

from dsbs_jax import contract
from dsbs_jax.data.batching import batch_order, layouts, loader
from dsbs_jax.data.prepared import tokens, views
from tests.data import small_prepared


@pytest.fixture(scope='module')
def judged(source, tmp_path_factory):
  """Prepared examples, two of three with a verdict."""
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
    verdicts=True,
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
    'cqa_gt_dsbs', 'train', judged, paired=False, verdicts=True
  )
  names = [part.name for part in found['mixture']]
  assert names == ['cqa_gt_label', 'cqa_rationale', 'cqa_verdict']
  assert rates == [1 / 3] * 3


def test_data_without_verdicts_is_refused(source):
  with pytest.raises(ValueError, match='has no verdicts .* dsbs extract'):
    views.load('cqa_gt_dsbs', 'train', source, verdicts=True)
