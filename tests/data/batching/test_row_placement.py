# SPDX-License-Identifier: Apache-2.0
"""Every example gets a row with room for it, and rows are used well."""

import hypothesis
import numpy as np
from hypothesis import strategies as st

from dsbs_jax.data.batching import row_placement


@hypothesis.settings(max_examples=60)
@hypothesis.given(
  st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), min_size=1),
  st.integers(9, 30),
  st.integers(6, 20),
)
def test_first_fit_places_all_and_never_overlaps(lengths, inputs, targets):
  sources, goals = (np.array(side) for side in zip(*lengths, strict=True))
  placed = row_placement.first_fit(
    sources, goals, inputs=inputs, targets=targets
  )
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


def _first_rows(sources, goals, *, inputs, targets):
  """First-fit decreasing, one comparison after another."""
  size = np.maximum(sources / inputs, goals / targets)
  rows, chosen = [], np.zeros(len(sources), int)
  for example in np.argsort(-size, kind='stable'):
    need = np.array([sources[example], goals[example]])
    fits = [
      n for n, used in enumerate(rows) if all(used + need <= (inputs, targets))
    ]
    if not fits:
      rows.append(np.zeros(2, int))
      fits = [len(rows) - 1]
    chosen[example] = fits[0]
    rows[fits[0]] += need
  return chosen


def test_each_example_is_in_the_first_row_that_has_room():
  draw = np.random.default_rng(0)
  for num in (1, 2, 17, 200):
    sources, goals = draw.integers(1, 40, num), draw.integers(1, 30, num)
    limits = {'inputs': 64, 'targets': 48}
    placed = row_placement.first_fit(sources, goals, **limits)
    renumbered = row_placement.bit_reversal_order(placed.num_rows)
    rows = _first_rows(sources, goals, **limits)
    assert placed.row.tolist() == renumbered[rows].tolist()


def test_rows_are_filled_to_their_last_place():
  for inputs, targets in (([6, 4], [1, 1]), ([1, 1], [6, 4])):
    placed = row_placement.first_fit(
      np.array(inputs), np.array(targets), inputs=10, targets=10
    )
    assert placed.num_rows == 1


def test_rows_that_were_neighbours_end_up_far_apart():
  assert row_placement.bit_reversal_order(8).tolist() == [
    0,
    4,
    2,
    6,
    1,
    5,
    3,
    7,
  ]
  for num_rows in (1, 3, 12, 100):
    numbers = row_placement.bit_reversal_order(num_rows)
    assert sorted(numbers.tolist()) == list(range(num_rows))
