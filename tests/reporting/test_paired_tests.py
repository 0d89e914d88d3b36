# SPDX-License-Identifier: Apache-2.0
"""Both tests equal slow references, and closed forms where there are any."""

import math
import random

import numpy as np
import pytest
import scipy.stats

from dsbs_jax.reporting import paired_tests


def _slow_bootstrap(values, *, num_resamples, seed=7):
  """Means of resamples, drawn index by index; in ascending order."""
  draw = random.Random(seed)
  count = len(values)
  return sorted(
    sum(values[draw.randrange(count)] for _ in range(count)) / count
    for _ in range(num_resamples)
  )


def _mixed(counts):
  """[1, ..., 0, ..., -1, ...] by how often each occurs."""
  return [value for value, count in counts.items() for _ in range(count)]


def test_seeds_are_students_paired_t_test():
  first, second = [61.0, 64.5, 60.25, 66.0], [60.0, 61.0, 60.5, 62.0]
  found = paired_tests.over_seeds(np.subtract(first, second))
  expected = scipy.stats.ttest_rel(first, second)
  interval = expected.confidence_interval(0.95)
  assert found.mean == pytest.approx(2.0625, rel=1e-12)
  assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
  assert (found.low, found.high) == pytest.approx(tuple(interval), rel=1e-9)
  assert found.count == 4


def test_two_seeds_have_cauchys_interval():
  # One degree of freedom: t(0.975) = tan(pi (0.975 - 0.5)), error |d1 - d2| / 2.
  found = paired_tests.over_seeds([3.0, 5.0])
  assert found.error == pytest.approx(1.0, rel=1e-12)
  assert found.high == pytest.approx(4 + math.tan(0.475 * math.pi), rel=1e-9)
  assert not found.is_shown


def test_one_seed_and_equal_seeds_claim_nothing_of_chance():
  one = paired_tests.over_seeds([4.0])
  assert (one.mean, one.error, one.low, one.p_value) == (4.0, None, None, None)
  assert not one.is_shown
  equal = paired_tests.over_seeds([0.1 + 0.2, 0.3, 0.3])
  assert (equal.error, equal.p_value) == (0.0, None)
  assert equal.low == equal.high == equal.mean


@pytest.mark.parametrize(
  'counts',
  [
    {1: 36, 0: 100, -1: 24},
    {1: 12, 2 / 3: 16, 1 / 3: 20, 0: 80, -1 / 3: 24, -1: 8},
  ],
)
def test_examples_are_bootstrapped_as_by_hand(counts):
  values = _mixed(counts)
  found = paired_tests.over_examples(values)
  means = _slow_bootstrap(values, num_resamples=4000)
  assert found.mean == pytest.approx(sum(values) / len(values), rel=1e-12)
  # 4,000 resamples know a deviation to 1 / sqrt(8000), and so on.
  assert found.error == pytest.approx(np.std(means), rel=0.04)
  assert found.low == pytest.approx(means[100], abs=0.2 * found.error)
  assert found.high == pytest.approx(means[3899], abs=0.2 * found.error)


def test_examples_equal_scipys_bootstrap():
  values = np.array(_mixed({1: 30, 0: 150, -1: 20}), float)
  expected = scipy.stats.bootstrap(
    (values,), np.mean, n_resamples=5000, method='percentile', rng=1
  )
  found = paired_tests.over_examples(values)
  assert found.error == pytest.approx(expected.standard_error, rel=0.04)
  interval = expected.confidence_interval
  assert found.low == pytest.approx(interval.low, abs=0.2 * found.error)
  assert found.high == pytest.approx(interval.high, abs=0.2 * found.error)


def test_zeros_and_ones_are_binomial():
  # The mean of a resample is Binomial(n, k / n) / n.
  size, ones = 200, 50
  found = paired_tests.over_examples([1] * ones + [0] * (size - ones))
  share = ones / size
  error = math.sqrt(share * (1 - share) / size)
  assert found.error == pytest.approx(error, rel=0.03)
  law = scipy.stats.binom(size, share)
  assert found.low == pytest.approx(law.ppf(0.025) / size, abs=1.5 / size)
  assert found.high == pytest.approx(law.ppf(0.975) / size, abs=1.5 / size)


def test_equal_examples_have_no_error_and_one_has_none():
  same = paired_tests.over_examples([1, 1, 1])
  assert (same.error, same.low, same.high) == (0.0, 1.0, 1.0)
  assert paired_tests.over_examples([1]).error is None


def test_equal_answers_give_equal_numbers():
  values = _mixed({1: 36, 0: 100, -1: 24})
  once = paired_tests.over_examples(values)
  assert once == paired_tests.over_examples(values[::-1])
  other = paired_tests.over_examples(np.negative(values)).negated()
  assert other.mean == once.mean
  assert other.low == pytest.approx(once.low, abs=0.2 * once.error)


def test_an_interval_that_touches_zero_shows_nothing():
  def at(low, high):
    return paired_tests.Difference(1.0, 0.5, low, high, 3)

  assert at(0.1, 2.0).is_shown
  assert at(-2.0, -0.1).is_shown
  assert not at(0.0, 2.0).is_shown
  assert not at(-1.0, 2.0).is_shown
