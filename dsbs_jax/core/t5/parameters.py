# SPDX-License-Identifier: Apache-2.0
"""The parameters of a T5: names, shapes, axes, initial values.

Names and shapes are those of T5X's T5 example:

  token_embedder/embedding                       [V, D]
  {encoder,decoder}/relpos_bias/rel_embedding    [H, buckets], one per stack;
    of umT5 one per layer, encoder/layers_0/relpos_bias/rel_embedding
  encoder/layers_0/attention/query/kernel        [D, H*K] ...
  decoder/logits_dense/kernel                    [D, V], absent when tied

With `scan_layers` the layers of a stack are one subtree, `layers`, with a
leading axis N (T5X's scalable example has it second; see interop).
"""

import math

from jax.nn import initializers

from dsbs_jax.core.layers import parameter_tree
from dsbs_jax.core.layers.parameter_tree import Spec
from dsbs_jax.core.t5.config import T5Config

STACKS = ('encoder', 'decoder')
# Standard deviation of a unit normal cut at two standard deviations.
_TRUNCATED_STD = 0.87962566103423978


def _truncated(shape: tuple[int, int], axes: tuple[str, str]) -> dict:
  std = 1.0 / (math.sqrt(shape[0]) * _TRUNCATED_STD)
  return {'kernel': Spec(shape, axes, initializers.truncated_normal(std))}


def _norm_spec(config: T5Config) -> dict:
  return {'scale': Spec((config.emb_dim,), ('embed',), initializers.ones)}


def _attention_specs(config: T5Config) -> dict:
  width, joined = config.emb_dim, config.num_heads * config.head_dim

  def into(std):
    draw = initializers.normal(std)
    return {'kernel': Spec((width, joined), ('embed', 'joined_kv'), draw)}

  draw = initializers.normal(joined**-0.5)
  return {
    # The query's std takes the place of a division by sqrt(K).
    'query': into((width * config.head_dim) ** -0.5),
    'key': into(width**-0.5),
    'value': into(width**-0.5),
    'out': {'kernel': Spec((joined, width), ('joined_kv', 'embed'), draw)},
  }


def _layer_specs(config: T5Config, stack: str) -> dict:
  width, hidden = config.emb_dim, config.mlp_dim
  first = _truncated((width, hidden), ('embed', 'mlp'))
  mlp = dict.fromkeys(config.mlp_inputs, first)
  mlp['wo'] = _truncated((hidden, width), ('mlp', 'embed'))
  if stack == 'encoder':
    attention = {
      'pre_attention_layer_norm': _norm_spec(config),
      'attention': _attention_specs(config),
    }
  else:
    attention = {
      'pre_self_attention_layer_norm': _norm_spec(config),
      'self_attention': _attention_specs(config),
      'pre_cross_attention_layer_norm': _norm_spec(config),
      'encoder_decoder_attention': _attention_specs(config),
    }
  rest = {'pre_mlp_layer_norm': _norm_spec(config), 'mlp': mlp}
  return attention | rest | _relpos_bias_spec(config, per_layer=True)


def _relpos_bias_spec(config: T5Config, *, per_layer: bool) -> dict:
  """The table of a layer, or of a stack; {} where the network has it there."""
  if config.relpos_bias_per_layer != per_layer:
    return {}
  shape = config.num_heads, config.num_buckets
  draw = parameter_tree.uniform(math.sqrt(3.0 * (2.0 / sum(shape))))
  table = Spec(shape, ('heads', 'relpos_buckets'), draw)
  return {'relpos_bias': {'rel_embedding': table}}


def _outer_specs(config: T5Config) -> dict:
  """Everything but the layers."""
  vocab, width = config.vocab_size, config.emb_dim
  specs = {
    stack: {
      **_relpos_bias_spec(config, per_layer=False),
      f'{stack}_norm': _norm_spec(config),
    }
    for stack in STACKS
  }
  draw = initializers.normal(1.0)
  embedding = Spec((vocab, width), ('vocab', 'embed'), draw)
  specs['token_embedder'] = {'embedding': embedding}
  if not config.logits_via_embedding:
    logits = _truncated((width, vocab), ('embed', 'vocab'))
    specs['decoder']['logits_dense'] = logits
  return specs


def layer_names(config: T5Config, stack: str) -> tuple[str, ...]:
  """Names of the layer subtrees of 'encoder' or 'decoder'; as of the tree."""
  return parameter_tree.layer_names(
    config.num_layers(stack), scan_layers=config.scan_layers
  )


def tree(config: T5Config) -> parameter_tree.Tree:
  """What the parameters are, and how they are drawn."""
  layers = {
    stack: (config.num_layers(stack), _layer_specs(config, stack))
    for stack in STACKS
  }
  return parameter_tree.Tree(_outer_specs(config), layers, config.scan_layers)
