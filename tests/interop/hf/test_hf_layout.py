# SPDX-License-Identifier: Apache-2.0
"""A T5 in Hugging Face's words, and models that are none."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from dsbs_jax.interop.hf import hf_checkpoint
from tests.interop import hf_models


def test_tensors_have_the_names_and_orientation_of_hugging_face(saved):
  folder, params = saved
  tensors = hf_models.tensors(folder)
  layer = params['decoder']['layers_2']
  for name, expected in (
    ('shared.weight', params['token_embedder']['embedding']),
    ('lm_head.weight', params['decoder']['logits_dense']['kernel'].T),
    (
      'decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight',
      params['decoder']['relpos_bias']['rel_embedding'].T,
    ),
    (
      'decoder.block.2.layer.1.EncDecAttention.o.weight',
      layer['encoder_decoder_attention']['out']['kernel'].T,
    ),
    (
      'decoder.block.2.layer.2.DenseReluDense.wi_1.weight',
      layer['mlp']['wi_1']['kernel'].T,
    ),
    (
      'decoder.block.2.layer.1.layer_norm.weight',
      layer['pre_cross_attention_layer_norm']['scale'],
    ),
  ):
    np.testing.assert_array_equal(tensors[name], expected)
  assert len(tensors) == len(jax.tree.leaves(params))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model_type': 'longt5'}, "model_type is 'longt5'"),
    ({'feed_forward_proj': 'gelu'}, "feed_forward_proj is 'gelu'"),
    ({'dense_act_fn': 'gelu'}, "dense_act_fn is 'gelu', expected.*'gelu_new'"),
    ({'is_gated_act': False}, 'is_gated_act is False'),
    ({'tie_encoder_decoder': True}, 'tie_encoder_decoder is True'),
    ({'layer_norm_epsilon': 1e-5}, 'layer_norm_epsilon is 1e-05'),
    ({'d_kv': None}, r"has no \['d_kv'\]"),
  ],
)
def test_models_that_are_no_t5_are_refused(saved, changes, message):
  folder, _ = saved
  path = folder / 'config.json'
  values = json.loads(path.read_text()) | changes
  values = {name: value for name, value in values.items() if value is not None}
  path.write_text(json.dumps(values))
  with pytest.raises(ValueError, match=message):
    hf_checkpoint.config_from_hf(folder)


def test_a_t5_that_says_nothing_of_its_head_has_it_tied(tmp_path):
  config = dataclasses.replace(hf_models.GATED, logits_via_embedding=True)
  folder = tmp_path / 'model'
  hf_checkpoint.save_hf(folder, hf_models.params(config), config)
  values = json.loads((folder / 'config.json').read_text())
  del values['tie_word_embeddings']  # as transformers 4 leaves defaults out
  (folder / 'config.json').write_text(json.dumps(values))
  assert hf_checkpoint.config_from_hf(folder).logits_via_embedding


def test_activations_unknown_to_hugging_face_are_refused(tmp_path):
  config = dataclasses.replace(
    hf_models.GATED, mlp_activations=('relu', 'relu')
  )
  with pytest.raises(ValueError, match='Hugging Face can express'):
    hf_checkpoint.save_hf(tmp_path / 'model', hf_models.params(config), config)
