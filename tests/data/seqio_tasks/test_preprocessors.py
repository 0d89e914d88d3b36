# SPDX-License-Identifier: Apache-2.0
"""seqio, and so T5X, reads what the built-in engine reads."""

import numpy as np
import pytest
import seqio
import tensorflow as tf

from dsbs_jax.data import register
from dsbs_jax.data.batching import batch_order, layouts, loader
from dsbs_jax.data.prepared import tokens
from dsbs_jax.data.seqio_tasks import features
from tests.data import small_prepared

LENGTHS = {'inputs': 64, 'targets': 80}
FORMS = (
  'gt_finetune',
  'llm_finetune',
  'gt_label',
  'llm_label',
  'rationale',
  'gt_single',
  'llm_single',
  'gt_answer_first',
  'llm_answer_first',
)
# One of each kind of target; `make test-long` reads the other teacher's too.
SHORT = ('gt_finetune', 'rationale', 'llm_single', 'gt_answer_first')


@pytest.fixture(autouse=True)
def configured(monkeypatch, source):
  """The invented data set is the one that tasks read."""
  monkeypatch.setattr(register._STATE, 'settings', {})
  for name in ('cqa', 'anli1'):
    register.benchmark(name)
  register.build()
  register.configure(data_dir=source.data_dir, vocabulary=source.vocabulary)


def read(name, split='train', **options):
  task = seqio.get_mixture_or_task(name)
  dataset = task.get_dataset(None, split, shuffle=False, **options)
  return list(dataset.as_numpy_iterator())


@pytest.mark.parametrize(
  'name, split',
  [
    *(
      pytest.param(
        f'cqa_{form}', 'train', marks=[] if form in SHORT else pytest.mark.long
      )
      for form in FORMS
    ),
    ('cqa_llm_label', 'test'),
    ('anli1_gt_label', 'validation'),
  ],
)
def test_ids_equal_the_built_in_engines(source, name, split):
  ours = tokens.load(name, split, source)
  theirs = read(name, split)
  assert len(theirs) == len(ours) == small_prepared.SIZES[split]
  for i, example in enumerate(theirs):
    assert example['inputs'].tolist() == ours.inputs[i].tolist()
    assert example['targets'].tolist() == ours.targets[i].tolist()
    expected = np.full_like(example['targets'], ours.term)
    assert example['targets_task_ids'].tolist() == expected.tolist()
    assert example['inputs_pretokenized'].decode() == ours.input_text(i)
    assert example['targets_pretokenized'].decode() == ours.target_text(i)


def test_verdicts_equal_the_built_in_engines(source, tmp_path):
  """seqio has no example where the built-in engine has one without tokens."""
  small_prepared.write_judged(tmp_path, small_prepared.examples('train'))
  register.configure(data_dir=str(tmp_path))
  other = tokens.Source(str(tmp_path), source.vocabulary)
  ours, theirs = tokens.load('cqa_verdict', 'train', other), read('cqa_verdict')
  kept = np.flatnonzero(ours.targets.lengths)
  assert len(ours) == 45 and len(kept) == len(theirs) == 30
  for i, example in zip(kept, theirs, strict=True):
    assert example['inputs'].tolist() == ours.inputs[i].tolist()
    assert example['targets'].tolist() == ours.targets[i].tolist()
    assert set(example['targets_task_ids']) == {ours.term}


@pytest.mark.parametrize(
  'spec, prefixes',
  [('bytes', 'paper'), pytest.param(None, 'code', marks=pytest.mark.long)],
)
def test_vocabulary_and_prefixes_are_those_set_at_use(source, spec, prefixes):
  spec = spec or source.vocabulary
  register.configure(vocabulary=spec, prefixes=prefixes)
  other = tokens.Source(source.data_dir, spec, prefixes)
  for name in ('anli1_gt_label', 'cqa_rationale'):
    ours = tokens.load(name, 'test', other)
    for i, example in enumerate(read(name, 'test')):
      assert example['inputs'].tolist() == ours.inputs[i].tolist()
      assert example['targets'].tolist() == ours.targets[i].tolist()


def test_the_first_batch_of_a_task_equals_seqios(source):
  dataset = seqio.get_dataset(
    mixture_or_task_name='cqa_gt_label',
    task_feature_lengths=LENGTHS,
    dataset_split='train',
    shuffle=False,
    feature_converter=seqio.EncDecFeatureConverter(pack=False),
  )
  theirs = next(dataset.batch(8).as_numpy_iterator())
  opened = loader.open(
    'cqa_gt_label',
    source,
    batch_order.BatchOrder(batch_size=8, shuffle=False),
    layout=layouts.Padded(lengths=LENGTHS),
  )
  ours = opened.batch(0)['label']
  for key, value in theirs.items():
    np.testing.assert_array_equal(ours[key], value, err_msg=key)
  assert set(ours) == {*theirs, 'decoder_task_ids'}


