# SPDX-License-Identifier: Apache-2.0
"""No file of a checkpoint can be damaged without the run noticing."""

import shutil

import jax
import numpy as np
import pytest

from dsbs_jax.core import optimizer, steps
from dsbs_jax.exporting import export
from dsbs_jax.interop import checksums, read_checkpoint
from dsbs_jax.runs import checkpoint_folders, checkpoint_validation, checkpoints
from dsbs_jax.training import loop
from tests import models, small_runs

CONFIG = models.t5(vocab_size=512, head_dim=4, mlp_dim=16)
# Orbax writes them last, for its own statistics; no run depends on them.
UNREAD = {'_CHECKPOINT_METADATA', 'commit_success.txt'}
CLASSES = {
  'removed': lambda path: path.unlink(),
  'emptied': lambda path: path.write_bytes(b''),
  'cut in half': lambda path: path.write_bytes(
    path.read_bytes()[: path.stat().st_size // 2]
  ),
  'one bit flipped': lambda path: path.write_bytes(_flipped(path.read_bytes())),
}


def _flipped(content):
  middle = len(content) // 2
  return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _state(seed):
  adam = optimizer.adamw_hf(optimizer.constant(0.1))
  state = steps.init_state(jax.random.key(seed), CONFIG, adam)
  return state.replace(step=np.int32(seed))


def _restored(model_dir, step):
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shapes = jax.eval_shape(lambda: _state(step))
  like = checkpoints.shapes_with_shardings(
    shapes, jax.tree.map(lambda _: device, shapes)
  )
  saved = checkpoints.Checkpoints(model_dir)
  read_checkpoint.run_metadata(f'{model_dir}/checkpoint_{step}')
  return saved.restore(step, like)


@pytest.fixture(scope='module')
def two_checkpoints(tmp_path_factory):
  """A run's folder with checkpoints 3 and 6."""
  folder = tmp_path_factory.mktemp('runs') / 'run'
  saved = checkpoints.Checkpoints(folder)
  for step in (3, 6):
    saved.save(
      _state(step),
      position={'step': step},
      run={'seed': 1},
    )
    saved.add_scores(step, {'validation/accuracy': float(step)})
  saved.close()
  return folder


@pytest.mark.parametrize('kind', CLASSES)
def test_every_file_is_missed(two_checkpoints, tmp_path, kind, capsys):
  newest = two_checkpoints / 'checkpoint_6'
  files = [p for p in sorted(newest.rglob('*')) if p.is_file()]
  # Into how many files TensorStore puts the arrays depends on the machine.
  items = {file.relative_to(newest).parts[0] for file in files}
  assert items >= UNREAD | {'state', 'metrics', 'run', 'position'}
  assert sum(file.parent.name == 'd' for file in files) > 1
  for number, file in enumerate(files):
    folder = tmp_path / str(number)
    shutil.copytree(two_checkpoints, folder)
    name = file.relative_to(newest)
    CLASSES[kind](folder / 'checkpoint_6' / name)
    expected = 6 if str(name) in UNREAD else 3
    assert checkpoint_validation.latest_valid_step(str(folder)) == expected, (
      name
    )
    aside = folder / 'checkpoint_6.damaged'
    assert aside.exists() == (expected == 3)
    said = capsys.readouterr().err
    assert expected == 6 or f'checkpoint_6 is damaged: {name} ' in said
    # Checkpoint 3 is the same in all copies: read it once.
    if expected == 6 or number == len(files) - 1:
      state, position = _restored(folder, expected)
      jax.tree.map(np.testing.assert_array_equal, state, _state(expected))
      assert position == {'step': expected}


@pytest.mark.parametrize('item', ['state', 'metrics', 'run', 'position'])
def test_a_half_deleted_checkpoint_is_missed(two_checkpoints, tmp_path, item):
  shutil.copytree(two_checkpoints, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run/checkpoint_6' / item)
  assert checkpoint_validation.latest_valid_step(str(tmp_path / 'run')) == 3


def test_processes_share_the_files_of_a_checkpoint(two_checkpoints, tmp_path):
  """Each file is compared by one of them, and by one only."""
  folder = tmp_path / 'checkpoint_6'
  shutil.copytree(two_checkpoints / 'checkpoint_6', folder)
  for file in [p for p in folder.glob('*/**/*') if p.is_file()]:
    content = file.read_bytes()
    file.write_bytes(content + b'x')
    found = [checksums.damage(folder, share=(i, 3)) for i in range(3)]
    assert sum(problem is not None for problem in found) == 1, file
    file.write_bytes(content)


def test_an_empty_folder_is_no_checkpoint(two_checkpoints, tmp_path):
  shutil.copytree(two_checkpoints, tmp_path / 'run')
  (tmp_path / 'run/checkpoint_9').mkdir()
  assert checkpoint_validation.latest_valid_step(str(tmp_path / 'run')) == 6


def test_an_older_one_that_is_damaged_is_set_aside_too(
  two_checkpoints, tmp_path, capsys
):
  shutil.copytree(two_checkpoints, tmp_path / 'run')
  (tmp_path / 'run/checkpoint_3/metrics/metrics').write_text('{"validati')
  assert checkpoint_validation.latest_valid_step(str(tmp_path / 'run')) == 6
  assert 'checkpoint_3 is damaged: metrics/metrics has 10 bytes' in (
    capsys.readouterr().err
  )
  assert checkpoints.Checkpoints(tmp_path / 'run').latest_step() == 6


def test_nothing_set_aside_is_written_over(two_checkpoints, tmp_path):
  for _ in range(2):
    shutil.copytree(two_checkpoints, tmp_path / 'run', dirs_exist_ok=True)
    (tmp_path / 'run/checkpoint_6/run/metadata').unlink()
    checkpoint_validation.latest_valid_step(str(tmp_path / 'run'))
  names = {path.name for path in (tmp_path / 'run').iterdir()}
  assert names >= {'checkpoint_6.damaged', 'checkpoint_6.damaged2'}


def test_checkpoints_of_before_are_read_unchecked(
  two_checkpoints, tmp_path, capsys
):
  shutil.copytree(two_checkpoints, tmp_path / 'run')
  for path in (tmp_path / 'run').glob(f'*/{checksums.FILE}'):
    path.unlink()
  assert checkpoint_validation.latest_valid_step(str(tmp_path / 'run')) == 6
  assert 'read unchecked' in capsys.readouterr().err
  (tmp_path / 'run/checkpoint_6/state/manifest.ocdbt').write_bytes(b'')
  with pytest.raises(ValueError, match='checkpoint_6 cannot be read'):
    _restored(tmp_path / 'run', 6)


def _break(folder):
  files = [p for p in (folder / 'state').rglob('*') if p.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  CLASSES['one bit flipped'](largest)


@pytest.fixture
def broken_run(unbroken, tmp_path):
  """A copy of the unbroken run whose newest checkpoint is damaged."""
  folder = tmp_path / 'broken'
  shutil.copytree(unbroken.model_dir, folder)
  _break(folder / 'checkpoint_12')
  return folder


def test_a_run_goes_on_from_the_newest_whole_checkpoint(
  unbroken, settings, broken_run, capsys
):
  run = settings(broken_run)
  assert loop.train(run) == 0
  said = capsys.readouterr().err
  assert 'checkpoint_12 is damaged: state/' in said
  assert 'holds other bytes than were saved' in said
  assert f'resuming {broken_run} from step 6' in said
  assert (broken_run / 'checkpoint_12.damaged/state').is_dir()
  jax.tree.map(
    np.testing.assert_array_equal,
    small_runs.params(run, 12),
    small_runs.params(unbroken, 12),
  )
  assert small_runs.lines(run) == small_runs.lines(unbroken)


def test_without_a_whole_checkpoint_a_run_does_not_start_over(
  settings, broken_run
):
  _break(broken_run / 'checkpoint_6')
  before = sorted(path.name for path in broken_run.rglob('*'))
  run = settings(broken_run)
  lines = small_runs.lines(run)
  with pytest.raises(ValueError, match='all checkpoints of .* are damaged'):
    loop.train(run)
  assert sorted(path.name for path in broken_run.rglob('*')) == before
  assert small_runs.lines(run) == lines


def test_no_command_reads_a_damaged_checkpoint(
  unbroken, broken_run, settings, tmp_path
):
  newest = broken_run / 'checkpoint_12'
  message = 'checkpoint_12.* is damaged: state/'
  with pytest.raises(ValueError, match=message):
    read_checkpoint.load_params(str(newest), unbroken.model)
  with pytest.raises(ValueError, match=message):
    export.to_t5x(
      export.ExportConfig(model_dir=str(broken_run), out=str(tmp_path / 'out'))
    )
  with pytest.raises(ValueError, match=message):
    loop.train(
      settings(tmp_path / 'new', f"INITIAL_CHECKPOINT_PATH = '{broken_run}'")
    )
  (newest / 'metrics/metrics').write_text('{')
  with pytest.raises(ValueError, match='checkpoint_12.* is damaged: metrics/'):
    checkpoint_folders.find_checkpoint(str(broken_run), 'best')
