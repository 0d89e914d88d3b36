# SPDX-License-Identifier: Apache-2.0
"""The batch of a step is a pure function of the step."""

import json

import numpy as np
import pytest

from dsbs_jax.data.batching import batch_order, layouts, loader
from dsbs_jax.data.prepared import tokens
from tests.data import small_prepared

SIZE = small_prepared.SIZES['train']  # 45: with batches of 8, the sixth holds 5
PADDED, BUCKETED = layouts.Padded(), layouts.Bucketed(num_shapes=3)
PACKED = layouts.Packed()
LAYOUTS = {'padded': PADDED, 'bucketed': BUCKETED, 'packed': PACKED}
ORDER = batch_order.BatchOrder(batch_size=8, seed=3)


def open_(source, name='cqa_gt_dsbs', layout=PACKED, order=ORDER, **more):
  return loader.open(name, source, order, layout=layout, **more)


def examples_of(rows):
  """The (input, target) ids of each example in a row group, any layout."""
  found = []
  for row in range(len(rows['encoder_input_tokens'])):
    one = {key: value[row] for key, value in rows.items()}
    source, target = one['encoder_input_tokens'], one['decoder_target_tokens']
    marks = one.get('encoder_segment_ids', (source > 0).astype(int))
    goals = one.get('decoder_segment_ids', (target > 0).astype(int))
    for segment in range(1, marks.max(initial=0) + 1):
      mine = goals == segment
      assert (one['decoder_loss_weights'][mine] == 1).all()
      shifted = one['decoder_input_tokens'][mine]
      assert shifted[0] == 0 and (shifted[1:] == target[mine][:-1]).all()
      found.append(
        (tuple(source[marks == segment].tolist()), tuple(target[mine].tolist()))
      )
    assert not one['decoder_loss_weights'][target == 0].any()
    assert not one['decoder_task_ids'][target == 0].any()
  return found


def wanted(source, name, positions, split='train'):
  data = tokens.load(name, split, source)
  return sorted(
    (tuple(data.inputs[p].tolist()), tuple(data.targets[p].tolist()))
    for p in positions
  )


def same(left, right):
  assert left.keys() == right.keys()
  for view in left:
    assert left[view].keys() == right[view].keys()
    for key in left[view]:
      np.testing.assert_array_equal(left[view][key], right[view][key])
  return True


def test_an_epoch_holds_every_example_once_and_ends_with_the_rest(source):
  opened = open_(source)
  assert (opened.num_examples, opened.steps_per_epoch) == (SIZE, 6)
  epochs = [
    [opened.positions(6 * epoch + step) for step in range(6)]
    for epoch in range(3)
  ]
  for epoch in epochs:
    assert [len(positions) for positions in epoch] == [8, 8, 8, 8, 8, 5]
    assert sorted(np.concatenate(epoch).tolist()) == list(range(SIZE))
  orders = {tuple(np.concatenate(epoch).tolist()) for epoch in epochs}
  assert len(orders) == 3
  other = open_(source, order=batch_order.BatchOrder(batch_size=8, seed=4))
  assert other.positions(0).tolist() != opened.positions(0).tolist()


@pytest.mark.parametrize('layout', LAYOUTS)
def test_each_layout_holds_the_same_pairs(source, layout):
  opened = open_(source, layout=LAYOUTS[layout])
  for step in range(7):
    batch = opened.batch(step)
    assert list(batch) == ['label', 'rationale']
    positions = open_(source, layout=PADDED).positions(step)
    for view, task, term in (
      ('label', 'cqa_gt_label', 1),
      ('rationale', 'cqa_rationale', 2),
    ):
      rows = batch[view]
      assert sorted(examples_of(rows)) == wanted(source, task, positions)
      assert set(np.unique(rows['decoder_task_ids'])) <= {0, term}
      num_rows, length = rows['encoder_input_tokens'].shape
      shapes = {shape[:3] for shape in opened.packers[view].shapes}
      assert (
        num_rows,
        length,
        rows['decoder_target_tokens'].shape[1],
      ) in shapes
  assert '0 of 45 examples cut' in opened.describe()


