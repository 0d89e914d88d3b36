# SPDX-License-Identifier: Apache-2.0
"""What was saved comes back, bit for bit, and the right ones are kept."""

import math

import jax
import numpy as np
import pytest

from dsbs_jax.core import optimizer, steps
from dsbs_jax.interop import checksums, read_checkpoint
from dsbs_jax.runs import (
  checkpoint_folders,
  checkpoint_scores,
  checkpoints,
)
from tests import models

CONFIG = models.t5(vocab_size=32, emb_dim=8, head_dim=4, mlp_dim=16)


@pytest.fixture(scope='module')
def state():
  adam = optimizer.adamw_hf(optimizer.constant(0.1))
  return steps.init_state(jax.random.key(0), CONFIG, adam)


def _like(state):
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shapes = jax.eval_shape(lambda: state)
  return checkpoints.shapes_with_shardings(
    shapes, jax.tree.map(lambda _: device, shapes)
  )


def _save(saved, state, step, accuracy=None):
  saved.save(
    state.replace(step=np.int32(step)),
    position={'step': step},
    run={'seed': 1},
  )
  scores = {} if accuracy is None else {'validation/accuracy': accuracy}
  saved.add_scores(step, scores)
  saved.wait()


def test_restores_every_bit_in_place(state, tmp_path):
  saved = checkpoints.Checkpoints(tmp_path)
  _save(saved, state, 3)
  restored, position = saved.restore(3, _like(state))
  expected = state.replace(step=np.int32(3))
  jax.tree.map(np.testing.assert_array_equal, restored, expected)
  assert jax.tree.structure(restored) == jax.tree.structure(expected)
  assert position == {'step': 3}
  run = read_checkpoint.run_metadata(str(tmp_path / 'checkpoint_3'))
  assert run['seed'] == 1 and 'jax' in run['versions']


def test_parameters_come_back_alone(state, tmp_path):
  _save(checkpoints.Checkpoints(tmp_path), state, 3)
  params = read_checkpoint.load_params(tmp_path / 'checkpoint_3', CONFIG)
  jax.tree.map(np.testing.assert_array_equal, params, state.params)


def test_newest_and_best_are_kept(state, tmp_path):
  saved = checkpoints.Checkpoints(tmp_path, keep=2)
  for step, accuracy in ((1, 10.0), (2, 90.0), (3, 50.0), (4, None), (5, 20.0)):
    _save(saved, state, step, accuracy)
  assert saved.latest_step() == 5
  assert checkpoint_folders.find_checkpoint(str(tmp_path), 'best')[1] == 2
  kept = sorted(path.name for path in tmp_path.glob('checkpoint_*'))
  assert kept == ['checkpoint_2', 'checkpoint_4', 'checkpoint_5']


def test_of_equal_bests_the_newest_is_best_and_kept(state, tmp_path):
  saved = checkpoints.Checkpoints(tmp_path, keep=2)
  for step in (1, 2):
    _save(saved, state, step, 50.0)
  assert checkpoint_folders.find_checkpoint(str(tmp_path), 'best')[1] == 2
  for step in (3, 4):
    _save(saved, state, step, 20.0)
  kept = sorted(path.name for path in tmp_path.glob('checkpoint_*'))
  assert kept == ['checkpoint_2', 'checkpoint_3', 'checkpoint_4']


def test_the_best_goes_when_another_one_turns_out_better(state, tmp_path):
  saved = checkpoints.Checkpoints(tmp_path, keep=1)
  _save(saved, state, 1, 50.0)
  _save(saved, state, 2, 40.0)
  saved.save(state.replace(step=np.int32(3)), position={}, run={})
  saved.close()

  def kept():
    return sorted(path.name for path in tmp_path.glob('checkpoint_*'))

  # The newest is not evaluated yet, in this process or in the next one.
  assert kept() == ['checkpoint_1', 'checkpoint_3']
  saved = checkpoints.Checkpoints(tmp_path, keep=1)
  assert (saved.has_scores(1), saved.has_scores(3)) == (True, False)
  saved.add_scores(3, {'validation/accuracy': 60.0})
  assert kept() == ['checkpoint_3']
  assert saved.has_scores(3)
  assert checksums.damage(tmp_path / 'checkpoint_3') is None
  _save(saved, state, 4, 10.0)
  assert kept() == ['checkpoint_3', 'checkpoint_4']


def test_scores_count_once_they_are_in_the_list(state, tmp_path, monkeypatch):
  """A kill in between leaves a file that the list does not have."""
  saved = checkpoints.Checkpoints(tmp_path)
  with monkeypatch.context() as patched:
    patched.setattr(checkpoints.checksums, 'add', lambda folder, name: None)
    _save(saved, state, 3, 50.0)
  assert (tmp_path / 'checkpoint_3/metrics/metrics').exists()
  assert not saved.has_scores(3)
  saved.add_scores(3, {'validation/accuracy': 50.0})
  assert saved.has_scores(3)


def test_only_a_checkpoints_name_tells_a_step(tmp_path):
  for name, step in (('flan_1_1', 0), ('checkpoint_12', 12)):
    (tmp_path / name).mkdir()
    found = checkpoint_folders.find_checkpoint(str(tmp_path / name), 'latest')
    assert found == (tmp_path / name, step)


def test_reading_a_run_that_is_not_there_is_an_error(tmp_path):
  with pytest.raises(ValueError, match='there is no checkpoint at'):
    checkpoint_folders.find_checkpoint(str(tmp_path / 'nowhere'), 'best')


def test_the_best_is_that_of_the_first_evaluated_split(state, tmp_path):
  saved = checkpoints.Checkpoints(tmp_path, keep=1)
  _save(saved, state, 1)
  with pytest.raises(ValueError, match="step is 'best', but none of"):
    checkpoint_folders.find_checkpoint(str(tmp_path), 'best')
  for step, test, train in ((2, 50.0, 1.0), (3, 90.0, 2.0), (4, 20.0, 3.0)):
    saved.save(
      state.replace(step=np.int32(step)),
      position={},
      run={},
    )
    saved.add_scores(
      step, {'test/loss': 7.0, 'test/accuracy': test, 'a/accuracy': train}
    )
  saved.close()
  kept = sorted(path.name for path in tmp_path.glob('checkpoint_*'))
  assert kept == ['checkpoint_3', 'checkpoint_4']
  assert checkpoint_folders.find_checkpoint(str(tmp_path), 'best')[1] == 3


@pytest.mark.parametrize(
  ('scores', 'expected'),
  [
    ({'test/accuracy': 90.0, 'validation/accuracy': 20.0}, 20.0),
    ({'train/accuracy': 90.0, 'test/accuracy': 20.0}, 90.0),
    ({'validation/accuracy': math.nan, 'test/accuracy': 9.0}, -math.inf),
    ({'validation/f1': 3.0}, -math.inf),
  ],
)
def test_validation_chooses_the_best_whatever_is_evaluated_first(
  scores, expected
):
  assert checkpoint_scores.accuracy(scores) == expected
