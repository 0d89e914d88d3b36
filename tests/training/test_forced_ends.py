# SPDX-License-Identifier: Apache-2.0
"""Two runs in one folder, a stop in an evaluation, a folder that is removed."""

import json
import os
import pathlib
import shutil
import signal
import time

import pytest

from dsbs_jax import contract
from dsbs_jax.data.batching import eval_loader, loader
from dsbs_jax.inference import evaluator
from dsbs_jax.runs import (
  checkpoint_folders,
  checkpoints,
  metrics_log,
  run_folder,
)
from dsbs_jax.runtime import folder_lock, signals
from dsbs_jax.training import loop
from tests import small_runs


@pytest.fixture
def at_evaluation(monkeypatch):
  """Does something when the n-th split of a run is about to be decoded.

  The list that it returns grows by one per split that is decoded.
  """
  decoded = []
  give = eval_loader.batches

  def at_evaluation(number, do):
    def batches(*arguments, **options):
      decoded.append(len(decoded) + 1)
      if len(decoded) == number:
        do()
      yield from give(*arguments, **options)

    monkeypatch.setattr(eval_loader, 'batches', batches)
    return decoded

  return at_evaluation


def _stop():
  os.kill(os.getpid(), signal.SIGTERM)


def _evaluated(run):
  lines = [json.loads(line) for line in small_runs.lines(run).splitlines()]
  return [(x['step'], x['split']) for x in lines if 'accuracy' in x]


def _predictions(run):
  folder = pathlib.Path(run.model_dir, evaluator.PREDICTIONS)
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_second_run_in_a_folder_is_refused_before_it_does_anything(
  settings, tmp_path, capsys
):
  run = settings(tmp_path)
  lock = folder_lock.FolderLock(
    tmp_path / run_folder.LOCK_FILE, doing='trained', remedy=''
  )
  with folder_lock.hold(lock):
    with pytest.raises(contract.UserError, match='is being trained by process'):
      loop.train(run)
    assert [path.name for path in tmp_path.iterdir()] == [run_folder.LOCK_FILE]
  assert 'reading' not in capsys.readouterr().err


@pytest.mark.parametrize(
  ('number', 'step', 'logged'),
  [
    pytest.param(1, 6, [], marks=pytest.mark.long),
    (2, 6, ['validation']),
    pytest.param(3, 12, [], marks=pytest.mark.long),
  ],
)
def test_an_evaluation_that_is_stopped_is_made_up_for(
  unbroken, settings, tmp_path, at_evaluation, number, step, logged, capsys
):
  run = settings(tmp_path)
  decoded = at_evaluation(number, _stop)
  assert loop.train(run) == signals.INTERRUPTED_STATUS
  assert f'stopped by SIGTERM at step {step}' in capsys.readouterr().err
  assert len(decoded) == number
  saved = checkpoints.Checkpoints(run.model_dir)
  assert saved.latest_step() == step
  assert not saved.has_scores(step)
  assert [split for at, split in _evaluated(run) if at == step] == logged
  assert loop.train(run) == 0
  # What was logged is not decoded again, what was cut short is.
  assert len(decoded) == 4 + 1
  small_runs.assert_same_run(run, unbroken)
  assert _predictions(run) == _predictions(unbroken)
  best = [
    checkpoint_folders.find_checkpoint(x.model_dir, 'best')[1]
    for x in (run, unbroken)
  ]
  assert best[0] == best[1]
  assert checkpoints.Checkpoints(run.model_dir).has_scores(12)


class _Killed(BaseException):
  """Ends a run in this process as a kill does: nothing is caught."""


def test_scores_that_a_kill_kept_from_the_checkpoint_are_not_decoded_again(
  unbroken, settings, tmp_path, at_evaluation, monkeypatch
):
  run = settings(tmp_path)
  decoded = at_evaluation(0, None)

  def kill(self, step, scores):
    raise _Killed

  with monkeypatch.context() as patched:
    patched.setattr(checkpoints.Checkpoints, 'add_scores', kill)
    with pytest.raises(_Killed):
      loop.train(run)
  assert len(decoded) == 2
  assert loop.train(run) == 0
  assert len(decoded) == 4
  small_runs.assert_same_run(run, unbroken)
  assert checkpoints.Checkpoints(run.model_dir).has_scores(6)


def _remove(folder):
  """Removes a run's folder once its first checkpoint is no more written to."""
  deadline = time.monotonic() + 300
  while not pathlib.Path(folder, 'checkpoint_6').is_dir():
    assert time.monotonic() < deadline
    time.sleep(0.01)
  shutil.rmtree(folder)


def _remove_at(monkeypatch, step, folder):
  give = loader.BatchIterator.__next__

  def give_and_remove(self):
    if self.get_state()['next_step'] == step:
      _remove(folder)
    return give(self)

  monkeypatch.setattr(loader.BatchIterator, '__next__', give_and_remove)


def test_a_folder_that_is_removed_ends_the_run_with_the_truth(
  settings, tmp_path, monkeypatch
):
  run = settings(tmp_path / 'run')
  _remove_at(monkeypatch, 7, run.model_dir)
  with pytest.raises(contract.UserError) as raised:
    loop.train(run)
  message = str(raised.value)
  assert (
    f'{run.model_dir}/train.lock is gone: its folder was removed' in message
  )
  assert 'had done 8 steps' in message
  assert f'There is no checkpoint in {run.model_dir}.' in message
  assert 'whole' not in message and '\n' not in message
  assert not pathlib.Path(run.model_dir).exists()


@pytest.mark.long
def test_a_folder_that_is_removed_in_an_evaluation_is_not_made_again(
  settings, tmp_path, at_evaluation
):
  run = settings(tmp_path / 'run')
  at_evaluation(1, lambda: _remove(run.model_dir))
  with pytest.raises(contract.UserError, match='There is no checkpoint in'):
    loop.train(run)
  assert not pathlib.Path(run.model_dir, metrics_log.METRICS_FILE).exists()
