# SPDX-License-Identifier: Apache-2.0
"""Evaluation batches hold each example once, in few shapes."""

import numpy as np
import pytest

from dsbs_jax.data.batching import eval_loader, loader
from dsbs_jax.data.prepared import ragged, tokens


def test_inputs_alone_decide_how_wide_evaluation_computes():
  """One long target does not have short inputs computed in the widest rows."""
  lengths = {
    'inputs': [40] * 4 + [20] * 4 + [9] * 4,
    'targets': [3] * 11 + [30],
  }
  sides = {
    side: ragged.pack([[5] * n for n in found], np.int32)
    for side, found in lengths.items()
  }
  examples = tokens.Tokens(
    'mine',
    'test',
    **sides,
    index=np.arange(12),
    term=1,
    task_ids=None,
    texts={},
    vocabulary=None,
  )
  widths = [
    rows['encoder_input_tokens'].shape[1]
    for _, rows in eval_loader.batches(examples, 4, num_shapes=3)
  ]
  assert widths == sorted(widths, reverse=True)
  assert widths[0] == 40 and widths[-1] < 40


@pytest.mark.parametrize(
  'shard_info', [loader.ShardInfo(), loader.ShardInfo(1, 2, 4)]
)
@pytest.mark.parametrize('sort', [True, False])
def test_evaluation_sees_each_example_once(source, sort, shard_info):
  data = tokens.load('cqa_gt_label', 'test', source)
  seen, shapes = [], set()
  batches = eval_loader.batches(
    data, 4, shard_info=shard_info, sort=sort, num_shapes=2
  )
  for positions, rows in batches:
    assert positions.dtype == np.int32 and len(positions) == 4
    own = positions.reshape(shard_info.process_count, -1)[
      shard_info.process_index
    ]
    for at, position in enumerate(own):
      source_ids = rows['encoder_input_tokens'][at]
      if position < 0:
        assert not source_ids.any()
        continue
      expected = data.inputs[position]
      assert source_ids[: len(expected)].tolist() == expected.tolist()
    seen += positions[positions >= 0].tolist()
    shapes.add(rows['encoder_input_tokens'].shape)
  assert sorted(seen) == list(range(len(data)))
  assert len(shapes) <= 2
  lengths = data.inputs.lengths[seen]
  assert (sorted(lengths, reverse=True) == lengths.tolist()) == sort
