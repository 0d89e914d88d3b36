# SPDX-License-Identifier: Apache-2.0
"""Soft labels lie in the rows of a batch where the labels' tokens part."""

import dataclasses

import numpy as np
import pytest

from dsbs_jax.data.batching import (
  batch_order,
  layouts,
  loader,
  soft_label_rows,
)
from dsbs_jax.data.prepared import dataset_writer, tokens
from tests.data import small_prepared

LABELS = 'first', 'second'


@pytest.fixture(scope='module')
def parcels(tmp_path_factory):
  """Examples of a closed set of labels; every third has no soft label."""
  folder = tmp_path_factory.mktemp('parcels')
  examples = [
    dataclasses.replace(
      example,
      gt_label=LABELS[number % 2],
      label_probs=() if number % 3 == 2 else (1 - number / 64, number / 64),
    )
    for number, example in enumerate(small_prepared.examples('train'))
  ]
  about = {'source': 'invented'}
  dataset_writer.write(
    'parcels', {'train': examples}, data_dir=folder, about=about
  )
  return tokens.Source(str(folder), 'bytes')


@pytest.mark.parametrize('temperature', [1.0, 2.0])
@pytest.mark.parametrize(
  'layout', [layouts.Padded(), layouts.Packed(), layouts.Bucketed()]
)
def test_rows_hold_the_soft_labels_of_their_examples(
  parcels, layout, temperature
):
  soft = soft_label_rows.load(
    'parcels_gt_dsbs', 'train', parcels, temperature=temperature
  )
  assert soft.num_examples == 30
  opened = loader.open(
    'parcels_gt_dsbs',
    parcels,
    batch_order.BatchOrder(batch_size=8, seed=3),
    layout=layout,
    soft=soft,
  )
  assert 'soft labels: 30 examples' in opened.describe()
  batch = opened.batch(1)
  assert 'decoder_soft_ids' not in batch['rationale']
  rows = batch['label']
  places = np.argwhere(rows['decoder_soft_probs'].sum(-1) > 0)
  starts = rows['decoder_input_tokens'] == 0
  found = []
  for place in map(tuple, places):
    assert starts[place]  # the first token of a label
    ids, probs = (rows[f'decoder_soft_{n}'][place] for n in ('ids', 'probs'))
    first = [parcels_id(parcels, label) for label in LABELS]
    assert sorted(ids.tolist()) == sorted(first)
    found.append([probs[ids.tolist().index(token)] for token in first])
  expected = []
  for number in opened.positions(1).tolist():
    if number % 3 != 2:
      odds = np.array([1 - number / 64, number / 64]) ** (1 / temperature)
      expected.append(odds / odds.sum())
  np.testing.assert_allclose(
    sorted(map(tuple, found)), sorted(map(tuple, expected)), rtol=1e-6
  )


def parcels_id(source, label):
  """The first token of a label's target."""
  task = tokens.load('parcels_gt_label', 'train', source)
  return int(task.targets[LABELS.index(label)][0])


def test_open_labels_and_data_without_soft_labels_are_refused(source, tmp_path):
  with pytest.raises(ValueError, match="'cqa' has no closed set of labels"):
    soft_label_rows.load('cqa_gt_dsbs', 'train', source, temperature=1.0)
  small_prepared.write(tmp_path, name='parcels')
  hard = tokens.Source(str(tmp_path), 'bytes')
  with pytest.raises(ValueError, match='none of the 45 examples .*--logprobs'):
    soft_label_rows.load('parcels_gt_dsbs', 'train', hard, temperature=1.0)


def test_labels_in_another_order_than_the_probabilities_are_refused(tmp_path):
  examples = [
    dataclasses.replace(example, gt_label=LABELS[0], label_probs=(0.9, 0.1))
    for example in small_prepared.examples('train')
  ]
  dataset_writer.write(
    'parcels',
    {'train': examples},
    data_dir=tmp_path,
    about={'labels': list(reversed(LABELS))},
  )
  source = tokens.Source(str(tmp_path), 'bytes')
  with pytest.raises(ValueError, match=r"of \['second', 'first'\], but its"):
    soft_label_rows.load('parcels_gt_dsbs', 'train', source, temperature=1.0)
