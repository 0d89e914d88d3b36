# SPDX-License-Identifier: Apache-2.0
"""How Hugging Face describes a T5: config.json and the names of tensors.

Kernels are stored as [out, in], the relative bias table as [buckets, heads]
in the first block of each stack, of umT5 in each block.
"""

import json
import pathlib
from collections.abc import Iterator

from etils import epath

from dsbs_jax import contract
from dsbs_jax.core.t5 import parameters
from dsbs_jax.core.t5.config import T5Config

_PER_LAYER = 'umt5'
MODEL_TYPES = ('t5', 'mt5', _PER_LAYER)
_NAMES = {'t5': 'T5', _PER_LAYER: 'UMT5'}
_ACTIVATIONS = {
  'relu': ('relu',),
  'silu': ('silu',),
  'gated-gelu': ('gelu', 'linear'),
  'gated-relu': ('relu', 'linear'),
  'gated-silu': ('silu', 'linear'),
}
# Field of T5Config -> key of config.json that every model has.
_REQUIRED = {
  'vocab_size': 'vocab_size',
  'emb_dim': 'd_model',
  'num_heads': 'num_heads',
  'head_dim': 'd_kv',
  'mlp_dim': 'd_ff',
  'num_encoder_layers': 'num_layers',
}
# Field of T5Config -> (key of config.json, its default there).
_OPTIONAL = {
  'dropout_rate': ('dropout_rate', 0.1),
  'num_buckets': ('relative_attention_num_buckets', 32),
  'max_distance': ('relative_attention_max_distance', 128),
}
# The ids that generation starts, ends and pads with.
SPECIAL_IDS = {
  'pad_token_id': contract.PAD_ID,
  'eos_token_id': contract.EOS_ID,
  'decoder_start_token_id': contract.PAD_ID,
}
_TABLE = ('relpos_bias', 'rel_embedding')
_PROJECTIONS = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}


def read_json(path: epath.PathLike, remedy: str = 'Fetch it again.') -> dict:
  """The JSON object in a file; UserError, with a remedy, if it is none."""
  try:
    return dict(json.loads(epath.Path(path).read_text(encoding='utf-8')))
  except (ValueError, TypeError) as error:
    raise contract.UserError(
      f'{path} cannot be read ({error}), expected a JSON object. {remedy}'
    ) from error


def read_config(folder: str | pathlib.Path) -> tuple[T5Config, bool]:
  """Reads the size of a Hugging Face T5 from its config.json.

  Returns:
    The T5Config, by config.json alone: `logits_via_embedding` says whether
    the logits are scaled by emb_dim^-0.5, as T5 1.0's tied ones are; dtype,
    remat and scan_layers are left at their defaults. And whether config.json
    says that the head is the embedding, which from transformers 5 on it does
    of every T5, untied ones too: the weights decide (see hf_checkpoint).

  Raises:
    UserError: the file is missing or describes what this T5 cannot compute.
  """
  path = pathlib.Path(folder) / 'config.json'
  if not path.is_file():
    raise contract.UserError(
      f'{folder} has no config.json, expected a Hugging Face model folder.'
    )
  values = read_json(path)
  default = 'relu' if values.get('model_type') == 't5' else 'gated-gelu'
  activation = values.get('feed_forward_proj', default)
  _check_values(values, path, activation)
  is_tied, is_scaled = _tying(values)
  config = T5Config(
    num_decoder_layers=values.get('num_decoder_layers') or values['num_layers'],
    mlp_activations=_ACTIVATIONS[activation],
    logits_via_embedding=is_scaled,
    relpos_bias_per_layer=values['model_type'] == _PER_LAYER,
    **{ours: values[name] for ours, name in _REQUIRED.items()},
    **{ours: values.get(*pair) for ours, pair in _OPTIONAL.items()},
  )
  return config, is_tied


def _check_values(values: dict, path: pathlib.Path, activation: str) -> None:
  """Raises where a config.json lacks a value, or has one that is unknown."""
  # Where they are there, these two override it. T5's gelu is the tanh one.
  is_gated, _, function = str(activation).rpartition('-')
  function = 'gelu_new' if activation == 'gated-gelu' else function
  for name, default, known in (
    ('model_type', None, MODEL_TYPES),
    ('feed_forward_proj', activation, tuple(_ACTIVATIONS)),
    ('dense_act_fn', function, (function,)),
    ('is_gated_act', bool(is_gated), (bool(is_gated),)),
    ('layer_norm_epsilon', 1e-6, (1e-6,)),
    ('tie_encoder_decoder', False, (False,)),
  ):
    value = values.get(name, default)
    if value not in known:
      raise contract.UserError(
        f'{path}: {name} is {value!r}, expected one of {known}: this T5'
        ' computes no other.'
      )
  required = tuple(_REQUIRED.values())
  missing = [name for name in required if name not in values]
  if missing:
    raise contract.UserError(
      f'{path} has no {missing}, expected all of {required}.'
    )
  for file in (path, path.with_name('generation_config.json')):
    _check_ids(file)


