# SPDX-License-Identifier: Apache-2.0
"""Gemmas compute what transformers recorded, in every layout of their rows."""

import dataclasses

import jax
import numpy as np
import pytest

from dsbs_jax import contract
from dsbs_jax.core import (
  network,
  objective,
  optimizer,
  partitioning,
  schedules,
  steps,
)
from dsbs_jax.core.gemma import network as gemma_network
from dsbs_jax.core.gradients import batch_gradient
from tests import models
from tests.core import test_steps
from tests.core.gemma import recorded_gemma

pytestmark = pytest.mark.usefixtures('strict_promotion')
GEMMA3, T5GEMMA2 = recorded_gemma.GEMMA3, recorded_gemma.T5GEMMA2
INPUTS, TARGETS = GEMMA3.forward['inputs'], GEMMA3.forward['targets']
REAL = TARGETS > 0


@recorded_gemma.both
def test_sequences_are_longer_than_the_window(recorded):
  assert INPUTS.shape[1] > 2 * recorded.config.window
  assert TARGETS.shape[1] > recorded.config.window
  np.testing.assert_array_equal(recorded.forward['inputs'], INPUTS)
  np.testing.assert_array_equal(recorded.forward['targets'], TARGETS)


@recorded_gemma.both
@pytest.mark.parametrize(
  'changes',
  [{}, {'scan_layers': True, 'remat': 'full'}, {'remat': 'minimal'}],
  ids=['loop', 'scan', 'remat'],
)
def test_logits_are_those_of_transformers(recorded, changes):
  config = dataclasses.replace(recorded.config, **changes)
  rows = recorded_gemma.padded(INPUTS, TARGETS)
  found = recorded_gemma.apply(
    config, recorded.params(config.scan_layers), rows
  )
  np.testing.assert_allclose(
    found[REAL], recorded.forward['logits'][REAL], rtol=0, atol=2e-5
  )


@recorded_gemma.both
@pytest.mark.parametrize('flat', [False, True], ids=['rows', 'flat'])
def test_packed_rows_give_the_logits_of_examples_on_their_own(recorded, flat):
  rows = recorded_gemma.packed(INPUTS, TARGETS)
  rows = recorded_gemma.with_token_index(rows) if flat else rows
  found = recorded_gemma.apply(recorded.config, recorded.params(), rows)
  np.testing.assert_allclose(
    found[0, : REAL.sum()],
    recorded.forward['logits'][REAL],
    rtol=0,
    atol=2e-5,
  )


@recorded_gemma.both
@pytest.mark.parametrize('stack', ['encoder', 'decoder'])
def test_packed_rows_without_positions_are_refused(recorded, stack):
  rows = recorded_gemma.packed(INPUTS, TARGETS)
  del rows[f'{stack}_positions']
  with pytest.raises(ValueError, match=f'no {stack}_positions'):
    recorded_gemma.apply(recorded.config, recorded.params(), rows)


def test_inputs_see_what_follows_with_prefix_lm_alone():
  changed = INPUTS.copy()
  last = (changed > 0).sum(1) - 1
  before = np.arange(len(last)), last - 2
  changed[before] = 4 + (changed[before] + 1) % 90
  for prefix_lm in (False, True):
    config = dataclasses.replace(GEMMA3.config, prefix_lm=prefix_lm)
    encode = models.jit(
      lambda rows, config=config: gemma_network.encode(
        recorded_gemma.as_jax(GEMMA3.params()), config, rows
      )['layers_2']
    )
    one, other = (
      encode({'encoder_input_tokens': rows.astype(np.int32)}).value
      for rows in (INPUTS, changed)
    )
    first = np.abs(np.asarray(one - other))[:, :, 0].max(axis=(1, 2))
    assert np.all((first > 1e-6) == prefix_lm), first


def test_an_encoder_needs_no_prefix_lm():
  with pytest.raises(contract.UserError, match='an encoder sees all inputs'):
    dataclasses.replace(recorded_gemma.T5GEMMA2.config, prefix_lm=True)


@recorded_gemma.both
def test_bfloat16_stays_near(recorded):
  config = dataclasses.replace(recorded.config, dtype='bfloat16')
  rows = recorded_gemma.padded(INPUTS, TARGETS)
  found = recorded_gemma.apply(config, recorded.params(), rows)
  difference = np.abs(found - recorded.forward['logits'])[REAL]
  assert 1e-4 < difference.max() < 0.15
  assert found.dtype == np.float32


def _batch(recorded, step, layout=recorded_gemma.padded):
  views = {'label': 1, 'rationale': 2}
  return {
    view: layout(
      *(
        recorded.trajectory[f'{view}_{side}'][step]
        for side in ('inputs', 'targets')
      ),
      term=term,
    )
    for view, term in views.items()
  }


