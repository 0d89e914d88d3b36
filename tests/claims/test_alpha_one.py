# SPDX-License-Identifier: Apache-2.0
"""With alpha = 1, paired training is plain finetuning, bit for bit.

The rationale view is still visited; its weights are zero, its dropout masks are
its own, and so it must leave no trace in the parameters.
"""

import jax
import numpy as np

from dsbs_jax.contract import LABEL_ID, RATIONALE_ID
from dsbs_jax.core import objective, optimizer, platform, steps
from tests import models

STEPS = 5
CONFIG = models.t5(vocab_size=40, mlp_dim=24)


def make_rows(seed, target_length, term):
  random = np.random.default_rng(seed)
  shape = (STEPS, 6, target_length)
  targets = random.integers(2, 40, shape).astype(np.int32)
  targets[:, ::2, -1] = 0
  return {
    'encoder_input_tokens': random.integers(2, 40, (STEPS, 6, 8)).astype(
      np.int32
    ),
    'decoder_input_tokens': np.pad(targets, ((0, 0), (0, 0), (1, 0)))[..., :-1],
    'decoder_target_tokens': targets,
    'decoder_loss_weights': (targets > 0).astype(np.float32),
    'decoder_task_ids': np.where(targets > 0, term, 0).astype(np.int32),
  }


LABEL = make_rows(0, 4, LABEL_ID)
RATIONALE = make_rows(1, 9, RATIONALE_ID)


def make_step():
  """The paper's optimizer, alpha 1, dropout on."""
  transformation = optimizer.adamw_hf(
    optimizer.linear_decay(1e-2, total_steps=2 * STEPS)
  )
  step = steps.make_train_step(
    CONFIG,
    objective.Distillation(alpha=1.0),
    transformation,
    run_key=jax.random.key(1),
  )
  return step, steps.init_state(jax.random.key(0), CONFIG, transformation)


def train(batches):
  """The state and the last metrics after all steps."""
  step, state = make_step()
  step = jax.jit(step)
  for index in range(STEPS):
    batch = jax.tree.map(lambda x, i=index: x[i], batches)
    with platform.traced_for('cpu'):
      state, metrics = step(state, batch)
  return state, metrics


def test_pairs_train_as_labels_alone():
  paired, metrics = train({'label': LABEL, 'rationale': RATIONALE})
  alone, alone_metrics = train({'label': LABEL})
  jax.tree.map(np.testing.assert_array_equal, paired.params, alone.params)
  assert metrics['loss'] == alone_metrics['loss']
  assert metrics['rationale/tokens'] > 0
  assert alone_metrics['rationale/tokens'] == 0


def test_a_label_view_and_a_finetuning_batch_are_one_program():
  step, state = make_step()
  rows = jax.tree.map(lambda x: x[0], LABEL)
  programs = {
    view: str(jax.make_jaxpr(step)(state, {view: rows}))
    for view in ('label', 'mixture', 'rationale')
  }
  assert programs['label'] == programs['mixture']
  assert programs['label'] != programs['rationale']  # other dropout masks
