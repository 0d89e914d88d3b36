# SPDX-License-Identifier: Apache-2.0
"""The KV cache: the decoder, one position at a time.

R and `rows` as in core/decode_state.py; the G beams of a row share its
cross-attention keys and values. `params` is always the whole parameter tree.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from dsbs_jax import contract
from dsbs_jax.core import decode_state
from dsbs_jax.core.layers import parameter_tree, unpadding
from dsbs_jax.core.t5 import attention, network, parameters, stacks
from dsbs_jax.core.t5.config import T5Config


@struct.dataclass
class Prefilled:
  """What `prefill` computes once and every decoding step reads.

  Attributes:
    cross_kv: per decoder layer, the cross-attention's KeyValue of [B, H, S, K].
    cross_mask: [B, 1, 1, S] bool, False on padding.
    bias: per decoder layer, the self-attention's [1, H, L, L] float32, where
      each has its own; else the one of all. L is max_decode_len.
    empty_mask: [B] bool, True for rows of nothing but padding.
  """

  cross_kv: dict[str, attention.KeyValue]
  cross_mask: jax.Array
  bias: jax.Array | dict[str, jax.Array]
  empty_mask: jax.Array

  @property
  def max_decode_len(self) -> int:
    """L, tokens of an output at most."""
    return jax.tree.leaves(self.bias)[0].shape[-1]


def _per_layer(
  function: Callable[[dict], Any], params: dict, config: T5Config
) -> dict[str, Any]:
  """function(layer_params) of each decoder layer, under its name.

  Scanned layers are one entry with a leading axis N.
  """
  if config.scan_layers:
    function = jax.vmap(function)
  names = parameters.layer_names(config, 'decoder')
  return {name: function(params['decoder'][name]) for name in names}


def _cross_attention_kv(
  params: dict, config: T5Config, rows: dict[str, jax.Array]
) -> dict[str, attention.KeyValue]:
  """Runs the encoder: `Prefilled.cross_kv` of rows, with or without padding."""
  encoded = network.encode(params, config, rows)
  token_unpadding = unpadding.make_unpadding(rows, 'encoder')

  def project(layer):
    return attention.project_kv(
      layer['encoder_decoder_attention'],
      encoded,
      config.num_heads,
      unpadding=token_unpadding,
    )

  return _per_layer(project, params, config)


def prefill(
  params: dict,
  config: T5Config,
  rows: dict[str, jax.Array],
  *,
  max_decode_len: int,
  token_shares: Sequence[float] = (),
) -> Prefilled:
  """Runs the encoder and computes what all decoding steps of a batch share.

  Args:
    max_decode_len: L, tokens of an output at most.
    token_shares: the program gets an encoder for each of these parts of all
      B * S tokens, and runs the smallest that holds the real ones; () for one
      that computes padding, too.

  Raises:
    UserError: max_decode_len is below 1.
    ValueError: the rows are packed.
  """
  tokens = decode_state.source_tokens(rows, max_decode_len)
  params = parameter_tree.round_large(params, config.dtype)
  real_mask = tokens > 0
  sizes = sorted({math.ceil(share * tokens.size) for share in token_shares})
  ways = [
    functools.partial(_encoded_kv, params, config, num_tokens=size)
    for size in (*sizes, None)
  ]
  smallest = jnp.sum(jnp.sum(real_mask) > jnp.array(sizes, jnp.int32))
  return Prefilled(
    cross_kv=jax.lax.switch(smallest, ways, tokens),
    cross_mask=real_mask[:, None, None, :],
    bias=_bias(params, config, max_decode_len),
    empty_mask=~jnp.any(real_mask, axis=1),
  )


def _bias(
  params: dict, config: T5Config, length: int
) -> jax.Array | dict[str, jax.Array]:
  """The bias of `Prefilled`; for scanned layers one entry, [N, 1, H, L, L]."""

  def bias(params):
    return stacks.position_bias(params, config, 'decoder', length)

  if config.relpos_bias_per_layer:
    return _per_layer(bias, params, config)
  return bias(params['decoder'])


def _encoded_kv(
  params: dict, config: T5Config, tokens: jax.Array, *, num_tokens: int | None
) -> dict[str, attention.KeyValue]:
  """`_cross_attention_kv` of tokens [B, S]; `num_tokens` are real at most."""
  rows = {'encoder_input_tokens': tokens}
  if num_tokens is not None:
    (index,) = jnp.nonzero(
      tokens.reshape(-1) > 0, size=num_tokens, fill_value=tokens.size
    )
    rows['encoder_token_index'] = index.astype(jnp.int32)[None]
  return _cross_attention_kv(params, config, rows)


def init_decode_state(
  config: T5Config, prefilled: Prefilled, *, num_beams: int = 1
) -> decode_state.DecodeState:
  """The state before the first token.

  A layer's cache is the self-attention's, [R, H, L, K]: position i is that of
  decoder input i, the start token and then tokens[:, i - 1].

  Args:
    prefilled: of B rows, for outputs of L tokens.
    num_beams: G; the state has R = B * G rows.
  """
  num_rows = prefilled.empty_mask.shape[0] * num_beams
  max_decode_len = prefilled.max_decode_len
  shape = (num_rows, config.num_heads, max_decode_len, config.head_dim)
  if config.scan_layers:
    shape = (config.num_decoder_layers, *shape)
  zeros = jnp.zeros(shape, config.dtype)
  kv_cache = dict.fromkeys(
    parameters.layer_names(config, 'decoder'), attention.KeyValue(zeros, zeros)
  )
  return decode_state.first_state(kv_cache, prefilled, num_beams)


def decode_step(
  params: dict,
  config: T5Config,
  prefilled: Prefilled,
  *,
  state: decode_state.DecodeState,
) -> tuple[jax.Array, dict[str, attention.KeyValue]]:
  """Runs the decoder over the newest token of each row, of fewer than L.

  Returns:
    Hidden states [R, D] in the activation dtype, after the final norm; the
    KV cache with one more position.
  """
  index = state.index
  num_rows, max_decode_len = state.tokens.shape
  last_token = jax.lax.dynamic_slice_in_dim(
    state.tokens, jnp.maximum(index - 1, 0), 1, axis=1
  )
  input_tokens = jnp.where(index == 0, contract.PAD_ID, last_token)  # [R, 1]
  self_mask = (jnp.arange(max_decode_len) <= index)[None, None, None, :]

  def row_of(bias):
    return jax.lax.dynamic_slice_in_dim(bias, index, 1, axis=2)

  has_own = isinstance(prefilled.bias, dict)
  shared = None if has_own else row_of(prefilled.bias)

  def kv_fn(layer_params, normed, layer_kv):
    cache, cross_kv, _ = layer_kv
    weights = layer_params['self_attention']
    new = attention.project_kv(weights, normed, config.num_heads)
    cache = attention.update_cache(cache, new, index)
    return (cache, cross_kv), cache

  hidden, kv_cache = stacks.run(
    params,
    config,
    'decoder',
    input_tokens,
    kv_fn=kv_fn,
    bias_fn=lambda _, layer_kv: row_of(layer_kv[2]) if has_own else shared,
    masks=(self_mask, prefilled.cross_mask),
    layer_kv={
      name: (
        cache,
        prefilled.cross_kv[name],
        prefilled.bias[name] if has_own else None,
      )
      for name, cache in state.kv_cache.items()
    },
  )
  return hidden.reshape(num_rows, -1), kv_cache


def option_states(
  params: dict,
  config: T5Config,
  rows: dict[str, jax.Array],
  *,
  targets: jax.Array,
) -> jax.Array:
  """Runs the encoder once per row, and the decoder over given outputs.

  Args:
    targets: [B * options, T] int32, neighbours of one row, 0 where padded.

  Returns:
    Hidden states [B * options, T, D] in the activation dtype.
  """

  def kv_fn(layer_params, normed, cross_kv):
    weights = layer_params['self_attention']
    self_kv = attention.project_kv(weights, normed, config.num_heads)
    return (self_kv, cross_kv), None

  self_mask = attention.make_target_mask({'decoder_target_tokens': targets})
  return stacks.run(
    params,
    config,
    'decoder',
    jnp.pad(targets[:, :-1], ((0, 0), (1, 0))),
    kv_fn=kv_fn,
    bias_fn=stacks.bias_fn(params, config, 'decoder', targets.shape[1]),
    masks=(self_mask, (decode_state.source_tokens(rows) > 0)[:, None, None, :]),
    layer_kv=_cross_attention_kv(params, config, rows),
  )[0]
