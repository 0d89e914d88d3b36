# SPDX-License-Identifier: Apache-2.0
"""Full and read-only disks and wrong clocks: a clear error, nothing lost."""

import errno
import gc
import os
import pathlib
import subprocess
import time

import jax
import numpy as np
import pytest

from dsbs_jax import contract
from dsbs_jax.core import steps
from dsbs_jax.interop import checksums
from dsbs_jax.runs import checkpoint_folders, checkpoints, tensorboard
from dsbs_jax.runtime import files, signals
from dsbs_jax.training import loop
from tests import small_runs

SIZE = 16 << 20  # bytes


@pytest.fixture
def volume(tmp_path):
  """A file system of its own, of SIZE bytes."""
  folder = tmp_path / 'volume'
  folder.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', f'size={SIZE}', 'tmpfs', str(folder)]
  mounted = subprocess.run(command, capture_output=True, text=True, check=False)
  if mounted.returncode:
    pytest.skip(f'mounting a tmpfs is refused: {mounted.stderr.strip()}')
  yield folder
  subprocess.run(['umount', '-l', str(folder)], check=True)
  # What Orbax left of failed saves is told here. Later, it could be told while
  # another test parses source, which Python before 3.11.8 takes for an error of
  # its own (gh-106905): SystemError, AST constructor recursion depth mismatch.
  gc.collect()


def _fill(volume, leave):
  """Takes up all room but some bytes."""
  free = os.statvfs(volume).f_bavail * os.statvfs(volume).f_frsize
  (volume / 'ballast').write_bytes(b'\0' * (free - leave))


def test_a_full_disk_is_a_clear_error_and_harms_nothing(
  unbroken, settings, volume, stop_after
):
  run = settings(volume / 'run')
  stop_after(6)
  assert loop.train(run) == signals.INTERRUPTED_STATUS
  _fill(volume, 96 << 10)
  with pytest.raises(contract.UserError, match='not written: .*No space') as e:
    loop.train(run)
  assert 'the same command goes on' in str(e.value)
  assert 'What was saved before is whole. The run had done' in str(e.value)
  assert f'newest checkpoint is {run.model_dir}/checkpoint_6.' in str(e.value)
  assert '\n' not in str(e.value)
  assert checksums.damage(volume / 'run/checkpoint_6') is None
  assert checkpoints.Checkpoints(run.model_dir).latest_step() == 6
  (volume / 'ballast').unlink()
  assert loop.train(run) == 0
  small_runs.assert_same_run(run, unbroken)
  assert not list((volume / 'run').glob('*tmp*'))


def test_a_failed_save_is_told_at_the_next_one(unbroken, volume):
  like = small_runs.params(unbroken, 12)
  saved = checkpoints.Checkpoints(volume / 'run')
  state = steps.state_from_params(like, unbroken.transformation())
  saved.save(state.replace(step=np.int32(1)), position={}, run={})
  saved.wait()
  _fill(volume, 8 << 10)
  saved.save(state.replace(step=np.int32(2)), position={}, run={})
  with pytest.raises(contract.UserError, match="checkpoint_2': No space"):
    saved.save(state.replace(step=np.int32(3)), position={}, run={})
  assert checksums.damage(volume / 'run/checkpoint_1') is None


def test_a_folder_that_cannot_be_written_to_is_told_at_once(
  settings, volume, capsys
):
  remount = ['mount', '-o', 'remount,ro', str(volume)]
  subprocess.run(remount, check=True)
  run = settings(volume / 'run')
  with pytest.raises(contract.UserError, match="run': Read-only"):
    loop.train(run)
  # Not merely 'reading': what other tests left to the garbage collector is
  # written to the same stream, with paths such as threading.py.
  printed = capsys.readouterr().err
  assert f'reading {run.mixture_or_task_name}' not in printed


def test_a_file_in_place_of_the_folder_is_told(tmp_path):
  (tmp_path / 'run').write_text('')
  with pytest.raises(contract.UserError, match="run': File exists. Expected"):
    files.check_writable(tmp_path / 'run')


def test_another_failure_of_a_save_keeps_its_type_and_names_the_file():
  with pytest.raises(TypeError, match='a bug') as raised, files.writing('/run'):
    raise TypeError('a bug')
  assert raised.value.__notes__ == ["while writing '/run'."]
  # TensorStore says in its text what the operating system said.
  with pytest.raises(
    contract.UserError, match="'/run': No space .* Free space"
  ):
    with files.writing('/run'):
      raise ValueError(
        'Error writing "/run/d/0": [ENOSPC] No space left on device'
      )


def test_what_was_saved_is_called_whole_only_where_it_is(tmp_path):
  """A full disk takes nothing away; a folder that is gone takes all."""
  path = tmp_path / 'run' / 'metrics.jsonl'
  with pytest.raises(files.NotWritten) as raised, files.writing(path):
    path.open('a')
  gone = f'{path.parent} is gone, and with it what was saved there.'
  assert str(raised.value).endswith(gone)
  with pytest.raises(files.NotWritten) as raised, files.writing(path):
    raise OSError(errno.EIO, 'Input/output error')
  assert 'whole' not in str(raised.value)
  with pytest.raises(files.NotWritten, match='saved before is whole'):
    with files.writing(path):
      raise OSError(errno.ENOSPC, 'No space left on device')


def test_events_on_a_full_disk_raise_and_do_not_hang(volume):
  file = tensorboard.EventFile(volume)
  _fill(volume, 0)
  with pytest.raises(OSError, match='No space left'):
    for step in range(10_000):
      file.scalars(step, {'train/loss': 1.0})


def test_a_clock_that_jumps_back_changes_nothing(
  unbroken, settings, tmp_path, monkeypatch, stop_after
):
  run = settings(tmp_path, 'EVAL_PERIOD = 3', 'KEEP_CHECKPOINTS = 1')
  now, jump = time.time(), iter(range(10**9))

  def back():
    return now - 60.0 * next(jump)

  with monkeypatch.context() as patched:
    patched.setattr(time, 'time', back)
    patched.setattr(time, 'time_ns', lambda: int(back() * 1e9))
    stop_after(7)
    assert loop.train(run) == signals.INTERRUPTED_STATUS
  # And the files of the oldest checkpoint are of tomorrow.
  folders = sorted(tmp_path.glob('checkpoint_*'))
  for path in [*folders[0].rglob('*'), folders[0]]:
    os.utime(path, (now + 86_400, now + 86_400))
  assert loop.train(run) == 0
  jax.tree.map(
    np.testing.assert_array_equal,
    small_runs.params(run, 12),
    small_runs.params(unbroken, 12),
  )
  _, best = checkpoint_folders.find_checkpoint(str(tmp_path), 'best')
  assert checkpoint_folders.find_checkpoint(str(tmp_path), 'latest')[1] == 12
  kept = {int(path.name[11:]) for path in tmp_path.glob('checkpoint_*')}
  assert kept == {best, 12}


def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch):
  path = tmp_path / 'config.gin'
  files.replace_text(path, 'old')

  def killed(self, target):
    raise KeyboardInterrupt

  monkeypatch.setattr(pathlib.Path, 'replace', killed)
  with pytest.raises(KeyboardInterrupt):
    files.replace_text(path, 'new')
  assert path.read_text() == 'old'
