# SPDX-License-Identifier: Apache-2.0
"""T5: encoder, decoder and logits as pure functions of parameters and rows.

The arithmetic follows T5X's T5 example, where token id 0 means padding
everywhere, on both sides of the attention. Dropout happens only with a key.
Row groups and dimension letters: see contract.py. `params` is always the whole
parameter tree.
"""

import functools

import jax

from dsbs_jax.core.layers import logits_dense, unpadding
from dsbs_jax.core.t5 import attention, parameters, stacks
from dsbs_jax.core.t5 import config as config_lib

T5Config = config_lib.T5Config
tree = parameters.tree


def encode(
  params: dict,
  config: T5Config,
  rows: dict[str, jax.Array],
  *,
  dropout_key: jax.Array | None = None,
) -> jax.Array:
  """Runs the encoder.

  Args:
    rows: encoder_input_tokens [B, S] int32; packed rows also
      encoder_segment_ids [B, S], and encoder_token_index [C, n] to compute real
      tokens only.
    dropout_key: typed key, or one per row [B]; None for no dropout.

  Returns:
    [B, S, D] in the activation dtype, after the final norm; flat, [C * n, D],
    with encoder_token_index.
  """
  tokens = rows['encoder_input_tokens']
  token_unpadding = unpadding.make_unpadding(rows, 'encoder')
  project_kv = functools.partial(
    attention.project_kv, num_heads=config.num_heads, unpadding=token_unpadding
  )

  return stacks.run(
    params,
    config,
    'encoder',
    tokens,
    kv_fn=lambda layer, normed, _: (
      (project_kv(layer['attention'], normed),),
      None,
    ),
    bias_fn=stacks.bias_fn(params, config, 'encoder', tokens.shape[1]),
    masks=(attention.make_attention_mask(rows, 'encoder', 'encoder'),),
    dropout_key=dropout_key,
    unpadding=token_unpadding,
  )[0]


def decode(
  params: dict,
  config: T5Config,
  encoded: jax.Array,
  *,
  rows: dict[str, jax.Array],
  dropout_key: jax.Array | None = None,
) -> jax.Array:
  """Runs the decoder over whole rows of given targets (teacher forcing).

  Args:
    encoded: from `encode`.
    rows: encoder_input_tokens [B, S], decoder_input_tokens and
      decoder_target_tokens [B, T], int32; packed rows also both segment ids,
      and both token indices to compute real tokens only.
    dropout_key: typed key, or one per row [B]; None for no dropout.

  Returns:
    [B, T, D] in the activation dtype, after the final norm; flat, [C * n, D],
    with decoder_token_index.
  """
  tokens = rows['decoder_input_tokens']
  source_unpadding = unpadding.make_unpadding(rows, 'encoder')
  target_unpadding = unpadding.make_unpadding(rows, 'decoder')

  def kv_fn(layer_params, normed, _):
    heads = config.num_heads
    self_kv = attention.project_kv(
      layer_params['self_attention'], normed, heads, unpadding=target_unpadding
    )
    cross_kv = attention.project_kv(
      layer_params['encoder_decoder_attention'],
      encoded,
      heads,
      unpadding=source_unpadding,
    )
    return (self_kv, cross_kv), None

  return stacks.run(
    params,
    config,
    'decoder',
    tokens,
    kv_fn=kv_fn,
    bias_fn=stacks.bias_fn(params, config, 'decoder', tokens.shape[1]),
    masks=(
      attention.make_target_mask(rows),
      attention.make_attention_mask(rows, 'decoder', 'encoder'),
    ),
    dropout_key=dropout_key,
    unpadding=target_unpadding,
  )[0]


def logits(params: dict, config: T5Config, hidden: jax.Array) -> jax.Array:
  """Scores of all tokens; Args: as in `core/network.logits`."""
  if config.logits_via_embedding:
    kernel = params['token_embedder']['embedding'].T
    hidden = hidden * config.emb_dim**-0.5
  else:
    kernel = params['decoder']['logits_dense']['kernel']
  return logits_dense.logits_dense(hidden, kernel)


def logits_params(params: dict, config: T5Config) -> dict:
  """What `logits` reads; Args: as in `core/network.logits_params`."""
  if config.logits_via_embedding:
    return {'token_embedder': params['token_embedder']}
  return {'decoder': {'logits_dense': params['decoder']['logits_dense']}}
