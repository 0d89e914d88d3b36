# SPDX-License-Identifier: Apache-2.0
"""The objective against a float64 reference, and what must not change it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsbs_jax import contract
from dsbs_jax.contract import LABEL_ID, RATIONALE_ID
from dsbs_jax.core import objective
from dsbs_jax.core.losses import cross_entropy, weighted_loss

VOCAB = 11
WIDTH = 5


def make_rows(seed, num_rows, length, ids=(LABEL_ID, RATIONALE_ID)):
  """Row groups of ragged targets, each row of one of the given terms."""
  random = np.random.default_rng(seed)
  real = np.arange(length) < random.integers(1, length + 1, (num_rows, 1))
  term = random.choice(ids, (num_rows, 1))
  targets = np.where(real, random.integers(1, VOCAB, (num_rows, length)), 0)
  return {
    'decoder_target_tokens': targets.astype(np.int32),
    'decoder_loss_weights': real.astype(np.float32),
    'decoder_task_ids': np.where(real, term, 0).astype(np.int32),
  }


def make_hidden(seed, rows):
  random = np.random.default_rng(1000 + seed)
  shape = rows['decoder_target_tokens'].shape + (WIDTH,)
  return random.normal(size=shape).astype(np.float32)


def make_kernel():
  random = np.random.default_rng(7)
  return 2 * random.normal(size=(WIDTH, VOCAB)).astype(np.float32)


def logits_fn(kernel, hidden):
  return hidden @ kernel


def slow_token_loss(logits, target, z_loss, smoothing):
  """One token's loss in float64, straight from the formula."""
  logits = np.asarray(logits, np.float64)
  log_normalizer = np.log(np.sum(np.exp(logits)))
  wanted = np.full(len(logits), smoothing / (len(logits) - 1))
  wanted[target] = 1 - smoothing
  loss = -np.sum(wanted * (logits - log_normalizer))
  entropy = -sum(q * np.log(q) for q in wanted if q > 0)
  return loss + z_loss * log_normalizer**2 - entropy


def slow_objective(config, batch, logits):
  """Token means in float64, one token at a time."""
  ids = contract.TASK_IDS.values()
  sums, counts = dict.fromkeys(ids, 0.0), dict.fromkeys(ids, 0)
  for view, rows in batch.items():
    for row, column in np.ndindex(rows['decoder_target_tokens'].shape):
      if rows['decoder_loss_weights'][row, column]:
        term = int(rows['decoder_task_ids'][row, column])
        counts[term] += 1
        sums[term] += slow_token_loss(
          logits[view][row, column],
          rows['decoder_target_tokens'][row, column],
          config.z_loss,
          config.label_smoothing,
        )
  label, rationale, verdict, counterfactual, _ = (
    sums[term] / counts[term] if counts[term] else 0.0 for term in ids
  )
  paper = config.alpha * label + (1 - config.alpha) * rationale
  return (
    paper
    + config.verdict_weight * verdict
    + config.counterfactual_weight * counterfactual
  )


@functools.partial(jax.jit, static_argnames=('config', 'chunk_tokens'))
def whole_loss(config, batch, hidden, kernel, chunk_tokens=0):
  counts = weighted_loss.token_counts(config, batch)
  parts = [
    weighted_loss.rows_loss(
      config,
      hidden[view],
      rows,
      counts=counts,
      logits_fn=logits_fn,
      logits_params=kernel,
      chunk_tokens=chunk_tokens,
    )
    for view, rows in batch.items()
  ]
  loss, sums = jax.tree.map(lambda *terms: sum(terms), *parts)
  return loss, sums


def paired_batch():
  batch = {
    'label': make_rows(0, 6, 4, [LABEL_ID]),
    'rationale': make_rows(1, 6, 13, [RATIONALE_ID]),
  }
  return batch, {v: make_hidden(i, batch[v]) for i, v in enumerate(batch)}


def mixed_batch():
  batch = {'mixture': make_rows(2, 9, 7)}
  return batch, {'mixture': make_hidden(2, batch['mixture'])}


