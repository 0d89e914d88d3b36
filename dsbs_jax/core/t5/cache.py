# SPDX-License-Identifier: Apache-2.0
"""The decoder, one position at a time, over cached keys and values.

R counts decoded rows: B, or B * G when each row has G beams. Consecutive
beams share their row's encoder keys and values, which are stored once.
"""

import jax
import jax.numpy as jnp
from flax import struct

from dsbs_jax import contract
from dsbs_jax.core.t5 import attention, parameters, stacks
from dsbs_jax.core.t5.config import T5Config


@struct.dataclass
class Source:
  """What stays the same while a batch is decoded.

  Attributes:
    cross: per decoder layer, KeyValue of [B, H, S, K]: the encoder's output
      as that layer sees it.
    cross_mask: [B, 1, 1, S] bool, False on padding.
    bias: [1, H, L, L] float32, L the longest output.
    empty: [B] bool, rows that are padding altogether.
  """

  cross: dict[str, attention.KeyValue]
  cross_mask: jax.Array
  bias: jax.Array
  empty: jax.Array


@struct.dataclass
class DecodeState:
  """What a decoding step reads and writes.

  Attributes:
    index: [] int32, number of tokens chosen so far.
    tokens: [R, L] int32, the chosen tokens; 0 from `index` on.
    caches: per decoder layer, KeyValue of [R, H, L, K] in the activation
      dtype; position i belongs to the decoder input i (the start, then
      tokens[:, i - 1]), zero from `index` on.
    done: [B] bool, rows whose result can no longer change.
  """

  index: jax.Array
  tokens: jax.Array
  caches: dict[str, attention.KeyValue]
  done: jax.Array


def project_source(params: dict, config: T5Config, encoded: jax.Array) -> dict:
  """Projects encoded rows [B, S, D] for every decoder layer.

  Returns:
    Under the layers' names KeyValue of [B, H, S, K]; for scanned layers one
    entry with a leading axis N.
  """

  def project(layer):
    weights = layer['encoder_decoder_attention']
    return attention.project_kv(weights, encoded, config.num_heads)

  stack = params['decoder']
  if config.scan_layers:
    return {'layers': jax.vmap(project)(stack['layers'])}
  names = parameters.layer_names(config, 'decoder')
  return {name: project(stack[name]) for name in names}


def check_length(max_decode_len: int) -> None:
  if max_decode_len < 1:
    raise contract.UserError(
      f'max_decode_len is {max_decode_len}, expected at least 1.'
    )


def source_tokens(rows: dict[str, jax.Array]) -> jax.Array:
  """The encoder tokens [B, S] of rows that can be decoded."""
  if rows.get('encoder_segment_ids') is not None:
    raise contract.UserError(
      'The rows to decode have encoder_segment_ids, expected one example'
      ' per row: packing is for training. Use the padded layout.'
    )
  return rows['encoder_input_tokens']


def prepare(
  params: dict,
  config: T5Config,
  encoded: jax.Array,
  *,
  rows: dict[str, jax.Array],
  max_decode_len: int,
) -> Source:
  """Computes once what all decoding steps of a batch need.

  Args:
    params: the whole parameter tree.
    config: its size.
    encoded: [B, S, D] from network.encode.
    rows: encoder_input_tokens [B, S] int32.
    max_decode_len: L.

  Returns:
    The Source.
  """
  real = source_tokens(rows) > 0
  return Source(
    cross=project_source(params, config, encoded),
    cross_mask=real[:, None, None, :],
    bias=stacks.decoder_bias(params, config, max_decode_len),
    empty=~jnp.any(real, axis=1),
  )


def start(
  config: T5Config, source: Source, *, max_decode_len: int, num_beams: int = 1
) -> DecodeState:
  """The state before the first token; padding rows are done already."""
  num_rows = source.empty.shape[0] * num_beams
  shape = (num_rows, config.num_heads, max_decode_len, config.head_dim)
  if config.scan_layers:
    shape = (config.num_decoder_layers, *shape)
  zeros = jnp.zeros(shape, config.dtype)
  return DecodeState(
    index=jnp.int32(0),
    tokens=jnp.full(
      (num_rows, max_decode_len), contract.PAD_ID, dtype=jnp.int32
    ),
    caches={
      name: attention.KeyValue(zeros, zeros)
      for name in parameters.layer_names(config, 'decoder')
    },
    done=source.empty,
  )


def step(
  params: dict, config: T5Config, source: Source, *, state: DecodeState
) -> tuple[jax.Array, dict[str, attention.KeyValue]]:
  """Runs the decoder over the newest token of each row.

  Args:
    params: the whole parameter tree.
    config: its size.
    source: from `prepare`.
    state: with fewer than L tokens chosen.

  Returns:
    Hidden states [R, D] after the final norm; the caches with one position
    more.
  """
  index = state.index
  num_rows, max_decode_len = state.tokens.shape
  before = jax.lax.dynamic_slice_in_dim(
    state.tokens, jnp.maximum(index - 1, 0), 1, axis=1
  )
  newest = jnp.where(index == 0, contract.PAD_ID, before)  # [R, 1]
  bias = jax.lax.dynamic_slice_in_dim(source.bias, index, 1, axis=2)
  self_mask = (jnp.arange(max_decode_len) <= index)[None, None, None, :]

  def kv_fn(layer_params, normed, memories):
    cache, cross = memories
    weights = layer_params['self_attention']
    new = attention.project_kv(weights, normed, config.num_heads)
    cache = attention.update_cache(cache, new, index)
    return cache, cross, cache

  hidden, caches = stacks.run_decoder(
    params,
    config,
    newest,
    kv_fn=kv_fn,
    bias=bias,
    self_mask=self_mask,
    cross_mask=source.cross_mask,
    memories={
      name: (state.caches[name], source.cross[name]) for name in state.caches
    },
  )
  return hidden.reshape(num_rows, -1), caches
