# SPDX-License-Identifier: Apache-2.0
"""Batches survive the way through T5X's one group of equally many rows."""

import numpy as np
import pytest

from dsbs_jax.interop import t5x_batch_format


def rows(count, length, start):
  tokens = np.arange(count * length, dtype=np.int32).reshape(count, length)
  return {
    'encoder_input_tokens': tokens + start,
    'decoder_target_tokens': tokens[:, :3] + start,
    'decoder_loss_weights': np.ones((count, 3), np.float32),
  }


def assert_equal(left, right):
  assert left.keys() == right.keys()
  for view, group in left.items():
    assert group.keys() == right[view].keys()
    for key, array in group.items():
      np.testing.assert_array_equal(array, right[view][key])
      assert array.dtype == right[view][key].dtype


def test_pairs_packed_into_fewer_rows_come_back():
  """Two processes, 8 pairs each, packed into 3 and 5 rows."""
  halves = [
    {'label': rows(3, 6, 100 * i), 'rationale': rows(5, 6, 1000 + i)}
    for i in range(2)
  ]
  flat = [t5x_batch_format.flatten(half, num_rows=8) for half in halves]
  assert {len(array) for array in flat[0].values()} == {8}
  joined = {
    key: np.concatenate([half[key] for half in flat]) for key in flat[0]
  }
  assert t5x_batch_format.is_packed(joined)
  expected = {
    view: {
      key: np.concatenate([half[view][key] for half in halves])
      for key in halves[0][view]
    }
    for view in ('label', 'rationale')
  }
  assert_equal(t5x_batch_format.unflatten(joined, num_shards=2), expected)


def test_as_many_rows_as_pairs_need_no_marker():
  batch = {'label': rows(4, 6, 0), 'rationale': rows(4, 6, 9)}
  flat = t5x_batch_format.flatten(batch, num_rows=4)
  assert not t5x_batch_format.is_packed(flat)
  assert 'rationale_encoder_input_tokens' in flat
  assert_equal(t5x_batch_format.unflatten(flat, num_shards=1), batch)
  assert (
    t5x_batch_format.join(t5x_batch_format.views(flat)).keys() == flat.keys()
  )


def test_a_single_view_keeps_t5xs_names():
  flat = t5x_batch_format.flatten({'label': rows(2, 6, 0)}, num_rows=4)
  assert flat['encoder_input_tokens'].shape == (4, 6)
  back = t5x_batch_format.unflatten(flat, num_shards=1)
  assert_equal(back, {'mixture': rows(2, 6, 0)})


def test_more_rows_than_pairs_are_refused():
  with pytest.raises(ValueError, match='batch of 3 examples makes 4 rows'):
    t5x_batch_format.flatten({'label': rows(4, 6, 0)}, num_rows=3)
