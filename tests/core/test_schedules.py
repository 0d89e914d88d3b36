# SPDX-License-Identifier: Apache-2.0
"""Learning rates at the steps that matter."""

import numpy as np
import pytest

from dsbs_jax.core import schedules


def test_the_papers_schedule_has_the_logged_rates():
  schedule = schedules.linear_decay(5e-5, total_steps=10_000)
  rates = [float(schedule(step)) for step in (0, 250, 5_000, 10_000, 10_001)]
  np.testing.assert_allclose(rates, [5e-5, 4.875e-5, 2.5e-5, 0, 0], rtol=1e-6)


def test_warm_ups_rise_from_zero_and_meet_the_peak():
  linear = schedules.linear_decay(2.0, total_steps=30, warmup_steps=10)
  np.testing.assert_allclose(
    [linear(s) for s in (0, 5, 10, 20, 30)], [0, 1, 2, 1, 0], rtol=1e-6
  )
  flat = schedules.constant(2.0, warmup_steps=4)
  np.testing.assert_allclose([flat(s) for s in (0, 2, 4, 99)], [0, 1, 2, 2])
  root = schedules.rsqrt(1.0, warmup_steps=10_000)
  np.testing.assert_allclose(
    [root(s) for s in (0, 10_000, 40_000)], [0.01, 0.01, 0.005], rtol=1e-6
  )
  with pytest.raises(ValueError, match='warmup_steps is 10'):
    schedules.linear_decay(1.0, total_steps=10, warmup_steps=10)
  # A share of the run, as other libraries take it, would be no warm-up.
  for make in (schedules.linear_decay, schedules.constant, schedules.rsqrt):
    with pytest.raises(ValueError, match='warmup_steps is 0.06, .* whole'):
      make(1.0, warmup_steps=0.06)
