# SPDX-License-Identifier: Apache-2.0
"""Under T5X, paired batches draw the rationales that the built-in engine draws."""

import dataclasses

import numpy as np
import pytest

from dsbs_jax import contract
from dsbs_jax.data import register
from dsbs_jax.data.batching import batch_order, layouts, loader
from dsbs_jax.data.prepared import dataset_writer
from tests.data import small_prepared


@pytest.fixture
def several(tmp_path):
  """`cqa` with up to four rationales per row, where tasks read from."""
  before = register.source()
  rows = {'train': small_prepared.several()}
  dataset_writer.write('cqa', rows, data_dir=tmp_path, about={})
  vocabulary = small_prepared.vocabulary(tmp_path)
  register.configure(data_dir=str(tmp_path), vocabulary=vocabulary)
  yield register.source()
  register.configure(data_dir=before.data_dir, vocabulary=before.vocabulary)


def config():
  from t5x import utils

  return utils.DatasetConfig(
    mixture_or_task_name='cqa_gt_dsbs',
    task_feature_lengths={'inputs': 96, 'targets': 64},
    split='train',
    batch_size=8,
    shuffle=True,
    seed=3,
  )


def opened(rule, *, paired=True):
  from dsbs_jax.interop import t5x_batches

  return t5x_batches.get_dataset(
    config(),
    0,
    1,
    None,
    paired=paired,
    layout=layouts.Packed,
    lengths=None,
    rationale_choice=rule,
  )


def test_batches_are_the_built_in_engines_also_after_a_restore(
  several, tmp_path
):
  from dsbs_jax.interop import t5x_batch_format

  ours = loader.open(
    'cqa_gt_dsbs',
    several,
    batch_order.BatchOrder(batch_size=8, seed=3),
    rationale_choice='all',
  )
  theirs = opened('all')
  (tmp_path / 'checkpoint_0').mkdir()
  theirs.save(str(tmp_path / 'checkpoint_0' / 'train'))
  for step in range(9):
    if step == 7:
      (tmp_path / 'checkpoint_7').mkdir()
      theirs.save(str(tmp_path / 'checkpoint_7' / 'train'))
      theirs = opened('all')
      theirs.restore(str(tmp_path / 'checkpoint_7' / 'train'))
    wanted = t5x_batch_format.flatten(ours.batch(step), num_rows=8)
    batch = next(theirs)
    assert batch.keys() == wanted.keys()
    for key, array in wanted.items():
      np.testing.assert_array_equal(batch[key], array)
  with pytest.raises(contract.UserError, match='saved with order'):
    opened('first').restore(str(tmp_path / 'checkpoint_7' / 'train'))


def test_what_seqio_samples_has_one_rationale_per_row(several):
  with pytest.raises(
    contract.UserError,
    match="RATIONALE_CHOICE is 'all', but PAIRED is False.*Train paired, or",
  ):
    opened('all', paired=False)


def test_lengths_hold_the_longest_rationale_of_all(several):
  from dsbs_jax.interop import t5x_batches

  folder = register.source().data_dir
  rows = small_prepared.several()
  last = rows[3].rationales[-1]
  long = dataclasses.replace(last, text='many more pens ' * 30)
  rows[3] = dataclasses.replace(rows[3], rationales=(last, long))
  dataset_writer.write(
    'cqa', {'train': rows}, data_dir=folder, about={}, overwrite=True
  )
  plain, every = (
    t5x_batches.lengths(task='cqa_gt_dsbs', rationale_choice=rule)
    for rule in ('first', 'all')
  )
  assert plain['inputs'] == every['inputs']
  assert plain['targets'] < 90 < every['targets']
