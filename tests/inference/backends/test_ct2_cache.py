# SPDX-License-Identifier: Apache-2.0
"""A checkpoint is converted once; another one is never taken for it."""

import dataclasses
import os

import numpy as np
import pytest

from dsbs_jax.inference import infer_file
from dsbs_jax.inference.backends import ct2_cache
from dsbs_jax.runtime import compilation_cache
from tests.inference import small_student, test_infer_file

pytest.importorskip('ctranslate2', reason='extra ct2')


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return compilation_cache.user_folder() / 'ct2'


@pytest.fixture
def load(tmp_path, cache):
  """Loads a folder that stands for a checkpoint; counts its readings."""
  folder = tmp_path / 'checkpoint'
  folder.mkdir()
  (folder / 'weights').write_bytes(b'one')
  load.readings = 0

  def read():
    load.readings += 1
    return small_student.params(), {'parameters': str(load.readings)}

  def call(vocabulary='v', quantization='float32'):
    for file in cache.glob(f'*/{ct2_cache.FACTS_FILE}'):  # a second passes
      os.utime(file, ns=(0, file.stat().st_mtime_ns - 10**9))
    return ct2_cache.load(
      folder,
      read,
      small_student.MODEL,
      quantization=quantization,
      vocabulary=vocabulary,
    )

  call.folder = folder
  return call


def readings(loaded):
  return int(loaded[1]['parameters'])


def test_it_is_read_once(load, cache):
  assert readings(load()) == readings(load()) == 1
  assert len(list(cache.iterdir())) == 1


def test_other_weights_vocabulary_or_type_are_another_model(load):
  assert readings(load()) == 1
  (load.folder / 'weights').write_bytes(b'two')
  assert readings(load()) == 2
  assert readings(load(vocabulary='w')) == 3
  assert readings(load(quantization='int8')) == 4
  assert readings(load()) == 2


def test_the_models_used_last_are_kept(load, cache):
  first = load(vocabulary='0')
  for number in range(1, 4):
    load(vocabulary=str(number))
  load(vocabulary='0')  # used again
  load(vocabulary='4')
  assert len(list(cache.iterdir())) == 4
  assert load(vocabulary='0')[1] == first[1]
  assert readings(load(vocabulary='1')) == 6  # the one that had to go


def test_a_cache_that_cannot_be_written_is_no_obstacle(load, cache):
  cache.parent.parent.mkdir(parents=True)
  cache.parent.write_text('a file')
  tokens = np.array([[50, 60, 1]])
  found = [load()[0].generate(tokens, max_decode_len=3)[0] for _ in 'ab']
  np.testing.assert_array_equal(*found)
  assert readings(load()) == 3


def test_scores_that_are_added_later_change_nothing(tmp_path, cache):
  (tmp_path / 'run').mkdir()
  small_student.write(tmp_path / 'run')
  (tmp_path / 'input').write_text('odd?\n')
  asked = test_infer_file.settings(tmp_path, "BACKEND = 'ct2'")
  assert infer_file.infer(asked) == 0
  assert len(list(cache.iterdir())) == 1
  (tmp_path / 'run/checkpoint_7/metrics').mkdir()
  (tmp_path / 'run/checkpoint_7/metrics/metrics').write_text('{}')
  again = dataclasses.replace(asked, output=str(tmp_path / 'again'))
  assert infer_file.infer(again) == 0
  assert len(list(cache.iterdir())) == 1
