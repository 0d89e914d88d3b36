# SPDX-License-Identifier: Apache-2.0
"""The parameters of a T5: names, shapes, axes, initial values.

Names and shapes are those of T5X's T5 example:

  token_embedder/embedding                       [V, D]
  {encoder,decoder}/relpos_bias/rel_embedding    [H, buckets], one per stack
  encoder/layers_0/attention/query/kernel        [D, H*K] ...
  decoder/logits_dense/kernel                    [D, V], absent when tied

With `scan_layers` the layers of a stack are one subtree, `layers`, with a
leading axis N (T5X's scalable example has it second; see interop).
"""

import dataclasses
import math
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dsbs_jax.core.t5.config import T5Config

STACKS = ('encoder', 'decoder')
# Standard deviation of a unit normal cut at two standard deviations.
_TRUNCATED_STD = 0.87962566103423978


@dataclasses.dataclass(frozen=True)
class _Spec:
  """One parameter: its shape, T5X's logical axis names, its distribution."""

  shape: tuple[int, ...]
  axes: tuple[str, ...]
  draw: Callable[[jax.Array, tuple[int, ...]], jax.Array]


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
    'scale': _Spec((config.emb_dim,), ('embed',), jax.nn.initializers.ones)
  }


def _attention_specs(config: T5Config) -> dict:
  width, joined = config.emb_dim, config.num_heads * config.head_dim

  def into(std):
    spec = _Spec((width, joined), ('embed', 'joined_kv'), _normal(std))
    return {'kernel': spec}

  # The query's std takes the place of a division by sqrt(K).
  out = _Spec((joined, width), ('joined_kv', 'embed'), _normal(joined**-0.5))
  return {
    'query': into((width * config.head_dim) ** -0.5),
    'key': into(width**-0.5),
    'value': into(width**-0.5),
    'out': {'kernel': out},
  }


def _layer_specs(config: T5Config, stack: str) -> dict:
  width, hidden = config.emb_dim, config.mlp_dim
  first = _Spec((width, hidden), ('embed', 'mlp'), _truncated(width))
  last = _Spec((hidden, width), ('mlp', 'embed'), _truncated(hidden))
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
  return attention | {'pre_mlp_layer_norm': _norm_spec(config), 'mlp': mlp}


def _outer_specs(config: T5Config) -> dict:
  """Everything but the layers."""
  vocab, width, heads = config.vocab_size, config.emb_dim, config.num_heads
  table = _Spec(
    (heads, config.num_buckets),
    ('heads', 'relpos_buckets'),
    _uniform(2.0 / (heads + config.num_buckets)),
  )
  embedding = _Spec((vocab, width), ('vocab', 'embed'), _normal(1.0))
  logits = _Spec((width, vocab), ('embed', 'vocab'), _truncated(width))
  specs = {
    stack: {
      'relpos_bias': {'rel_embedding': table},
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
  if config.scan_layers:
    return ('layers',)
  return tuple(f'layers_{i}' for i in range(config.num_layers(stack)))


def _map_specs(function: Callable, specs: dict) -> dict:
  return jax.tree.map(
    function, specs, is_leaf=lambda node: isinstance(node, _Spec)
  )


def _specs(config: T5Config) -> dict:
  tree = _outer_specs(config)
  for stack in STACKS:
    layer = _layer_specs(config, stack)
    if config.scan_layers:
      layers = (config.num_layers(stack),)
      layer = _map_specs(
        lambda spec, layers=layers: _Spec(
          layers + spec.shape, ('layers', *spec.axes), spec.draw
        ),
        layer,
      )
    for name in layer_names(config, stack):
      tree[stack][name] = _map_specs(lambda spec: spec, layer)
  return tree


def param_shapes(config: T5Config) -> dict:
  """The parameter tree with a float32 jax.ShapeDtypeStruct at each leaf."""
  return _map_specs(
    lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32),
    _specs(config),
  )


def logical_axes(config: T5Config) -> dict:
  """The parameter tree with T5X's axis names, a tuple of str, at each leaf."""
  return _map_specs(lambda spec: spec.axes, _specs(config))


def _draw(key: jax.Array, specs: dict, leading: tuple[int, ...] = ()) -> dict:
  """Draws a tree; each leaf's key comes from its path, not from its order."""

  def draw_leaf(path, spec):
    leaf_key = jax.random.fold_in(key, zlib.crc32(str(path).encode()))
    return spec.draw(leaf_key, leading + spec.shape)

  return jax.tree_util.tree_map_with_path(
    draw_leaf, specs, is_leaf=lambda node: isinstance(node, _Spec)
  )


def init(key: jax.Array, config: T5Config) -> dict:
  """Draws initial parameters, float32, from T5X's distributions.

  Both layouts of the layers, and every sharding, draw the same numbers.

  Args:
    key: typed random key.
    config: the size.
  """
  params = _draw(key, _outer_specs(config))
  for stack in STACKS:
    # One draw per kernel for all layers: a large T5 would otherwise ask the
    # compiler for hundreds of random number generators.
    stack_key = jax.random.fold_in(key, zlib.crc32(stack.encode()))
    layers = _draw(
      stack_key, _layer_specs(config, stack), (config.num_layers(stack),)
    )
    # Without the barrier XLA would fuse the draw of all layers into the slice of
    # each: T5 base took more than two minutes to compile on a GPU, now 28 s.
    params[stack]['layers'] = jax.lax.optimization_barrier(layers)
  return params if config.scan_layers else unstack_layers(params, config)


def _map_stacks(params: dict, convert: Callable[[str, dict], dict]) -> dict:
  """Replaces the layer subtrees of both stacks, keeps everything else."""
  changed = dict(params)
  for stack in STACKS:
    outer = {
      name: node
      for name, node in params[stack].items()
      if not name.startswith('layers')
    }
    changed[stack] = outer | convert(stack, params[stack])
  return changed


def _stack(*leaves):
  """Stacks on the host what is on the host."""
  on_host = all(isinstance(leaf, np.ndarray) for leaf in leaves)
  return (np if on_host else jnp).stack(leaves)


def stack_layers(params: dict, config: T5Config) -> dict:
  """Turns the layout of `scan_layers=False` into that of True, losslessly.

  Args:
    params: parameters with subtrees `layers_0`, `layers_1`, ...
    config: the size; its `scan_layers` is not looked at.

  Returns:
    The same numbers with one subtree `layers` per stack, leading axis N.
  """

  def convert(stack, subtree):
    layers = [subtree[f'layers_{i}'] for i in range(config.num_layers(stack))]
    return {'layers': jax.tree.map(_stack, *layers)}

  return _map_stacks(params, convert)


def unstack_layers(params: dict, config: T5Config) -> dict:
  """The inverse of `stack_layers`, with the same arguments."""

  def convert(stack, subtree):
    return {
      f'layers_{i}': jax.tree.map(lambda leaf, i=i: leaf[i], subtree['layers'])
      for i in range(config.num_layers(stack))
    }

  return _map_stacks(params, convert)
