# SPDX-License-Identifier: Apache-2.0
"""T5s of every kind, as transformers 4 and 5 write them: the same logits."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

from dsbs_jax.core import network
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.interop import read_checkpoint
from dsbs_jax.interop.hf import hf_checkpoint
from tests import models
from tests.interop import hf_models
from tests.recordings import hf_folders

GATED = models.t5(vocab_size=60, num_encoder_layers=2)
TIED = dataclasses.replace(
  GATED, mlp_activations=('relu',), logits_via_embedding=True
)
HEAD, TABLE = 'lm_head.weight', 'shared.weight'
ROWS = {
  'encoder_input_tokens': np.array([[5, 9, 30, 1]], np.int32),
  'decoder_input_tokens': np.array([[0, 7, 8]], np.int32),
  'decoder_target_tokens': np.array([[7, 8, 1]], np.int32),
}


def _save(folder, params, config, *, values=None, tensors=None, drop=()):
  """Writes a folder, then changes its config.json and its tensors."""
  hf_checkpoint.save_hf(folder, params, config)
  path = folder / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | (values or {})))
  held = safetensors.numpy.load_file(folder / 'model.safetensors')
  held = {k: v for k, v in held.items() if k not in drop}
  changed = {k: make(held) for k, make in (tensors or {}).items()}
  safetensors.numpy.save_file(held | changed, folder / 'model.safetensors')
  return folder


def _logits(folder):
  config = hf_checkpoint.config_from_hf(folder)
  params = read_checkpoint.load_params(str(folder), config)
  return np.asarray(
    models.jit(network.apply, static_argnums=1)(params, config, ROWS)
  )


def _of(params, config):
  return np.asarray(
    models.jit(network.apply, static_argnums=1)(params, config, ROWS)
  )


FIVE = {'tie_word_embeddings': True, 'transformers_version': '5.24.0'}


@pytest.mark.parametrize('kind', ['t5', 'mt5'])
def test_an_untied_folder_that_transformers_5_saved_is_untied(tmp_path, kind):
  params = hf_models.params(GATED)
  scaling = {'scale_decoder_outputs': False} if kind == 't5' else {}
  folder = _save(
    tmp_path / 'again',
    params,
    GATED,
    values=FIVE | scaling | {'model_type': kind},
  )
  assert hf_checkpoint.config_from_hf(folder) == GATED
  np.testing.assert_array_equal(_logits(folder), _of(params, GATED))


def test_the_tied_head_of_a_t5_1_1_of_transformers_5_is_not_scaled(tmp_path):
  params = hf_models.params(GATED)
  table = params['token_embedder']['embedding']
  params['decoder']['logits_dense']['kernel'] = table.T.copy()
  folder = _save(
    tmp_path / 'new',
    params,
    GATED,
    drop=[HEAD],
    values=FIVE | {'scale_decoder_outputs': False},
  )
  np.testing.assert_array_equal(_logits(folder), _of(params, GATED))
  again = tmp_path / 'again'
  config = hf_checkpoint.config_from_hf(folder)
  read = read_checkpoint.load_params(str(folder), config)
  hf_checkpoint.save_hf(again, read, config)
  np.testing.assert_array_equal(_logits(again), _of(params, GATED))
  assert not json.loads((again / 'config.json').read_text())[
    'tie_word_embeddings'
  ]


def test_tied_logits_are_scaled_where_transformers_scales_them(tmp_path):
  params = hf_models.params(TIED)
  expected = _of(params, TIED)
  for name, values, scale in (
    ('four', {}, 1.0),
    ('five', FIVE | {'scale_decoder_outputs': True}, 1.0),
    ('mt5_four', {'model_type': 'mt5', 'transformers_version': '4.57.6'}, 1.0),
    ('mt5_five', FIVE | {'model_type': 'mt5'}, TIED.emb_dim**0.5),
  ):
    folder = _save(tmp_path / name, params, TIED, values=values)
    np.testing.assert_allclose(_logits(folder), scale * expected, rtol=1e-5)


def test_a_scaled_head_of_its_own_takes_the_scale(tmp_path):
  params = hf_models.params(
    dataclasses.replace(TIED, logits_via_embedding=False)
  )
  tied = {k: v for k, v in params.items()}
  tied['decoder'] = {
    k: v for k, v in params['decoder'].items() if k != 'logits_dense'
  }
  kernel = params['decoder']['logits_dense']['kernel']
  folder = _save(
    tmp_path / 'own',
    tied,
    TIED,
    values=FIVE | {'scale_decoder_outputs': True},
    tensors={HEAD: lambda held: np.ascontiguousarray(kernel.T)},
  )
  untied = dataclasses.replace(TIED, logits_via_embedding=False)
  scaled = _of(params, untied) * TIED.emb_dim**-0.5
  np.testing.assert_allclose(_logits(folder), scaled, rtol=1e-5)


@pytest.mark.parametrize('stack', ['encoder', 'decoder'])
def test_a_table_per_stack_is_refused(tmp_path, stack):
  name = f'{stack}.embed_tokens.weight'
  folder = _save(
    tmp_path / 'model',
    hf_models.params(TIED),
    TIED,
    tensors={name: lambda held: held[TABLE] + np.float32(1)},
  )
  with pytest.raises(ValueError, match=f'{name} differs from {TABLE}'):
    hf_checkpoint.config_from_hf(folder)


@pytest.mark.parametrize(
  ('file', 'values', 'message'),
  [
    ('config.json', {'eos_token_id': 2}, 'eos_token_id is 2, expected 1'),
    ('config.json', {'pad_token_id': 1}, 'pad_token_id is 1, expected 0'),
    (
      'generation_config.json',
      {'decoder_start_token_id': 5},
      'decoder_start_token_id is 5, expected 0',
    ),
    ('generation_config.json', {'eos_token_id': [1, 7]}, r'is \[1, 7\]'),
  ],
)
def test_special_ids_of_others_are_refused(tmp_path, file, values, message):
  folder = _save(tmp_path / 'model', hf_models.params(TIED), TIED)
  path = folder / file
  path.write_text(json.dumps(json.loads(path.read_text()) | values))
  with pytest.raises(ValueError, match=f'{file}.*{message}'):
    read_checkpoint.load_params(str(folder), TIED)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'mlp_activations': ('silu', 'linear')}, 'MLP_ACTIVATIONS'),
    ({'max_distance': 64}, r'network\.T5Config\.max_distance="128"'),
    ({'num_buckets': 16}, r'network\.T5Config\.num_buckets="32"'),
    ({'num_heads': 4, 'head_dim': 4}, 'num_heads is 2 there, 4 here; head_dim'),
    ({'mlp_dim': 64}, '--gin.MLP_DIM="32"'),
    ({'num_encoder_layers': 1}, '--gin.NUM_ENCODER_LAYERS="2"'),
    ({'logits_via_embedding': True}, '--gin.LOGITS_VIA_EMBEDDING="False"'),
  ],
)
def test_every_difference_to_the_settings_is_refused(
  tmp_path, changes, message
):
  folder = _save(tmp_path / 'model', hf_models.params(GATED), GATED)
  with pytest.raises(ValueError, match=message):
    read_checkpoint.load_params(
      str(folder), dataclasses.replace(GATED, **changes)
    )


def test_a_folder_is_read_with_its_own_tokenizer_only(tmp_path):
  folder = _save(tmp_path / 'model', hf_models.params(GATED), GATED)
  (folder / 'spiece.model').write_bytes(
    (hf_folders.BUNDLED / 'spiece.model').read_bytes()
  )
  own = vocabularies.load(f'{folder / "spiece.model"}:7')
  read_checkpoint.load_params(str(folder), GATED, vocabulary=own)
  with pytest.raises(ValueError, match='tokenizer of its own.*VOCABULARY='):
    read_checkpoint.load_params(
      str(folder), GATED, vocabulary=vocabularies.load('bytes')
    )


KINDS = {
  't5_1_0': ('T5', {'feed_forward_proj': 'relu'}),
  't5_1_1': (
    'T5',
    {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False},
  ),
  'ul2': (
    'T5',
    {'feed_forward_proj': 'gated-silu', 'tie_word_embeddings': False},
  ),
  'mt5': ('MT5', {'tie_word_embeddings': False}),
  'mt5_tied': ('MT5', {'tie_word_embeddings': True}),
  'far': (
    'T5',
    {'relative_attention_num_buckets': 4, 'relative_attention_max_distance': 3},
  ),
}


def _their_logits(model):
  torch = pytest.importorskip('torch', reason='torch is not installed')
  with torch.no_grad():
    return model.eval()(
      input_ids=torch.tensor(ROWS['encoder_input_tokens'].astype(np.int64)),
      decoder_input_ids=torch.tensor(
        ROWS['decoder_input_tokens'].astype(np.int64)
      ),
    ).logits.numpy()


def _assert_ratio_one(found, expected):
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
  ratio = np.linalg.norm(found) / np.linalg.norm(expected)
  assert abs(ratio - 1.0) < 5e-4


@pytest.mark.parametrize('kind', KINDS)
def test_models_made_by_transformers_have_its_logits(tmp_path, kind):
  """Made, saved; loaded and saved again by transformers; and by us."""
  transformers = pytest.importorskip(
    'transformers', reason='transformers is not installed'
  )
  pytest.importorskip('torch', reason='torch is not installed')
  family, changes = KINDS[kind]
  sizes = {
    'vocab_size': 60,
    'd_model': 16,
    'd_kv': 8,
    'd_ff': 32,
    'num_heads': 2,
    'num_layers': 2,
    'num_decoder_layers': 1,
    'decoder_start_token_id': 0,
  }
  transformers.set_seed(0)
  config = getattr(transformers, f'{family}Config')(**sizes | changes)
  model = getattr(transformers, f'{family}ForConditionalGeneration')(config)
  expected = _their_logits(model)
  auto = transformers.AutoModelForSeq2SeqLM
  model.save_pretrained(tmp_path / 'made')
  _assert_ratio_one(_logits(tmp_path / 'made'), expected)
  auto.from_pretrained(tmp_path / 'made').save_pretrained(tmp_path / 'again')
  _assert_ratio_one(_logits(tmp_path / 'again'), expected)
  ours = hf_checkpoint.config_from_hf(tmp_path / 'again')
  params = read_checkpoint.load_params(str(tmp_path / 'again'), ours)
  hf_checkpoint.save_hf(tmp_path / 'ours', params, ours)
  found = auto.from_pretrained(tmp_path / 'ours')
  _assert_ratio_one(_their_logits(found), expected)
  # An untied folder of ours that transformers loads and saves again.
  found.save_pretrained(tmp_path / 'back')
  _assert_ratio_one(_logits(tmp_path / 'back'), expected)


def test_an_untied_folder_of_ours_survives_transformers(tmp_path):
  transformers = pytest.importorskip(
    'transformers', reason='transformers is not installed'
  )
  params = hf_models.params(GATED)
  hf_checkpoint.save_hf(tmp_path / 'ours', params, GATED)
  auto = transformers.AutoModelForSeq2SeqLM
  model = auto.from_pretrained(tmp_path / 'ours')
  _assert_ratio_one(_their_logits(model), _of(params, GATED))
  model.save_pretrained(tmp_path / 'again')
  _assert_ratio_one(_logits(tmp_path / 'again'), _of(params, GATED))
