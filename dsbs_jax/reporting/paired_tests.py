# SPDX-License-Identifier: Apache-2.0
"""Is one method better than another: a test over seeds, and one over examples.

The two answer different questions. Over seeds: would the difference be there
if both were trained again? Over examples: would it be there on other examples
of the same kind, for just these students?
"""

import dataclasses
from collections.abc import Sequence
from typing import Self

import numpy as np
import scipy.stats

CONFIDENCE = 0.95
NUM_RESAMPLES = 10_000
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Difference:
  """A mean difference in the unit of what was compared.

  Of a single value there is neither an error nor an interval.
  """

  mean: float
  error: float | None  # standard error of the mean
  low: float | None  # of the 95 % confidence interval
  high: float | None
  count: int  # of the differences
  # Of the hypothesis that the mean is 0; None where it is not tested.
  p_value: float | None = None

  @property
  def is_shown(self) -> bool:
    """Whether the interval is there and leaves 0 out."""
    return self.low is not None and not self.low <= 0 <= self.high

  def negated(self) -> Self:
    """The same of the second minus the first."""
    low, high = self.low, self.high
    if low is not None:
      low, high = -high, -low
    return dataclasses.replace(self, mean=-self.mean, low=low, high=high)


def over_seeds(differences: Sequence[float]) -> Difference:
  """The paired t-test: is the mean difference of runs with equal seeds 0?

  With n differences d of mean m and standard deviation s (dividing by n - 1),
  the error is s / sqrt(n), t = m / error has Student's distribution with n - 1
  degrees of freedom, and the interval is m ± t(0.975, n - 1) error. Three seeds
  have t(0.975, 2) = 4.30: few seeds show large differences only. Source:
  Student 1908, The Probable Error of a Mean; for learned models Dror et al.
  2018, The Hitchhiker's Guide to Testing Statistical Significance in NLP.

  Args:
    differences: one per seed, first method minus second.

  Returns:
    Without error and interval for one seed. Equal differences have the
    interval [m, m] and no p-value: their t would be infinite.
  """
  values = np.asarray(differences, np.float64)
  mean, count = float(values.mean()), len(values)
  if count == 1:
    return Difference(mean, None, None, None, 1)
  error = float(values.std(ddof=1) / np.sqrt(count))
  if error <= 1e-12 * max(1.0, float(np.abs(values).max())):
    return Difference(mean, 0.0, mean, mean, count)
  student = scipy.stats.t(count - 1)
  margin = float(student.ppf((1 + CONFIDENCE) / 2)) * error
  p_value = float(2 * student.sf(abs(mean) / error))
  return Difference(mean, error, mean - margin, mean + margin, count, p_value)


def over_examples(differences: Sequence[float] | np.ndarray) -> Difference:
  """The paired bootstrap: how much the mean differs on other examples.

  From n examples n are drawn with replacement, 10,000 times, both methods'
  answers to an example together; the error is the standard deviation of the
  10,000 means, the interval reaches from their 2.5 to their 97.5 percentile.
  The means are drawn by how often each value occurs: the number of times that
  the k-th value, which n_k of n examples have, is drawn is multinomial with
  probabilities n_k / n, which is the same distribution and takes no time. The
  random seed is fixed: equal answers give equal numbers. Source: Efron and
  Tibshirani 1993, An Introduction to the Bootstrap, chapters 6 and 13; paired
  by example as in Koehn 2004, Statistical Significance Tests for Machine
  Translation Evaluation.

  Args:
    differences: [N], of one example each, first method minus second.

  Returns:
    Without error and interval for one example; there is no p-value.
  """
  values, counts = np.unique(
    np.asarray(differences, np.float64), return_counts=True
  )
  size = int(counts.sum())
  mean = float(values @ counts / size)
  if size == 1:
    return Difference(mean, None, None, None, 1)
  drawn = np.random.default_rng(_SEED).multinomial(
    size, counts / size, size=NUM_RESAMPLES
  )
  means = drawn @ values / size
  tail = (1 - CONFIDENCE) / 2
  low, high = np.quantile(means, [tail, 1 - tail])
  return Difference(mean, float(means.std()), float(low), float(high), size)
