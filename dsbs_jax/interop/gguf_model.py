# SPDX-License-Identifier: Apache-2.0
"""Our parameters -> one GGUF file for llama.cpp, by the package `gguf`.

A T5 as llama.cpp's own converter writes it: names by way of Hugging Face's, the
SentencePiece model as a unigram vocabulary. llama.cpp computes the GELU by a
table in half precision, so that log probabilities differ in the third digit.
"""

import importlib.util
import pathlib
from typing import Any

import numpy as np
from flax import traverse_util

from dsbs_jax import contract
from dsbs_jax.core.t5.config import T5Config
from dsbs_jax.data.vocabulary import vocabularies, vocabulary_files
from dsbs_jax.interop import t5x_layers
from dsbs_jax.interop.hf import hf_layout

# What we call it -> gguf's name of it.
_TYPES = {'float32': 'F32', 'float16': 'F16', 'q8_0': 'Q8_0'}
QUANTIZATIONS = tuple(_TYPES)

_UNIGRAM = 1
_CONTEXT = 512  # T5's, for information: its positions have no bound
_EPSILON = 1e-6
_UNUSED_SCORE = -10000.0


def require() -> None:
  """Raises UserError where the package is not installed."""
  if importlib.util.find_spec('gguf') is None:
    raise contract.UserError(
      "gguf is not installed, expected the extra 'gguf':"
      " pip install -e '.[gguf]'."
    )


def check(config: T5Config, vocabulary: vocabularies.Vocabulary) -> None:
  """Raises UserError where llama.cpp cannot compute or read the student."""
  remedy = 'Export with --format=ct2.'
  if config.mlp_activations not in (('relu',), ('gelu', 'linear')):
    raise contract.UserError(
      f'the activations of the network are {config.mlp_activations}; of a T5,'
      f' llama.cpp computes relu and gelu,linear only. {remedy}'
    )
  if config.max_distance != 128:
    raise contract.UserError(
      f'max_distance of the network is {config.max_distance}; llama.cpp'
      f' computes 128 only. {remedy}'
    )
  if config.num_decoder_layers > config.num_encoder_layers:
    raise contract.UserError(
      f'the decoder has {config.num_decoder_layers} layers, the encoder'
      f' {config.num_encoder_layers}; llama.cpp loads no decoder that is'
      f' deeper. {remedy}'
    )
  is_pieces = isinstance(vocabulary, vocabularies.SentencePieceVocabulary)
  if not is_pieces or _proto(vocabulary).trainer_spec.model_type != _UNIGRAM:
    raise contract.UserError(
      'the vocabulary is no SentencePiece unigram model, the only one that'
      f' llama.cpp reads for a T5. {remedy}'
    )


def save(
  path: str | pathlib.Path,
  params: Any,
  config: T5Config,
  *,
  vocabulary: vocabularies.SentencePieceVocabulary,
  quantization: str = 'float32',
) -> None:
  """Writes the file.

  Args:
    params: the parameter tree, in either layout of the layers.
    quantization: one of QUANTIZATIONS, of matrices whose rows it divides;
      vectors and tables of positions stay float32.

  Raises:
    UserError: gguf is not installed, or llama.cpp knows no such student.
  """
  require()
  check(config, vocabulary)
  import gguf

  writer = gguf.GGUFWriter(str(path), gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.T5])
  _add_network(writer, config, quantization)
  _add_vocabulary(writer, vocabulary, config.vocab_size)
  for name, tensor in _tensors(params, config):
    kind = _type_of(name, tensor, quantization)
    writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def _add_network(writer: Any, config: T5Config, quantization: str) -> None:
  import gguf

  writer.add_context_length(_CONTEXT)
  writer.add_embedding_length(config.emb_dim)
  writer.add_feed_forward_length(config.mlp_dim)
  writer.add_block_count(config.num_encoder_layers)
  writer.add_decoder_block_count(config.num_decoder_layers)
  writer.add_head_count(config.num_heads)
  writer.add_key_length(config.head_dim)
  writer.add_value_length(config.head_dim)
  writer.add_layer_norm_eps(_EPSILON)
  writer.add_layer_norm_rms_eps(_EPSILON)
  writer.add_relative_attn_buckets_count(config.num_buckets)
  writer.add_decoder_start_token_id(contract.PAD_ID)
  share = 'ALL' if quantization == 'float32' else 'MOSTLY'
  writer.add_file_type(gguf.LlamaFileType[f'{share}_{_TYPES[quantization]}'])


def _add_vocabulary(
  writer: Any, vocabulary: vocabularies.SentencePieceVocabulary, size: int
) -> None:
  """Pieces, scores and types; ids of the table that have none are unused."""
  import gguf

  proto = _proto(vocabulary)
  missing = size - len(proto.pieces)
  unused = int(gguf.TokenType.UNUSED)
  writer.add_tokenizer_model('t5')
  writer.add_tokenizer_pre('default')
  writer.add_token_list(
    [piece.piece.encode() for piece in proto.pieces]
    + [f'<unused_{i}>'.encode() for i in range(len(proto.pieces), size)]
  )
  scores = [piece.score for piece in proto.pieces]
  writer.add_token_scores(scores + [_UNUSED_SCORE] * missing)
  types = [piece.type for piece in proto.pieces]  # numbered as llama.cpp's
  writer.add_token_types(types + [unused] * missing)
  writer.add_pad_token_id(contract.PAD_ID)
  writer.add_eos_token_id(contract.EOS_ID)
  writer.add_unk_token_id(vocabulary.unk)
  writer.add_add_bos_token(False)
  writer.add_add_eos_token(True)
  rules = proto.normalizer_spec
  writer.add_add_space_prefix(rules.add_dummy_prefix)
  writer.add_remove_extra_whitespaces(rules.remove_extra_whitespaces)
  if rules.precompiled_charsmap:
    writer.add_precompiled_charsmap(rules.precompiled_charsmap)


def _proto(vocabulary: vocabularies.SentencePieceVocabulary) -> Any:
  return vocabulary_files.parse_model(vocabulary.model_with_extra_ids)


def _tensors(params: Any, config: T5Config):
  """Pairs of a tensor's name in GGUF and its float32 array."""
  import gguf

  num_layers = max(config.num_encoder_layers, config.num_decoder_layers)
  names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5, num_layers)
  flat = traverse_util.flatten_dict(t5x_layers.unrolled_params(params, config))
  for path, theirs in hf_layout.tensor_names(config).items():
    tensor = np.asarray(flat[path], np.float32)
    tensor = tensor.T if hf_layout.is_transposed(path) else tensor
    name = names.get_name(theirs, try_suffixes=('.weight',))
    yield name, np.ascontiguousarray(tensor)
  if config.logits_via_embedding:
    # llama.cpp does not scale the logits of tied tables.
    table = np.asarray(flat['token_embedder', 'embedding'], np.float32)
    yield 'output.weight', table * np.float32(config.emb_dim**-0.5)


def _type_of(name: str, tensor: np.ndarray, quantization: str) -> Any:
  import gguf

  kinds = gguf.GGMLQuantizationType
  kind = kinds[_TYPES[quantization]]
  block = gguf.GGML_QUANT_SIZES[kind][0]
  is_table = name.endswith('attn_rel_b.weight')
  if tensor.ndim == 1 or is_table or tensor.shape[-1] % block:
    return kinds.F32
  return kind