@pytest.mark.parametrize(
  ('recorded', 'chunk_tokens', 'view_of'),
  [
    # As one view: half of the program to compile.
    pytest.param(GEMMA3, 6, test_steps.as_mixture, id='gemma3-6-mixture'),
    pytest.param(GEMMA3, 6, dict, id='gemma3-6', marks=pytest.mark.long),
    pytest.param(GEMMA3, 0, dict, id='gemma3-0', marks=pytest.mark.long),
    pytest.param(T5GEMMA2, 6, dict, id='t5gemma2-6'),
    pytest.param(T5GEMMA2, 0, dict, id='t5gemma2-0', marks=pytest.mark.long),
  ],
)
def test_fifty_steps_of_adamw_are_retraced(recorded, chunk_tokens, view_of):
  transformation = optimizer.adamw(schedules.constant(2e-3), clip_norm=1.0)
  step_fn = models.jit(
    steps.make_train_step(
      recorded.config,
      objective.Distillation(alpha=0.5),
      transformation,
      run_key=jax.random.key(0),
      chunk_tokens=chunk_tokens,
    )
  )
  state = steps.state_from_params(
    recorded_gemma.as_jax(recorded.params()), transformation
  )
  losses, norms = recorded.trajectory['losses'], []
  found = []
  for step in range(len(losses)):
    state, metrics = step_fn(state, view_of(_batch(recorded, step)))
    means = [
      metrics[f'{term}/loss_sum'] / metrics[f'{term}/tokens']
      for term in ('label', 'rationale')
    ]
    found.append([*map(float, means), float(metrics['loss'])])
    norms.append(float(metrics['grad_norm']))
  np.testing.assert_allclose(found, losses, rtol=0, atol=5e-5)
  np.testing.assert_allclose(
    norms, recorded.trajectory['grad_norms'], rtol=1e-4
  )


@pytest.mark.long
@recorded_gemma.both
def test_joined_views_and_flat_rows_have_the_gradient_of_padded_ones(recorded):
  def flat(*args, **options):
    return recorded_gemma.with_token_index(
      recorded_gemma.packed(*args, **options)
    )

  def value_and_grad(batch, join_views):
    function = models.jit(
      lambda params, batch: batch_gradient.batch_value_and_grad(
        params,
        batch,
        config=recorded.config,
        distillation=objective.Distillation(alpha=0.3),
        dropout_key=jax.random.key(0),
        join_views=join_views,
      )
    )
    (loss, _), gradient = function(
      recorded_gemma.as_jax(recorded.params()), batch
    )
    return loss, gradient

  expected = value_and_grad(_batch(recorded, 0), False)
  found = value_and_grad(_batch(recorded, 0, flat), True)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    found,
    expected,
  )


@recorded_gemma.both
def test_dropout_needs_a_key_and_depends_on_it(recorded):
  config = dataclasses.replace(recorded.config, dropout_rate=0.5)
  rows = recorded_gemma.padded(INPUTS, TARGETS)
  function = models.jit(
    lambda params, key: network.apply(params, config, rows, dropout_key=key)
  )
  one, other = (
    np.asarray(function(recorded.params(), jax.random.key(seed)))[REAL]
    for seed in (0, 1)
  )
  assert np.abs(one - other).max() > 0.1
  assert np.abs(one - recorded.forward['logits'][REAL]).max() > 0.1


@recorded_gemma.both
@pytest.mark.parametrize('scan_layers', [False, True])
def test_each_parameter_has_one_row_of_the_sharding_tables(
  recorded, scan_layers
):
  config = dataclasses.replace(recorded.config, scan_layers=scan_layers)
  shapes = network.param_shapes(config)
  for rules in (
    partitioning.standard_rules(),
    partitioning.fully_sharded_rules(),
  ):
    partitioning.specs(shapes, rules)  # raises where there is not one


@recorded_gemma.both
def test_layouts_and_fresh_parameters_have_the_shapes_that_are_said(recorded):
  config = recorded.config
  scanned = dataclasses.replace(config, scan_layers=True)
  one, other = (
    network.init(jax.random.key(0), each) for each in (config, scanned)
  )
  models.assert_equal(network.unstack_layers(other, config), one)
  models.assert_equal(network.stack_layers(one, config), other)
  for params, each in ((one, config), (other, scanned)):
    jax.tree.map(
      lambda leaf, like: np.testing.assert_equal(leaf.shape, like.shape),
      params,
      network.param_shapes(each),
    )
  axes = jax.tree.leaves(
    network.tree(config).axes(), is_leaf=lambda x: isinstance(x, tuple)
  )
  ranks = [len(leaf.shape) for leaf in jax.tree.leaves(one)]
  assert [len(names) for names in axes] == ranks
