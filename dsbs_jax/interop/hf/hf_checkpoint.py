# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders of T5 and Gemma <-> our parameters, without torch.

A folder holds config.json and model.safetensors, or shards of it with
model.safetensors.index.json; names and shapes: see hf_layout.py,
gemma_config.py and gemma_layout.py.
"""

import dataclasses
import json
import pathlib
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from flax import traverse_util

from dsbs_jax import contract
from dsbs_jax.core import network
from dsbs_jax.interop import same_network, t5x_layers
from dsbs_jax.interop.hf import (
  gemma_config,
  gemma_layout,
  hf_layout,
  hf_weights,
)

# One table under up to four names; some files hold all of them.
_EMBEDDING_NAMES = (
  'shared.weight',
  'encoder.embed_tokens.weight',
  'decoder.embed_tokens.weight',
)
# Old T5 files carry this table, which no version of the model reads.
_UNUSED = (
  'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'
)


def _check_names(tensors: dict, names: dict, folder: pathlib.Path) -> None:
  expected = set(names.values())
  ignored = {*_EMBEDDING_NAMES, 'lm_head.weight', _UNUSED}
  missing = sorted(expected - set(tensors))
  unexpected = sorted(set(tensors) - expected - ignored)
  if missing or unexpected:
    raise contract.UserError(
      f'{folder} does not hold the tensors that its size asks for:'
      f' {len(missing)} missing {missing[:4]}, {len(unexpected)} unexpected'
      f' {unexpected[:4]}. Check layers, activations and tying.'
    )


def _equal(tensors: dict, name: str, other: str) -> bool:
  return np.array_equal(tensors[name](), tensors[other]())


def _layout(config: network.Config) -> types.ModuleType:
  """What says the names of the tensors of a network's family."""
  is_gemma = isinstance(config, network.GemmaConfig)
  return gemma_layout if is_gemma else hf_layout


def _open(
  folder: pathlib.Path, *, allow_pickle: bool
) -> tuple[network.Config, dict, float]:
  """Opens a folder and settles what its head is, as transformers does.

  Tied and scaled logits are T5 1.0's. All others are computed as untied ones:
  a tied head that is not scaled is a copy of the embedding, and one of its own
  that is scaled takes the scale into its weights.

  Returns:
    Its network, as config.json and its head say; name -> function that reads
    the tensor; and what the head's weights are multiplied with.
  """
  path = folder / 'config.json'
  values = hf_layout.read_json(path) if path.is_file() else {}
  if values.get('model_type') in gemma_config.MODEL_TYPES:
    tensors = hf_weights.open_folder(folder, allow_pickle=allow_pickle)
    config = gemma_config.config_of(values, path)
    return config, gemma_layout.text_tensors(tensors, folder, config), 1.0
  config, is_tied = hf_layout.read_config(folder)
  tensors = hf_weights.open_folder(folder, allow_pickle=allow_pickle)
  tables = [name for name in _EMBEDDING_NAMES if name in tensors]
  if not tables:
    return config, tensors, 1.0  # refused below, with all that is missing
  for alias in tables[1:]:
    if not _equal(tensors, alias, tables[0]):
      raise contract.UserError(
        f'{folder}: {alias} differs from {tables[0]}, expected one table for'
        ' encoder and decoder. Such a model has no equal here.'
      )
  tensors['shared.weight'] = tensors[tables[0]]
  head = 'lm_head.weight'
  if not is_tied or (
    head in tensors and not _equal(tensors, head, 'shared.weight')
  ):
    scale = config.emb_dim**-0.5 if config.logits_via_embedding else 1.0
    untied = dataclasses.replace(config, logits_via_embedding=False)
    return untied, tensors, scale
  if not config.logits_via_embedding:
    tensors[head] = tensors['shared.weight']
  return config, tensors, 1.0


def config_from_hf(
  folder: str | pathlib.Path, *, allow_pickle: bool = False
) -> network.Config:
  """The network that a Hugging Face folder holds.

  Returns:
    Its config; dtype, remat and scan_layers are left at their defaults.

  Raises:
    UserError: the folder cannot be read, or we cannot compute it.
  """
  return _open(pathlib.Path(folder), allow_pickle=allow_pickle)[0]


