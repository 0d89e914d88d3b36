# SPDX-License-Identifier: Apache-2.0
"""Layouts choose few static shapes and never lose a token unasked."""

import numpy as np
import pytest

from dsbs_jax.data.batching import layouts, token_table
from dsbs_jax.data.prepared import ragged

LAYOUTS = (layouts.Padded(), layouts.Bucketed(num_shapes=3), layouts.Packed())


def table(number=400, seed=0):
  rng = np.random.default_rng(seed)

  def rows(mean, most):
    sizes = np.clip(rng.normal(mean, mean / 3, number), 1, most).astype(int)
    return ragged.pack([np.ones(n) for n in sizes], np.int32)

  return token_table.TokenTable(
    rows(45, 100), rows(20, 70), np.ones(number, np.int32)
  )


def batches(number=400, size=32, seed=1):
  rng = np.random.default_rng(seed)
  return [rng.permutation(number)[:size] for _ in range(40)]


@pytest.mark.parametrize('layout', LAYOUTS, ids=lambda x: type(x).__name__)
def test_every_batch_fits_whole_into_a_planned_shape(layout):
  examples = table()
  packer = layout.packer(examples, batches(), batch_size=32, multiple=4)
  assert all(shape.rows % 4 == 0 for shape in packer.shapes)
  assert 'cut' in packer.describe(
    batches()
  ) and ' 0 of 400 examples cut' in packer.describe(batches())
  longest = np.argsort(-examples.inputs.lengths)
  for positions in [*batches(seed=9), longest[:32], longest[:3]]:
    rows = packer.pack(positions)
    shape = (
      *rows['encoder_input_tokens'].shape,
      rows['decoder_target_tokens'].shape[1],
    )
    assert shape in [planned[:3] for planned in packer.shapes]
    inputs, targets = examples.lengths(positions)
    assert (rows['encoder_input_tokens'] > 0).sum() == inputs.sum()
    assert rows['decoder_loss_weights'].sum() == targets.sum()


def test_packing_wastes_least():
  work = []
  for layout in LAYOUTS:
    packer = layout.packer(table(), batches(), batch_size=32)
    used = [packer.pack(positions) for positions in batches(seed=5)]
    work.append(sum(rows['encoder_input_tokens'].size for rows in used))
  assert work[0] > work[1] > work[2]
  real = sum(
    table().lengths(positions)[0].sum() for positions in batches(seed=5)
  )
  assert work[2] < 1.35 * real


def test_an_unusually_full_batch_takes_more_rows_and_loses_nothing():
  examples = table()
  packer = layouts.Packed().packer(examples, batches(), batch_size=32)
  usual, more, most = packer.shapes
  assert usual.rows < more.rows < most.rows == 32
  order = np.argsort(-examples.inputs.lengths)
  rows = packer.pack(order[:32])
  assert len(rows['encoder_input_tokens']) > usual.rows
  lengths = examples.inputs.lengths[order[:32]]
  assert (rows['encoder_input_tokens'] > 0).sum() == lengths.sum()
  alone = layouts.Packed(lengths={'inputs': 100, 'targets': 70}).packer(
    examples, batches(), batch_size=32
  )
  assert alone.shapes[-1][:3] == (32, 100, 70)


@pytest.mark.parametrize('kind', [layouts.Padded, layouts.Packed])
def test_short_lengths_are_refused_unless_cutting_is_allowed(kind):
  examples = table()
  lengths = {'inputs': 60, 'targets': 70}
  number = int((examples.inputs.lengths > 60).sum())
  with pytest.raises(
    ValueError,
    match=f'inputs length is 60, but {number} of 400 .*'
    f'{kind.__name__}.truncate=True',
  ):
    kind(lengths=lengths).packer(examples, batches(), batch_size=32)
  packer = kind(lengths=lengths, truncate=True).packer(
    examples, batches(), batch_size=32
  )
  assert f'{number} of 400 examples cut' in packer.describe(batches())
  positions = batches(seed=3)[0]
  found = (packer.pack(positions)['encoder_input_tokens'] > 0).sum()
  assert found == np.minimum(examples.lengths(positions)[0], 60).sum()


def test_lengths_may_be_given_per_view():
  label, rationale = {'inputs': 8, 'targets': 4}, {'inputs': 8, 'targets': 32}
  both = layouts.Padded(lengths={'label': label, 'rationale': rationale})
  assert both.for_view('rationale').lengths == rationale
  assert layouts.Padded().for_view('label').lengths is None
  assert layouts.Padded(label).for_view('label').lengths == label
  with pytest.raises(
    ValueError, match="expected inputs and targets.*'mixture'"
  ):
    both.for_view('mixture')
  with pytest.raises(ValueError, match="expected the keys 'inputs' and"):
    layouts.Padded({'inputs': 8}).packer(table(), batches(), batch_size=32)
  for number in (0, 2.5):
    with pytest.raises(ValueError, match=f'num_shapes is {number}'):
      layouts.Bucketed(num_shapes=number)
