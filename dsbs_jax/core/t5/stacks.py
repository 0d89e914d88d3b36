# SPDX-License-Identifier: Apache-2.0
"""The two stacks of a T5: layers, dropout sites, and how layers are run.

Masks come from outside: what a position may see is the caller's matter, so
the same decoder runs whole rows and single positions over a cache. Between
attentions, tokens may be flat: see unpadding.py.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dsbs_jax import contract
from dsbs_jax.core import dropout, norm
from dsbs_jax.core.t5 import attention, parameters
from dsbs_jax.core.t5 import config as config_lib
from dsbs_jax.core.t5.config import T5Config
from dsbs_jax.core.unpadding import Unpadding


def _mlp(params: dict, inputs: jax.Array, config: T5Config, keep):
  hidden = None
  for name, activation in zip(
    config.mlp_inputs, config.mlp_activations, strict=True
  ):
    part = attention.project(inputs, params[name]['kernel'])
    part = config_lib.ACTIVATIONS[activation](part)
    hidden = part if hidden is None else hidden * part
  hidden = dropout.dropout(hidden, keep, rate=config.dropout_rate)
  return attention.project(hidden, params['wo']['kernel'])


def _mlp_block(params: dict, inputs: jax.Array, config: T5Config, keeps):
  normed = norm.rms_norm(inputs, params['pre_mlp_layer_norm']['scale'])
  output = _mlp(params['mlp'], normed, config, keeps[0])
  return inputs + dropout.dropout(output, keeps[1], rate=config.dropout_rate)


def _embed(params: dict, tokens: jax.Array, config: T5Config, keys, unpadding):
  """Looks tokens [B, L] up; a gather, where T5X multiplies by one-hots.

  An id beyond the vocabulary becomes NaN, not a wrong row.
  """
  if unpadding is not None:
    tokens = unpadding.flat(tokens)
  embedding = params['token_embedder']['embedding']
  embedded = jnp.take(embedding, tokens, axis=0, mode='fill')  # [B, L, D]
  embedded = embedded.astype(config.dtype)
  (keep,) = dropout.feature_masks(
    keys, config, (config.emb_dim,), unpadding=unpadding
  )
  return dropout.dropout(embedded, keep, rate=config.dropout_rate)


def _run_layers(
  layer: Callable,
  params: dict,
  inputs: jax.Array,
  *,
  config: T5Config,
  stack: str,
  memories: dict | None = None,
  keys: jax.Array | None = None,
) -> tuple[jax.Array, dict | None]:
  """Runs the layers of one stack, as a Python loop or as lax.scan.

  Args:
    layer: (layer_params, inputs, memories, keys) -> (outputs, memories).
    params: the stack's parameters.
    inputs: [B, L, D].
    config: says how the layers are laid out and what is computed again.
    stack: 'encoder' or 'decoder'.
    memories: per layer a pytree that the layer reads and returns changed,
      under the names of the layers in `params`.
    keys: typed random keys of the rows [B], split for each layer; or None.

  Returns:
    Outputs [B, L, D]; what the layers returned, under the same names.
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
    of_layers = None if keys is None else dropout.split_keys(keys, num_layers)
    stacked = (params['layers'], memories and memories['layers'], of_layers)
    outputs, changed = jax.lax.scan(
      lambda x, xs: layer(xs[0], x, xs[1], xs[2]), inputs, stacked
    )
    return outputs, {'layers': changed}
  outputs, changed = inputs, {}
  of_layers = dropout.split_keys(keys, num_layers)
  for name, layer_keys in zip(names, of_layers, strict=True):
    outputs, changed[name] = layer(
      params[name], outputs, memories and memories[name], layer_keys
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
    dropout_key: typed random key, or one per row [B]; None for no dropout.
    unpadding: of the tokens, to compute them without padding; or None.

  Returns:
    [B, S, D] in the activation dtype, after the final norm; with unpadding
    flat, [C * n, D].
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
    heads, mlp, outputs = dropout.layer_masks(
      keys, config, length, unpadding=unpadding
    )
    normed = norm.rms_norm(
      inputs, layer_params['pre_attention_layer_norm']['scale']
    )
    weights = layer_params['attention']
    output = attention.attend(
      weights,
      normed,
      attention.project_kv(
        weights, normed, config.num_heads, unpadding=unpadding
      ),
      mask=mask,
      bias=bias,
      dropout_rate=rate,
      dropout_keep=heads[0],
      unpadding=unpadding,
    )
    inputs = inputs + dropout.dropout(output, outputs[0], rate=rate)
    return _mlp_block(layer_params, inputs, config, (mlp, outputs[1])), None

  embedded = _embed(params, tokens, config, embed_keys, unpadding)
  hidden, _ = _run_layers(
    layer, stack, embedded, config=config, stack='encoder', keys=layers_keys
  )
  normed = norm.rms_norm(hidden, stack['encoder_norm']['scale'])
  # The one place where T5X draws a mask per position.
  keep = dropout.position_masks(norm_keys, config, normed, unpadding=unpadding)
  return dropout.dropout(normed, keep, rate=rate)


def _decoder_layer(
  config: T5Config,
  kv_fn: Callable,
  *,
  bias: jax.Array,
  self_mask: jax.Array,
  cross_mask: jax.Array,
  unpadding: Unpadding | None,
) -> Callable:
  """A decoder layer as `_run_layers` calls it; arguments of `run_decoder`."""
  rate = config.dropout_rate

  def layer(layer_params, inputs, layer_memories, keys):
    heads, mlp, outputs = dropout.layer_masks(
      keys,
      config,
      self_mask.shape[-1],
      cross_mask.shape[-1],
      unpadding=unpadding,
    )
    scale = layer_params['pre_self_attention_layer_norm']['scale']
    normed = norm.rms_norm(inputs, scale)
    own, cross, changed = kv_fn(layer_params, normed, layer_memories)
    output = attention.attend(
      layer_params['self_attention'],
      normed,
      own,
      mask=self_mask,
      bias=bias,
      dropout_rate=rate,
      dropout_keep=heads[0],
      unpadding=unpadding,
    )
    inputs = inputs + dropout.dropout(output, outputs[0], rate=rate)
    scale = layer_params['pre_cross_attention_layer_norm']['scale']
    output = attention.attend(
      layer_params['encoder_decoder_attention'],
      norm.rms_norm(inputs, scale),
      cross,
      mask=cross_mask,
      dropout_rate=rate,
      dropout_keep=heads[1],
      unpadding=unpadding,
    )
    inputs = inputs + dropout.dropout(output, outputs[1], rate=rate)
    output = _mlp_block(layer_params, inputs, config, (mlp, outputs[2]))
    return output, changed

  return layer


def run_decoder(
  params: dict,
  config: T5Config,
  tokens: jax.Array,
  *,
  kv_fn: Callable,
  bias: jax.Array,
  self_mask: jax.Array,
  cross_mask: jax.Array,
  memories: dict | None = None,
  dropout_key: jax.Array | None = None,
  unpadding: Unpadding | None = None,
) -> tuple[jax.Array, dict | None]:
  """Runs the decoder over whole rows or over one position with a cache.

  Args:
    params: the whole parameter tree.
    config: its size.
    tokens: [B, T] int32 decoder inputs.
    kv_fn: (layer_params, normed inputs, the layer's entry of
      `memories`) -> (own KeyValue, the encoder's KeyValue, what to return).
    bias: [1, H, T, S'] float32 of the self-attention, S' its keys.
    self_mask: bool, broadcast to [B, H, T, S'].
    cross_mask: bool, broadcast to [B, H, T, S].
    memories: per layer, under the layers' names, what kv_fn reads.
    dropout_key: typed random key, or one per row [B]; None for no dropout.
    unpadding: of the tokens, to compute them without padding; or None.

  Returns:
    [B, T, D] after the final norm, with unpadding flat, [C * n, D]; per layer
    what kv_fn returned.
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
    _embed(params, tokens, config, embed_keys, unpadding),
    config=config,
    stack='decoder',
    memories=memories,
    keys=layers_keys,
  )
  normed = norm.rms_norm(hidden, stack['decoder_norm']['scale'])
  (keep,) = dropout.feature_masks(
    norm_keys, config, (config.emb_dim,), unpadding=unpadding
  )
  return dropout.dropout(normed, keep, rate=config.dropout_rate), changed


def decoder_bias(params: dict, config: T5Config, length: int) -> jax.Array:
  """[1, H, T, T] float32: the bias of the decoder's self-attention."""
  return attention.relative_position_bias(
    params['decoder']['relpos_bias']['rel_embedding'],
    length,
    length,
    bidirectional=False,
    max_distance=config.max_distance,
  )
