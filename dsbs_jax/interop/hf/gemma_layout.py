# SPDX-License-Identifier: Apache-2.0
"""What Hugging Face calls the tensors of a Gemma (sizes: gemma_config.py)."""

import pathlib
import re
from collections.abc import Callable

import numpy as np

from dsbs_jax import contract
from dsbs_jax.core import network

# Where the files have the stacks.
_STACKS = {
  'gemma3': {'decoder': 'model'},
  't5gemma2': {
    'encoder': 'model.encoder',
    'decoder': 'model.decoder',
  },
}
# Before attention, and after it.
_ATTENTION_NORMS = {
  'gemma3': ('input_layernorm', 'post_attention_layernorm'),
  't5gemma2': ('pre_self_attn_layernorm', 'post_self_attn_layernorm'),
}
_NORMS = {
  'pre_mlp_norm': 'pre_feedforward_layernorm',
  'post_mlp_norm': 'post_feedforward_layernorm',
}
_KERNELS = {
  ('self_attention', 'query'): 'self_attn.q_proj',
  ('self_attention', 'key'): 'self_attn.k_proj',
  ('self_attention', 'value'): 'self_attn.v_proj',
  ('self_attention', 'out'): 'self_attn.o_proj',
  ('mlp', 'wi_0'): 'mlp.gate_proj',
  ('mlp', 'wi_1'): 'mlp.up_proj',
  ('mlp', 'wo'): 'mlp.down_proj',
}
_HEAD_NORMS = {'query_norm': 'self_attn.q_norm', 'key_norm': 'self_attn.k_norm'}
_EMBEDDING = 'embed_tokens.weight'
_OF_PICTURES = re.compile(r'eoi_embedding|vision_tower|multi_modal_projector')
# Copies of the table of a T5Gemma 2 that a file may hold, too.
_TABLES = ('model.decoder.embed_tokens.weight', 'lm_head.out_proj.weight')
# In memory, transformers has the encoder's layers one level further down.
_IN_MEMORY = 'model.encoder.text_model.'


def tensor_names(config: network.GemmaConfig) -> dict[tuple[str, ...], str]:
  """Path in the unrolled parameter tree -> name in a Hugging Face file."""
  names = {}
  before, after = _ATTENTION_NORMS[config.family]
  norms = {'pre_attention_norm': before, 'post_attention_norm': after, **_NORMS}
  for stack, place in _STACKS[config.family].items():
    names.setdefault(('token_embedder', 'embedding'), f'{place}.{_EMBEDDING}')
    names[stack, f'{stack}_norm', 'scale'] = f'{place}.norm.weight'
    for number in range(config.num_layers):
      ours, theirs = (stack, f'layers_{number}'), f'{place}.layers.{number}'
      for norm, name in norms.items():
        names[*ours, norm, 'scale'] = f'{theirs}.{name}.weight'
      for norm, name in _HEAD_NORMS.items():
        path = *ours, 'self_attention', norm, 'scale'
        names[path] = f'{theirs}.{name}.weight'
      for path, name in _KERNELS.items():
        names[*ours, *path, 'kernel'] = f'{theirs}.{name}.weight'
  return names


def picture_tensors(config: network.GemmaConfig) -> dict[str, np.ndarray]:
  """A T5Gemma 2's for pictures, all 0: transformers wants them."""
  if not config.has_encoder:
    return {}
  encoder, width = 'model.encoder', config.emb_dim
  tower = f'{encoder}.vision_tower'
  projector = f'{encoder}.multi_modal_projector'
  shapes = {
    f'{encoder}.embed_tokens.eoi_embedding': (width,),
    f'{tower}.embeddings.patch_embedding.weight': (1, 3, 1, 1),
    f'{tower}.embeddings.patch_embedding.bias': (1,),
    f'{tower}.embeddings.position_embedding.weight': (1, 1),
    f'{tower}.post_layernorm.weight': (1,),
    f'{tower}.post_layernorm.bias': (1,),
    f'{projector}.mm_input_projection_weight': (1, width),
    f'{projector}.mm_soft_emb_norm.weight': (1,),
  }
  return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def text_tensors(
  tensors: dict[str, Callable], path: pathlib.Path, config: network.GemmaConfig
) -> dict[str, Callable]:
  """The tensors of the text model, under the names of `tensor_names`.

  Raises:
    UserError: there is not one table for inputs and logits.
  """
  if config.has_encoder:
    return _encoder_decoder_tensors(tensors, path)
  tables = [name for name in tensors if name.endswith(_EMBEDDING)]
  if len(tables) != 1:
    raise contract.UserError(
      f'{path} has the tables {tables}, expected one named *{_EMBEDDING}. Fetch'
      ' the model again.'
    )
  for name in tensors:
    if name.endswith('lm_head.weight'):
      _check_copy(tensors, name, tables[0], path)
  prefix = tables[0].removesuffix(_EMBEDDING)
  return {
    f'model.{name.removeprefix(prefix)}': read
    for name, read in tensors.items()
    if name.startswith(prefix)
  }


def _encoder_decoder_tensors(
  tensors: dict[str, Callable], path: pathlib.Path
) -> dict[str, Callable]:
  tensors = {
    name.replace(_IN_MEMORY, 'model.encoder.'): read
    for name, read in tensors.items()
    if not _OF_PICTURES.search(name)
  }
  table = f'model.encoder.{_EMBEDDING}'
  copies = [name for name in _TABLES if name in tensors]
  if table not in tensors and copies:
    tensors[table] = tensors[copies[0]]
  for name in copies:
    _check_copy(tensors, name, table, path)
    del tensors[name]
  return tensors


def _check_copy(
  tensors: dict[str, Callable], name: str, table: str, path: pathlib.Path
) -> None:
  if not np.array_equal(tensors[name](), tensors[table]()):
    raise contract.UserError(
      f'{path}: {name} differs from {table}, expected one table for inputs and'
      ' logits. Such a model has no equal here.'
    )
