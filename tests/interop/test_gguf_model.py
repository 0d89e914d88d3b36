# SPDX-License-Identifier: Apache-2.0
"""A GGUF file holds each parameter, and llama.cpp computes the same."""

import ctypes

import jax
import numpy as np
import pytest

from dsbs_jax.core import decoding
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.interop import gguf_model
from tests import models
from tests.recordings import hf_folders

gguf = pytest.importorskip('gguf', reason='extra gguf')

VOCABULARY = vocabularies.load(str(hf_folders.BUNDLED / 'spiece.model'))
SIZES = {
  'vocab_size': vocabularies.padded_size(VOCABULARY),
  'emb_dim': 32,
  'num_heads': 3,
  'head_dim': 16,
  'mlp_dim': 64,
}
VARIANTS = {
  't5_1_1': {'num_encoder_layers': 2},
  't5_1_0': {'mlp_activations': ('relu',), 'logits_via_embedding': True},
  'umt5': {
    'num_encoder_layers': 2,
    'num_decoder_layers': 2,
    'relpos_bias_per_layer': True,
  },
  'deep encoder': {'num_encoder_layers': 3, 'num_decoder_layers': 2},
}


def saved(folder, name, quantization='float32'):
  config = models.t5(**SIZES | VARIANTS[name])
  params = jax.tree.map(
    lambda leaf: np.float32(1.3) * np.asarray(leaf),
    models.init(jax.random.key(0), config),
  )
  path = folder / 'model.gguf'
  gguf_model.save(
    path, params, config, vocabulary=VOCABULARY, quantization=quantization
  )
  return path, params, config


@pytest.mark.parametrize('quantization', gguf_model.QUANTIZATIONS)
def test_the_file_holds_parameters_and_vocabulary(tmp_path, quantization):
  path, params, _ = saved(tmp_path, 't5_1_1', quantization)
  reader = gguf.GGUFReader(path)
  tensors = {
    tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    for tensor in reader.tensors
  }
  assert len(tensors) == len(jax.tree.leaves(params))
  close = {'float32': 0, 'float16': 1e-3, 'q8_0': 2e-2}[quantization]
  for name, expected in (
    ('enc.blk.1.ffn_gate', params['encoder']['layers_1']['mlp']['wi_0']),
    ('dec.blk.0.cross_attn_q', cross(params)['query']),
    ('output', params['decoder']['logits_dense']),
  ):
    np.testing.assert_allclose(
      tensors[f'{name}.weight'], expected['kernel'].T, atol=close
    )
  table = params['decoder']['relpos_bias']['rel_embedding'].T
  np.testing.assert_array_equal(tensors['dec.blk.0.attn_rel_b.weight'], table)
  assert reader.fields['general.architecture'].contents() == 't5'
  tokens = reader.fields['tokenizer.ggml.tokens'].contents()
  assert tokens[5] == VOCABULARY.piece(5) and len(tokens) == SIZES['vocab_size']


def cross(params):
  return params['decoder']['layers_0']['encoder_decoder_attention']


@pytest.mark.parametrize('name', VARIANTS)
def test_llama_cpp_computes_the_same(tmp_path, name):
  llama_cpp = pytest.importorskip(
    'llama_cpp', reason='llama-cpp-python is built from source: make test-llm'
  )
  path, params, config = saved(tmp_path, name)
  quiet = llama_cpp.llama_log_callback(lambda *_: None)
  llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
  model = llama_cpp.llama_model_load_from_file(
    str(path).encode(), llama_cpp.llama_model_default_params()
  )
  assert model
  context = llama_cpp.llama_init_from_model(
    model, llama_cpp.llama_context_default_params()
  )
  text = 'a question, with ½ and  two blanks?'
  ids = [*VOCABULARY.encode(text), 1]
  assert tokenized(llama_cpp, model, text) == ids
  outputs = [0, 9, 8, 7]
  for step, tokens in (
    (llama_cpp.llama_encode, ids),
    *((llama_cpp.llama_decode, [token]) for token in outputs),
  ):
    array = (llama_cpp.llama_token * len(tokens))(*tokens)
    batch = llama_cpp.llama_batch_get_one(array, len(tokens))
    assert step(context, batch) == 0
  logits = llama_cpp.llama_get_logits_ith(context, -1)
  found = np.ctypeslib.as_array(logits, (config.vocab_size,)).copy()
  rows = {'encoder_input_tokens': np.array([ids])}
  options = np.array([[[*outputs[1:], last] for last in range(3, 40)]])
  expected = np.diff(
    decoding.score_options(params, config, rows, options_tokens=options)[0]
  )
  # Differences of log p are those of logits; GELU is a table of float16.
  np.testing.assert_allclose(np.diff(found)[3:39], expected, atol=0.03)
  llama_cpp.llama_free(context)
  llama_cpp.llama_model_free(model)


def tokenized(llama_cpp, model, text):
  """Ids that llama.cpp's own tokenizer gives."""
  vocabulary = llama_cpp.llama_model_get_vocab(model)
  found = (llama_cpp.llama_token * 99)()
  content = text.encode()
  size = llama_cpp.llama_tokenize(
    vocabulary, content, len(content), found, 99, True, False
  )
  return list(found[:size])
