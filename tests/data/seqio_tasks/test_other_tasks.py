# SPDX-License-Identifier: Apache-2.0
"""Tasks of other people, and mixtures of theirs with ours, can be trained."""

import numpy as np
import pytest
import seqio
import tensorflow as tf

from dsbs_jax import contract
from dsbs_jax.data import register
from dsbs_jax.data.batching import batch_order, layouts, loader
from dsbs_jax.data.prepared import dataset_writer, tokens
from dsbs_jax.data.seqio_tasks import features, preprocessors
from tests.data import small_prepared

TEXTS = [('copy this', 'this'), ('and that', 'that'), ('or those', 'those')]


@pytest.fixture(scope='module', autouse=True)
def registered(source):
  """A task and a mixture that know nothing of this project's names."""
  vocabulary = seqio.ByteVocabulary(100)

  def read(split, shuffle_files, seed=None):
    del split, shuffle_files, seed
    columns = [list(column) for column in zip(*TEXTS, strict=True)]
    data = tf.data.Dataset.from_tensor_slices(tuple(columns))
    return data.map(lambda i, t: {'inputs': i, 'targets': t})

  feature = seqio.Feature(vocabulary, add_eos=True)
  seqio.TaskRegistry.add(
    'foreign_copy',
    source=seqio.FunctionDataSource(read, splits=['train']),
    preprocessors=[
      seqio.preprocessors.tokenize,
      seqio.preprocessors.append_eos,
    ],
    output_features={'inputs': feature, 'targets': feature},
  )
  for name, term, last in (
    ('foreign_short', 1, seqio.preprocessors.append_eos),
    ('foreign_term', 9, lambda dataset: dataset),
  ):
    seqio.TaskRegistry.add(
      name,
      source=seqio.FunctionDataSource(read, splits=['train']),
      preprocessors=[
        seqio.preprocessors.tokenize,
        preprocessors.task_ids(term),
        last,
      ],
      output_features={'inputs': feature, 'targets': feature},
    )
  register.load_module('tasks.cqa')
  register.build()
  seqio.MixtureRegistry.add(
    'foreign_mix', [('cqa_gt_label', 1.0), ('cqa_rationale', 3.0)]
  )
  yield
  for name in ('foreign_copy', 'foreign_short', 'foreign_term'):
    seqio.TaskRegistry.remove(name)
  seqio.MixtureRegistry.remove('foreign_mix')


def test_a_foreign_task_is_read_through_seqio(source):
  order = batch_order.BatchOrder(batch_size=2, shuffle=False)
  opened = loader.open('foreign_copy', source, order, layout=layouts.Padded())
  assert (opened.num_examples, opened.steps_per_epoch) == (3, 2)
  rows = opened.batch(0)['mixture']
  for row, (text, target) in zip(range(2), TEXTS, strict=False):
    ids = [byte + 3 for byte in text.encode()] + [1]
    assert rows['encoder_input_tokens'][row, : len(ids)].tolist() == ids
    ids = [byte + 3 for byte in target.encode()] + [1]
    assert rows['decoder_target_tokens'][row, : len(ids)].tolist() == ids
    assert rows['decoder_task_ids'][row].sum() == len(ids)  # counts as label
  with pytest.raises(ValueError, match="has a split 'test'.*train"):
    loader.open('foreign_copy', source, order, split='test')


def test_a_foreign_mixture_of_our_tasks_keeps_rates_and_terms(source):
  opened = loader.open(
    'foreign_mix', source, batch_order.BatchOrder(batch_size=8)
  )
  counts = np.zeros(3, int)
  for step in range(20):
    rows = opened.batch(step)['mixture']
    first = rows['decoder_positions'] == 0
    first &= rows['decoder_segment_ids'] > 0
    counts += np.bincount(rows['decoder_task_ids'][first], minlength=3)
  assert counts.tolist() == [0, 40, 120]


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('foreign_short', '4 targets_task_ids for 5 targets in example 0'),
    ('foreign_term', r'targets_task_ids \[9\] in example 0'),
  ],
)
def test_task_ids_of_foreign_tasks_are_checked(source, name, message):
  order = batch_order.BatchOrder(batch_size=2)
  with pytest.raises(contract.UserError, match=message):
    loader.open(name, source, order)


@pytest.mark.parametrize('pack', [True, False])
def test_a_converter_is_not_given_too_few_task_ids(pack):
  dataset = seqio.get_mixture_or_task('foreign_short').get_dataset(
    None, 'train', shuffle=False
  )
  converter = features.DistillationFeatureConverter(pack=pack)
  rows = converter(dataset, {'inputs': 16, 'targets': 16})
  with pytest.raises(tf.errors.InvalidArgumentError, match='behind append_eos'):
    list(rows.as_numpy_iterator())


def test_texts_of_foreign_tasks_can_be_shown(source):
  opened = loader.open(
    'foreign_copy', source, batch_order.BatchOrder(batch_size=3)
  )
  del opened
  from dsbs_jax.data.seqio_tasks import other_tasks

  (found,), rates = other_tasks.load('foreign_copy', 'train', source)
  assert isinstance(found, tokens.Tokens) and rates == [1.0]
  assert [found.input_text(i) for i in range(3)] == [t for t, _ in TEXTS]
  assert [found.answer(i) for i in range(3)] == [t for _, t in TEXTS]


def test_seqio_is_not_given_rationales_that_no_llm_wrote(tmp_path, monkeypatch):
  dataset_writer.write(
    'cqa',
    {'train': small_prepared.examples('train', number=5)},
    data_dir=tmp_path,
    about={},
    counts=lambda split: {'counts': {'answered': 2, 'kept': 5}},
  )
  monkeypatch.setenv('DSBS_DATA_DIR', str(tmp_path))
  task = seqio.get_mixture_or_task('cqa_rationale')
  with pytest.raises(
    contract.UserError, match='2 rationales .* for 5 training'
  ):
    task.source.get_dataset('train')
  seqio.get_mixture_or_task('cqa_gt_label').source.get_dataset('train')
