# SPDX-License-Identifier: Apache-2.0
"""The training step: exact under accumulation, blind to padding, repeatable."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsbs_jax.contract import LABEL_ID, RATIONALE_ID
from dsbs_jax.core import network, objective, optimizer, steps
from tests import models

CONFIG = models.t5(vocab_size=50, mlp_dim=24, dropout_rate=0.0)
RUN_KEY = jax.random.key(3)


def make_rows(seed, *, longest, term, num_rows=8, length=11):
  """Rows of one shape, whose targets have up to `longest` tokens."""
  random = np.random.default_rng(seed)

  def ragged(longest):
    real = np.arange(length) < random.integers(2, longest + 1, (num_rows, 1))
    return np.where(real, random.integers(2, 50, (num_rows, length)), 0)

  targets = ragged(longest)
  return {
    'encoder_input_tokens': ragged(length).astype(np.int32),
    'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1].astype(
      np.int32
    ),
    'decoder_target_tokens': targets.astype(np.int32),
    'decoder_loss_weights': (targets > 0).astype(np.float32),
    'decoder_task_ids': np.where(targets > 0, term, 0).astype(np.int32),
  }


def make_batch():
  """A paired batch."""
  return {
    'label': make_rows(0, longest=4, term=LABEL_ID),
    'rationale': make_rows(1, longest=11, term=RATIONALE_ID),
  }


def as_mixture(batch):
  """The same rows [..., B, T] as one view: half of the program to compile."""

  def joined(*views):
    length = max(view.shape[-1] for view in views)
    padded = [
      np.pad(view, [(0, 0)] * (view.ndim - 1) + [(0, length - view.shape[-1])])
      for view in views
    ]
    return np.concatenate(padded, axis=-2)

  return {'mixture': jax.tree.map(joined, *batch.values())}


def make_mixture():
  return as_mixture(make_batch())


@functools.cache
def jitted_step(
  config=CONFIG,
  alpha=0.3,
  verdict_weight=0.0,
  counterfactual_weight=0.0,
  **options,
):
  transformation = make_optimizer()
  return models.jit(
    steps.make_train_step(
      config,
      objective.Distillation(
        alpha=alpha,
        verdict_weight=verdict_weight,
        counterfactual_weight=counterfactual_weight,
      ),
      transformation,
      run_key=RUN_KEY,
      **options,
    )
  )


@models.jit
def logits_of(params, rows):
  return network.apply(params, CONFIG, rows)


def make_optimizer():
  return optimizer.adamw_hf(optimizer.linear_decay(0.01, total_steps=50))


@functools.cache
def fresh_state():
  init = jax.jit(lambda key: steps.init_state(key, CONFIG, make_optimizer()))
  return init(jax.random.key(0))


def assert_trees_close(ours, expected, rtol=1e-5, atol=0.0):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
    ours,
    expected,
  )


def assert_steps_agree(ours, expected):
  """Moments to rounding. Adam divides by them, which magnifies rounding."""
  assert_trees_close(ours.opt_state, expected.opt_state, rtol=1e-4, atol=1e-8)
  assert_trees_close(ours.params, expected.params, rtol=0, atol=2e-5)


def test_a_gradient_beyond_float32_is_not_finite_though_the_loss_is():
  state = fresh_state()
  factors = {'decoder_norm': 1e22, 'logits_dense': 1e-8}
  steep = jax.tree_util.tree_map_with_path(
    lambda path, leaf: (
      np.asarray(leaf) * np.float32(factors.get(path[1].key, 1.0))
    ),
    state.params,
  )
  _, metrics = jitted_step()(state.replace(params=steep), make_batch())
  assert np.isfinite(metrics['loss']) and not np.isfinite(metrics['grad_norm'])
  assert metrics['finite'] == 0


def test_metrics_equal_a_float64_reference_of_the_logits():
  batch, state = make_batch(), fresh_state()
  _, metrics = jitted_step()(state, batch)
  total = 0.0
  for term, weight in (('label', 0.3), ('rationale', 0.7)):
    rows = batch[term]
    logits = np.asarray(logits_of(state.params, rows), np.float64)
    loss_sum, correct = 0.0, 0
    for position in zip(*np.nonzero(rows['decoder_loss_weights']), strict=True):
      target = rows['decoder_target_tokens'][position]
      scores = logits[position]
      loss_sum += np.log(np.sum(np.exp(scores))) - scores[target]
      correct += np.argmax(scores) == target
    tokens = np.sum(rows['decoder_loss_weights'])
    np.testing.assert_allclose(metrics[f'{term}/loss_sum'], loss_sum, rtol=1e-5)
    assert metrics[f'{term}/tokens'] == tokens
    assert metrics[f'{term}/correct'] == correct
    total += weight * loss_sum / tokens
  np.testing.assert_allclose(metrics['loss'], total, rtol=1e-5)
  np.testing.assert_allclose(metrics['learning_rate'], 0.01, rtol=1e-6)
  assert metrics['finite'] == 1


def test_gradient_norm_is_that_before_clipping():
  rows, state = make_mixture()['mixture'], fresh_state()
  label = rows['decoder_task_ids'] == LABEL_ID
  weights = rows['decoder_loss_weights'] * np.where(
    label, 0.3 / np.sum(label), 0.7 / np.sum(rows['decoder_task_ids'] == 2)
  )

  def loss_of(params):
    log_probs = jax.nn.log_softmax(network.apply(params, CONFIG, rows))
    picked = jnp.take_along_axis(
      log_probs, rows['decoder_target_tokens'][..., None], -1
    )[..., 0]
    return -jnp.sum(picked * weights)

  gradient_of = models.jit(jax.grad(loss_of))
  gradients = jax.tree.leaves(gradient_of(state.params))
  norm = norm_of(*gradients)
  _, metrics = jitted_step()(state, make_mixture())
  assert norm > 1.1  # clipped at 1, so the two norms differ
  np.testing.assert_allclose(metrics['grad_norm'], norm, rtol=1e-5)


def norm_of(*leaves):
  leaves = (np.asarray(leaf, np.float64) for leaf in leaves)
  return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in leaves))


def test_update_norms_are_those_of_what_changed():
  """As applied: clipped, by the optimizer, times the learning rate."""
  state = fresh_state()
  after, metrics = jitted_step()(state, make_mixture())
  old, new = (jax.tree.leaves(tree.params) for tree in (state, after))
  update = norm_of(
    *(np.asarray(b) - np.asarray(a) for a, b in zip(old, new, strict=True))
  )
  assert update > 0.1
  np.testing.assert_allclose(metrics['update_norm'], update, rtol=1e-5)
  np.testing.assert_allclose(metrics['param_norm'], norm_of(*new), rtol=1e-6)
  np.testing.assert_allclose(
    metrics['relative_update'], update / norm_of(*new), rtol=1e-5
  )


def test_two_views_equal_one_mixture_of_them():
  state, metrics = jitted_step()(fresh_state(), make_batch())
  mixed_state, mixed_metrics = jitted_step()(fresh_state(), make_mixture())
  assert_trees_close(mixed_metrics, metrics)
  assert_steps_agree(mixed_state, state)


@pytest.mark.long
def test_microbatches_and_chunks_of_views_keep_the_step():
  state, metrics = jitted_step()(fresh_state(), make_batch())
  cut = jitted_step(num_microbatches=4, chunk_tokens=5)
  cut_state, cut_metrics = cut(fresh_state(), make_batch())
  assert_trees_close(cut_metrics, metrics)
  assert_steps_agree(cut_state, state)


def test_microbatches_of_single_rows_and_chunks_keep_the_step():
  state, metrics = jitted_step()(fresh_state(), make_mixture())
  cut = jitted_step(num_microbatches=16, chunk_tokens=5)
  cut_state, cut_metrics = cut(fresh_state(), make_mixture())
  assert_trees_close(cut_metrics, metrics)
  assert_steps_agree(cut_state, state)


def test_padding_rows_and_positions_are_inert():
  batch = make_mixture()
  padded = jax.tree.map(lambda x: np.pad(x, ((0, 4), (0, 5))), batch)
  state, metrics = jitted_step()(fresh_state(), batch)
  padded_state, padded_metrics = jitted_step()(fresh_state(), padded)
  assert_trees_close(padded_metrics, metrics)
  assert_steps_agree(padded_state, state)


def test_dropout_follows_the_run_key_and_the_step():
  config = dataclasses.replace(CONFIG, dropout_rate=0.2)
  step, batch, state = jitted_step(config), make_mixture(), fresh_state()
  one, two = step(state, batch), step(state, batch)
  jax.tree.map(np.testing.assert_array_equal, one, two)
  _, later = step(state.replace(step=state.step + 1), batch)
  _, undropped = jitted_step()(state, batch)
  losses = [metrics['loss'] for metrics in (one[1], later, undropped)]
  assert min(np.abs(np.diff([*losses, losses[0]]))) > 1e-3


def test_numbers_that_are_not_finite_are_told():
  state = fresh_state()
  broken = state.replace(
    params=jax.tree.map(lambda p: np.full_like(p, np.nan), state.params)
  )
  _, metrics = jitted_step()(broken, make_mixture())
  assert metrics['finite'] == 0


def test_tied_logits_and_stacked_layers_learn():
  config = dataclasses.replace(
    CONFIG, logits_via_embedding=True, scan_layers=True
  )
  step = jitted_step(config, chunk_tokens=40)
  state = steps.init_state(jax.random.key(0), config, make_optimizer())
  history = []
  for _ in range(30):
    state, metrics = step(state, make_mixture())
    history.append(metrics)
  assert state.step == 30
  for term in ('label', 'rationale'):
    name = f'{term}/loss_sum'
    assert history[-1][name] < 0.5 * history[0][name]


def test_unknown_views_are_refused():
  with pytest.raises(ValueError, match="views \\['surprise'\\]"):
    jitted_step()(fresh_state(), {'surprise': make_batch()['label']})
  with pytest.raises(ValueError, match='views'):
    jitted_step()(fresh_state(), {})


def test_microbatches_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match='8 rows or cells, which 3 microbatches'):
    jitted_step(num_microbatches=3)(fresh_state(), make_batch())
  with pytest.raises(ValueError, match='num_microbatches is 0'):
    jitted_step(num_microbatches=0)(fresh_state(), make_batch())
