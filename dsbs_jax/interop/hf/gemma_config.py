# SPDX-License-Identifier: Apache-2.0
"""How Hugging Face's config.json describes a Gemma: reads it, and writes it.

Read are Gemma 3 and T5Gemma 2, of those that see pictures the text part.
transformers 5 says rotations under `rope_parameters`, 4 by single keys; written
are the keys that both read.
"""

import dataclasses
import pathlib
from typing import Any

from dsbs_jax import contract
from dsbs_jax.core import network

_ENCODER_DECODER = 't5gemma2'
MODEL_TYPES = ('gemma3_text', 'gemma3', _ENCODER_DECODER)
_LOCAL, _GLOBAL = 'sliding_attention', 'full_attention'
# Field of GemmaConfig -> key of config.json.
_KEYS = {
  'vocab_size': 'vocab_size',
  'emb_dim': 'hidden_size',
  'num_heads': 'num_attention_heads',
  'num_kv_heads': 'num_key_value_heads',
  'head_dim': 'head_dim',
  'mlp_dim': 'intermediate_size',
  'num_layers': 'num_hidden_layers',
  'window': 'sliding_window',
  'query_scale_dim': 'query_pre_attn_scalar',
}
# What this network computes, where config.json says it at all.
_FIXED = {
  'hidden_activation': 'gelu_pytorch_tanh',
  'rms_norm_eps': 1e-6,
  'attention_bias': False,
  'final_logit_softcapping': None,
  'attn_logit_softcapping': None,
  'tie_word_embeddings': True,
  'use_bidirectional_attention': False,
}
# The ids that generation starts, ends and pads with.
SPECIAL_IDS = {
  'pad_token_id': contract.PAD_ID,
  'eos_token_id': contract.EOS_ID,
  'bos_token_id': contract.BOS_ID,
}
# The smallest that transformers builds: a T5Gemma 2 without one is none.
_VISION = {
  'model_type': 'siglip_vision_model',
  'hidden_size': 1,
  'intermediate_size': 1,
  'num_hidden_layers': 0,
  'num_attention_heads': 1,
  'image_size': 1,
  'patch_size': 1,
  'vision_use_head': False,
}


def config_of(
  values: dict[str, Any], path: pathlib.Path
) -> network.GemmaConfig:
  """The network that a config.json describes.

  Raises:
    UserError: it describes what this network cannot compute.
  """
  try:
    return _config_of(values, path)
  except contract.UserError:
    raise
  except (TypeError, ValueError, LookupError, AttributeError) as error:
    raise contract.UserError(
      f'{path} cannot be read ({error!r:.200}), expected what transformers'
      ' writes of a Gemma. Save the model again.'
    ) from error


def _config_of(
  values: dict[str, Any], path: pathlib.Path
) -> network.GemmaConfig:
  if values.get('model_type') != _ENCODER_DECODER:
    return _config_of_stack(values.get('text_config', values), path)
  _check_fixed(values, path)
  encoder, decoder = (
    _config_of_stack(stack, path, family='t5gemma2')
    for stack in (values['encoder']['text_config'], values['decoder'])
  )
  if encoder != decoder:
    differing = [
      f'{field} {value} and {getattr(decoder, field)}'
      for field, value in dataclasses.asdict(encoder).items()
      if value != getattr(decoder, field)
    ]
    raise contract.UserError(
      f'{path} has an encoder and a decoder of different sizes'
      f' ({", ".join(differing)}), expected equal ones, as the published'
      ' T5Gemma 2 have.'
    )
  return decoder


def _config_of_stack(
  values: dict[str, Any], path: pathlib.Path, *, family: str = 'gemma3'
) -> network.GemmaConfig:
  missing = sorted(key for key in _KEYS.values() if key not in values)
  if missing:
    raise contract.UserError(
      f'{path} has no {missing}, expected all of {sorted(_KEYS.values())}. Save'
      ' the model again with transformers, which writes them.'
    )
  _check_fixed(values, path)
  return network.GemmaConfig(
    family=family,
    **{field: values[key] for field, key in _KEYS.items()},
    global_period=_period(values, path),
    **_rotations(values, path),
  )


