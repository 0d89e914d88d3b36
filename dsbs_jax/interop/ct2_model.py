# SPDX-License-Identifier: Apache-2.0
"""Our parameters -> models of CTranslate2, by NumPy alone.

CTranslate2 (extra `ct2`) is an inference engine for CPUs and GPUs. A model is a
folder: model.bin, config.json, shared_vocabulary.json. It reads and writes
tokens as texts, one name per id; ids themselves never leave it.
"""

import dataclasses
import importlib.metadata
import importlib.util
import pathlib
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from flax import traverse_util

from dsbs_jax import contract
from dsbs_jax.core.t5 import parameters
from dsbs_jax.core.t5.config import T5Config
from dsbs_jax.interop import t5x_layers

# In the order of their size.
QUANTIZATIONS = ('float32', 'float16', 'int8', 'int8_bfloat16')

_ACTIVATIONS = {'relu': 'RELU', 'gelu': 'GELUTanh', 'silu': 'SWISH'}
_UNK_ID = 2
_EPSILON = 1e-6


def is_installed() -> bool:
  """Whether CTranslate2 can be imported."""
  return importlib.util.find_spec('ctranslate2') is not None


def require() -> None:
  """Raises UserError where CTranslate2 is not installed."""
  if not is_installed():
    raise contract.UserError(
      "ctranslate2 is not installed, expected the extra 'ct2':"
      " pip install -e '.[ct2]'."
    )


def save(
  folder: str | pathlib.Path,
  params: Any,
  config: T5Config,
  *,
  tokens: Sequence[str],
  quantization: str = 'float32',
) -> None:
  """Writes the files of a CTranslate2 model.

  Args:
    params: the parameter tree, in either layout of the layers.
    tokens: the name of each id of the embedding, all different.
    quantization: one of QUANTIZATIONS: how weights are stored. CTranslate2
      computes in that type where the processor can, else in float32.

  Raises:
    UserError: CTranslate2 is not installed, or cannot compute this network.
  """
  require()
  if len(set(tokens)) != config.vocab_size:
    raise ValueError(
      f'{len(set(tokens))} different tokens, expected {config.vocab_size}'
    )
  spec = _spec(params, config)
  spec.register_source_vocabulary(list(tokens))
  spec.register_target_vocabulary(list(tokens))
  spec.config.bos_token = tokens[contract.PAD_ID]
  spec.config.decoder_start_token = tokens[contract.PAD_ID]
  spec.config.eos_token = tokens[contract.EOS_ID]
  spec.config.unk_token = tokens[_UNK_ID]
  spec.config.layer_norm_epsilon = _EPSILON
  if quantization == 'int8_bfloat16':
    _norms_to_bfloat16(spec)
  spec.validate()
  spec.optimize(quantization)
  spec.save(str(folder))


def _norms_to_bfloat16(spec: Any) -> None:
  """What stays unquantized becomes bfloat16; CTranslate2 asks torch for it."""

  def convert(owner, name, value):
    key = name.rsplit('/', 1)[-1]
    if isinstance(value, np.ndarray) and not hasattr(owner, f'{key}_scale'):
      setattr(owner, key, value.astype(ml_dtypes.bfloat16))

  spec._visit(convert)  # the only walk over a spec that there is