def all_tasks():
  batch = {'mixture': make_rows(2, 9, 7, list(contract.TASK_IDS.values()))}
  return batch, {'mixture': make_hidden(2, batch['mixture'])}


@pytest.mark.parametrize(
  ('make_batch', 'alpha', 'extras'),
  [
    (paired_batch, 0.0, {}),
    (paired_batch, 0.3, {'z_loss': 0.01}),
    (paired_batch, 1.0, {'label_smoothing': 0.1}),
    (mixed_batch, 0.0, {'z_loss': 0.01}),
    (mixed_batch, 0.3, {'label_smoothing': 0.1}),
    (mixed_batch, 0.5, {}),
    (mixed_batch, 1.0, {}),
  ],
)
def test_loss_equals_the_float64_reference(make_batch, alpha, extras):
  batch, hidden = make_batch()
  config = objective.Distillation(alpha=alpha, **extras)
  kernel = make_kernel()
  logits = {
    view: states.astype(np.float64) @ kernel for view, states in hidden.items()
  }
  expected = slow_objective(config, batch, logits)
  ours, _ = whole_loss(config, batch, hidden, kernel)
  np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.parametrize('weight', [0.0, 0.7])
@pytest.mark.parametrize('task', ['verdict', 'counterfactual'])
def test_further_tasks_are_terms_with_a_weight_of_their_own(task, weight):
  batch, hidden = all_tasks()
  # Some targets are only read.
  batch['mixture']['decoder_loss_weights'][:, 1] = 0.0
  batch['mixture']['decoder_task_ids'][:, 1] = 0
  config = objective.Distillation(alpha=0.3, **{f'{task}_weight': weight})
  kernel = make_kernel()
  logits = {'mixture': hidden['mixture'].astype(np.float64) @ kernel}
  expected = slow_objective(config, batch, logits)
  loss, sums = whole_loss(config, batch, hidden, kernel)
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  chunked, _ = whole_loss(config, batch, hidden, kernel, chunk_tokens=20)
  np.testing.assert_allclose(chunked, expected, rtol=1e-6)
  # Without a weight the task is no part of the program.
  assert (f'{task}/loss_sum' in sums) == (weight > 0)
  assert config.further_tasks == ((task,) if weight else ())


def add_soft_targets(rows, seed=5, width=3):
  """Soft targets of invented tokens on half of the real positions."""
  random = np.random.default_rng(seed)
  shape = rows['decoder_target_tokens'].shape
  ids = np.argsort(random.random((*shape, VOCAB)), axis=-1)[..., :width]
  probs = random.dirichlet(np.ones(width), shape) * (
    random.random((*shape, 1)) < 0.5
  )
  return rows | {
    'decoder_soft_ids': ids.astype(np.int32),
    'decoder_soft_probs': probs.astype(np.float32),
  }


def slow_soft_term(rows, logits, temperature):
  """T^2 KL(q || softmax(logits / T)) in float64, and how many there are."""
  total, count = 0.0, 0
  for place in np.ndindex(rows['decoder_target_tokens'].shape):
    probs = rows['decoder_soft_probs'][place].astype(np.float64)
    if not rows['decoder_loss_weights'][place] or not probs.any():
      continue
    scaled = logits[place] / temperature
    log_predicted = scaled - np.log(np.sum(np.exp(scaled)))
    for token, prob in zip(rows['decoder_soft_ids'][place], probs, strict=True):
      total += temperature**2 * prob * (np.log(prob) - log_predicted[token])
    count += 1
  return total, count


@pytest.mark.parametrize('temperature', [1.0, 3.0])
@pytest.mark.parametrize('chunk_tokens', [0, 20])
def test_soft_labels_equal_the_float64_reference(temperature, chunk_tokens):
  batch, hidden = paired_batch()
  batch['label'] = add_soft_targets(batch['label'])
  config = objective.Distillation(
    alpha=0.3, soft_label_weight=0.6, soft_label_temperature=temperature
  )
  kernel = make_kernel()
  logits = {v: h.astype(np.float64) @ kernel for v, h in hidden.items()}
  total, count = slow_soft_term(batch['label'], logits['label'], temperature)
  assert count > 3
  expected = slow_objective(config, batch, logits) + 0.6 * total / count
  loss, sums = whole_loss(config, batch, hidden, kernel, chunk_tokens)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(sums['soft_labels/loss_sum'], total, rtol=1e-5)
  assert sums['soft_labels/tokens'] == count


