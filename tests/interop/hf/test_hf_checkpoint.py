# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders: lossless both ways, and refused when they do not fit."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
import safetensors.numpy

from dsbs_jax.core import network
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.interop.hf import hf_checkpoint, hf_tokenizer
from tests.interop import hf_models

TIED = dataclasses.replace(
  hf_models.GATED, mlp_activations=('relu',), logits_via_embedding=True
)


def _rewrite(folder, tensors):
  (folder / 'model.safetensors').unlink()
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors')


@pytest.mark.parametrize(
  'config', [hf_models.GATED, TIED], ids=['gated', 'tied']
)
@pytest.mark.parametrize('scan_layers', [False, True])
def test_a_saved_model_is_read_back_bit_for_bit(tmp_path, config, scan_layers):
  config = dataclasses.replace(config, scan_layers=scan_layers)
  params = hf_models.params(config)
  hf_checkpoint.save_hf(tmp_path / 'model', params, config)
  found = hf_checkpoint.config_from_hf(tmp_path / 'model')
  assert dataclasses.replace(found, scan_layers=scan_layers) == config
  read = hf_checkpoint.load_params(tmp_path / 'model', config)
  jax.tree.map(np.testing.assert_array_equal, read, params)
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(read))


def test_folders_of_transformers_are_reproduced(recorded_model, tmp_path):
  config = hf_checkpoint.config_from_hf(recorded_model)
  params = hf_checkpoint.load_params(recorded_model, config)
  hf_checkpoint.save_hf(tmp_path / 'copy', params, config)
  expected, found = (
    hf_models.tensors(recorded_model),
    hf_models.tensors(tmp_path / 'copy'),
  )
  assert found.keys() == expected.keys()
  for key, tensor in expected.items():
    np.testing.assert_array_equal(found[key], tensor)
  values, copied = (
    json.loads((folder / 'config.json').read_text())
    for folder in (recorded_model, tmp_path / 'copy')
  )
  for key in ('d_model', 'd_kv', 'feed_forward_proj', 'vocab_size'):
    assert copied[key] == values[key]


def test_shards_are_joined(saved):
  folder, params = saved
  tensors = hf_models.tensors(folder)
  names = sorted(tensors)
  shards = {'one.safetensors': names[::2], 'two.safetensors': names[1::2]}
  for shard, held in shards.items():
    safetensors.numpy.save_file({n: tensors[n] for n in held}, folder / shard)
  weight_map = {n: shard for shard, held in shards.items() for n in held}
  (folder / 'model.safetensors.index.json').write_text(
    json.dumps({'metadata': {}, 'weight_map': weight_map})
  )
  (folder / 'model.safetensors').unlink()
  read = hf_checkpoint.load_params(folder, hf_models.GATED)
  jax.tree.map(np.testing.assert_array_equal, read, params)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_half_precision_tensors_become_float32(saved, dtype):
  folder, params = saved
  narrow = {
    n: jnp.asarray(t, dtype) for n, t in hf_models.tensors(folder).items()
  }
  safetensors.flax.save_file(narrow, folder / 'model.safetensors')
  read = hf_checkpoint.load_params(folder, hf_models.GATED)
  expected = jax.tree.map(lambda leaf: np.float32(leaf.astype(dtype)), params)
  jax.tree.map(np.testing.assert_array_equal, read, expected)


def test_copies_of_the_embedding_and_the_unused_table_are_accepted(tmp_path):
  params = hf_models.params(TIED)
  hf_checkpoint.save_hf(tmp_path / 'model', params, TIED)
  tensors = hf_models.tensors(tmp_path / 'model')
  embedding = tensors.pop('shared.weight')
  unused = 'EncDecAttention.relative_attention_bias.weight'
  tensors |= {
    'encoder.embed_tokens.weight': embedding,
    'lm_head.weight': embedding.copy(),
    f'decoder.block.0.layer.1.{unused}': np.zeros((16, 2), np.float32),
  }
  _rewrite(tmp_path / 'model', tensors)
  read = hf_checkpoint.load_params(tmp_path / 'model', TIED)
  jax.tree.map(np.testing.assert_array_equal, read, params)
  tensors['lm_head.weight'][3, 4] += 1.0
  _rewrite(tmp_path / 'model', tensors)
  with pytest.raises(ValueError, match='logits_via_embedding is False there'):
    hf_checkpoint.load_params(tmp_path / 'model', TIED)