@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_resumed_iterator_repeats_the_unbroken_one(source, layout):
  opened = open_(source, layout=LAYOUTS[layout])
  unbroken = iter(opened)
  states, batches = [], []
  for _ in range(14):
    states.append(json.dumps(unbroken.get_state()))
    batches.append(next(unbroken))
  for step in (0, 5, 6, 13):
    resumed = iter(open_(source, layout=LAYOUTS[layout]))
    next(resumed)
    resumed.set_state(json.loads(states[step]))
    for batch in batches[step:]:
      assert same(next(resumed), batch)
  assert same(next(opened.iterate(7)), batches[7])
  assert same(opened.batch(9), batches[9])


def test_a_state_of_another_order_is_refused(source):
  state = iter(open_(source)).get_state()
  iter(open_(source, layout=PADDED)).set_state(state)  # same composition
  for order in (
    batch_order.BatchOrder(batch_size=9, seed=3),
    batch_order.BatchOrder(batch_size=8, seed=4),
    batch_order.BatchOrder(batch_size=8, seed=3, shuffle=False),
    batch_order.BatchOrder(batch_size=8, seed=3, paired=False),
  ):
    with pytest.raises(ValueError, match='saved with order.*start a new run'):
      iter(open_(source, order=order)).set_state(state)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('processes', [2, 3])
def test_processes_share_each_global_batch(source, layout, processes):
  whole = open_(
    source,
    layout=LAYOUTS[layout],
    shard_info=loader.ShardInfo(row_multiple=processes),
  )
  parts = [
    open_(
      source, layout=LAYOUTS[layout], shard_info=loader.ShardInfo(i, processes)
    )
    for i in range(processes)
  ]
  for step in (0, 5):
    batch, shares = whole.batch(step), [part.batch(step) for part in parts]
    joined = {
      view: {
        key: np.concatenate([share[view][key] for share in shares])
        for key in batch[view]
      }
      for view in batch
    }
    assert same(joined, batch)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('processes', [2, 4])
def test_no_example_goes_to_two_processes_and_none_to_no_one(
  source, layout, processes
):
  parts = [
    open_(
      source, layout=LAYOUTS[layout], shard_info=loader.ShardInfo(i, processes)
    )
    for i in range(processes)
  ]
  first = parts[0]
  ids = [
    example
    for step in range(first.steps_per_epoch)
    for example in first.example_ids(step)
  ]
  assert len(set(ids)) == len(ids) == first.num_examples
  for view in first.batch(0):
    found = [
      example
      for part in parts
      for step in range(first.steps_per_epoch)
      for example, _ in examples_of(part.batch(step)[view])
    ]
    assert len(set(found)) == len(found) == len(ids)


def test_rows_divide_over_devices_and_microbatches(source):
  for layout in LAYOUTS.values():
    opened = open_(source, layout=layout, shard_info=loader.ShardInfo(0, 1, 6))
    for packer in opened.packers.values():
      assert all(shape.rows % 6 == 0 for shape in packer.shapes)


def test_single_tasks_are_named_by_their_term(source):
  for task, view in (
    ('cqa_gt_finetune', 'label'),
    ('cqa_llm_label', 'label'),
    ('cqa_gt_single', 'label'),
    ('cqa_rationale', 'rationale'),
  ):
    batch = open_(source, name=task).batch(0)
    assert list(batch) == [view]
    positions = open_(source).positions(0)
    assert sorted(examples_of(batch[view])) == wanted(source, task, positions)


def test_the_label_view_of_a_pair_equals_the_label_task(source):
  both, alone = open_(source), open_(source, name='cqa_gt_label')
  for step in range(8):
    assert same({'label': both.batch(step)['label']}, alone.batch(step))


