# SPDX-License-Identifier: Apache-2.0
"""Metrics files survive kills, and means are means over tokens."""

import json

import jax.numpy as jnp
import pytest

from dsbs_jax.runs import metrics_log


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
  }


def test_means_are_over_all_tokens_of_the_period():
  means = metrics_log.summarise([_step(2, 1, 6, 3), _step(4, 3, 0, 1)])
  assert means['label/loss'] == pytest.approx(6 / 4)
  assert means['label/accuracy'] == pytest.approx(2 / 4)
  assert means['label/tokens'] == pytest.approx(2)
  assert means['rationale/loss'] == pytest.approx(6 / 4)
  assert means['learning_rate'] == 3
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


def test_no_rate_is_shown_before_a_step_was_timed(
  tmp_path, monkeypatch, capsys
):
  now = [0.0]
  monkeypatch.setattr(metrics_log.time, 'monotonic', lambda: now[0])
  log = metrics_log.MetricsLog(tmp_path, train_steps=9)
  now[0] = 3600.0  # compiling
  log.pause(1)
  log.train(1, {'loss': 1.0})
  now[0] += 4.0
  log.train(3, {'loss': 1.0})
  log.close()
  first, second = capsys.readouterr().err.splitlines()
  assert first == 'step 1/9  loss 1.0000'
  assert second == 'step 3/9  loss 1.0000  0.50 steps/s  ETA 0:00:12'


def test_only_the_writing_process_writes(tmp_path):
  silent = metrics_log.MetricsLog(tmp_path / 'run', train_steps=1, writes=False)
  silent.evaluation(1, 'test', {'accuracy': 1.0})
  silent.close()
  assert not (tmp_path / 'run').exists()
