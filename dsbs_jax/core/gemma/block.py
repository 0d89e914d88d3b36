# SPDX-License-Identifier: Apache-2.0
"""The layers of a Gemma, run over inputs, whole targets or one position.

A layer adds to its inputs, each between two norms, attention and a gated MLP.
Queries and keys are normed per head, then rotated by their positions. Five
layers of six are local: other rotations, and a window. Letters: see
contract.py; J counts the heads of keys and values.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dsbs_jax.core.gemma.config import GemmaConfig
from dsbs_jax.core.layers import (
  dot_product_attention,
  dropout,
  layer_loop,
  norm,
)
from dsbs_jax.core.layers.unpadding import Unpadding
from dsbs_jax.core.t5 import attention
from dsbs_jax.core.t5.attention import KeyValue, dense


class Reach(NamedTuple):
  """What the queries of one kind of layer attend to, and how they are rotated.

  Attributes:
    mask: [B, 1, T, L] bool, L the keys.
    angles: [B, 1, T, K / 2] float32.
  """

  mask: jax.Array
  angles: jax.Array


class Reaches(NamedTuple):
  """Those of local and of global layers."""

  local: Reach
  whole: Reach


# (new keys and values [B, J, T, K], the layer's entry of layer_kv) ->
# (those to attend to [B, J, L, K], new entry).
KVFn = Callable[[KeyValue, Any], tuple[KeyValue, Any]]


def make_reaches(
  config: GemmaConfig,
  mask: jax.Array,
  query_positions: jax.Array,
  key_positions: jax.Array,
  *,
  num_inputs: int | None = None,
) -> Reaches:
  """The reaches of a mask.

  T5Gemma 2 differs from Gemma 3 in local layers: the window of its encoder has
  a half on each side, and its targets attend to all inputs.

  Args:
    config: the network.
    mask: [B, 1, T, L] bool, of global layers.
    query_positions: [B, T] int32, from 0 in each example.
    key_positions: [B, L] int32.
    num_inputs: how many of the keys, the first, are those of inputs; None where
      the queries are inputs, too.
  """
  distances = query_positions[:, None, :, None] - key_positions[:, None, None]
  behind = ahead = config.window
  if config.has_encoder and num_inputs is None:
    behind, ahead = (config.window + 1) // 2, config.window // 2 + 1
  near = (distances < behind) & (-distances < ahead)
  if config.has_encoder and num_inputs is not None:
    near |= jnp.arange(mask.shape[-1]) < num_inputs

  def angles(base, factor):
    exponents = np.arange(0, config.head_dim, 2) / config.head_dim
    frequencies = (1.0 / (base**exponents * factor)).astype(np.float32)
    return query_positions[:, None, :, None].astype(jnp.float32) * frequencies

  return Reaches(
    Reach(mask & near, angles(config.local_rope_base, 1.0)),
    Reach(mask, angles(config.global_rope_base, config.global_rope_factor)),
  )


def _rms_norm(inputs: jax.Array, params: dict) -> jax.Array:
  """Gemma's norm of [..., D]: by 1 + scale, rounded to its dtype at its end."""
  normed = norm.rms_norm(inputs.astype(jnp.float32), 1.0 + params['scale'])
  return normed.astype(inputs.dtype)


def _rotate(inputs: jax.Array, angles: jax.Array) -> jax.Array:
  """Rotates pairs of features [B, H, T, K], one of each half, by the angles."""
  first, second = jnp.split(inputs.astype(jnp.float32), 2, axis=-1)
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  rotated = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(rotated, axis=-1).astype(inputs.dtype)


def project_kv(
  params: dict,
  inputs: jax.Array,
  config: GemmaConfig,
  *,
  unpadding: Unpadding | None = None,
) -> KeyValue:
  """Keys, normed but not rotated, and values, [B, J, T, K].

  Args:
    params: the attention's.
    inputs: [B, T, D] in the activation dtype; flat with unpadding.
    config: the network.
    unpadding: of the tokens; or None.
  """
  key, value = attention.project_kv(
    params, inputs, config.num_kv_heads, unpadding=unpadding
  )
  return KeyValue(_rms_norm(key, params['key_norm']), value)


def _attention(
  params: dict,
  inputs: jax.Array,
  reach: Reach,
  *,
  config: GemmaConfig,
  kv_fn: Callable[[KeyValue], tuple[KeyValue, Any]],
  unpadding: Unpadding | None,
) -> tuple[jax.Array, Any]:
  """The output, like the inputs, and the second result of kv_fn."""
  query = attention.project(
    params['query'], inputs, config.num_heads, unpadding=unpadding
  )
  query = _rms_norm(query, params['query_norm'])
  key, value = project_kv(params, inputs, config, unpadding=unpadding)
  scaled = query * jnp.asarray(config.query_scale_dim**-0.5, query.dtype)
  query = _rotate(scaled, reach.angles)
  keys_values, changed = kv_fn(KeyValue(_rotate(key, reach.angles), value))

  # Heads that share keys are further queries: [B, H, T, K] -> [B, J, H/J*T, K].
  batch, _, length, width = query.shape
  shared = config.num_heads // config.num_kv_heads
  context = dot_product_attention.dot_product_attention(
    query.reshape(batch, config.num_kv_heads, shared * length, width),
    *keys_values,
    bias=None,
    mask=jnp.tile(reach.mask, (1, 1, shared, 1)),
  )
  context = context.reshape(batch, config.num_heads, length, width)
  context = jnp.swapaxes(context, 1, 2).reshape(batch, length, -1)
  if unpadding is not None:
    context = unpadding.unpad(context)
  return dense(context, params['out']['kernel']), changed


