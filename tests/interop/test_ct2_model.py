# SPDX-License-Identifier: Apache-2.0
"""CTranslate2 computes every T5 that is trained here as the built-in engine."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from dsbs_jax.core import decoding
from dsbs_jax.interop import ct2_model
from tests import models
from tests.core import tiny_decoder

ctranslate2 = pytest.importorskip('ctranslate2', reason='extra ct2')
engines = pytest.importorskip('dsbs_jax.inference.backends.ct2_engine')

SIZES = {'vocab_size': 96, 'emb_dim': 24, 'mlp_dim': 40}
# 6 heads of 8 are wider than the network, as mT5's and ByT5's are not d_model.
VARIANTS = {
  't5_1_1': {'num_heads': 6},
  't5_1_0': {'mlp_activations': ('relu',), 'logits_via_embedding': True},
  'ul2': {'mlp_activations': ('silu', 'linear')},
  'byt5': {'num_encoder_layers': 3, 'vocab_size': 384},
  'deep decoder': {'num_decoder_layers': 3},
  'distances': {'num_buckets': 8, 'max_distance': 20},
  'umt5': {
    'num_encoder_layers': 3,
    'num_decoder_layers': 2,
    'relpos_bias_per_layer': True,
  },
  'scanned': {'num_encoder_layers': 2, 'scan_layers': True},
}


def drawn(config):
  """Random parameters, loud enough to say different things."""
  params = models.t5_params(config, seed=3)
  return jax.tree.map(lambda leaf: np.float32(1.3) * leaf, params)


def inputs(config):
  random = np.random.default_rng(0)
  tokens = np.zeros((6, 40), np.int32)
  for row, length in zip(tokens, (2, 40, 17, 9, 30, 5), strict=True):
    row[:length] = random.integers(3, config.vocab_size, length)
    row[length - 1] = 1
  return tokens


def opened(folder, params, config, quantization='float32'):
  folder.mkdir(exist_ok=True)
  names = [str(token) for token in range(config.vocab_size)]
  ct2_model.save(
    folder, params, config, tokens=names, quantization=quantization
  )
  return engines.Engine(
    str(folder),
    compute_type='int8_float32' if 'int8' in quantization else 'float32',
    vocab_size=config.vocab_size,
    num_threads=1,
  )


@pytest.mark.parametrize('name', VARIANTS)
def test_every_network_computes_the_same(tmp_path, name):
  config = models.t5(**SIZES | VARIANTS[name])
  params, tokens = drawn(config), inputs(config)
  engine = opened(tmp_path / 'model', params, config)
  rows = {'encoder_input_tokens': tokens}
  expected = np.asarray(tiny_decoder.greedy(config, 9)(params, rows))
  found, _ = engine.generate(tokens, max_decode_len=9)
  np.testing.assert_array_equal(found, expected)
  assert len({tuple(row) for row in found}) > 1  # they answer to the inputs
  options = np.random.default_rng(1).integers(3, 90, (6, 3, 5), np.int32)
  options[:, 1, 3:] = 0
  options[:, 2, 4] = 1
  score = models.jit(decoding.score_options, static_argnums=1)
  np.testing.assert_allclose(
    engine.score_options(tokens, options),
    score(params, config, rows, options_tokens=options),
    rtol=2e-6,
    atol=2e-5,
  )


@pytest.mark.parametrize('quantization', ct2_model.QUANTIZATIONS)
def test_weights_are_stored_as_asked_and_stay_as_they_are(
  tmp_path, quantization
):
  config = models.t5(**SIZES, logits_via_embedding=True)
  params, tokens = drawn(config), inputs(config)
  before = jax.tree.map(np.array, params)
  engine = opened(tmp_path / 'model', params, config, quantization)
  models.assert_equal(params, before)
  found, _ = engine.generate(tokens, max_decode_len=6)
  rows = {'encoder_input_tokens': tokens}
  expected = np.asarray(tiny_decoder.greedy(config, 6)(params, rows))
  assert (found == expected).mean() > 0.6
  size = (tmp_path / 'model' / 'model.bin').stat().st_size
  num = sum(leaf.size for leaf in jax.tree.leaves(params))
  stored = {'float32': 4, 'float16': 2, 'int8': 1, 'int8_bfloat16': 1}
  assert stored[quantization] <= size / num < 1.8 * stored[quantization]
  written = json.loads((tmp_path / 'model' / 'config.json').read_text())
  assert written['eos_token'] == '1' and written['layer_norm_epsilon'] == 1e-6


def test_a_network_that_it_cannot_compute_is_refused(tmp_path):
  config = models.t5(mlp_activations=('gelu', 'relu'))
  with pytest.raises(ValueError, match='of CTranslate2, expected'):
    ct2_model.save(
      tmp_path,
      drawn(config),
      config,
      tokens=[str(i) for i in range(config.vocab_size)],
    )
  config = dataclasses.replace(config, mlp_activations=('relu',))
  with pytest.raises(ValueError, match='127 different tokens, expected 128'):
    ct2_model.save(
      tmp_path, {}, config, tokens=['x'] * 2 + [str(i) for i in range(126)]
    )


def test_without_it_there_is_a_remedy(monkeypatch):
  monkeypatch.setattr(ct2_model, 'is_installed', lambda: False)
  with pytest.raises(ValueError, match=r"pip install -e '.\[ct2\]'"):
    ct2_model.require()