def _tying(values: dict) -> tuple[bool, bool]:
  """Whether the head is the embedding, and whether logits are scaled."""
  if values['model_type'] != 'mt5':
    is_tied = values.get('tie_word_embeddings') is not False
    return is_tied, values.get('scale_decoder_outputs', is_tied)
  # Of mT5, transformers 4 scales tied logits, 5 none, and 5 writes all as tied.
  is_tied = bool(values.get('tie_word_embeddings'))
  version = str(values.get('transformers_version') or '5')
  return is_tied, is_tied and version.startswith('4.')


def _check_ids(path: pathlib.Path) -> None:
  """Raises where a file names special ids that are not T5's."""
  values = read_json(path) if path.is_file() else {}
  for name, expected in SPECIAL_IDS.items():
    found = values.get(name)
    if found not in (None, expected, [expected]):
      raise contract.UserError(
        f'{path}: {name} is {found!r}, expected {expected}: this T5 pads with'
        f' {contract.PAD_ID}, starts from it and ends with {contract.EOS_ID}.'
        ' Such a model cannot be used here.'
      )


def config_values(config: T5Config) -> dict:
  """The content of the config.json that describes this size."""
  theirs = {ours: name for name, ours in _ACTIVATIONS.items()}
  if config.mlp_activations not in theirs:
    raise contract.UserError(
      f'T5Config.mlp_activations is {config.mlp_activations}; Hugging Face'
      f' can express {sorted(theirs)} only.'
    )
  keys = _REQUIRED | {ours: name for ours, (name, _) in _OPTIONAL.items()}
  values = {name: getattr(config, ours) for ours, name in keys.items()}
  kind = _PER_LAYER if config.relpos_bias_per_layer else 't5'
  return {
    'architectures': [f'{_NAMES[kind]}ForConditionalGeneration'],
    'model_type': kind,
    **values,
    'tie_word_embeddings': config.logits_via_embedding,
    'num_decoder_layers': config.num_decoder_layers,
    'feed_forward_proj': theirs[config.mlp_activations],
    'layer_norm_epsilon': 1e-6,
    'is_encoder_decoder': True,
    'use_cache': True,
    'torch_dtype': 'float32',
    **SPECIAL_IDS,
  }


def _layer_names(config: T5Config, stack: str, number: int) -> Iterator:
  """Pairs of (path below the layer, Hugging Face name) of one layer."""
  block = f'{stack}.block.{number}.layer'
  sublayers = [('attention', 'SelfAttention', 'attention')]
  if stack == 'decoder':
    sublayers = [
      ('self_attention', 'SelfAttention', 'self_attention'),
      ('encoder_decoder_attention', 'EncDecAttention', 'cross_attention'),
    ]
  for place, (ours, theirs, norm) in enumerate(sublayers):
    path = f'pre_{norm}_layer_norm', 'scale'
    yield path, f'{block}.{place}.layer_norm.weight'
    for projection, letter in _PROJECTIONS.items():
      name = f'{block}.{place}.{theirs}.{letter}.weight'
      yield (ours, projection, 'kernel'), name
  place = len(sublayers)
  norm = ('pre_mlp_layer_norm', 'scale')
  yield norm, f'{block}.{place}.layer_norm.weight'
  for kernel in (*config.mlp_inputs, 'wo'):
    name = f'{block}.{place}.DenseReluDense.{kernel}.weight'
    yield ('mlp', kernel, 'kernel'), name


def _table_name(stack: str, number: int) -> str:
  block = f'{stack}.block.{number}.layer.0'
  return f'{block}.SelfAttention.relative_attention_bias.weight'


def tensor_names(config: T5Config) -> dict[tuple[str, ...], str]:
  """Path in the unrolled parameter tree -> name in a Hugging Face file."""
  names = {('token_embedder', 'embedding'): 'shared.weight'}
  for stack in parameters.STACKS:
    if not config.relpos_bias_per_layer:
      names[stack, *_TABLE] = _table_name(stack, 0)
    names[stack, f'{stack}_norm', 'scale'] = f'{stack}.final_layer_norm.weight'
    for number in range(config.num_layers(stack)):
      for path, name in _layer_names(config, stack, number):
        names[stack, f'layers_{number}', *path] = name
      if config.relpos_bias_per_layer:
        names[stack, f'layers_{number}', *_TABLE] = _table_name(stack, number)
  if not config.logits_via_embedding:
    names['decoder', 'logits_dense', 'kernel'] = 'lm_head.weight'
  return names


def is_transposed(path: tuple[str, ...]) -> bool:
  """Whether Hugging Face stores the parameter at this path transposed."""
  return path[-1] in ('kernel', 'rel_embedding')
