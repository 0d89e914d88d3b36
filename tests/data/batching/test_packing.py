# SPDX-License-Identifier: Apache-2.0
"""Rows hold exactly the examples, wherever the packer puts them."""

import numpy as np

from dsbs_jax.data.batching import packing, token_table
from dsbs_jax.data.batching.row_shapes import Shape
from dsbs_jax.data.prepared import ragged


def random_table(number=12, seed=0):
  rng = np.random.default_rng(seed)

  def rows(most):
    sizes = rng.integers(1, most + 1, number)
    return ragged.pack(
      [[*rng.integers(2, 99, n - 1), 1] for n in sizes], np.int32
    )

  terms = rng.integers(1, 3, number).astype(np.int32)
  return token_table.TokenTable(rows(11), rows(7), terms)


def slow_fill(table, positions, placed, shape, packed):
  """The same row group, one token at a time."""
  wide, narrow = (shape.rows, shape.inputs), (shape.rows, shape.targets)
  rows = {
    'encoder_input_tokens': np.zeros(wide, np.int32),
    'decoder_input_tokens': np.zeros(narrow, np.int32),
    'decoder_target_tokens': np.zeros(narrow, np.int32),
    'decoder_loss_weights': np.zeros(narrow, np.float32),
    'decoder_task_ids': np.zeros(narrow, np.int32),
  }
  if packed:
    for key in ('encoder_segment_ids', 'encoder_positions'):
      rows[key] = np.zeros(wide, np.int32)
    for key in ('decoder_segment_ids', 'decoder_positions'):
      rows[key] = np.zeros(narrow, np.int32)
  for i, position in enumerate(positions):
    row, segment = placed.row[i], placed.segment[i]
    source = list(table.inputs[position])[: shape.inputs]
    target = list(table.targets[position])[: shape.targets]
    source[-1] = target[-1] = 1
    for at, token in enumerate(source):
      place = placed.input_start[i] + at
      rows['encoder_input_tokens'][row, place] = token
      if packed:
        rows['encoder_segment_ids'][row, place] = segment
        rows['encoder_positions'][row, place] = at
    for at, token in enumerate(target):
      place = placed.target_start[i] + at
      rows['decoder_target_tokens'][row, place] = token
      rows['decoder_input_tokens'][row, place] = target[at - 1] if at else 0
      rows['decoder_loss_weights'][row, place] = 1
      rows['decoder_task_ids'][row, place] = table.terms[position]
      if packed:
        rows['decoder_segment_ids'][row, place] = segment
        rows['decoder_positions'][row, place] = at
    if not packed and len(target) < shape.targets:
      rows['decoder_input_tokens'][row, len(target)] = 1
  return rows


def assert_equal(found, wanted):
  assert found.keys() == wanted.keys()
  for key, value in wanted.items():
    np.testing.assert_array_equal(found[key], value, err_msg=key)
    assert found[key].dtype == value.dtype, key


def packer(table, shape, packed=False):
  return packing.Packer(table, (shape,), packed=packed)


def assert_filled_as_by_hand(made, positions):
  """The packer's rows equal the slow ones; returns them."""
  placed, shape = made.place(positions)
  found = made.pack(positions)
  wanted = slow_fill(made.table, positions, placed, shape, made.packed)
  assert_equal(found, wanted)
  return found


def test_padded_rows_equal_a_slow_reference():
  made = packer(random_table(), Shape(6, 13, 8))
  assert_filled_as_by_hand(made, np.array([3, 0, 11, 7]))


def test_cut_examples_keep_an_end():
  made = packer(random_table(), Shape(12, 5, 3))
  found = assert_filled_as_by_hand(made, np.arange(12))
  long = made.table.inputs.lengths > 5
  assert long.any() and (found['encoder_input_tokens'][long, -1] == 1).all()


def test_packed_rows_equal_a_slow_reference():
  for seed in range(5):
    made = packer(random_table(seed=seed), Shape(10, 20, 12), packed=True)
    positions = np.random.default_rng(seed).permutation(12)[:10]
    found = assert_filled_as_by_hand(made, positions)
    assert found['encoder_segment_ids'].max() > 1


def test_each_token_may_carry_its_own_task():
  table = random_table()
  own = ragged.Ragged(table.targets.flat % 2 + 1, table.targets.offsets)
  table = token_table.TokenTable(table.inputs, table.targets, table.terms, own)
  rows = packer(table, Shape(2, 16, 16)).pack(np.array([1, 2]))
  ids = rows['decoder_target_tokens']
  np.testing.assert_array_equal(
    rows['decoder_task_ids'], np.where(ids > 0, ids % 2 + 1, 0)
  )


def test_a_cut_input_keeps_the_end_that_its_vocabulary_gives_it():
  table = token_table.TokenTable(
    ragged.pack([[2, 9, 9, 9, 9, 9, 7, 8], [2, 9, 7, 8]], np.int32),
    ragged.pack([[5, 1], [5, 1]], np.int32),
    np.ones(2, np.int32),
    input_end=(7, 8),
  )
  rows = packer(table, Shape(2, 5, 2)).pack(np.arange(2))
  found = sorted(map(list, rows['encoder_input_tokens']))
  assert found == [[2, 9, 7, 8, 0], [2, 9, 9, 7, 8]]