def load_params(
  folder: str | pathlib.Path,
  config: network.Config,
  *,
  allow_pickle: bool = False,
) -> dict:
  """Reads the weights of a Hugging Face folder, as float32 NumPy arrays.

  Args:
    folder: with model.safetensors or its shards and index.
    config: the size, usually from `config_from_hf`; scan_layers decides how
      the layers are laid out, and all that decides logits must be the folder's.

  Raises:
    UserError: the folder holds another network than `config`.
  """
  folder = pathlib.Path(folder)
  found, tensors, head_scale = _open(folder, allow_pickle=allow_pickle)
  same_network.check(config, dataclasses.asdict(found), str(folder))
  layout = _layout(config)
  names = layout.tensor_names(config)
  _check_names(tensors, names, folder)
  shapes = traverse_util.flatten_dict(t5x_layers.unrolled_shapes(config))
  params = {}
  for path, name in names.items():
    tensor = tensors[name]()
    tensor = tensor.T if hf_layout.is_transposed(path) else tensor
    if tensor.shape != shapes[path].shape:
      raise contract.UserError(
        f'{folder}: {name} gives {"/".join(path)} the shape {tensor.shape},'
        f' expected {shapes[path].shape} (vocab_size {config.vocab_size},'
        f' emb_dim {config.emb_dim}). Take the config from the same folder.'
      )
    if name == 'lm_head.weight' and head_scale != 1.0:
      tensor = tensor * np.float32(head_scale)
    params[path] = np.ascontiguousarray(tensor)
  params = traverse_util.unflatten_dict(params)
  if config.scan_layers:
    params = network.stack_layers(params, config)
  return params


def _json(values: dict) -> bytes:
  return (json.dumps(values, indent=2) + '\n').encode()


def save_hf(
  folder: str | pathlib.Path,
  params: dict,
  config: network.Config,
  *,
  tokenizer: Mapping[str, bytes] | None = None,
  generation: Mapping[str, Any] | None = None,
) -> None:
  """Writes a folder that transformers loads.

  By AutoModelForSeq2SeqLM, or of a decoder by AutoModelForCausalLM.

  Args:
    params: the parameter tree, in either layout of the layers.
    tokenizer: its files, of `hf_tokenizer`; None writes no tokenizer.
    generation: of generation_config.json, beside T5's special ids.

  Raises:
    UserError: the folder is in use.
    ValueError: a shape is not that of `config`.
  """
  folder = check_new(folder)
  layout = _layout(config)
  described = hf_layout if layout is hf_layout else gemma_config
  generation = {**(generation or {}), **described.SPECIAL_IDS}
  if (
    layout is hf_layout
    and config.num_decoder_layers > config.num_encoder_layers
  ):
    # transformers makes a cache as deep as the encoder: generate() would fail.
    generation['use_cache'] = False
  files = {
    'config.json': _json(described.config_values(config)),
    'generation_config.json': _json(generation),
    **(tokenizer or {}),
  }
  tensors = _tensors(params, config, layout)
  folder.mkdir(parents=True, exist_ok=True)
  for name, content in files.items():
    (folder / name).write_bytes(content)
  safetensors.numpy.save_file(
    tensors, folder / 'model.safetensors', metadata={'format': 'pt'}
  )


def check_new(folder: str | pathlib.Path) -> pathlib.Path:
  """A folder to export into; raises UserError where it holds something."""
  folder = pathlib.Path(folder)
  if folder.exists() and any(folder.iterdir()):
    raise contract.UserError(
      f'{folder} is not empty; exporting into it could mix two models. Give'
      ' a new folder.'
    )
  return folder


def _tensors(
  params: dict, config: network.Config, layout: types.ModuleType
) -> dict[str, np.ndarray]:
  """Hugging Face's name -> the tensor as it is stored there."""
  flat = traverse_util.flatten_dict(t5x_layers.unrolled_params(params, config))
  shapes = traverse_util.flatten_dict(t5x_layers.unrolled_shapes(config))
  tensors = {}
  if layout is gemma_layout:
    tensors = gemma_layout.picture_tensors(config)
  for path, name in layout.tensor_names(config).items():
    tensor, expected = flat[path], shapes[path].shape
    if tensor.shape != expected:
      raise ValueError(
        f'{"/".join(path)} has the shape {tensor.shape}, expected {expected}'
        ' by the given T5Config.'
      )
    tensor = tensor.T if hf_layout.is_transposed(path) else tensor
    tensors[name] = np.ascontiguousarray(tensor)
  return tensors
