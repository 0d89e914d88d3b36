# SPDX-License-Identifier: Apache-2.0
"""Alpha over the run: as a slow reference has it, in the loss of every step."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from dsbs_jax.core import alpha_schedules, objective, optimizer, steps
from tests import models
from tests.core import test_steps
from tests.core.gradients import test_joined_views

POINTS = ((2, 0.9), (4, 0.5), (4, 0.2), (7, 0.6), (7, 0.1))


def slow_alpha(points, step):
  """Straight from the definition, in float64."""
  alpha = points[0][1]
  for (start, first), (end, last) in zip(points, points[1:], strict=False):
    if start <= step < end:
      alpha = first + (last - first) * (step - start) / (end - start)
    if step >= end:
      alpha = last
  return alpha


@pytest.mark.parametrize(
  ('schedule', 'points'),
  [
    (POINTS, POINTS),
    ([[3, 0.25]], ((3, 0.25),)),
    ('linear', ((0, 1.0), (10, 0.0))),
    ('tscl', ((0, 1.0), (3, 1.0), (3, 0.4), (7, 0.4), (7, 0.0))),
  ],
)
def test_alpha_is_linear_between_points_and_jumps_at_double_ones(
  schedule, points
):
  made = alpha_schedules.make(
    alpha_schedules.checked(schedule), alpha=0.4, total_steps=10
  )
  ours = [made(jnp.int32(step)) for step in range(13)]
  assert ours[0].dtype == jnp.float32
  expected = [slow_alpha(points, step) for step in range(13)]
  np.testing.assert_allclose(ours, expected, atol=1e-7)


def test_phases_have_their_alpha_exactly():
  """Far into a run too: a task of weight 0 has none, not nearly none."""
  at = alpha_schedules.make('tscl', alpha=0.3, total_steps=30_000)
  found = {step: float(at(jnp.int32(step))) for step in (9_999, 10_000, 19_999)}
  assert found == {9_999: 1.0, 10_000: np.float32(0.3), 19_999: np.float32(0.3)}
  assert float(at(jnp.int32(20_000))) == float(at(jnp.int32(29_999))) == 0.0


@pytest.mark.parametrize(
  'wrong',
  [
    'cosine',
    (),
    0.25,
    ((0, 1.5),),
    ((5, 0.5), (3, 0.2)),
    ((-1, 0.5),),
    ((0.5, 0.5),),
    ((0, 'x'),),
    ((0, float('nan')),),
  ],
)
def test_what_is_no_schedule_is_refused(wrong):
  with pytest.raises(ValueError, match='alpha_schedule is .*, expected None'):
    objective.Distillation(alpha_schedule=wrong)


def test_a_named_schedule_needs_to_know_the_length_of_the_run():
  with pytest.raises(ValueError, match="'tscl' in a run of 0 steps"):
    scheduled_step('tscl', total_steps=0)


def scheduled_step(schedule, make_optimizer=optimizer.adamw_hf, **options):
  return models.jit(
    steps.make_train_step(
      test_steps.CONFIG,
      objective.Distillation(alpha=0.3, alpha_schedule=schedule),
      make_optimizer(optimizer.linear_decay(0.01, total_steps=50)),
      run_key=test_steps.RUN_KEY,
      **options,
    )
  )


@functools.cache
def constant_step(alpha, make_optimizer):
  return models.jit(
    steps.make_train_step(
      test_steps.CONFIG,
      objective.Distillation(alpha=alpha),
      make_optimizer(optimizer.linear_decay(0.01, total_steps=50)),
      run_key=test_steps.RUN_KEY,
    )
  )


@pytest.mark.parametrize(
  ('make_optimizer', 'options'),
  [
    pytest.param(optimizer.adamw_hf, {}, marks=pytest.mark.long),
    (optimizer.adafactor, {'num_microbatches': 2, 'chunk_tokens': 5}),
  ],
)
def test_every_step_is_that_of_its_alpha(make_optimizer, options):
  """One program for all phases, against a program for each alpha."""
  step = scheduled_step('tscl', make_optimizer, total_steps=3, **options)
  batch = test_steps.make_mixture()
  state = steps.init_state(
    test_steps.RUN_KEY,
    test_steps.CONFIG,
    make_optimizer(optimizer.linear_decay(0.01, total_steps=50)),
  )
  for alpha in (1.0, 0.3, 0.0):
    expected, theirs = constant_step(alpha, make_optimizer)(state, batch)
    found, metrics = step(state, batch)
    assert metrics.pop('alpha') == np.float32(alpha)
    test_steps.assert_trees_close(metrics, theirs)
    test_steps.assert_steps_agree(found, expected)
    state = expected


@pytest.mark.long
@pytest.mark.parametrize('cells', [(1, 1), (2, 2)])
def test_joined_views_follow_the_schedule(cells):
  shards, parts = cells
  batch = test_joined_views.make_batch(*cells)
  state = test_steps.fresh_state()
  state = state.replace(step=state.step + 7)
  options = {'num_microbatches': parts, 'num_shards': shards}
  apart, joined = (
    scheduled_step(POINTS, join_views=join_views, **options)(state, batch)
    for join_views in (False, True)
  )
  test_joined_views.check(apart, joined)
  label, rationale = (
    apart[1][f'{term}/loss_sum'] / apart[1][f'{term}/tokens']
    for term in ('label', 'rationale')
  )
  np.testing.assert_allclose(
    joined[1]['loss'], 0.1 * label + 0.9 * rationale, rtol=1e-5
  )
