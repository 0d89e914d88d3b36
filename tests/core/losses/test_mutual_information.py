# SPDX-License-Identifier: Apache-2.0
"""The mutual-information term: its formula, its gradient, any batch layout."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsbs_jax.contract import LABEL_ID, RATIONALE_ID
from dsbs_jax.core import objective, steps
from dsbs_jax.core.losses import mutual_information
from dsbs_jax.data.batching import layouts, token_table
from dsbs_jax.data.prepared import ragged
from tests import models
from tests.core import test_steps

NUM_PAIRS = 6
WEIGHT = 0.4


def make_views():
  """The same six examples as labels and as rationales."""
  random = np.random.default_rng(5)

  def rows(least, most):
    sizes = random.integers(least, most + 1, NUM_PAIRS)
    return [[*random.integers(2, 50, n - 1), 1] for n in sizes]

  inputs = ragged.pack(rows(3, 8), np.int32)

  def table(targets, term):
    terms = np.full(NUM_PAIRS, term, np.int32)
    return token_table.TokenTable(inputs, ragged.pack(targets, np.int32), terms)

  return {
    'label': table(rows(1, 3), LABEL_ID),
    'rationale': table(rows(1, 9), RATIONALE_ID),
  }


def make_batch(layout, multiple=1, **changed):
  positions = np.array([4, 0, 5, 2, 3])  # the batch may be smaller than usual
  return {
    view: dataclasses.replace(
      layout.packer(
        table, [positions], batch_size=NUM_PAIRS, multiple=multiple
      ),
      **{'pair_ids': True, **changed},
    ).pack(positions)
    for view, table in make_views().items()
  }


PADDED = layouts.Padded()
WIDE = layouts.Padded({'inputs': 20, 'targets': 19})
PACKED = layouts.Packed(lengths={'inputs': 24, 'targets': 16})


@functools.cache
def train_step(weight=WEIGHT, **options):
  return models.jit(
    steps.make_train_step(
      test_steps.CONFIG,
      objective.Distillation(alpha=0.3, mi_weight=weight),
      test_steps.make_optimizer(),
      run_key=test_steps.RUN_KEY,
      num_pairs=NUM_PAIRS,
      **options,
    )
  )


def softmax(scores):
  powers = np.exp(scores - scores.max())
  return powers / powers.sum()


def slow_pool(logits, rows):
  """pair -> greatest probability of each token, one target at a time."""
  pooled = {}
  for place in zip(*np.nonzero(rows['decoder_loss_weights']), strict=True):
    pair = int(rows['decoder_pair_ids'][place])
    found = softmax(logits[place].astype(np.float64))
    pooled[pair] = np.maximum(pooled.get(pair, 0.0), found)
  return pooled


def slow_term(label_logits, rationale_logits, batch):
  labels = slow_pool(label_logits, batch['label'])
  rationales = slow_pool(rationale_logits, batch['rationale'])
  assert labels.keys() == rationales.keys()
  return np.mean(
    [
      -np.sum(labels[pair] * np.log(softmax(rationales[pair])))
      for pair in labels
    ]
  )


@pytest.mark.parametrize(
  'layout',
  [
    pytest.param(PACKED, id='packed'),
    pytest.param(PADDED, id='padded', marks=pytest.mark.long),
  ],
)
def test_the_term_equals_a_float64_reference(layout):
  batch, state = make_batch(layout), test_steps.fresh_state()
  _, metrics = train_step()(state, batch)
  expected = slow_term(
    *(
      np.asarray(test_steps.logits_of(state.params, batch[view]))
      for view in ('label', 'rationale')
    ),
    batch,
  )
  assert metrics['mutual_information'] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
  ('layout', 'parts'),
  [
    (PACKED, 2),
    pytest.param(PADDED, 1, marks=pytest.mark.long),
    pytest.param(WIDE, 1, marks=pytest.mark.long),
  ],
  ids=['packed in two microbatches', 'padded', 'wide'],
)
def test_layouts_and_microbatches_give_one_step(layout, parts):
  fresh = test_steps.fresh_state()
  expected, expected_metrics = train_step()(fresh, make_batch(PACKED))
  batch = make_batch(layout, multiple=parts)
  state, metrics = train_step(num_microbatches=parts)(fresh, batch)
  test_steps.assert_steps_agree(state, expected)
  test_steps.assert_trees_close(metrics, expected_metrics, rtol=1e-5)


def test_rationales_learn_from_labels_and_labels_stay():
  """The gradient is that of the reference, with the labels held constant."""
  random = np.random.default_rng(2)
  batch = make_batch(PADDED)
  shapes = {
    view: (*rows['decoder_pair_ids'].shape, 7) for view, rows in batch.items()
  }
  label, rationale = (
    2 * random.normal(size=shapes[view]).astype(np.float32)
    for view in ('label', 'rationale')
  )

  def term(rationale):
    label_pool, rationale_pool = (
      mutual_information.pool(
        logits, batch[view]['decoder_pair_ids'], num_pairs=NUM_PAIRS
      )
      for view, logits in (('label', label), ('rationale', rationale))
    )
    count = mutual_information.count_pairs(batch)
    return mutual_information.cross_entropy(
      label_pool, rationale_pool, count=count
    )

  gradient = np.asarray(jax.jit(jax.grad(term))(jnp.asarray(rationale)))
  assert not gradient[batch['rationale']['decoder_pair_ids'] == 0].any()
  for _ in range(4):
    direction = random.normal(size=rationale.shape)
    ahead, behind = (
      slow_term(label, rationale + sign * 1e-4 * direction, batch)
      for sign in (1, -1)
    )
    expected = (ahead - behind) / 2e-4
    assert np.sum(gradient * direction) == pytest.approx(expected, rel=1e-3)


def test_off_it_is_the_same_program():
  with_ids, without = (
    make_batch(PACKED, pair_ids=ids) for ids in (True, False)
  )
  assert 'decoder_pair_ids' not in without['label']
  state = test_steps.fresh_state()
  ours = train_step(0.0)(state, with_ids)
  plain = test_steps.jitted_step()(state, without)
  assert 'mutual_information' not in ours[1]
  jax.tree.map(np.testing.assert_array_equal, ours, plain)
  _, tied = train_step()(state, with_ids)
  added = WEIGHT * float(tied['mutual_information'])
  assert float(tied['loss']) - float(plain[1]['loss']) == pytest.approx(
    added, rel=1e-4
  )


def test_what_cannot_be_exact_is_refused():
  with pytest.raises(ValueError, match='mi_weight is -1'):
    objective.Distillation(mi_weight=-1)
  state = test_steps.fresh_state()
  with pytest.raises(ValueError, match='chunk_tokens 8 .* expected no chunks'):
    train_step(chunk_tokens=8)(state, make_batch(PADDED))
  with pytest.raises(ValueError, match='no decoder_pair_ids'):
    train_step()(state, make_batch(PADDED, pair_ids=False))
  with pytest.raises(ValueError, match="views .'rationale'., expected label"):
    train_step()(state, {'rationale': make_batch(PADDED)['rationale']})
