# SPDX-License-Identifier: Apache-2.0
"""The two stacks of a T5: layers, dropout sites, and how layers are run.

The caller passes the attention masks and, for the decoder, a `kv_fn` that makes
keys and values. So the same decoder runs whole rows (training, scoring) and
single positions over a cache (decoding). Outside of attention, tokens may be
flat: see core/unpadding.py.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dsbs_jax import contract
from dsbs_jax.core import dropout, norm
from dsbs_jax.core.t5 import attention, parameters
from dsbs_jax.core.t5 import config as config_lib
from dsbs_jax.core.t5.config import T5Config
from dsbs_jax.core.unpadding import Unpadding

Mask = jax.Array | None
# (layer_params, normed inputs [B, T, D], the layer's entry of layer_kv) ->
# (self-attention's KeyValue, cross-attention's KeyValue, new entry).
KVFn = Callable[
  [dict, jax.Array, Any], tuple[attention.KeyValue, attention.KeyValue, Any]
]


def _mlp(
  params: dict, inputs: jax.Array, config: T5Config, keep_mask: Mask
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


def _mlp_block(
  params: dict,
  inputs: jax.Array,
  config: T5Config,
  keep_masks: tuple[Mask, Mask],
) -> jax.Array:
  """Norm, MLP and residual; masks within the MLP and of its output."""
  normed = norm.rms_norm(inputs, params['pre_mlp_layer_norm']['scale'])
  output = _mlp(params['mlp'], normed, config, keep_masks[0])
  return inputs + dropout.dropout(
    output, keep_masks[1], rate=config.dropout_rate
  )


def _embed(
  params: dict,
  tokens: jax.Array,
  config: T5Config,
  *,
  keys: jax.Array | None,
  unpadding: Unpadding | None,
) -> jax.Array:
  """Embeds tokens [B, L]: [B, L, D] or flat [C * n, D].

  Differs from T5X, which multiplies by one-hot vectors, in being a gather. An
  id beyond the vocabulary becomes NaN, not a wrong embedding.
  """
  if unpadding is not None:
    tokens = unpadding.unpad(tokens)
  embedding = params['token_embedder']['embedding']
  embedded = jnp.take(embedding, tokens, axis=0, mode='fill')
  embedded = embedded.astype(config.dtype)
  (keep_mask,) = dropout.feature_masks(
    keys, config, (config.emb_dim,), unpadding=unpadding
  )
  return dropout.dropout(embedded, keep_mask, rate=config.dropout_rate)


def _run_layers(
  layer: Callable,
  params: dict,
  inputs: jax.Array,
  *,
  config: T5Config,
  stack: str,
  layer_kv: dict | None = None,
  keys: jax.Array | None = None,
) -> tuple[jax.Array, dict | None]:
  """Runs the layers of one stack, as a Python loop or as lax.scan.

  Args:
    layer: (layer_params, inputs, layer_kv, keys) -> (outputs, new layer_kv).
    params: the stack's parameters.
    inputs: [B, L, D], or flat.
    config: how the layers are laid out and rematerialised.
    stack: 'encoder' or 'decoder'.
    layer_kv: per layer, under its name in `params`, what it reads; or None.
    keys: typed keys of the rows [B], split for each layer; None: no dropout.

  Returns:
    Outputs like `inputs`; what the layers returned, under the same names.
  """
  names = parameters.layer_names(config, stack)
  num_layers = config.num_layers(stack)
  if names[0] not in params:
    found = sorted(name for name in params if name.startswith('layers'))
    raise contract.UserError(
      f'The {stack} has subtrees {found}, expected {list(names)} with'
      f' T5Config.scan_layers={config.scan_layers}. Convert the parameters'
      ' by network.stack_layers or network.unstack_layers.'
    )
  if config.remat != 'none':
    policy = None
    if config.remat == 'minimal':
      policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    layer = jax.checkpoint(
      layer, policy=policy, prevent_cse=not config.scan_layers
    )
  if config.scan_layers:
    layer_keys = None if keys is None else dropout.split_keys(keys, num_layers)
    stacked = (params['layers'], layer_kv and layer_kv['layers'], layer_keys)
    outputs, changed = jax.lax.scan(
      lambda x, xs: layer(xs[0], x, xs[1], xs[2]), inputs, stacked
    )
    return outputs, {'layers': changed}
  outputs, changed = inputs, {}
  all_keys = dropout.split_keys(keys, num_layers)
  for name, layer_keys in zip(names, all_keys, strict=True):
    outputs, changed[name] = layer(
      params[name], outputs, layer_kv and layer_kv[name], layer_keys
    )
  return outputs, changed


def run_encoder(
  params: dict,
  config: T5Config,
  tokens: jax.Array,
  *,
  mask: jax.Array,
  dropout_key: jax.Array | None = None,
  unpadding: Unpadding | None = None,
) -> jax.Array:
  """Runs the encoder.

  Args:
    params: the whole parameter tree.
    config: its size.
    tokens: [B, S] int32.
    mask: bool, broadcast to [B, H, S, S].
    dropout_key: typed key, or one per row [B]; None for no dropout.
    unpadding: of the tokens, to compute real tokens only; or None.

  Returns:
    [B, S, D] in the activation dtype, after the final norm; flat, [C * n, D],
    with unpadding.
  """
  stack = params['encoder']
  batch, length = tokens.shape
  keys = dropout.row_keys(dropout_key, batch)
  rate = config.dropout_rate
  bias = attention.relative_position_bias(
    stack['relpos_bias']['rel_embedding'],
    length,
    length,
    bidirectional=True,
    max_distance=config.max_distance,
  )
  embed_keys, layers_keys, norm_keys = dropout.split_keys(keys, 3)

  def layer(layer_params, inputs, _, keys):
    head_masks, mlp_mask, output_masks = dropout.layer_masks(
      keys, config, length, unpadding=unpadding
    )
    normed = norm.rms_norm(
      inputs, layer_params['pre_attention_layer_norm']['scale']
    )
    weights = layer_params['attention']
    output = attention.multi_head_attention(
      weights,
      normed,
      attention.project_kv(
        weights, normed, config.num_heads, unpadding=unpadding
      ),
      mask=mask,
      bias=bias,
      dropout_rate=rate,
      dropout_mask=head_masks[0],
      unpadding=unpadding,
    )
    inputs = inputs + dropout.dropout(output, output_masks[0], rate=rate)
    masks = mlp_mask, output_masks[1]
    return _mlp_block(layer_params, inputs, config, masks), None

  embedded = _embed(
    params, tokens, config, keys=embed_keys, unpadding=unpadding
  )
  hidden, _ = _run_layers(
    layer, stack, embedded, config=config, stack='encoder', keys=layers_keys
  )
  normed = norm.rms_norm(hidden, stack['encoder_norm']['scale'])
  # The only place where T5X draws a mask per position.
  keep_mask = dropout.position_masks(
    norm_keys, config, normed, unpadding=unpadding
  )
  return dropout.dropout(normed, keep_mask, rate=rate)


def _decoder_layer(
  config: T5Config,
  kv_fn: KVFn,
  *,
  bias: jax.Array,
  self_mask: jax.Array,
  cross_mask: jax.Array,
  unpadding: Unpadding | None,
) -> Callable:
  """A decoder layer as `_run_layers` calls it; arguments of `run_decoder`."""
  rate = config.dropout_rate

  def layer(layer_params, inputs, layer_kv, keys):
    head_masks, mlp_mask, output_masks = dropout.layer_masks(
      keys,
      config,
      self_mask.shape[-1],
      cross_mask.shape[-1],
      unpadding=unpadding,
    )
    scale = layer_params['pre_self_attention_layer_norm']['scale']
    normed = norm.rms_norm(inputs, scale)
    self_kv, cross_kv, changed = kv_fn(layer_params, normed, layer_kv)
    output = attention.multi_head_attention(
      layer_params['self_attention'],
      normed,
      self_kv,
      mask=self_mask,
      bias=bias,
      dropout_rate=rate,
      dropout_mask=head_masks[0],
      unpadding=unpadding,
    )
    inputs = inputs + dropout.dropout(output, output_masks[0], rate=rate)
    scale = layer_params['pre_cross_attention_layer_norm']['scale']
    output = attention.multi_head_attention(
      layer_params['encoder_decoder_attention'],
      norm.rms_norm(inputs, scale),
      cross_kv,
      mask=cross_mask,
      dropout_rate=rate,
      dropout_mask=head_masks[1],
      unpadding=unpadding,
    )
    inputs = inputs + dropout.dropout(output, output_masks[1], rate=rate)
    masks = mlp_mask, output_masks[2]
    return _mlp_block(layer_params, inputs, config, masks), changed

  return layer


def run_decoder(
  params: dict,
  config: T5Config,
  tokens: jax.Array,
  *,
  kv_fn: KVFn,
  bias: jax.Array,
  self_mask: jax.Array,
  cross_mask: jax.Array,
  layer_kv: dict | None = None,
  dropout_key: jax.Array | None = None,
  unpadding: Unpadding | None = None,
) -> tuple[jax.Array, dict | None]:
  """Runs the decoder over whole rows or over one position with a cache.

  Args:
    params: the whole parameter tree.
    config: its size.
    tokens: [B, T] int32 decoder inputs.
    kv_fn: makes the keys and values of a layer, see `KVFn`.
    bias: [1, H, T, L] float32 of the self-attention, L its keys.
    self_mask: bool, broadcast to [B, H, T, L].
    cross_mask: bool, broadcast to [B, H, T, S].
    layer_kv: per layer, under its name, what its kv_fn reads; or None.
    dropout_key: typed key, or one per row [B]; None for no dropout.
    unpadding: of the tokens, to compute real tokens only; or None.

  Returns:
    [B, T, D] in the activation dtype, after the final norm; flat, [C * n, D],
    with unpadding. Per layer the third result of its kv_fn.
  """
  stack = params['decoder']
  keys = dropout.row_keys(dropout_key, tokens.shape[0])
  embed_keys, layers_keys, norm_keys = dropout.split_keys(keys, 3)
  layer = _decoder_layer(
    config,
    kv_fn,
    bias=bias,
    self_mask=self_mask,
    cross_mask=cross_mask,
    unpadding=unpadding,
  )
  hidden, changed = _run_layers(
    layer,
    stack,
    _embed(params, tokens, config, keys=embed_keys, unpadding=unpadding),
    config=config,
    stack='decoder',
    layer_kv=layer_kv,
    keys=layers_keys,
  )
  normed = norm.rms_norm(hidden, stack['decoder_norm']['scale'])
  (keep_mask,) = dropout.feature_masks(
    norm_keys, config, (config.emb_dim,), unpadding=unpadding
  )
  return dropout.dropout(normed, keep_mask, rate=config.dropout_rate), changed


def decoder_bias(params: dict, config: T5Config, length: int) -> jax.Array:
  """The bias of the decoder's self-attention, [1, H, T, T] float32.

  Args:
    params: the whole parameter tree.
    config: its size.
    length: T.
  """
  return attention.relative_position_bias(
    params['decoder']['relpos_bias']['rel_embedding'],
    length,
    length,
    bidirectional=False,
    max_distance=config.max_distance,
  )
