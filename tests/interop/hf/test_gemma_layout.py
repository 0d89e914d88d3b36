# SPDX-License-Identifier: Apache-2.0
"""A Gemma 3 in Hugging Face's words, of transformers 4 and 5, and back."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from dsbs_jax import contract
from dsbs_jax.core import network
from dsbs_jax.interop import read_checkpoint
from dsbs_jax.interop.hf import hf_checkpoint
from tests import models
from tests.core.gemma import recorded_gemma as recorded


@pytest.fixture
def folder(tmp_path):
  shutil.copytree(recorded.FOLDER, tmp_path / 'gemma')
  return tmp_path / 'gemma'


def _change(folder, changes):
  path = folder / 'config.json'
  values = json.loads(path.read_text()) | changes
  values = {name: value for name, value in values.items() if value != ''}
  path.write_text(json.dumps(values))


def test_both_versions_of_transformers_say_the_same_network(folder):
  expected = network.GemmaConfig(
    vocab_size=96,
    emb_dim=24,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=40,
    num_layers=3,
    window=6,
    global_period=2,
    query_scale_dim=12,
  )
  assert hf_checkpoint.config_from_hf(folder) == expected
  shutil.copy(folder / 'config_transformers5.json', folder / 'config.json')
  assert hf_checkpoint.config_from_hf(folder) == expected


def test_rotations_of_global_layers_are_read_from_both_versions(folder):
  _change(
    folder,
    {'rope_scaling': {'rope_type': 'linear', 'factor': 8.0}, 'rope_theta': 5e5},
  )
  config = hf_checkpoint.config_from_hf(folder)
  assert (config.global_rope_factor, config.global_rope_base) == (8.0, 5e5)
  shutil.copy(folder / 'config_transformers5.json', folder / 'config.json')
  whole = {'rope_type': 'linear', 'factor': 4.0, 'rope_theta': 7e5}
  local = {'rope_type': 'default', 'rope_theta': 2e4}
  _change(
    folder,
    {'rope_parameters': {'full_attention': whole, 'sliding_attention': local}},
  )
  config = hf_checkpoint.config_from_hf(folder)
  assert (config.global_rope_factor, config.global_rope_base) == (4.0, 7e5)
  assert config.local_rope_base == 2e4


@pytest.mark.parametrize('scan_layers', [False, True])
def test_what_is_written_is_read_again(tmp_path, scan_layers):
  config = dataclasses.replace(
    recorded.CONFIG, scan_layers=scan_layers, global_rope_factor=8.0
  )
  params = recorded.params(scan_layers)
  hf_checkpoint.save_hf(tmp_path / 'out', params, config)
  found = hf_checkpoint.config_from_hf(tmp_path / 'out')
  assert dataclasses.replace(found, scan_layers=scan_layers) == config
  models.assert_equal(
    hf_checkpoint.load_params(tmp_path / 'out', config), params
  )
  ours, theirs = (
    safetensors.numpy.load_file(place / 'model.safetensors')
    for place in (tmp_path / 'out', recorded.FOLDER)
  )
  assert ours.keys() == theirs.keys()
  assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_the_text_part_of_a_model_that_sees_pictures_is_read(folder):
  values = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(
    json.dumps({'model_type': 'gemma3', 'text_config': values})
  )
  path = folder / 'model.safetensors'
  tensors = {
    name.replace('model.', 'language_model.model.', 1): tensor
    for name, tensor in safetensors.numpy.load_file(path).items()
  }
  tensors['vision_tower.patch.weight'] = np.zeros((2, 2), np.float32)
  safetensors.numpy.save_file(tensors, path)
  models.assert_equal(
    hf_checkpoint.load_params(folder, recorded.CONFIG), recorded.params()
  )


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'hidden_activation': 'silu'}, "hidden_activation is 'silu'"),
    ({'attn_logit_softcapping': 50.0}, 'attn_logit_softcapping is 50.0'),
    ({'tie_word_embeddings': False}, 'tie_word_embeddings is False'),
    ({'use_bidirectional_attention': True}, 'use_bidirectional_attention'),
    ({'rms_norm_eps': 1e-5}, 'rms_norm_eps is 1e-05'),
    ({'rope_scaling': {'rope_type': 'yarn'}}, "rotations are 'yarn'"),
    (
      {'layer_types': ['full_attention', 'sliding_attention', 'x']},
      'layer_typ',
    ),
    ({'head_dim': ''}, r"has no \['head_dim'\]"),
    ({'layer_types': 7}, 'config.json cannot be read .TypeError'),
    ({'rope_scaling': 'x'}, 'config.json cannot be read .TypeError'),
    ({'model_type': 't5gemma2'}, "config.json cannot be read .KeyError.'enc"),
  ],
)
def test_models_that_compute_something_else_are_refused(
  folder, changes, message
):
  _change(folder, changes)
  with pytest.raises(contract.UserError, match=message):
    hf_checkpoint.config_from_hf(folder)


def test_a_head_of_its_own_is_refused_whatever_config_json_says(folder):
  file = folder / 'model.safetensors'
  tensors = safetensors.numpy.load_file(file)
  head = tensors['model.embed_tokens.weight'].copy()
  safetensors.numpy.save_file(tensors | {'lm_head.weight': head}, file)
  hf_checkpoint.config_from_hf(folder)
  head[3] += 1
  safetensors.numpy.save_file(tensors | {'lm_head.weight': head}, file)
  with pytest.raises(contract.UserError, match='lm_head.weight differs from'):
    hf_checkpoint.config_from_hf(folder)


def test_settings_of_another_network_or_family_are_refused():
  other = dataclasses.replace(recorded.CONFIG, window=7)
  with pytest.raises(contract.UserError, match='window is 6 there, 7 here'):
    read_checkpoint.load_params(recorded.FOLDER, other)
  with pytest.raises(contract.UserError, match='holds a Gemma, the settings'):
    read_checkpoint.load_params(recorded.FOLDER, models.t5())
