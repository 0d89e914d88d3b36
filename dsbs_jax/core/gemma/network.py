# SPDX-License-Identifier: Apache-2.0
"""Gemma 3, seen as an encoder-decoder whose two stacks are one; T5Gemma 2.

Gemma 3's decoder reads an example's inputs and targets as one sequence. Here
its inputs run first, like an encoder, and leave keys and values in every layer;
no more of them is computed, and no logits. Then run the targets, which attend
to these and to themselves. The logits of the first target are those of the last
input, so its place is taken by that token: it stands where T5 has its start
token, and only the keys of the inputs before it are attended to. Positions go
on from the inputs' own.

All sums are those of one sequence, in another order.

The inputs of a T5Gemma 2 run through an encoder, of whose result each layer of
the decoder makes keys and values by its own kernels, not rotated. From there on
it is the same; but targets start with Gemma's start id at position 0, and
attend to all inputs. Row groups and dimension letters: see contract.py.
`params` is always the whole parameter tree.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dsbs_jax import contract
from dsbs_jax.core.gemma import block, parameters
from dsbs_jax.core.gemma import config as config_lib
from dsbs_jax.core.layers import layer_loop, logits_dense, unpadding
from dsbs_jax.core.t5 import attention

GemmaConfig = config_lib.GemmaConfig
tree = parameters.tree


class Joint(NamedTuple):
  """Where targets continue their inputs.

  Attributes:
    tokens: [B, T] int32, the tokens to run: the last input or the start id,
      then targets.
    positions: [B, T] int32, of these in their examples, from 0.
    mask: [B, 1, T, S] bool, the inputs to attend to: those before the last one,
      or all.
  """

  tokens: jax.Array
  positions: jax.Array
  mask: jax.Array


def _positions(rows: dict[str, jax.Array], stack: str) -> jax.Array:
  """The position of each token of a stack in its example, int32."""
  found = rows.get(f'{stack}_positions')
  if found is not None:
    return found
  if f'{stack}_segment_ids' in rows:
    raise ValueError(
      f'The rows have {stack}_segment_ids but no {stack}_positions, expected'
      ' both of packed rows: a Gemma rotates by positions.'
    )
  shape = rows[unpadding.TOKENS[stack]].shape
  return jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)


def join(config: GemmaConfig, rows: dict[str, jax.Array]) -> Joint:
  """Continues the inputs of rows by their targets.

  Args:
    config: the network.
    rows: a row group with decoder_target_tokens, padded or packed.
  """
  inputs = rows['encoder_input_tokens']
  # [B, 1, T, S] -> [B, T, S]
  same = attention.make_attention_mask(rows, 'decoder', 'encoder')[:, 0]
  positions = _positions(rows, 'decoder')
  if config.has_encoder:
    tokens = jnp.where(
      positions == 0, contract.BOS_ID, rows['decoder_input_tokens']
    )
    return Joint(tokens, positions, same[:, None])
  last = jnp.sum(same, axis=-1, dtype=jnp.int32) - 1  # [B, T]
  places = _positions(rows, 'encoder')[:, None, :]
  is_last = same & (places == last[:, :, None])
  last_tokens = jnp.sum(jnp.where(is_last, inputs[:, None, :], 0), axis=-1)
  tokens = jnp.where(positions == 0, last_tokens, rows['decoder_input_tokens'])
  return Joint(tokens, last + positions, (same & ~is_last)[:, None])


def encode(
  params: dict,
  config: GemmaConfig,
  rows: dict[str, jax.Array],
  *,
  dropout_key: jax.Array | None = None,
) -> dict[str, attention.KeyValue]:
  """The keys and values of the inputs in every layer of the decoder.

  Args:
    rows: encoder_input_tokens [B, S] int32; packed rows also segment ids and
      positions, and encoder_token_index to compute real tokens only.
    dropout_key: typed key, or one per row [B]; None for no dropout.

  Returns:
    Under the layers' names KeyValue of [B, J, S, K]; for scanned layers one
    entry with a leading axis N.
  """
  tokens = rows['encoder_input_tokens']
  positions = _positions(rows, 'encoder')
  mask = attention.make_attention_mask(rows, 'encoder', 'encoder')
  if not (config.has_encoder or config.prefix_lm):
    mask &= (positions[:, :, None] >= positions[:, None, :])[:, None]
  token_unpadding = unpadding.make_unpadding(rows, 'encoder')
  hidden, keys_values = block.run(
    params,
    config,
    tokens,
    stack=config.input_stack,
    reaches=block.make_reaches(config, mask, positions, positions),
    kv_fn=lambda new, _: (new, None if config.has_encoder else new),
    dropout_key=dropout_key,
    unpadding=token_unpadding,
  )
  if not config.has_encoder:
    return keys_values

  def project(layer_params, hidden, *_):
    return hidden, block.project_kv(
      layer_params['self_attention'], hidden, config, unpadding=token_unpadding
    )

  return layer_loop.run(
    project,
    params['decoder'],
    hidden,
    config=config,
    stack='decoder',
    num_layers=config.num_layers,
    layer_kv=None,
    keys=None,
  )[1]


def decode(
  params: dict,
  config: GemmaConfig,
  encoded: dict[str, attention.KeyValue],
  *,
  rows: dict[str, jax.Array],
  dropout_key: jax.Array | None = None,
) -> jax.Array:
  """The final hidden states of given targets (teacher forcing).

  Args and result: as in `core/t5/network.decode`; packed rows also have
    positions.
  """
  joint = join(config, rows)
  self_mask = attention.make_target_mask(rows)

  def kv_fn(new, of_inputs):
    both = [
      jnp.concatenate(pair, axis=2) for pair in zip(of_inputs, new, strict=True)
    ]
    return attention.KeyValue(*both), None

  return block.run(
    params,
    config,
    joint.tokens,
    stack='decoder',
    reaches=block.make_reaches(
      config,
      jnp.concatenate([joint.mask, self_mask], axis=-1),
      joint.positions,
      jnp.concatenate([_positions(rows, 'encoder'), joint.positions], axis=1),
      num_inputs=joint.mask.shape[-1],
    ),
    kv_fn=kv_fn,
    layer_kv=encoded,
    dropout_key=dropout_key,
    unpadding=unpadding.make_unpadding(rows, 'decoder'),
  )[0]


def logits(params: dict, config: GemmaConfig, hidden: jax.Array) -> jax.Array:
  """Scores of all tokens; Args: as in `core/network.logits`."""
  del config
  kernel = params['token_embedder']['embedding'].T
  return logits_dense.logits_dense(hidden, kernel)


def logits_params(params: dict, config: GemmaConfig) -> dict:
  """What `logits` reads; Args: as in `core/network.logits_params`."""
  del config
  return {'token_embedder': params['token_embedder']}