def test_missing_and_unexpected_tensors_are_named(saved):
  folder, _ = saved
  tensors = hf_models.tensors(folder)
  tensors['more.weight'] = tensors.pop('encoder.final_layer_norm.weight')
  _rewrite(folder, tensors)
  with pytest.raises(
    ValueError, match=r"1 missing \['encoder.final.*1 unexpected \['more"
  ):
    hf_checkpoint.load_params(folder, hf_models.GATED)
  with pytest.raises(ValueError, match='unexpected'):
    fewer = dataclasses.replace(hf_models.GATED, num_decoder_layers=2)
    hf_checkpoint.load_params(folder, fewer)


def test_another_vocabulary_is_refused_on_both_ways(saved, tmp_path):
  folder, params = saved
  larger = dataclasses.replace(hf_models.GATED, vocab_size=64)
  with pytest.raises(ValueError, match='vocab_size is 60 there, 64 here'):
    hf_checkpoint.load_params(folder, larger)
  message = r'\(60, 8\), expected \(64, 8\)'
  with pytest.raises(ValueError, match=message):
    hf_checkpoint.save_hf(tmp_path / 'other', params, larger)
  assert not (tmp_path / 'other').exists()


def test_folders_without_a_model_are_refused(tmp_path, saved):
  with pytest.raises(ValueError, match='no config.json'):
    hf_checkpoint.config_from_hf(tmp_path)
  folder, params = saved
  (tmp_path / 'config.json').write_bytes((folder / 'config.json').read_bytes())
  with pytest.raises(ValueError, match='allow_pickle'):
    hf_checkpoint.load_params(tmp_path, hf_models.GATED)
  with pytest.raises(ValueError, match='not empty'):
    hf_checkpoint.save_hf(folder, params, hf_models.GATED)
  content = (folder / 'model.safetensors').read_bytes()
  (folder / 'model.safetensors').write_bytes(content[:-100])
  with pytest.raises(ValueError, match='incomplete'):
    hf_checkpoint.load_params(folder, hf_models.GATED)


def test_pickled_weights_need_the_flag(saved):
  torch = pytest.importorskip('torch', reason='torch is not installed')
  folder, params = saved
  tensors = {n: torch.tensor(t) for n, t in hf_models.tensors(folder).items()}
  torch.save(tensors, folder / 'pytorch_model.bin')
  (folder / 'model.safetensors').unlink()
  with pytest.raises(ValueError, match='ALLOW_PICKLE=True'):
    hf_checkpoint.load_params(folder, hf_models.GATED)
  read = hf_checkpoint.load_params(folder, hf_models.GATED, allow_pickle=True)
  jax.tree.map(np.testing.assert_array_equal, read, params)


@pytest.fixture(scope='module')
def vocabulary(tmp_path_factory):
  """A SentencePiece model of 40 pieces with T5's special ids."""
  import sentencepiece

  folder = tmp_path_factory.mktemp('vocabulary')
  words = 'the quick brown fox jumps over a lazy dog while seven cats sleep'
  text = '\n'.join(words[i:] + ' ' + words[:i] for i in range(len(words)))
  (folder / 'text.txt').write_text(text)
  sentencepiece.SentencePieceTrainer.train(
    input=str(folder / 'text.txt'),
    model_prefix=str(folder / 'pieces'),
    vocab_size=40,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  return folder / 'pieces.model'


@pytest.mark.parametrize(
  'config', [hf_models.GATED, TIED], ids=['gated', 'tied']
)
def test_transformers_computes_the_same(vocabulary, tmp_path, config):
  transformers = pytest.importorskip(
    'transformers', reason='transformers is not installed'
  )
  torch = pytest.importorskip('torch', reason='torch is not installed')
  folder, params = tmp_path / 'model', hf_models.params(config)
  files = hf_tokenizer.tokenizer_files(vocabularies.load(f'{vocabulary}:20'))
  hf_checkpoint.save_hf(
    folder, params, config, tokenizer=files, generation={'max_new_tokens': 7}
  )
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  ids = tokenizer('the lazy fox <extra_id_0>').input_ids
  assert ids[-2:] == [59, 1] and len(tokenizer) == 60
  model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
  targets = np.array([[5, 9, 30, 1]], np.int32)
  with torch.no_grad():
    expected = model(
      input_ids=torch.tensor([ids]),
      labels=torch.tensor(targets.astype(np.int64)),
    ).logits.numpy()
  found = network.apply(
    params,
    config,
    {
      'encoder_input_tokens': np.array([ids], np.int32),
      'decoder_input_tokens': np.array([[0, 5, 9, 30]], np.int32),
      'decoder_target_tokens': targets,
    },
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  # Its decoder is deeper than its encoder, for which transformers has no cache.
  outputs = model.generate(torch.tensor([ids]), eos_token_id=None)
  assert outputs.shape == (1, 8)  # the start token and max_new_tokens
