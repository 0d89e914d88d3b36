# SPDX-License-Identifier: Apache-2.0
"""A visit's rationale depends on seed, row and visit, and on nothing else."""

import collections
import json

import numpy as np
import pytest

from dsbs_jax import contract
from dsbs_jax.data.batching import batch_order, layouts, loader, token_table
from dsbs_jax.data.prepared import (
  dataset_writer,
  rationale_rules,
  tokens,
)
from tests.data import small_prepared

ORDER = batch_order.BatchOrder(batch_size=8, seed=3)
MIXED = batch_order.BatchOrder(batch_size=8, seed=3, paired=False)
LAYOUTS = {
  'padded': layouts.Padded(),
  'bucketed': layouts.Bucketed(num_shapes=3),
  'packed': layouts.Packed(),
}


@pytest.fixture(scope='module')
def several(tmp_path_factory):
  """`cqa` with up to four rationales per row."""
  folder = tmp_path_factory.mktemp('several')
  splits = {split: small_prepared.several(split) for split in ('train', 'test')}
  dataset_writer.write('cqa', splits, data_dir=folder, about={})
  return tokens.Source(str(folder), small_prepared.vocabulary(folder))


def open_(source, rule='all', *, name='cqa_gt_dsbs', order=ORDER, **more):
  return loader.open(name, source, order, rationale_choice=rule, **more)


def slow_start(seed, stream, counts):
  """u[n] k[n], one row after another."""
  key = np.random.SeedSequence([seed, stream, 0, 1])
  generator = np.random.Generator(np.random.Philox(key))
  return [int(generator.random() * count) for count in counts]


def targets_of(rows):
  """The target ids of each example in a row group of any layout, sorted."""
  found = []
  for ids, marks in zip(
    rows['decoder_target_tokens'],
    rows.get('decoder_segment_ids', rows['decoder_target_tokens'] > 0),
    strict=True,
  ):
    for segment in range(1, int(marks.max()) + 1):
      found.append(tuple(ids[marks == segment].tolist()))
  return sorted(found)


def slow_targets(source, rule, positions, epoch, *, seed=3, form='rationale'):
  """What these rows train on in an epoch, one by one."""
  vocabulary = tokens.load('cqa_rationale', 'train', source).vocabulary
  left = []
  for row in small_prepared.several():
    kept = [row.rationale]
    if row.rationales:
      chosen = rationale_rules.RULES[rule](row.rationales, 'gt')
      kept = [row.rationales[i].text for i in chosen] or kept
    if form == 'single':
      kept = [f'{text} [label] {row.gt_label}' for text in kept]
    left.append(kept)
  starts = slow_start(seed, 0, [len(kept) for kept in left])
  found = []
  for n in positions:
    text = left[n][(starts[n] + epoch) % len(left[n])]
    found.append((*vocabulary.encode(text), contract.EOS_ID))
  return sorted(found)


def same(left, right):
  assert left.keys() == right.keys()
  for view, rows in left.items():
    assert rows.keys() == right[view].keys()
    for key, array in rows.items():
      np.testing.assert_array_equal(array, right[view][key])
  return True


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('rule', ['all', 'consistent', 'diverse'])
def test_batches_hold_what_a_slow_reference_draws(several, rule, layout):
  opened = open_(several, rule, layout=LAYOUTS[layout])
  plain = open_(several, 'first', layout=LAYOUTS[layout])
  for step in (0, 3, 6, 13, 29):
    positions = opened.positions(step)
    np.testing.assert_array_equal(positions, plain.positions(step))
    batch = opened.batch(step)
    assert targets_of(batch['rationale']) == slow_targets(
      several, rule, positions.tolist(), step // 6
    )
    assert same(
      {'label': batch['label']}, {'label': plain.batch(step)['label']}
    )


def test_a_row_is_visited_once_per_epoch_and_sees_all_of_its_own(several):
  opened = open_(several)
  rows = small_prepared.several()
  seen = collections.defaultdict(list)
  for step in range(6 * 4):
    visits = opened.visits(step)
    targets = opened.targets('rationale', step)
    for position, epoch, target in zip(*visits, targets, strict=True):
      assert epoch == step // 6 == len(seen[position])
      seen[position].append(int(target))
  assert len(seen) == len(rows)
  for position, targets in seen.items():
    own = max(1, len(rows[position].rationales))
    assert len(targets) == 4 and len(set(targets)) == own
    assert targets == (targets[:own] * 4)[:4]


