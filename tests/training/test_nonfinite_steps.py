# SPDX-License-Identifier: Apache-2.0
"""A loss that is not finite ends the run, or is skipped and counted."""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from dsbs_jax.core import optimizer, steps
from dsbs_jax.data import register
from dsbs_jax.data.batching import loader
from dsbs_jax.runs import checkpoints
from dsbs_jax.runtime import signals
from dsbs_jax.training import loop, session
from tests import small_runs


@pytest.fixture
def poison(monkeypatch):
  """Makes the batches of some steps, counted from 1, give losses of NaN."""
  give = loader.BatchIterator.__next__

  def poison(*nonfinite_steps):
    def poisoned(self):
      batch = give(self)
      if self.get_state()['next_step'] in nonfinite_steps:
        for rows in batch.values():
          weights = rows['decoder_loss_weights']
          rows['decoder_loss_weights'] = weights * np.float32(np.nan)
      return batch

    monkeypatch.setattr(loader.BatchIterator, '__next__', poisoned)

  return poison


def _same(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_nonfinite_step_ends_the_run_and_is_never_saved(
  unbroken, settings, tmp_path, poison
):
  run = settings(tmp_path)
  poison(7)
  with pytest.raises(ValueError, match='step 7 is not finite') as raised:
    loop.train(run)
  message = str(raised.value)
  assert f'{tmp_path}/checkpoint_6' in message
  assert 'MAX_NONFINITE_STEPS=0' in message
  saved = checkpoints.Checkpoints(tmp_path)
  assert saved.latest_step() == 6
  _same(small_runs.params(run, 6), small_runs.params(unbroken, 6))
  named = message.partition('Its batch: ')[2].partition('.')[0].split(', ')
  source = register.source(data_dir=run.data_dir, vocabulary='bytes')
  data = session.open_data(run, source, row_multiple=1)
  assert named == data.example_ids(6)
  assert len(named) == run.batch_size
  # The file ends with the last line whose steps were all good.
  assert json.loads(small_runs.lines(run).splitlines()[-1])['step'] == 6
  poison()
  assert loop.train(run) == 0
  small_runs.assert_same_run(run, unbroken)


def test_nonfinite_steps_are_skipped_and_counted_across_a_resume(
  settings, tmp_path, poison, stop_after, capsys
):
  poison(2, 7)
  whole = settings(
    tmp_path / 'whole', 'MAX_NONFINITE_STEPS = 2', 'EVAL_SPLITS = ()'
  )
  assert loop.train(whole) == 0
  said = capsys.readouterr().err
  assert 'step 2 skipped' in said and '(2 of at most 2)' in said
  lines = [json.loads(line) for line in small_runs.lines(whole).splitlines()]
  train = [line for line in lines if line['split'] == 'train']
  counts = {line['step']: line['nonfinite_steps'] for line in train}
  assert counts == {4: 1, 6: 1, 8: 2, 12: 2}
  assert all(np.isfinite(line['loss']) for line in train)

  broken = dataclasses.replace(whole, model_dir=str(tmp_path / 'broken'))
  stop_after(3)
  assert loop.train(broken) == signals.INTERRUPTED_STATUS
  fewer = dataclasses.replace(broken, max_nonfinite_steps=1)
  with pytest.raises(ValueError, match='non-finite step number 2'):
    loop.train(fewer)
  assert loop.train(broken) == 0
  small_runs.assert_same_run(broken, whole)


def test_counting_nonfinite_steps_changes_nothing(unbroken, settings, tmp_path):
  run = settings(tmp_path, 'MAX_NONFINITE_STEPS = 3')
  assert loop.train(run) == 0
  # Bit for bit as XLA compiles by default; not all flags of tests fuse alike.
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
    small_runs.params(run, 12),
    small_runs.params(unbroken, 12),
  )
  lines = [json.loads(line) for line in small_runs.lines(run).splitlines()]
  assert {line.pop('nonfinite_steps', 0) for line in lines} == {0}
  expected = small_runs.lines(unbroken).splitlines()
  for line, other in zip(lines, map(json.loads, expected), strict=True):
    assert line.pop('split') == other.pop('split')
    assert line == pytest.approx(other, rel=1e-5)


@pytest.mark.long
def test_counting_is_bit_for_bit_as_users_compile(
  settings, small_data, tmp_path
):
  for name, most in (('plain', 0), ('counted', 3)):
    command = small_runs.command(
      tmp_path / name, small_data, f'MAX_NONFINITE_STEPS = {most}'
    )
    subprocess.run(
      [sys.executable, *command],
      cwd=small_runs.REPOSITORY,
      env=os.environ | {'XLA_FLAGS': ''},
      check=True,
    )
  plain, counted = (settings(tmp_path / n) for n in ('plain', 'counted'))
  _same(small_runs.params(counted, 12), small_runs.params(plain, 12))
  lines = small_runs.lines(counted)
  assert lines.count(', "nonfinite_steps": 0') == 4
  assert lines.replace(', "nonfinite_steps": 0', '') == small_runs.lines(plain)


def test_a_state_that_is_not_finite_is_never_saved(unbroken, tmp_path):
  adam = optimizer.adamw_hf(optimizer.constant(0.1))
  state = steps.init_state(jax.random.key(0), unbroken.model, adam)
  flat, tree = jax.tree.flatten(state.params)
  params = jax.tree.unflatten(tree, [flat[0].at[0].set(np.inf), *flat[1:]])
  saved = checkpoints.Checkpoints(tmp_path)
  with pytest.raises(ValueError, match='not finite, so that nothing was saved'):
    saved.save(state.replace(params=params), position={}, run={})
  saved.close()
  assert not list(tmp_path.glob('checkpoint_*'))


@pytest.mark.parametrize('value', ['-1', '1.5'])
def test_max_nonfinite_steps_is_a_whole_number(settings, tmp_path, value):
  with pytest.raises(ValueError, match='MAX_NONFINITE_STEPS'):
    settings(tmp_path, f'MAX_NONFINITE_STEPS = {value}')
