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

import jax
import jax.numpy as jnp

from dsbs_jax.core.layers import parameter_tree
from dsbs_jax.core.t5.config import T5Config

STACKS = ('encoder', 'decoder')
# Standard deviation of a unit normal cut at two standard deviations.
_TRUNCATED_STD = 0.87962566103423978


_normal = jax.nn.initializers.normal


def _truncated(fan_in: int):
  std = 1.0 / (math.sqrt(fan_in) * _TRUNCATED_STD)
  return jax.nn.initializers.truncated_normal(std)


def _uniform(variance: float):
  limit = math.sqrt(3.0 * variance)
  return lambda key, shape: jax.random.uniform(
    key, shape, jnp.float32, minval=-limit, maxval=limit
  )


def _norm_spec(config: T5Config) -> dict:
  return {
    'scale': parameter_tree.Spec(
      (config.emb_dim,), ('embed',), jax.nn.initializers.ones
    )
  }


def _attention_specs(config: T5Config) -> dict:
  width, joined = config.emb_dim, config.num_heads * config.head_dim

  def into(std):
    spec = parameter_tree.Spec(
      (width, joined), ('embed', 'joined_kv'), _normal(std)
    )
    return {'kernel': spec}

  # The query's std takes the place of a division by sqrt(K).
  out = parameter_tree.Spec(
    (joined, width), ('joined_kv', 'embed'), _normal(joined**-0.5)
  )
  return {
    'query': into((width * config.head_dim) ** -0.5),
    'key': into(width**-0.5),
    'value': into(width**-0.5),
    'out': {'kernel': out},
  }


def _layer_specs(config: T5Config, stack: str) -> dict:
  width, hidden = config.emb_dim, config.mlp_dim
  first = parameter_tree.Spec(
    (width, hidden), ('embed', 'mlp'), _truncated(width)
  )
  last = parameter_tree.Spec(
    (hidden, width), ('mlp', 'embed'), _truncated(hidden)
  )
  mlp = {name: {'kernel': first} for name in config.mlp_inputs}
  mlp['wo'] = {'kernel': last}
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
  axes = 'heads', 'relpos_buckets'
  table = parameter_tree.Spec(shape, axes, _uniform(2.0 / sum(shape)))
  return {'relpos_bias': {'rel_embedding': table}}


def _outer_specs(config: T5Config) -> dict:
  """Everything but the layers."""
  vocab, width = config.vocab_size, config.emb_dim
  embedding = parameter_tree.Spec(
    (vocab, width), ('vocab', 'embed'), _normal(1.0)
  )
  logits = parameter_tree.Spec(
    (width, vocab), ('embed', 'vocab'), _truncated(width)
  )
  specs = {
    stack: {
      **_relpos_bias_spec(config, per_layer=False),
      f'{stack}_norm': _norm_spec(config),
    }
    for stack in STACKS
  }
  specs['token_embedder'] = {'embedding': embedding}
  if not config.logits_via_embedding:
    specs['decoder']['logits_dense'] = {'kernel': logits}
  return specs


def layer_names(config: T5Config, stack: str) -> tuple[str, ...]:
  """Names of a stack's layer subtrees; one, `layers`, when scanned.

  Args:
    config: the size.
    stack: 'encoder' or 'decoder'.
  """
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