@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_resumed_iterator_draws_the_same(several, layout):
  opened = open_(several, layout=LAYOUTS[layout])
  unbroken = iter(opened)
  states, batches = [], []
  for _ in range(15):
    states.append(json.dumps(unbroken.get_state()))
    batches.append(next(unbroken))
  for step in (5, 6, 14):
    resumed = iter(open_(several, layout=LAYOUTS[layout]))
    resumed.set_state(json.loads(states[step]))
    for batch in batches[step:]:
      assert same(next(resumed), batch)
    assert same(opened.batch(step), batches[step])


def test_a_state_of_another_rule_is_refused(several):
  state = iter(open_(several)).get_state()
  for rule in ('first', 'majority'):
    with pytest.raises(ValueError, match='saved with order.*start a new run'):
      iter(open_(several, rule)).set_state(state)


@pytest.mark.parametrize('processes', [2, 3])
def test_processes_share_the_same_draws(several, processes):
  whole = open_(several, shard_info=loader.ShardInfo(row_multiple=processes))
  parts = [
    open_(several, shard_info=loader.ShardInfo(i, processes))
    for i in range(processes)
  ]
  for step in (1, 8):
    shares = [part.batch(step) for part in parts]
    joined = {
      view: {
        key: np.concatenate([share[view][key] for share in shares])
        for key in rows
      }
      for view, rows in shares[0].items()
    }
    assert same(joined, whole.batch(step))


def test_sampled_tasks_count_their_own_epochs(several):
  opened = open_(several, order=MIXED)
  rows = small_prepared.several()
  label, rationale = (
    tokens.load(f'cqa_{task}', 'train', several)
    for task in ('gt_label', 'rationale')
  )
  starts = slow_start(3, 1, [max(1, len(row.rationales)) for row in rows])
  read = collections.Counter()
  for step in range(30):
    wanted = []
    for position in opened.positions(step).tolist():
      if position < len(rows):
        wanted.append(tuple(label.targets[position].tolist()))
        continue
      row = rows[position - len(rows)]
      texts = [r.text for r in row.rationales] or [row.rationale]
      number = (starts[position - len(rows)] + read[position]) % len(texts)
      read[position] += 1
      ids = rationale.vocabulary.encode(texts[number])
      wanted.append((*ids, contract.EOS_ID))
    assert targets_of(opened.batch(step)['mixture']) == sorted(wanted)
  assert max(read.values()) > 1


def test_one_task_with_both_texts_chooses_and_one_without_does_not(several):
  single = open_(several, name='cqa_gt_single')
  positions = single.positions(7).tolist()
  assert targets_of(single.batch(7)['label']) == slow_targets(
    several, 'all', positions, 1, form='single'
  )
  for name in ('cqa_gt_finetune', 'cqa_gt_label'):
    plain = open_(several, 'first', name=name)
    assert same(open_(several, name=name).batch(7), plain.batch(7))
  test = open_(several, split='test')
  assert same(test.batch(0), open_(several, 'first', split='test').batch(0))


def test_what_is_drawn_from_is_described(several):
  # Rows without more have one; the others have their own and an unclear one.
  words = 'consistent leaves 1.73 rationales per example, several for 33 of 45'
  assert words in open_(several, 'consistent').describe()
  assert 'rationales' not in open_(several, 'first').describe()


def test_a_row_length_holds_the_longest_of_all_that_are_drawn(several):
  """Padded rows are as long as the longest rationale, in whatever epoch."""
  opened = open_(several, layout=layouts.Padded())
  every = [
    len(target)
    for epoch in range(4)
    for target in slow_targets(several, 'all', range(45), epoch)
  ]
  (shape,) = opened.packers['rationale'].shapes
  assert shape.targets == -(-max(every) // 8) * 8
  with pytest.raises(ValueError, match='7 of 111 examples are longer'):
    lengths = {'inputs': 512, 'targets': max(every) - 1}
    open_(several, layout=layouts.Padded(lengths=lengths), name='cqa_rationale')


def test_choosing_where_nothing_can_be_chosen_is_refused(several, source):
  with pytest.raises(contract.UserError, match='one rationale per row'):
    open_(source)
  with pytest.raises(contract.UserError, match='no task of this project'):
    open_(several, name='somebody_elses')
  with pytest.raises(contract.UserError, match="'newest', expected one of"):
    open_(several, 'newest')


def test_starts_are_spread_over_all_and_follow_the_seed():
  counts = np.full(9000, 3)
  one, other = (
    token_table.seeded([counts], seed=seed).start for seed in (1, 2)
  )
  assert (one != other).any()
  for start in (one, other):
    shares = np.bincount(start) / len(start)
    np.testing.assert_allclose(shares, 1 / 3, atol=0.02)