def test_soft_labels_without_a_weight_change_nothing():
  batch, hidden = paired_batch()
  config, kernel = objective.Distillation(alpha=0.3), make_kernel()
  plain, plain_sums = whole_loss(config, batch, hidden, kernel)
  batch['label'] = add_soft_targets(batch['label'])
  loss, sums = whole_loss(config, batch, hidden, kernel)
  assert loss == plain and sums.keys() == plain_sums.keys()


def test_a_student_that_agrees_with_its_teacher_has_no_soft_loss():
  """And its gradient is zero: the term's minimum is the teacher itself."""
  rows = add_soft_targets(make_rows(4, 3, 4, [LABEL_ID]), width=VOCAB)
  probs = rows['decoder_soft_probs']
  agreed = np.log(np.maximum(probs, 1e-30)) * 2.0  # at temperature 2

  def loss_of(logits):
    return jnp.sum(
      cross_entropy.soft_losses(
        logits,
        rows['decoder_soft_ids'],
        probs,
        temperature=2.0,
      )
    )

  logits = np.zeros_like(agreed)
  np.put_along_axis(logits, rows['decoder_soft_ids'], agreed, axis=-1)
  loss, gradient = jax.jit(jax.value_and_grad(loss_of))(
    logits.astype(np.float32)
  )
  np.testing.assert_allclose(loss, 0.0, atol=1e-4)
  np.testing.assert_allclose(gradient, 0.0, atol=1e-5)


def test_the_two_means_are_not_one_mean_over_the_union():
  batch, hidden = paired_batch()
  kernel = make_kernel()
  loss, sums = whole_loss(objective.Distillation(), batch, hidden, kernel)
  union = (sums['label/loss_sum'] + sums['rationale/loss_sum']) / (
    sums['label/tokens'] + sums['rationale/tokens']
  )
  assert abs(loss - union) > 1e-2
  label, rationale = (
    sums[f'{term}/loss_sum'] / sums[f'{term}/tokens']
    for term in ('label', 'rationale')
  )
  np.testing.assert_allclose(loss, (label + rationale) / 2, rtol=1e-6)


def test_gradient_equals_finite_differences_of_the_reference():
  batch, hidden = mixed_batch()
  config = objective.Distillation(alpha=0.3, z_loss=0.01, label_smoothing=0.05)
  kernel = make_kernel().astype(np.float64)

  def reference(kernel):
    return slow_objective(
      config, batch, {'mixture': hidden['mixture'] @ kernel}
    )

  gradient = np.asarray(
    jax.jit(jax.grad(lambda k: whole_loss(config, batch, hidden, k)[0]))(
      kernel.astype(np.float32)
    )
  )
  for index in [(0, 0), (2, 3), (4, 10), (1, 7)]:
    nudge = np.zeros_like(kernel)
    nudge[index] = 1e-5
    slope = (reference(kernel + nudge) - reference(kernel - nudge)) / 2e-5
    np.testing.assert_allclose(gradient[index], slope, rtol=2e-5, atol=1e-7)


def test_padding_is_inert():
  batch, hidden = mixed_batch()
  kernel = make_kernel()
  config = objective.Distillation(z_loss=0.01)
  padded = {
    name: np.pad(array, ((0, 3), (0, 5)))
    for name, array in batch['mixture'].items()
  }
  states = np.pad(
    hidden['mixture'], ((0, 3), (0, 5), (0, 0)), constant_values=9.0
  )
  loss, sums = whole_loss(config, batch, hidden, kernel)
  loss_padded, sums_padded = whole_loss(
    config, {'mixture': padded}, {'mixture': states}, kernel
  )
  np.testing.assert_allclose(loss_padded, loss, rtol=1e-6)
  for name in sums:
    np.testing.assert_allclose(sums_padded[name], sums[name], rtol=1e-6)


