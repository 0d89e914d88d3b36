# SPDX-License-Identifier: Apache-2.0
"""A Gemma 3 in a GGUF file -> a Hugging Face folder, weights as float32.

The `gguf` package reads and dequantises all types that llama.cpp writes. Its
converter has added 1 to the weights of norms, which Hugging Face leaves out.
The pieces of the vocabulary become a SentencePiece model again. A file that is
no Gemma 3 is a UserError, and so is a missing package.
"""

import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import traverse_util

from dsbs_jax import contract
from dsbs_jax.core import network
from dsbs_jax.interop import gguf_model
from dsbs_jax.interop.hf import (
  gemma_layout,
  hf_checkpoint,
  hf_layout,
  hf_tokenizer,
)

SUFFIX = '.gguf'
# Of 27B, whose queries have another scale.
_SCALED_BY_WIDTH = 62
# Not in the file: llama.cpp knows them.
_LOCAL_ROPE_BASE, _GLOBAL_PERIOD = 10_000.0, 6


def converted(file: str, *, say: Callable[[str], None]) -> str:
  """The Hugging Face folder of a GGUF file, written once into the user's cache.

  Its name holds the file's size and time, so a changed file is read anew.
  """
  path = pathlib.Path(file).expanduser().absolute()
  stat = path.stat()
  root = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  name = f'{path.stem}-{stat.st_size:x}-{stat.st_mtime_ns:x}'
  folder = pathlib.Path(root) / 'dsbs_jax' / 'students' / name
  if not folder.is_dir():
    say(f'converting {file}, once: {folder}')
    unfinished = folder.with_name(f'{name}.{os.getpid()}')
    try:
      to_hugging_face(path, unfinished)
      unfinished.rename(folder)
    except OSError:
      if not folder.is_dir():  # else another process was first: same contents
        raise
    finally:
      shutil.rmtree(unfinished, ignore_errors=True)
  return str(folder)


def to_hugging_face(
  file: str | pathlib.Path, folder: str | pathlib.Path
) -> None:
  """Writes the folder, which does not exist yet or is empty."""
  reader = _open(file)
  fields = dict(reader.fields)
  config = _config(fields, file)
  hf_checkpoint.save_hf(
    folder,
    _params(reader, config, file),
    config,
    tokenizer=hf_tokenizer.gemma_files(_sentencepiece(fields, file)),
  )


def _open(file: str | pathlib.Path) -> Any:
  gguf_model.require()
  import gguf

  try:
    return gguf.GGUFReader(file)
  except (ValueError, OSError, KeyError, IndexError) as error:
    raise contract.UserError(
      f'{file} is not a complete GGUF file ({error}). Fetch it again.'
    ) from error


def _config(fields: dict[str, Any], file: Any) -> network.GemmaConfig:
  kind = _value(fields, 'general.architecture', file)
  if kind != 'gemma3':
    raise contract.UserError(
      f'{file} holds a network of the kind {kind!r}, expected gemma3. Other'
      ' students are folders of Hugging Face or T5X.'
    )

  def size(name):
    return int(_value(fields, f'gemma3.{name}', file))

  heads, width = size('attention.head_count'), size('embedding_length')
  layers, head_dim = size('block_count'), size('attention.key_length')
  factor = 1.0
  if 'gemma3.rope.scaling.factor' in fields:
    factor = float(_value(fields, 'gemma3.rope.scaling.factor', file))
  return network.GemmaConfig(
    vocab_size=len(fields['tokenizer.ggml.tokens'].data),
    emb_dim=width,
    num_heads=heads,
    num_kv_heads=size('attention.head_count_kv'),
    head_dim=head_dim,
    mlp_dim=size('feed_forward_length'),
    num_layers=layers,
    window=size('attention.sliding_window'),
    global_period=_GLOBAL_PERIOD,
    local_rope_base=_LOCAL_ROPE_BASE,
    global_rope_base=float(_value(fields, 'gemma3.rope.freq_base', file)),
    global_rope_factor=factor,
    query_scale_dim=width // heads if layers == _SCALED_BY_WIDTH else head_dim,
  )


def _value(fields: dict[str, Any], name: str, file: Any) -> Any:
  if name not in fields:
    raise contract.UserError(
      f'{file} does not say {name}, expected a GGUF file that llama.cpp wrote.'
      ' Convert the model again.'
    )
  return fields[name].contents()


def _params(reader: Any, config: network.GemmaConfig, file: Any) -> dict:
  import gguf

  names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, config.num_layers)
  tensors = {tensor.name: tensor for tensor in reader.tensors}
  shapes = traverse_util.flatten_dict(network.param_shapes(config))
  flat = {}
  for path, theirs in gemma_layout.tensor_names(config).items():
    name = names.get_name(theirs, try_suffixes=('.weight',))
    tensor = tensors.get(name)
    if tensor is None:
      raise contract.UserError(
        f'{file} has no tensor {name}, expected all of a Gemma 3. Fetch it'
        ' again.'
      )
    try:
      array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
      raise contract.UserError(
        f'{file}: {tensor.name} has the type {tensor.tensor_type.name}, which'
        ' the gguf package does not dequantise. Take a file of another type.'
      ) from error
    if hf_layout.is_transposed(path):
      array = array.T
    elif path[-1] == 'scale':
      array = array - np.float32(1.0)
    if array.shape != shapes[path].shape:
      raise contract.UserError(
        f'{file}: {tensor.name} has the shape {array.shape}, expected'
        f' {shapes[path].shape}. Fetch it again.'
      )
    flat[path] = np.asarray(array, np.float32)
  return traverse_util.unflatten_dict(flat)


def _sentencepiece(fields: dict[str, Any], file: Any) -> bytes:
  """The vocabulary as a SentencePiece model, BPE with byte fallback."""
  from sentencepiece import sentencepiece_model_pb2

  if _value(fields, 'tokenizer.ggml.model', file) != 'llama':
    raise contract.UserError(
      f'{file} has no SentencePiece vocabulary, expected tokenizer.ggml.model'
      " 'llama'. Give --vocabulary, and a Hugging Face folder as the student."
    )
  proto = sentencepiece_model_pb2.ModelProto()
  columns = ('tokens', 'scores', 'token_type')
  rows = zip(
    *(_value(fields, f'tokenizer.ggml.{name}', file) for name in columns),
    strict=True,
  )
  for piece, score, kind in rows:
    if kind == proto.SentencePiece.USER_DEFINED:
      piece = piece.replace(' ', '▁')  # llama.cpp keeps these as blanks
    proto.pieces.add(piece=piece, score=score, type=kind)
  trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
  trainer.model_type, trainer.byte_fallback = trainer.BPE, True
  for name in ('unk', 'bos', 'eos', 'pad'):
    key = {'unk': 'unknown', 'pad': 'padding'}.get(name, name)
    token = int(_value(fields, f'tokenizer.ggml.{key}_token_id', file))
    setattr(trainer, f'{name}_id', token)
    setattr(trainer, f'{name}_piece', proto.pieces[token].piece)
  # llama.cpp's converter makes it a control piece; SentencePiece needs one.
  proto.pieces[trainer.unk_id].type = proto.SentencePiece.UNKNOWN
  trainer.vocab_size = len(proto.pieces)
  normalizer.name, normalizer.add_dummy_prefix = 'identity', False
  normalizer.remove_extra_whitespaces = False
  return proto.SerializeToString()
