# SPDX-License-Identifier: Apache-2.0
"""The parameters of a Gemma: names, shapes, axes, initial values.

Stacks are named as those of a T5, so that sharding rules fit. Gemma 3 has the
decoder alone; the encoder of a T5Gemma 2 is equal to its decoder:

  token_embedder/embedding                        [V, D], the logits' too
  decoder/layers_0/self_attention/query/kernel    [D, H*K] ...
  decoder/layers_0/mlp/wi_0/kernel                [D, F], the gate

A norm's `scale` is what is added to 1, as in Gemma's files.
"""

import jax

from dsbs_jax.core.gemma.config import GemmaConfig
from dsbs_jax.core.layers import parameter_tree
from dsbs_jax.core.layers.parameter_tree import Spec

BLOCK_NORMS = (
  'pre_attention_norm',
  'post_attention_norm',
  'pre_mlp_norm',
  'post_mlp_norm',
)


def _norm(width: int, axis: str = 'embed') -> dict:
  return {'scale': Spec((width,), (axis,), jax.nn.initializers.zeros)}


def _kernel(shape: tuple[int, int], axes: tuple[str, str]) -> dict:
  draw = jax.nn.initializers.normal(shape[0] ** -0.5)
  return {'kernel': Spec(shape, axes, draw)}


def _layer_specs(config: GemmaConfig) -> dict:
  width, hidden = config.emb_dim, config.mlp_dim
  queries = config.num_heads * config.head_dim
  keys = config.num_kv_heads * config.head_dim
  into, out = ('embed', 'joined_kv'), ('joined_kv', 'embed')
  attention = {
    'query': _kernel((width, queries), into),
    'key': _kernel((width, keys), into),
    'value': _kernel((width, keys), into),
    'out': _kernel((queries, width), out),
    'query_norm': _norm(config.head_dim, 'kv'),
    'key_norm': _norm(config.head_dim, 'kv'),
  }
  mlp = {
    'wi_0': _kernel((width, hidden), ('embed', 'mlp')),
    'wi_1': _kernel((width, hidden), ('embed', 'mlp')),
    'wo': _kernel((hidden, width), ('mlp', 'embed')),
  }
  norms = {name: _norm(width) for name in BLOCK_NORMS}
  return {'self_attention': attention, 'mlp': mlp} | norms


def tree(config: GemmaConfig) -> parameter_tree.Tree:
  """What the parameters are, and how they are drawn."""
  draw = jax.nn.initializers.normal(config.emb_dim**-0.5)
  shape = config.vocab_size, config.emb_dim
  stacks = dict.fromkeys((config.input_stack, 'decoder'))
  outer = {
    'token_embedder': {'embedding': Spec(shape, ('vocab', 'embed'), draw)},
    **{stack: {f'{stack}_norm': _norm(config.emb_dim)} for stack in stacks},
  }
  layers = {
    stack: (config.num_layers, _layer_specs(config)) for stack in stacks
  }
  return parameter_tree.Tree(outer, layers, config.scan_layers)
