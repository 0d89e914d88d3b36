# SPDX-License-Identifier: Apache-2.0
"""The two stacks of a T5: layers, dropout sites, and how layers are run.

The caller passes the attention masks and a `kv_fn` that makes keys and values.
So the same decoder runs whole rows (training, scoring) and single positions
over a cache (decoding). Outside of attention, tokens may be flat: see
core/layers/unpadding.py.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dsbs_jax.core.layers import dropout, layer_loop, norm
from dsbs_jax.core.layers.unpadding import Unpadding
from dsbs_jax.core.t5 import attention
from dsbs_jax.core.t5 import config as config_lib
from dsbs_jax.core.t5.config import T5Config

# Names of a layer's attentions, and of the norms before them.
_ATTENTIONS = {
  'encoder': {'attention': 'pre_attention_layer_norm'},
  'decoder': {
    'self_attention': 'pre_self_attention_layer_norm',
    'encoder_decoder_attention': 'pre_cross_attention_layer_norm',
  },
}
# (layer_params, normed inputs [B, T, D], the layer's entry of layer_kv) ->
# (a KeyValue for each attention of the layer, new entry).
KVFn = Callable[
  [dict, jax.Array, Any], tuple[Sequence[attention.KeyValue], Any]
]
# (layer_params, the layer's entry of layer_kv) -> [1, H, T, L] float32.
BiasFn = Callable[[dict, Any], jax.Array]


def _mlp(
  params: dict, inputs: jax.Array, config: T5Config, keep_mask: jax.Array | None
) -> jax.Array:
  hidden = None
  for name, activation in zip(
    config.mlp_inputs, config.mlp_activations, strict=True
  ):
    part = attention.dense(inputs, params[name]['kernel'])
    part = config_lib.ACTIVATIONS[activation](part)
    hidden = part if hidden is None else hidden * part
  hidden = dropout.dropout(hidden, keep_mask, rate=config.dropout_rate)
  return attention.dense(hidden, params['wo']['kernel'])


def _embed(
  params: dict, tokens: jax.Array, unpadding: Unpadding | None
) -> jax.Array:
  """Embeds tokens [B, L]: [B, L, D] or flat [C * n, D], float32.

  Differs from T5X, which multiplies by one-hot vectors, in being a gather. An
  id beyond the vocabulary becomes NaN, not a wrong embedding.
  """
  if unpadding is not None:
    tokens = unpadding.unpad(tokens)
  embedding = params['token_embedder']['embedding']
  return jnp.take(embedding, tokens, axis=0, mode='fill')


def _layer_fn(
  config: T5Config,
  stack: str,
  *,
  kv_fn: KVFn,
  bias_fn: BiasFn,
  masks: Sequence[jax.Array],
  unpadding: Unpadding | None,
) -> Callable[..., tuple[jax.Array, Any]]:
  """One layer of a stack; arguments as in `run`.

  Returns:
    (layer_params, inputs, the layer's entry of layer_kv, keys of rows) ->
    (outputs, new entry); inputs and outputs as the result of `run`.
  """
  drop = functools.partial(dropout.dropout, rate=config.dropout_rate)

  def layer(layer_params, inputs, layer_kv, keys):
    head_masks, mlp_mask, output_masks = dropout.layer_masks(
      keys, config, *(mask.shape[-1] for mask in masks), unpadding=unpadding
    )
    for i, (name, norm_name) in enumerate(_ATTENTIONS[stack].items()):
      normed = norm.rms_norm(inputs, layer_params[norm_name]['scale'])
      if i == 0:
        keys_values, changed = kv_fn(layer_params, normed, layer_kv)
      output = attention.multi_head_attention(
        layer_params[name],
        normed,
        keys_values[i],
        mask=masks[i],
        bias=bias_fn(layer_params, layer_kv) if i == 0 else None,
        dropout_rate=config.dropout_rate,
        dropout_mask=head_masks[i],
        unpadding=unpadding,
      )
      inputs = inputs + drop(output, output_masks[i])
    normed = norm.rms_norm(inputs, layer_params['pre_mlp_layer_norm']['scale'])
    output = _mlp(layer_params['mlp'], normed, config, mlp_mask)
    return inputs + drop(output, output_masks[-1]), changed

  return layer


def run(
  params: dict,
  config: T5Config,
  stack: str,
  tokens: jax.Array,
  *,
  kv_fn: KVFn,
  bias_fn: BiasFn,
  masks: Sequence[jax.Array],
  layer_kv: dict | None = None,
  dropout_key: jax.Array | None = None,
  unpadding: Unpadding | None = None,
) -> tuple[jax.Array, dict | None]:
  """Runs the encoder, or the decoder over whole rows or one cached position.

  Args:
    params: the whole parameter tree.
    config: the network.
    stack: 'encoder' or 'decoder'.
    tokens: [B, T] int32 inputs of the stack.
    kv_fn: makes the keys and values of a layer, see `KVFn`.
    bias_fn: gives the bias of a layer's self-attention, L its keys.
    masks: bool, broadcast to [B, H, T, L]; in the decoder a second one of the
      cross-attention, broadcast to [B, H, T, S].
    layer_kv: per layer, under its name, what its kv_fn reads; or None.
    dropout_key: typed key, or one per row [B]; None for no dropout.
    unpadding: of the tokens, to compute real tokens only; or None.

  Returns:
    [B, T, D] in the activation dtype, after the final norm; flat, [C * n, D],
    with unpadding. Per layer the second result of its kv_fn.
  """
  drop = functools.partial(dropout.dropout, rate=config.dropout_rate)
  row_keys = dropout.row_keys(dropout_key, tokens.shape[0])
  embed_keys, layers_keys, norm_keys = dropout.split_keys(row_keys, 3)

  def embedding_mask(keys):
    return dropout.feature_masks(
      keys, config, (config.emb_dim,), unpadding=unpadding
    )[0]

  layer = _layer_fn(
    config,
    stack,
    kv_fn=kv_fn,
    bias_fn=bias_fn,
    masks=masks,
    unpadding=unpadding,
  )
  embedded = _embed(params, tokens, unpadding).astype(config.dtype)
  hidden, changed = layer_loop.run(
    layer,
    params[stack],
    drop(embedded, embedding_mask(embed_keys)),
    config=config,
    stack=stack,
    num_layers=config.num_layers(stack),
    layer_kv=layer_kv,
    keys=layers_keys,
  )
  normed = norm.rms_norm(hidden, params[stack][f'{stack}_norm']['scale'])
  if stack == 'decoder':
    return drop(normed, embedding_mask(norm_keys)), changed
  # The only place where T5X draws a mask per position.
  keep_mask = dropout.position_masks(
    norm_keys, config, normed, unpadding=unpadding
  )
  return drop(normed, keep_mask), changed


def bias_fn(params: dict, config: T5Config, stack: str, length: int) -> BiasFn:
  """The bias of whole rows: the layer's own, or that of all its stack.

  Args: as in `position_bias`, but the whole parameter tree.
  """
  if config.relpos_bias_per_layer:
    return lambda layer, _: position_bias(layer, config, stack, length)
  shared = position_bias(params[stack], config, stack, length)
  return lambda *_: shared


def position_bias(
  params: dict, config: T5Config, stack: str, length: int
) -> jax.Array:
  """The bias of a self-attention, [1, H, T, T] float32.

  Args:
    params: of the stack; of the layer where each has its own.
    config: the network.
    stack: 'encoder' or 'decoder'.
    length: T.
  """
  return attention.relative_position_bias(
    params['relpos_bias']['rel_embedding'],
    length,
    length,
    bidirectional=stack == 'encoder',
    max_distance=config.max_distance,
  )
