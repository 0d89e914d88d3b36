# SPDX-License-Identifier: Apache-2.0
"""Every kind of T5 by name: logits and greedy outputs are transformers'.

Recorded with transformers 4.57 and 5.24 (tests/recordings/record_t5_kinds.py);
the last tests make the models again, where transformers and torch are there.
"""

import dataclasses
import functools
import json

import numpy as np
import pytest
import safetensors.numpy

from dsbs_jax.core import decoding, network
from dsbs_jax.interop import read_checkpoint
from dsbs_jax.interop.hf import hf_checkpoint
from tests import models
from tests.recordings import hf_folders

STATED = {
  version: hf_folders.kinds(version)
  for version in ('transformers4', 'transformers5')
}
KINDS = tuple(STATED['transformers4'])
_CLOSE = {'rtol': 0, 'atol': 2e-5}


@functools.cache
def recorded(version, kind):
  """What transformers computed: inputs, targets, logits, greedy."""
  arrays = np.load(hf_folders.KINDS / f'{version}.npz')
  return {
    name.partition('/')[2]: arrays[name]
    for name in arrays
    if name.partition('/')[0] == kind
  }


@functools.cache
def _programs(config, max_decode_len):
  def logits(params, rows):
    return network.apply(params, config, rows)

  def greedy(params, rows):
    return decoding.greedy(params, config, rows, max_decode_len=max_decode_len)

  return models.jit(logits), models.jit(greedy)


def assert_computes(config, params, expected):
  """Asserts that a network has the recorded logits and greedy outputs."""
  rows = {
    'encoder_input_tokens': expected['inputs'].astype(np.int32),
    'decoder_target_tokens': expected['targets'].astype(np.int32),
  }
  before = np.pad(rows['decoder_target_tokens'][:, :-1], ((0, 0), (1, 0)))
  logits, greedy = _programs(config, expected['greedy'].shape[1])
  found = logits(params, {**rows, 'decoder_input_tokens': before})
  np.testing.assert_allclose(found, expected['logits'], **_CLOSE)
  np.testing.assert_array_equal(greedy(params, rows), expected['greedy'])


def read(folder):
  config = hf_checkpoint.config_from_hf(folder)
  return config, read_checkpoint.load_params(str(folder), config)


@pytest.mark.parametrize('version', STATED)
@pytest.mark.parametrize('kind', KINDS)
def test_a_folder_of_transformers_has_its_logits(tmp_path, kind, version):
  config, params = read(hf_folders.of_kind(tmp_path / 'theirs', version, kind))
  assert_computes(config, params, recorded(version, kind))


@pytest.mark.parametrize('kind', KINDS)
def test_a_folder_of_ours_says_what_transformers_would(tmp_path, kind):
  config, params = read(
    hf_folders.of_kind(tmp_path / 'theirs', 'transformers4', kind)
  )
  hf_checkpoint.save_hf(tmp_path / 'ours', params, config)
  again, copy = read(tmp_path / 'ours')
  assert again == config
  models.assert_equal(copy, params)
  theirs = STATED['transformers4'][kind]
  said = json.loads((tmp_path / 'ours' / 'config.json').read_text())
  names = set(
    safetensors.numpy.load_file(tmp_path / 'ours' / 'model.safetensors')
  )
  expected = dict(theirs['config'])
  for key in (
    *('d_model', 'd_kv', 'd_ff', 'num_heads', 'num_layers', 'vocab_size'),
    *('num_decoder_layers', 'feed_forward_proj', 'decoder_start_token_id'),
  ):
    assert said[key] == expected[key], key
  assert {n for n in names if n.split('.')[-2] not in _EMBEDDED} == {
    n for n in theirs['shapes'] if n.split('.')[-2] not in _EMBEDDED
  }


_EMBEDDED = ('shared', 'embed_tokens')


def test_scanned_layers_of_a_umt5_have_the_same_logits_and_outputs(tmp_path):
  config, params = read(
    hf_folders.of_kind(tmp_path / 'theirs', 'transformers4', 'umt5')
  )
  assert config.relpos_bias_per_layer
  scanned = dataclasses.replace(config, scan_layers=True)
  assert_computes(
    scanned,
    network.stack_layers(params, config),
    recorded('transformers4', 'umt5'),
  )


@pytest.fixture(scope='module')
def record():
  """The script that recorded, which needs torch and transformers."""
  for name in ('torch', 'transformers'):
    pytest.importorskip(name, reason=f'{name} is not installed')
  from tests.recordings import record_t5_kinds

  return record_t5_kinds


@pytest.mark.parametrize('kind', KINDS)
def test_transformers_loads_what_we_write_and_saves_it_again(
  tmp_path, record, kind
):
  """Theirs, ours, theirs, ours: in and out, in whatever version is there."""
  import transformers

  version = f'transformers{transformers.__version__.partition(".")[0]}'
  given = record.rows(STATED[version][kind]['config']['vocab_size'])
  made = record.make(kind)
  expected = given | record.outputs(made, given)
  if kind == 'madlad':
    hf_folders.of_kind(tmp_path / 'theirs', version, kind)
  else:
    made.save_pretrained(tmp_path / 'theirs')
  config, params = read(tmp_path / 'theirs')
  assert_computes(config, params, expected)
  hf_checkpoint.save_hf(tmp_path / 'ours', params, config)
  auto = transformers.AutoModelForSeq2SeqLM
  loaded = auto.from_pretrained(tmp_path / 'ours').eval()
  found = record.outputs(loaded, given)
  np.testing.assert_allclose(found['logits'], expected['logits'], **_CLOSE)
  np.testing.assert_array_equal(found['greedy'], expected['greedy'])
  loaded.save_pretrained(tmp_path / 'again')
  assert_computes(*read(tmp_path / 'again'), expected)
