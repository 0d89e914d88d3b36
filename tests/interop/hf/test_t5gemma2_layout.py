# SPDX-License-Identifier: Apache-2.0
"""A T5Gemma 2 in Hugging Face's words, and back; transformers where it is."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import safetensors.numpy

from dsbs_jax import contract
from dsbs_jax.core import decoding, network
from dsbs_jax.interop import read_checkpoint
from dsbs_jax.interop.hf import hf_checkpoint
from tests import models
from tests.core.gemma import recorded_gemma
from tests.interop import hf_models

RECORDED = recorded_gemma.T5GEMMA2
TABLE = 'model.encoder.embed_tokens.weight'


@pytest.fixture
def folder(tmp_path):
  shutil.copytree(RECORDED.folder, tmp_path / 't5gemma2')
  return tmp_path / 't5gemma2'


def _change(folder, *, values=None, tensors=None):
  path = folder / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | (values or {})))
  if tensors is not None:
    safetensors.numpy.save_file(tensors, folder / 'model.safetensors')


def test_the_network_of_transformers_is_read():
  assert RECORDED.config == network.GemmaConfig(
    vocab_size=96,
    emb_dim=24,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=40,
    num_layers=3,
    window=6,
    global_period=2,
    global_rope_factor=8.0,
    query_scale_dim=12,
    family='t5gemma2',
  )


@pytest.mark.parametrize('scan_layers', [False, True])
def test_what_is_written_is_read_again(tmp_path, scan_layers):
  config = dataclasses.replace(RECORDED.config, scan_layers=scan_layers)
  params = RECORDED.params(scan_layers)
  hf_checkpoint.save_hf(tmp_path / 'out', params, config)
  assert hf_checkpoint.config_from_hf(tmp_path / 'out') == RECORDED.config
  models.assert_equal(
    hf_checkpoint.load_params(tmp_path / 'out', config), params
  )
  ours, theirs = map(hf_models.tensors, (tmp_path / 'out', RECORDED.folder))
  text = {name for name in theirs if 'vision' not in name and 'mm_' not in name}
  assert text <= ours.keys()
  for name in text - {TABLE.replace('weight', 'eoi_embedding')}:
    np.testing.assert_array_equal(ours[name], theirs[name])


def test_names_in_memory_and_copies_of_the_table_are_read(folder):
  tensors = {
    re.sub(
      'encoder.(embed|layers|norm)', r'encoder.text_model.\1', name
    ): tensor
    for name, tensor in hf_models.tensors(folder).items()
    if 'vision' not in name
  }
  table = tensors['model.encoder.text_model.embed_tokens.weight']
  tensors['lm_head.out_proj.weight'] = table.copy()
  tensors['model.decoder.embed_tokens.weight'] = table.copy()
  _change(folder, tensors=tensors)
  found = hf_checkpoint.load_params(folder, RECORDED.config)
  models.assert_equal(found, RECORDED.params())


def test_tables_that_differ_are_refused(folder):
  tensors = hf_models.tensors(folder)
  tensors['lm_head.out_proj.weight'] = tensors[TABLE] + 1
  _change(folder, tensors=tensors)
  with pytest.raises(contract.UserError, match=f'differs from {TABLE}'):
    hf_checkpoint.config_from_hf(folder)


def test_stacks_of_different_sizes_and_soft_caps_are_refused(folder):
  decoder = json.loads((folder / 'config.json').read_text())['decoder']
  for changes, message in (
    ({'intermediate_size': 48}, 'different sizes .mlp_dim 40 and 48.,'),
    ({'attn_logit_softcapping': 50.0}, 'attn_logit_softcapping is 50.0'),
  ):
    _change(folder, values={'decoder': decoder | changes})
    with pytest.raises(contract.UserError, match=message):
      hf_checkpoint.config_from_hf(folder)


def test_settings_of_a_gemma_3_are_refused():
  other = dataclasses.replace(RECORDED.config, family='gemma3')
  with pytest.raises(contract.UserError, match='family is t5gemma2 there'):
    read_checkpoint.load_params(RECORDED.folder, other)


@pytest.mark.parametrize(
  'changes',
  [
    {'window': 5, 'num_kv_heads': 1},
    {'window': 2, 'num_layers': 4, 'global_period': 3, 'head_dim': 12},
    {'window': 64, 'global_rope_base': 1e4, 'global_rope_factor': 1.0},
  ],
  ids=['odd', 'narrow', 'wide'],
)
def test_transformers_computes_the_same_of_what_is_written(tmp_path, changes):
  transformers = pytest.importorskip(
    'transformers', reason='transformers is not installed'
  )
  torch = pytest.importorskip('torch', reason='torch is not installed')
  if not hasattr(transformers, 'T5Gemma2Config'):
    pytest.skip(f'transformers {transformers.__version__} has no T5Gemma 2')
  config = dataclasses.replace(RECORDED.config, **changes)
  params = hf_models.params(config)
  hf_checkpoint.save_hf(tmp_path / 'ours', params, config)
  auto = transformers.AutoModelForSeq2SeqLM
  model, loaded = auto.from_pretrained(
    tmp_path / 'ours', output_loading_info=True
  )
  assert not loaded['missing_keys'] and not loaded['unexpected_keys']
  inputs, targets = RECORDED.forward['inputs'], RECORDED.forward['targets']
  given = {
    'input_ids': torch.tensor(inputs),
    'attention_mask': torch.tensor(inputs > 0).long(),
  }
  with torch.no_grad():
    expected = model(**given, labels=torch.tensor(targets)).logits.numpy()
    answers = model.generate(**given, max_new_tokens=10, do_sample=False)[:, 1:]
  for layout in (recorded_gemma.padded, recorded_gemma.packed):
    rows = layout(inputs, targets)
    found = recorded_gemma.apply(config, params, rows)
    real = rows['decoder_target_tokens'] > 0
    np.testing.assert_allclose(
      found[real], expected[targets > 0], rtol=0, atol=2e-5
    )
  rows = {'encoder_input_tokens': inputs.astype(np.int32)}
  greedy = models.jit(
    lambda p, r: decoding.greedy(p, config, r, max_decode_len=10)
  )
  np.testing.assert_array_equal(greedy(params, rows), answers)
  model.save_pretrained(tmp_path / 'again')
  assert hf_checkpoint.config_from_hf(tmp_path / 'again') == config
  again = hf_checkpoint.load_params(tmp_path / 'again', config)
  models.assert_equal(again, params)
