# SPDX-License-Identifier: Apache-2.0
"""Metrics files survive kills, and means are means over tokens."""

import json

import jax.numpy as jnp
import pytest

from dsbs_jax.runs import metrics_log, tensorboard


def _step(label_sum, label_tokens, rationale_sum, rationale_tokens):
  return {
    'loss': jnp.float32(1.0),
    'label/loss_sum': jnp.float32(label_sum),
    'label/correct': jnp.float32(1),
    'label/tokens': jnp.float32(label_tokens),
    'rationale/loss_sum': jnp.float32(rationale_sum),
    'rationale/correct': jnp.float32(0),
    'rationale/tokens': jnp.float32(rationale_tokens),
    'learning_rate': jnp.float32(label_tokens),
    'alpha': jnp.float32(1 / label_tokens),
  }


def test_means_are_over_all_tokens_of_the_period():
  means = metrics_log.summarise([_step(2, 1, 6, 3), _step(4, 3, 0, 1)])
  assert means['label/loss'] == pytest.approx(6 / 4)
  assert means['label/accuracy'] == pytest.approx(2 / 4)
  assert means['label/tokens'] == pytest.approx(2)
  assert means['rationale/loss'] == pytest.approx(6 / 4)
  assert means['learning_rate'] == 3
  assert means['alpha'] == pytest.approx(1 / 3)
  assert means['loss'] == 1


def test_a_term_without_tokens_is_left_out():
  means = metrics_log.summarise([_step(2, 1, 0, 0)])
  assert not [key for key in means if key.startswith('rationale/')]


def test_a_restart_drops_later_and_torn_lines(tmp_path):
  first = metrics_log.MetricsLog(tmp_path, train_steps=30)
  for step in (10, 20, 30):
    first.evaluation(step, 'validation', {'accuracy': float(step)})
  first.close()
  with (tmp_path / metrics_log.METRICS_FILE).open('a') as file:
    file.write('{"step": 4')
  second = metrics_log.MetricsLog(tmp_path, train_steps=30, start_step=20)
  second.evaluation(30, 'validation', {'accuracy': 30.0})
  second.close()
  lines = (tmp_path / metrics_log.METRICS_FILE).read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == [10, 20, 30]


def test_rates_are_shown_and_kept_apart_from_what_was_computed(
  tmp_path, capsys
):
  log = metrics_log.MetricsLog(tmp_path, train_steps=9)
  log.train(1, {'loss': 1.0}, {})  # it compiled
  rates = {'steps_per_second': 0.5, 'tokens_per_second': 1234.0, 'mfu': 41.25}
  log.train(3, {'loss': 1.0}, rates)
  log.timings(3, {'save_seconds': 2.0})
  log.close()
  first, second = capsys.readouterr().err.splitlines()
  assert first == 'step 1/9  loss 1.0000'
  assert second == (
    'step 3/9  loss 1.0000  0.50 steps/s  1,234 tokens/s  MFU 41.2 %'
    '  ETA 0:00:12'
  )
  computed = (tmp_path / metrics_log.METRICS_FILE).read_text().splitlines()
  assert [json.loads(line) for line in computed] == [
    {'step': step, 'split': 'train', 'loss': 1.0} for step in (1, 3)
  ]
  timed = (tmp_path / metrics_log.TIMING_FILE).read_text().splitlines()
  assert [json.loads(line) for line in timed] == [
    {'step': 3, **rates},
    {'step': 3, 'save_seconds': 2.0},
  ]
  tags = tensorboard.read(tmp_path)
  assert (3, 'train/timing/mfu') in tags
  assert (3, 'train/timing/save_seconds') in tags


def test_only_the_writing_process_writes(tmp_path):
  silent = metrics_log.MetricsLog(tmp_path / 'run', train_steps=1, writes=False)
  silent.evaluation(1, 'test', {'accuracy': 1.0})
  silent.close()
  assert not (tmp_path / 'run').exists()