def _mlp(params: dict, inputs: jax.Array) -> jax.Array:
  gate = jax.nn.gelu(dense(inputs, params['wi_0']['kernel']), approximate=True)
  hidden = gate * dense(inputs, params['wi_1']['kernel'])
  return dense(hidden, params['wo']['kernel'])


def _layer_fn(
  config: GemmaConfig,
  reaches: Reaches,
  kv_fn: KVFn,
  *,
  unpadding: Unpadding | None,
) -> Callable[..., tuple[jax.Array, Any]]:
  """One layer; arguments as in `run`.

  Returns:
    (layer_params, inputs, the layer's entry of `_with_kinds`, keys of rows) ->
    (outputs, second result of kv_fn); inputs and outputs as `run` returns them.
  """
  drop = functools.partial(dropout.dropout, rate=config.dropout_rate)

  def layer(layer_params, inputs, of_layer, keys):
    is_global, kv = of_layer
    if isinstance(is_global, bool):
      reach = reaches.whole if is_global else reaches.local
    else:  # traced, in a scan or a checkpoint
      reach = jax.tree.map(
        lambda local, whole: jnp.where(is_global, whole, local), *reaches
      )
    masks = dropout.feature_masks(
      keys, config, (config.emb_dim,) * 2, unpadding=unpadding
    )
    output, changed = _attention(
      layer_params['self_attention'],
      _rms_norm(inputs, layer_params['pre_attention_norm']),
      reach,
      config=config,
      kv_fn=lambda new: kv_fn(new, kv),
      unpadding=unpadding,
    )
    output = _rms_norm(output, layer_params['post_attention_norm'])
    inputs = inputs + drop(output, masks[0])
    normed = _rms_norm(inputs, layer_params['pre_mlp_norm'])
    output = _mlp(layer_params['mlp'], normed)
    output = _rms_norm(output, layer_params['post_mlp_norm'])
    return inputs + drop(output, masks[1]), changed

  return layer


def run(
  params: dict,
  config: GemmaConfig,
  tokens: jax.Array,
  *,
  stack: str,
  reaches: Reaches,
  kv_fn: KVFn,
  layer_kv: dict | None = None,
  dropout_key: jax.Array | None = None,
  unpadding: Unpadding | None = None,
) -> tuple[jax.Array, dict]:
  """Runs all layers of a stack.

  Args:
    params: the whole parameter tree.
    config: its network.
    tokens: [B, T] int32.
    stack: 'encoder' or 'decoder'.
    reaches: what they attend to.
    kv_fn: makes the keys and values of a layer, see `KVFn`.
    layer_kv: per layer, under its name, what its kv_fn reads; or None.
    dropout_key: typed key, or one per row [B]; None for no dropout.
    unpadding: of the tokens, to compute real tokens only; or None.

  Returns:
    [B, T, D] in the activation dtype, after the final norm; flat, [C * n, D],
    with unpadding. Per layer the second result of its kv_fn.
  """
  row_keys = dropout.row_keys(dropout_key, tokens.shape[0])
  embed_keys, layers_keys = dropout.split_keys(row_keys, 2)
  embedded = _embed(params, config, tokens, unpadding)
  (embed_mask,) = dropout.feature_masks(
    embed_keys, config, (config.emb_dim,), unpadding=unpadding
  )
  hidden, changed = layer_loop.run(
    _layer_fn(config, reaches, kv_fn, unpadding=unpadding),
    params[stack],
    dropout.dropout(embedded, embed_mask, rate=config.dropout_rate),
    config=config,
    stack=stack,
    num_layers=config.num_layers,
    layer_kv=_with_kinds(config, layer_kv),
    keys=layers_keys,
  )
  return _rms_norm(hidden, params[stack][f'{stack}_norm']), changed


def _embed(
  params: dict,
  config: GemmaConfig,
  tokens: jax.Array,
  unpadding: Unpadding | None,
) -> jax.Array:
  """Scaled embeddings [B, T, D], or flat; NaN beyond the vocabulary.

  The scale is rounded to the activation dtype, as Gemma's own code has it.
  """
  if unpadding is not None:
    tokens = unpadding.unpad(tokens)
  table = params['token_embedder']['embedding']
  embedded = jnp.take(table, tokens, axis=0, mode='fill').astype(config.dtype)
  return embedded * jnp.asarray(config.emb_dim**0.5, config.dtype)


def _with_kinds(config: GemmaConfig, layer_kv: dict | None) -> dict:
  """Under each layer's name: whether it is global, and its layer_kv."""
  kinds = [config.is_global(layer) for layer in range(config.num_layers)]
  if config.scan_layers:
    return {'layers': (np.array(kinds), layer_kv and layer_kv['layers'])}
  return {
    f'layers_{i}': (kind, layer_kv and layer_kv[f'layers_{i}'])
    for i, kind in enumerate(kinds)
  }
