# SPDX-License-Identifier: Apache-2.0
"""Shapes are few, fit what they hold, and are not much larger than it."""

import pytest

from dsbs_jax.inference import length_buckets


def test_lengths_are_few():
  lengths = {
    length_buckets.next_bucket(length, 16) for length in range(1, 2049)
  }
  assert len(lengths) == 15 and max(lengths) == 2048
  assert all(length_buckets.next_bucket(n, 16) == n for n in lengths)
  assert all(
    length <= length_buckets.next_bucket(length, 16) < max(17, 1.5 * length + 1)
    for length in range(1, 2049)
  )


@pytest.mark.parametrize(
  ('longest', 'lengths'),
  [(1, (8,)), (8, (8,)), (9, (8, 12)), (64, (8, 32, 64)), (70, (8, 32, 96))],
)
def test_a_server_scores_outputs_of_few_lengths(longest, lengths):
  assert length_buckets.target_buckets(longest) == lengths


def test_the_next_larger_shape_is_taken():
  shapes = length_buckets.CompiledShapes((1, 4), (16, 64), (8,), (3,))
  assert [shapes.batch_size(num) for num in (1, 2, 4)] == [1, 4, 4]
  assert (shapes.input_length(16), shapes.input_length(17)) == (16, 64)
  assert (shapes.target_length(2), shapes.num_options(1), shapes.max_rows) == (
    8,
    3,
    4,
  )


@pytest.mark.parametrize('sizes', [(), (0,), (4, 2), (2, 2)])
def test_shapes_that_do_not_rise_are_refused(sizes):
  with pytest.raises(ValueError, match='rising'):
    length_buckets.CompiledShapes(sizes, (16,), (8,), (1,))