@pytest.mark.parametrize('layout', LAYOUTS.values(), ids=LAYOUTS)
def test_pair_ids_join_the_two_views_of_an_example(source, layout):
  plain = open_(source, layout=layout)
  opened = open_(source, layout=layout, pair_ids=True)
  for step in (0, 5):  # the second one is the smaller rest of the epoch
    batch = opened.batch(step)
    for number, position in enumerate(opened.positions(step), 1):
      for view, task in (('label', 'gt_label'), ('rationale', 'rationale')):
        mine = batch[view]['decoder_pair_ids'] == number
        ids = tokens.load(f'cqa_{task}', 'train', source).targets[position]
        found = batch[view]['decoder_target_tokens'][mine]
        assert found.tolist() == ids.tolist()
    for rows in batch.values():
      ids = rows.pop('decoder_pair_ids')
      assert not ids[rows['decoder_loss_weights'] == 0].any()
    assert same(batch, plain.batch(step))


def test_unpaired_mixtures_follow_their_rates(source):
  order = batch_order.BatchOrder(
    batch_size=8,
    paired=False,
    # By name: the mixture has its tasks the other way round.
    rates={'cqa_rationale': 1.0, 'cqa_gt_label': 3.0},
  )
  opened = open_(source, order=order)
  labels, seen = 0, []
  for step in range(45):
    positions = opened.positions(step)
    seen += positions.tolist()
    batch = opened.batch(step)
    assert list(batch) == ['mixture']
    pairs = wanted(source, 'cqa_gt_label', positions[positions < SIZE])
    pairs += wanted(
      source, 'cqa_rationale', positions[positions >= SIZE] - SIZE
    )
    assert sorted(examples_of(batch['mixture'])) == sorted(pairs)
    labels += int((positions < SIZE).sum())
  assert labels == 45 * 6
  assert (
    len(set(seen)) == 2 * SIZE
  )  # all labels six times, all rationales twice
  seen = np.array(seen)
  of_labels, of_rationales = seen[seen < SIZE], seen[seen >= SIZE] - SIZE
  assert of_labels[:SIZE].tolist() != of_rationales[:SIZE].tolist()
  with pytest.raises(ValueError, match='rates is'):
    open_(source, order=batch_order.BatchOrder(paired=False, rates={'x': 1.0}))
  with pytest.raises(ValueError, match='expected numbers above 0'):
    rates = {'cqa_gt_label': 0.0, 'cqa_rationale': 1.0}
    open_(source, order=batch_order.BatchOrder(paired=False, rates=rates))


def test_file_order_and_a_number_of_epochs(source):
  order = batch_order.BatchOrder(batch_size=8, shuffle=False, num_epochs=2)
  opened = open_(source, order=order)
  assert opened.positions(0).tolist() == list(range(8))
  assert opened.positions(6).tolist() == list(range(8))
  assert sum(1 for _ in opened) == 12
  unpaired = batch_order.BatchOrder(batch_size=8, paired=False, num_epochs=1)
  assert sum(1 for _ in open_(source, order=unpaired)) == 12  # 90 examples


def test_wrong_settings_are_clear_errors(source):
  with pytest.raises(ValueError, match='batch_size is 0'):
    batch_order.BatchOrder(batch_size=0)
  with pytest.raises(ValueError, match='num_epochs is 0'):
    batch_order.BatchOrder(num_epochs=0)
  with pytest.raises(ValueError, match='process_index is 2.*the 2 processes'):
    loader.ShardInfo(2, 2)
  with pytest.raises(ValueError, match='row_multiple is 0'):
    loader.ShardInfo(row_multiple=0)
  with pytest.raises(ValueError, match="'sums' is neither a name of this"):
    open_(source, name='sums')
  with pytest.raises(ValueError, match='no split'):
    open_(source, split='other')