def test_cutting_rows_anywhere_keeps_the_loss():
  batch, hidden = mixed_batch()
  kernel = make_kernel()
  config = objective.Distillation(alpha=0.2)
  whole, _ = whole_loss(config, batch, hidden, kernel)

  @jax.jit
  def in_parts(batch, hidden):
    counts = weighted_loss.token_counts(config, batch)
    return sum(
      weighted_loss.rows_loss(
        config,
        hidden['mixture'][span],
        {name: array[span] for name, array in batch['mixture'].items()},
        counts=counts,
        logits_fn=logits_fn,
        logits_params=kernel,
      )[0]
      for span in (slice(0, 1), slice(1, 5), slice(5, 9))
    )

  np.testing.assert_allclose(in_parts(batch, hidden), whole, rtol=1e-6)


def test_a_term_without_tokens_contributes_zero():
  rows = make_rows(3, 4, 5, [LABEL_ID])
  batch = {'mixture': rows}
  hidden = {'mixture': make_hidden(3, rows)}
  config = objective.Distillation(alpha=0.25)

  def loss_of(kernel):
    return whole_loss(config, batch, hidden, kernel)

  (loss, sums), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(
    make_kernel()
  )
  label = sums['label/loss_sum'] / sums['label/tokens']
  np.testing.assert_allclose(loss, 0.25 * label, rtol=1e-6)
  assert sums['rationale/tokens'] == 0
  assert np.all(np.isfinite(gradient))


def test_correct_counts_argmax_hits():
  batch, hidden = mixed_batch()
  kernel = make_kernel()
  rows = batch['mixture']
  _, sums = whole_loss(objective.Distillation(), batch, hidden, kernel)
  hits = (
    np.argmax(hidden['mixture'] @ kernel, -1) == (rows['decoder_target_tokens'])
  )
  for term, task_id in objective.Distillation().terms.items():
    expected = np.sum(hits & (rows['decoder_task_ids'] == task_id))
    assert sums[f'{term}/correct'] == expected
  assert sums['label/correct'] + sums['rationale/correct'] > 0


@pytest.mark.parametrize('chunk_tokens', [1, 20, 36])
def test_chunks_change_nothing(chunk_tokens):
  batch, hidden = mixed_batch()
  config = objective.Distillation(alpha=0.3, z_loss=0.01, label_smoothing=0.1)

  def loss_of(kernel, hidden, chunk_tokens):
    loss, sums = whole_loss(config, batch, hidden, kernel, chunk_tokens)
    return 3 * loss, sums

  def values(chunk_tokens):
    return jax.jit(
      jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True),
      static_argnums=2,
    )(make_kernel(), hidden, chunk_tokens)

  jax.tree.map(
    lambda ours, whole: np.testing.assert_allclose(
      ours, whole, rtol=2e-6, atol=1e-6
    ),
    values(chunk_tokens),
    values(0),
  )


@pytest.mark.parametrize('chunk_tokens', [0, 20])
def test_chunks_never_hold_all_logits(chunk_tokens):
  batch, hidden = mixed_batch()

  def loss_of(kernel):
    return whole_loss(
      objective.Distillation(), batch, hidden, kernel, chunk_tokens
    )[0]

  program = str(jax.make_jaxpr(jax.grad(loss_of))(make_kernel()))
  whole = f'f32[{batch["mixture"]["decoder_target_tokens"].size},{VOCAB}]'
  assert (whole in program) == (chunk_tokens == 0)


@pytest.mark.parametrize(
  'wrong',
  [
    {'alpha': 1.5},
    {'alpha': float('nan')},
    {'z_loss': -1.0},
    {'label_smoothing': 1.0},
    {'mi_weight': float('inf')},
  ],
)
def test_impossible_settings_are_refused_by_name(wrong):
  (name,) = wrong
  with pytest.raises(ValueError, match=name):
    objective.Distillation(**wrong)
