# SPDX-License-Identifier: Apache-2.0
"""The KV cache of a Gemma: one position of the targets at a time.

R and `rows` as in core/decode_state.py. A layer's cache has S + L positions:
first the inputs of the row, then its targets, the first of which is the last
input, or in a T5Gemma 2 the start id (see network.py).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct

from dsbs_jax.core import decode_state
from dsbs_jax.core.gemma import block, network
from dsbs_jax.core.gemma.config import GemmaConfig
from dsbs_jax.core.layers import parameter_tree
from dsbs_jax.core.t5 import attention


@struct.dataclass
class Prefilled:
  """What `prefill` computes once per row.

  Attributes:
    kv: per layer, KeyValue of the inputs, [B, J, S, K].
    input_mask: [B, S] bool, True on inputs to attend to.
    first_tokens: [B] int32, what targets start with.
    starts: [B] int32, the position of these.
    empty_mask: [B] bool, True for rows of nothing but padding.
    max_decode_len: L, tokens of an output at most.
  """

  kv: dict[str, attention.KeyValue]
  input_mask: jax.Array
  first_tokens: jax.Array
  starts: jax.Array
  empty_mask: jax.Array
  max_decode_len: int = struct.field(pytree_node=False)


def prefill(
  params: dict,
  config: GemmaConfig,
  rows: dict[str, jax.Array],
  *,
  max_decode_len: int,
  token_shares: Sequence[float] = (),
) -> Prefilled:
  """Runs the inputs.

  Args and errors: as in `core/t5/cache.prefill`; padding is always computed.
  """
  del token_shares
  tokens = decode_state.source_tokens(rows, max_decode_len)
  params = parameter_tree.round_large(params, config.dtype)
  target = jnp.ones_like(tokens[:, :1])
  joint = network.join(
    config,
    rows | {'decoder_input_tokens': target, 'decoder_target_tokens': target},
  )
  return Prefilled(
    kv=network.encode(params, config, rows),
    input_mask=joint.mask[:, 0, 0],
    first_tokens=joint.tokens[:, 0],
    starts=joint.positions[:, 0],
    empty_mask=jnp.all(tokens == 0, axis=1),
    max_decode_len=max_decode_len,
  )


def init_decode_state(
  config: GemmaConfig, prefilled: Prefilled, *, num_beams: int = 1
) -> decode_state.DecodeState:
  """The state before the first token.

  A layer's cache is [R, J, S + L, K], the targets behind the inputs.

  Args: as in `core/t5/cache.init_decode_state`.
  """
  first = int(config.scan_layers)  # the axis of rows, behind that of layers

  def extend(of_inputs):
    widths = [(0, 0)] * of_inputs.ndim
    widths[-2] = 0, prefilled.max_decode_len
    return jnp.repeat(jnp.pad(of_inputs, widths), num_beams, axis=first)

  kv_cache = jax.tree.map(extend, prefilled.kv)
  return decode_state.first_state(kv_cache, prefilled, num_beams)


def decode_step(
  params: dict,
  config: GemmaConfig,
  prefilled: Prefilled,
  *,
  state: decode_state.DecodeState,
) -> tuple[jax.Array, dict[str, attention.KeyValue]]:
  """Runs the newest token of each row.

  Args and result: as in `core/t5/cache.decode_step`.
  """
  index = state.index
  num_rows, max_decode_len = state.tokens.shape
  num_beams = num_rows // prefilled.empty_mask.shape[0]
  input_mask, first_tokens, starts = (
    jnp.repeat(array, num_beams, axis=0)
    for array in (
      prefilled.input_mask,
      prefilled.first_tokens,
      prefilled.starts[:, None],
    )
  )
  newest = jax.lax.dynamic_index_in_dim(
    state.tokens, jnp.maximum(index - 1, 0), axis=1, keepdims=False
  )
  tokens = jnp.where(index == 0, first_tokens, newest)
  input_length = input_mask.shape[1]
  targets = jnp.arange(max_decode_len)
  target_mask = jnp.broadcast_to(targets <= index, state.tokens.shape)
  mask = jnp.concatenate([input_mask, target_mask], axis=1)
  key_positions = jnp.concatenate(
    [
      jnp.broadcast_to(jnp.arange(input_length), input_mask.shape),
      starts + targets,
    ],
    axis=1,
  )

  def kv_fn(new, cache):
    cache = attention.update_cache(cache, new, input_length + index)
    return cache, cache

  hidden, kv_cache = block.run(
    params,
    config,
    tokens[:, None],
    stack='decoder',
    reaches=block.make_reaches(
      config,
      mask[:, None, None, :],
      starts + index,
      key_positions,
      num_inputs=input_length,
    ),
    kv_fn=kv_fn,
    layer_kv=state.kv_cache,
  )
  return hidden.reshape(num_rows, -1), kv_cache


def option_states(
  params: dict,
  config: GemmaConfig,
  rows: dict[str, jax.Array],
  *,
  targets: jax.Array,
) -> jax.Array:
  """Runs the inputs once per row, and then given outputs.

  Args and result: as in `core/t5/cache.option_states`.
  """
  tokens = decode_state.source_tokens(rows)
  num_options = len(targets) // len(tokens)
  axis = int(config.scan_layers)
  encoded = jax.tree.map(
    lambda leaf: jnp.repeat(leaf, num_options, axis=axis),
    network.encode(params, config, rows),
  )
  repeated = {
    'encoder_input_tokens': jnp.repeat(tokens, num_options, axis=0),
    'decoder_input_tokens': jnp.pad(targets[:, :-1], ((0, 0), (1, 0))),
    'decoder_target_tokens': targets,
  }
  return network.decode(params, config, encoded, rows=repeated)
