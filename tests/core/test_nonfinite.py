# SPDX-License-Identifier: Apache-2.0
"""A bad step changes nothing but the count; a good one is taken as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsbs_jax.core import optimizer, steps
from tests import models

PARAMS = {'kernel': jnp.float32([0.1, -0.2, 0.3])}


def _train_step(transformation):
  """Descends along the batch itself, whatever is in it."""

  def step(state, batch):
    updates, opt_state = transformation.update(
      {'kernel': batch}, state.opt_state, state.params
    )
    params = jax.tree.map(jnp.add, state.params, updates)
    finite = jnp.all(jnp.isfinite(batch)).astype(jnp.float32)
    new_state = state.replace(
      step=state.step + 1, params=params, opt_state=opt_state
    )
    return new_state, {'finite': finite}

  return step


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_a_bad_step_leaves_parameters_and_optimizer(value):
  adam = optimizer.adamw_hf(optimizer.linear_decay(0.1, total_steps=10))
  step = jax.jit(steps.skip_updates(_train_step(adam)))
  good = jnp.float32([1.0, -2.0, 0.5])
  before, _ = step(steps.state_from_params(PARAMS, adam), good)
  after, _ = step(before, good.at[1].set(value))
  jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
  jax.tree.map(np.testing.assert_array_equal, after.opt_state, before.opt_state)
  assert int(after.step) == int(before.step) + 1
  # The schedule stood still too: the next step is as if there had been none.
  resumed, _ = step(after, good)
  unbroken, _ = step(before, good)
  jax.tree.map(np.testing.assert_array_equal, resumed.params, unbroken.params)
  assert steps.all_finite(resumed)


def test_good_steps_are_taken_bit_for_bit():
  adam = optimizer.adamw_hf(optimizer.constant(0.1))
  plain = models.exact_jit(_train_step(adam))
  guarded = models.exact_jit(steps.skip_updates(_train_step(adam)))
  left = right = steps.state_from_params(PARAMS, adam)
  for seed in range(20):
    batch = jax.random.normal(jax.random.key(seed), (3,))
    left, _ = plain(left, batch)
    right, _ = guarded(right, batch)
  jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_one_number_is_enough(value):
  state = {'a': jnp.ones([2, 3]), 'count': jnp.int32(3)}
  assert steps.all_finite(state)
  state['a'] = state['a'].at[1, 2].set(value)
  assert not steps.all_finite(state)
