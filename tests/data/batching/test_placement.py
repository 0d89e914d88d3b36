# SPDX-License-Identifier: Apache-2.0
"""Rows hold exactly the examples, wherever packing puts them."""

import hypothesis
import numpy as np
from hypothesis import strategies as st

from dsbs_jax.data.batching import placement, pools
from dsbs_jax.data.batching.placement import Shape
from dsbs_jax.data.prepared import ragged


def random_pool(number=12, seed=0):
  rng = np.random.default_rng(seed)

  def rows(most):
    sizes = rng.integers(1, most + 1, number)
    return ragged.pack(
      [[*rng.integers(2, 99, n - 1), 1] for n in sizes], np.int32
    )

  terms = rng.integers(1, 3, number).astype(np.int32)
  return pools.Pool(rows(11), rows(7), terms)


def slow_fill(pool, positions, placed, shape, packed):
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
    source = list(pool.inputs[position])[: shape.inputs]
    target = list(pool.targets[position])[: shape.targets]
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
      rows['decoder_task_ids'][row, place] = pool.terms[position]
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


def test_padded_rows_equal_a_slow_reference():
  pool = random_pool()
  positions = np.array([3, 0, 11, 7])
  placed = placement.one_per_row(4)
  shape = Shape(6, 13, 8)
  found = placement.fill(pool, positions, placed, shape=shape, packed=False)
  assert_equal(found, slow_fill(pool, positions, placed, shape, False))


def test_cut_examples_keep_an_end():
  pool = random_pool()
  positions, placed = np.arange(12), placement.one_per_row(12)
  shape = Shape(12, 5, 3)
  found = placement.fill(pool, positions, placed, shape=shape, packed=False)
  assert_equal(found, slow_fill(pool, positions, placed, shape, False))
  assert (found['encoder_input_tokens'][pool.inputs.lengths > 5, -1] == 1).all()


def test_packed_rows_equal_a_slow_reference():
  for seed in range(5):
    pool = random_pool(seed=seed)
    positions = np.random.default_rng(seed).permutation(12)[:10]
    lengths = pool.lengths(positions)
    placed = placement.first_fit(*lengths, inputs=20, targets=12)
    shape = Shape(placed.num_rows + 1, 20, 12)
    found = placement.fill(pool, positions, placed, shape=shape, packed=True)
    assert_equal(found, slow_fill(pool, positions, placed, shape, True))
    assert placed.num_rows < 10


def test_each_token_may_carry_its_own_task():
  pool = random_pool()
  own = ragged.Ragged(pool.targets.flat % 2 + 1, pool.targets.offsets)
  pool = pools.Pool(pool.inputs, pool.targets, pool.terms, own)
  shape = Shape(2, 16, 16)
  rows = placement.fill(
    pool, np.array([1, 2]), placement.one_per_row(2), shape=shape, packed=False
  )
  ids = rows['decoder_target_tokens']
  np.testing.assert_array_equal(
    rows['decoder_task_ids'], np.where(ids > 0, ids % 2 + 1, 0)
  )


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
  st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), min_size=1),
  st.integers(9, 30),
  st.integers(6, 20),
)
def test_first_fit_places_all_and_never_overlaps(lengths, inputs, targets):
  sources, goals = (np.array(side) for side in zip(*lengths, strict=True))
  placed = placement.first_fit(sources, goals, inputs=inputs, targets=targets)
  for starts, sizes, width in (
    (placed.input_start, sources, inputs),
    (placed.target_start, goals, targets),
  ):
    taken = np.zeros((placed.num_rows, width), int)
    for row, start, size in zip(placed.row, starts, sizes, strict=True):
      assert start + size <= width
      taken[row, start : start + size] += 1
    assert taken.max() == 1
    assert taken[:, 0].all()  # no row is opened for nothing
  for row in range(placed.num_rows):
    segments = sorted(placed.segment[placed.row == row])
    assert segments == list(range(1, len(segments) + 1))
  # First fit decreasing opens no row while half of the room is free.
  need = max(sources.sum() / inputs, goals.sum() / targets)
  assert placed.num_rows <= 2 * (sources / inputs + goals / targets).sum() + 1
  assert placed.num_rows >= np.ceil(need - 1e-9)