def _spec(params: Any, config: T5Config) -> Any:
  """CTranslate2's description of this network, with its weights."""
  from ctranslate2.specs import common_spec, transformer_spec

  activation, *gate = config.mlp_activations
  if activation not in _ACTIVATIONS or gate not in ([], ['linear']):
    raise contract.UserError(
      f'the activations of the network are {config.mlp_activations}; of'
      f' CTranslate2, expected one of {tuple(_ACTIVATIONS)}, alone or with'
      ' linear.'
    )
  options = {
    'activation': getattr(common_spec.Activation, _ACTIVATIONS[activation]),
    'ffn_glu': bool(gate),
    'head_dim': config.head_dim,
    'relative_attention_bias': True,
    'rms_norm': True,
  }
  encoder = transformer_spec.TransformerEncoderSpec(
    config.num_encoder_layers, config.num_heads, **options
  )
  decoder = transformer_spec.TransformerDecoderSpec(
    config.num_decoder_layers, config.num_heads, **options
  )
  flat = traverse_util.flatten_dict(
    t5x_layers.unrolled_params(params, config), sep='/'
  )
  weights = _Weights(flat, config)
  table = np.array(flat['token_embedder/embedding'])  # quantized in place
  encoder.embeddings[0].weight = decoder.embeddings.weight = table
  for stack, spec in zip(parameters.STACKS, (encoder, decoder), strict=True):
    spec.scale_embeddings = False
    weights.fill(spec, stack)
  if config.logits_via_embedding:
    decoder.projection.weight = table
    decoder.scale_outputs = float(config.emb_dim**-0.5)
  else:
    decoder.projection.weight = weights.kernels('decoder/logits_dense')
  return transformer_spec.TransformerSpec(encoder, decoder)


@dataclasses.dataclass(frozen=True)
class _Weights:
  """Copies unrolled parameters into specs; CTranslate2 changes them there."""

  flat: dict[str, Any]
  config: T5Config

  def fill(self, spec: Any, stack: str) -> None:
    """Sets the weights of the encoder or the decoder."""
    spec.layer_norm.gamma = self._scale(f'{stack}/{stack}_norm')
    for number, layer in enumerate(spec.layer):
      path = f'{stack}/layers_{number}'
      is_decoder = stack == 'decoder'
      name = 'self_attention' if is_decoder else 'attention'
      attention = layer.self_attention
      self._fill_attention(attention, f'{path}/{name}', splits=(3,))
      attention.layer_norm.gamma = self._scale(f'{path}/pre_{name}_layer_norm')
      owner = path if self.config.relpos_bias_per_layer else stack
      attention.relative_attention_bias = self._transposed(
        f'{owner}/relpos_bias/rel_embedding'
      )
      attention.relative_attention_max_distance = np.int32(
        self.config.max_distance
      )
      if is_decoder:
        cross = f'{path}/encoder_decoder_attention'
        self._fill_attention(layer.attention, cross, splits=(1, 2))
        layer.attention.layer_norm.gamma = self._scale(
          f'{path}/pre_cross_attention_layer_norm'
        )
      self._fill_mlp(layer.ffn, path)

  def _fill_attention(
    self, spec: Any, path: str, *, splits: tuple[int, ...]
  ) -> None:
    """Query, key and value are one matrix, or query one and the others one."""
    names = iter([f'{path}/{name}' for name in ('query', 'key', 'value')])
    for linear, size in zip(spec.linear, splits, strict=False):
      linear.weight = self.kernels(*(next(names) for _ in range(size)))
    spec.linear[-1].weight = self.kernels(f'{path}/out')
    spec.queries_scale = 1.0

  def _fill_mlp(self, spec: Any, path: str) -> None:
    inputs = [self.kernels(f'{path}/mlp/{x}') for x in self.config.mlp_inputs]
    spec.linear_0.weight = inputs[0]
    if inputs[1:]:
      spec.linear_0_noact.weight = inputs[1]
    spec.linear_1.weight = self.kernels(f'{path}/mlp/wo')
    spec.layer_norm.gamma = self._scale(f'{path}/pre_mlp_layer_norm')

  def kernels(self, *paths: str) -> np.ndarray:
    """Kernels [in, out] at these paths as one matrix [sum of out, in]."""
    parts = [self._transposed(f'{path}/kernel') for path in paths]
    return np.concatenate(parts) if parts[1:] else parts[0]

  def _transposed(self, path: str) -> np.ndarray:
    return np.array(np.asarray(self.flat[path], np.float32).T, order='C')

  def _scale(self, path: str) -> np.ndarray:
    return np.array(self.flat[f'{path}/scale'], np.float32)


def version() -> str:
  """The version of CTranslate2 that is installed."""
  return importlib.metadata.version('ctranslate2')
