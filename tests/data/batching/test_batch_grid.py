# SPDX-License-Identifier: Apache-2.0
"""Each cell lists the tokens of its own rows, as the train step deals them."""

import hypothesis
import numpy as np
from hypothesis import strategies as st

from dsbs_jax.data.batching import batch_grid


@hypothesis.given(
  shards=st.integers(1, 3),
  parts=st.integers(1, 3),
  rows_each=st.integers(1, 3),
  length=st.integers(1, 5),
  seed=st.integers(0, 99),
)
@hypothesis.settings(max_examples=60)
def test_token_indices_are_those_of_the_rows_that_the_step_deals(
  shards, parts, rows_each, length, seed
):
  num_rows = shards * parts * rows_each
  real = np.random.default_rng(seed).random((num_rows, length)) < 0.6
  filled = np.flatnonzero(real.reshape(-1))
  grid = batch_grid.BatchGrid(shards, parts)
  slots = grid.num_cells * rows_each * length
  token_index = grid.token_index(
    np.random.default_rng(1).permutation(filled),
    shape=(num_rows, length),
    slots=slots,
  )
  # As the train step deals them: blocks of shards, then every parts-th row.
  dealt = real.reshape(shards, rows_each, parts, length)
  fullest = 0
  for number, own in enumerate(token_index):
    shard, part = divmod(number, parts)
    expected = np.flatnonzero(dealt[shard, :, part].reshape(-1))
    assert own[: len(expected)].tolist() == expected.tolist()
    assert set(own[len(expected) :]) <= {rows_each * length}
    fullest = max(fullest, len(expected))
  lengths = real.sum(axis=1)
  rows = np.arange(num_rows)
  assert grid.max_tokens(rows, lengths, num_rows=num_rows) == fullest


def test_no_tokens_leave_all_slots_empty():
  token_index = batch_grid.BatchGrid(2, 1).token_index(
    np.zeros(0, np.int64), shape=(4, 5), slots=12
  )
  assert token_index.tolist() == [[10] * 6] * 2