def _check_fixed(values: dict[str, Any], path: pathlib.Path) -> None:
  for name, expected in _FIXED.items():
    if (found := values.get(name, expected)) not in (expected, None):
      raise contract.UserError(
        f'{path}: {name} is {found!r}, expected {expected!r}: this Gemma'
        ' computes no other.'
      )


def _period(values: dict[str, Any], path: pathlib.Path) -> int:
  names = 'sliding_window_pattern', '_sliding_window_pattern'
  period = next(filter(None, map(values.get, names)), 6)
  kinds = values.get('layer_types')
  if kinds is None:
    return period
  is_mixed = _GLOBAL in kinds
  period = kinds.index(_GLOBAL) + 1 if is_mixed else max(period, len(kinds) + 1)
  if kinds != _layer_types(len(kinds), period):
    raise contract.UserError(
      f'{path}: layer_types is {kinds}, expected every n-th layer to be'
      f' {_GLOBAL} and the others {_LOCAL}.'
    )
  return period


def _layer_types(num_layers: int, period: int) -> list[str]:
  return [
    _LOCAL if (layer + 1) % period else _GLOBAL for layer in range(num_layers)
  ]


def _rotations(values: dict[str, Any], path: pathlib.Path) -> dict[str, float]:
  named = values.get('rope_parameters') or {}
  local = named.get(_LOCAL) or {}
  whole = (values.get('rope_scaling') or {}) | (named.get(_GLOBAL) or {})
  kind = whole.get('rope_type', whole.get('type', 'default'))
  local_kind = local.get('rope_type', 'default')
  if kind not in ('default', 'linear') or local_kind != 'default':
    raise contract.UserError(
      f'{path}: rotations are {kind!r}, expected default or, in global layers,'
      ' linear.'
    )
  factor = whole.get('factor', 1.0) if kind == 'linear' else 1.0
  bases = values.get('rope_local_base_freq', 1e4), values.get('rope_theta', 1e6)
  return {
    'local_rope_base': float(local.get('rope_theta', bases[0])),
    'global_rope_base': float(whole.get('rope_theta', bases[1])),
    'global_rope_factor': float(factor),
  }


def config_values(config: network.GemmaConfig) -> dict[str, Any]:
  """The content of the config.json that describes this size."""
  values = {key: getattr(config, field) for field, key in _KEYS.items()}
  scaling = None
  if config.global_rope_factor != 1.0:
    scaling = {'rope_type': 'linear', 'factor': config.global_rope_factor}
  stack = {
    **values,
    **_FIXED,
    'layer_types': _layer_types(config.num_layers, config.global_period),
    'sliding_window_pattern': config.global_period,
    'rope_local_base_freq': config.local_rope_base,
    'rope_theta': config.global_rope_base,
    'rope_scaling': scaling,
    'max_position_embeddings': 32768,
    'torch_dtype': 'float32',
    **SPECIAL_IDS,
  }
  if not config.has_encoder:
    name = {'architectures': ['Gemma3ForCausalLM'], 'model_type': 'gemma3_text'}
    return name | stack
  return {
    'architectures': ['T5Gemma2ForConditionalGeneration'],
    'model_type': _ENCODER_DECODER,
    'is_encoder_decoder': True,
    'tie_word_embeddings': True,
    'encoder': {
      'model_type': 't5gemma2_encoder',
      'text_config': {'model_type': 't5gemma2_text', **stack},
      'vision_config': _VISION,
      'mm_tokens_per_image': 1,
    },
    'decoder': {'model_type': 't5gemma2_decoder', **stack},
    'torch_dtype': 'float32',
    **SPECIAL_IDS,
  }