def test_metrics_see_answers_as_the_built_in_engine_does(source):
  for name in ('cqa_gt_single', 'cqa_llm_label'):
    task = seqio.get_mixture_or_task(name)
    ours = tokens.load(name, 'test', source)
    for i, example in enumerate(read(name, 'test')):
      text = example['targets_pretokenized'].decode()
      gold = task.postprocess_fn(text, example=example, is_target=True)
      assert gold == ours.answer(i)
      predicted = task.postprocess_fn(text, example=example, is_target=False)
      assert predicted == gold
      assert task.metric_fns[0]([gold], [predicted])['accuracy'] == 100


@pytest.mark.parametrize(
  'name, pack', [('cqa_gt_dsbs', True), ('cqa_llm_label', False)]
)
def test_task_ids_travel_with_the_targets(name, pack):
  dataset = seqio.get_dataset(
    mixture_or_task_name=name,
    task_feature_lengths=LENGTHS,
    dataset_split='train',
    feature_converter=features.DistillationFeatureConverter(pack=pack),
    seed=0,
    num_epochs=1,
  )
  seen = set()
  for row in dataset.as_numpy_iterator():
    ids = row['decoder_task_ids']
    assert ((ids > 0) == (row['decoder_loss_weights'] > 0)).all()
    if pack:  # one task per segment
      for segment in range(1, row['decoder_segment_ids'].max() + 1):
        assert len(set(ids[row['decoder_segment_ids'] == segment])) == 1
    seen |= set(ids[ids > 0].tolist())
  assert seen == ({1, 2} if name == 'cqa_gt_dsbs' else {1})


def test_mixtures_that_lose_the_task_ids_are_refused():
  plain = seqio.Mixture(
    'plain', ['cqa_gt_label', 'cqa_rationale'], default_rate=1.0
  )
  dataset = plain.get_dataset(LENGTHS, 'train', shuffle=False)
  converter = features.DistillationFeatureConverter(pack=False)
  with pytest.raises(ValueError, match='no targets_task_ids.*mixture_cls'):
    converter(dataset, LENGTHS)


def test_seqios_evaluator_scores_the_label_task(source):
  evaluator = seqio.Evaluator(
    'cqa_gt_label',
    seqio.EncDecFeatureConverter(pack=False),
    eval_split='test',
    logger_cls=(),
  )
  ours = tokens.load('cqa_gt_label', 'test', source)
  answers = np.zeros((len(ours), 80), int)
  for i in range(len(ours)):
    answers[i, : len(ours.targets[i])] = ours.targets[i]
  answers[3] = answers[4]

  def predict(dataset, model_feature_shapes=None):
    del model_feature_shapes
    order = [int(position) for position, _ in dataset.as_numpy_iterator()]
    return [(position, answers[position]) for position in order]

  metrics, _ = evaluator.evaluate(
    compute_metrics=True, predict_fn=predict, step=0
  )
  assert metrics.result()['cqa_gt_label']['accuracy'] == 90.0


@pytest.mark.parametrize(
  'pack', [False, pytest.param(True, marks=pytest.mark.long)]
)
def test_plain_converters_work_on_mixtures(pack):
  dataset = seqio.get_dataset(
    mixture_or_task_name='cqa_llm_dsbs',
    task_feature_lengths=LENGTHS,
    dataset_split='train',
    feature_converter=seqio.EncDecFeatureConverter(pack=pack),
    seed=0,
  )
  row = next(dataset.as_numpy_iterator())
  assert row['decoder_target_tokens'].shape == (80,)
  assert 'decoder_task_ids' not in row


def test_shards_part_the_examples_and_shuffling_keeps_them():
  task = seqio.get_mixture_or_task('cqa_gt_label')
  assert set(task.splits) == set(small_prepared.SIZES)
  assert task.num_input_examples('train') == 45
  for shuffle in (False, True):  # without a seed, each shard draws its own
    shards = [
      task.get_dataset(
        None, 'train', shuffle=shuffle, shard_info=seqio.ShardInfo(i, 2)
      ).as_numpy_iterator()
      for i in range(2)
    ]
    ids = [[e['example_id'] for e in shard] for shard in shards]
    assert sorted(map(len, ids)) == [22, 23]
    everything = {*ids[0], *ids[1]}
    assert len(everything) == 45
  orders = []
  for seed in (1, 1, 2):
    dataset = task.get_dataset(None, 'train', shuffle=True, seed=seed)
    orders.append([e['example_id'] for e in dataset.as_numpy_iterator()])
    assert set(orders[-1]) == everything
  assert orders[0] == orders[1] != orders[2]


def test_a_reading_position_can_be_saved(tmp_path):
  task = seqio.get_mixture_or_task('cqa_gt_label')
  dataset = task.get_dataset(None, 'train', shuffle=True, seed=1, num_epochs=2)
  iterator = iter(dataset)
  for _ in range(50):
    next(iterator)
  saved = tf.train.Checkpoint(it=iterator).write(str(tmp_path / 'position'))
  rest = [int(example['index']) for example in iterator]
  again = iter(dataset)
  tf.train.Checkpoint(it=again).read(saved)
  assert [int(example['index']) for example in again] == rest
  assert len(rest) == 40
