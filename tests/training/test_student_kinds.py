# SPDX-License-Identifier: Apache-2.0
"""A folder of each kind of T5 is enough: it trains, and is exported again."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from dsbs_jax.interop.hf import hf_checkpoint
from dsbs_jax.runs import metrics_log, run_folder
from tests.claims import doors
from tests.recordings import hf_folders

BYTES = 'byt5'
KINDS = tuple(hf_folders.kinds('transformers4'))


@pytest.fixture
def student(tmp_path):
  """Writes the folder of a kind, with a tokenizer."""

  def write(kind):
    folder = hf_folders.of_kind(tmp_path / kind, 'transformers4', kind)
    said = {'extra_ids': 0}
    if kind == BYTES:
      said = {'tokenizer_class': 'ByT5Tokenizer', 'extra_ids': 125}
    else:
      shutil.copy(hf_folders.BUNDLED / 'spiece.model', folder)
    (folder / 'tokenizer_config.json').write_text(json.dumps(said))
    return folder

  return write


@pytest.mark.long
@pytest.mark.parametrize('kind', KINDS)
def test_it_trains_and_goes_back_to_transformers(
  student, small_data, tmp_path, monkeypatch, kind
):
  monkeypatch.chdir(tmp_path)
  folder = student(kind)
  done = doors.call(
    'dsbs_jax.train',
    *('--benchmark=svamp', f'--student={folder}', f'--data_dir={small_data}'),
    *('--out=run', '--steps=4', '--batch=4', '--lr=1e-2'),
    *('--gin.EVAL_PERIOD=4', '--gin.LOG_PERIOD=1', '--gin.EVAL_SPLITS=()'),
  )
  assert done.status == 0, done.stderr
  lines = (pathlib.Path('run') / metrics_log.METRICS_FILE).read_text()
  losses = [
    line['loss']
    for line in map(json.loads, lines.splitlines())
    if line['split'] == 'train'
  ]
  assert len(losses) == 4 and losses[-1] < losses[0]
  done = doors.call('dsbs_jax.export', 'run', '--format=hf', '--out=student')
  assert done.status == 0, done.stderr
  config = hf_checkpoint.config_from_hf(tmp_path / 'student')
  assert config == hf_checkpoint.config_from_hf(folder)
  before, after = (
    hf_checkpoint.load_params(place, config)['encoder']
    for place in (folder, tmp_path / 'student')
  )
  holder = 'layers_1' if config.relpos_bias_per_layer else 'relpos_bias'
  moved = np.abs(_table(after, holder) - _table(before, holder)).max()
  assert 0 < moved < 0.1
  macros = run_folder.read_macros(tmp_path / 'run' / run_folder.CONFIG_FILE)
  assert macros['RELPOS_BIAS_PER_LAYER'] == (kind in ('umt5', 'umt5_tied'))


def _table(stack, holder):
  found = stack[holder]
  return np.asarray(found.get('relpos_bias', found)['rel_embedding'])


def test_a_umt5_is_no_checkpoint_of_t5x(student, tmp_path):
  folder = student('umt5')
  done = doors.call(
    'dsbs_jax.export', str(folder), '--format=t5x', f'--out={tmp_path}/out'
  )
  assert done.status == 2
  assert 'a table of relative positions per layer (umT5)' in done.stderr
  assert len(done.stderr.strip().splitlines()) <= 2
