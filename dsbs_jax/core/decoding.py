# SPDX-License-Identifier: Apache-2.0
"""From rows to answers: greedy, beam search, and choosing among options.

All three run the encoder once per row. Outputs hold 0 after the end token
and leave the decoder's start token out.
"""

import jax
import jax.numpy as jnp

from dsbs_jax import contract
from dsbs_jax.core import beams
from dsbs_jax.core.t5 import attention, cache, network, stacks
from dsbs_jax.core.t5.config import T5Config

beam_search = beams.beam_search
BrevityPenalty = beams.BrevityPenalty
LengthPenalty = beams.LengthPenalty
DecodeState = cache.DecodeState

# Divides the public vocabulary's 32,128 ids, and every table padded to it.
_BLOCK = 128


def greedy(
  params: dict,
  config: T5Config,
  rows: dict[str, jax.Array],
  *,
  max_decode_len: int,
  stop: tuple[int, ...] = (),
) -> jax.Array:
  """Takes the likeliest token at every position until all rows have ended.

  Args:
    params: the whole parameter tree.
    config: its size.
    rows: encoder_input_tokens [B, S] int32, one example per row; a row of
      padding counts as ended.
    max_decode_len: L, tokens at most, the end token included.
    stop: ids other than 0 that end a row too, once its last tokens are these.

  Returns:
    [B, L] int32, 0 after the end token or the last of `stop`.
  """
  cache.check_length(max_decode_len)
  encoded = network.encode(params, config, rows)
  source = cache.prepare(
    params, config, encoded, rows=rows, max_decode_len=max_decode_len
  )

  def unfinished(state: cache.DecodeState):
    return (state.index < max_decode_len) & ~jnp.all(state.done)

  def choose(state: cache.DecodeState):
    hidden, caches = cache.step(params, config, source, state=state)
    logits = network.logits(params, config, hidden)
    chosen = argmax(logits)
    chosen = jnp.where(state.done, contract.PAD_ID, chosen)
    tokens = jax.lax.dynamic_update_slice_in_dim(
      state.tokens, chosen[:, None], state.index, axis=1
    )
    return cache.DecodeState(
      index=state.index + 1,
      tokens=tokens,
      caches=caches,
      done=state.done
      | (chosen == contract.EOS_ID)
      | _ends_with(tokens, stop, state.index),
    )

  state = cache.start(config, source, max_decode_len=max_decode_len)
  return jax.lax.while_loop(unfinished, choose, state).tokens


def argmax(logits: jax.Array) -> jax.Array:
  """The first id of the highest score, as argmax says of numbers, sooner.

  XLA's CPU backend finds a maximum with vector instructions, an argmax without:
  only the blocks' maxima and the winning block are searched that way.

  Args:
    logits: [R, V] float32.

  Returns:
    [R] int32.
  """
  num_rows, vocab_size = logits.shape
  if vocab_size % _BLOCK:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  blocks = logits.reshape(num_rows, -1, _BLOCK)
  block = jnp.argmax(jnp.max(blocks, axis=-1), axis=-1)
  within = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
  chosen = block * _BLOCK + jnp.argmax(within, axis=-1)
  return chosen.astype(jnp.int32)


def _ends_with(
  tokens: jax.Array, stop: tuple[int, ...], index: jax.Array
) -> jax.Array | bool:
  """Whether the tokens up to and with `index` end with `stop`, [B] bool."""
  if not 0 < len(stop) <= tokens.shape[1]:
    return False
  # Before there are as many tokens, the window holds zeros and never matches.
  start = index - len(stop) + 1
  last = jax.lax.dynamic_slice_in_dim(tokens, start, len(stop), axis=1)
  return jnp.all(last == jnp.array(stop, tokens.dtype), axis=1)


def score_options(
  params: dict,
  config: T5Config,
  rows: dict[str, jax.Array],
  *,
  options_tokens: jax.Array,
) -> jax.Array:
  """Scores given outputs, such as the choices of a question.

  Args:
    params: the whole parameter tree.
    config: its size.
    rows: encoder_input_tokens [B, S] int32, one example per row.
    options_tokens: [B, C, T] int32, each with its end token, 0 where padded.

  Returns:
    [B, C] float32, the sum of log p over an option's tokens; -inf for an
    option without tokens.
  """
  encoded = network.encode(params, config, rows)
  batch, num_options, length = options_tokens.shape
  targets = options_tokens.reshape(-1, length)
  inputs = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
  real = targets > 0

  def kv_fn(layer_params, normed, cross):
    weights = layer_params['self_attention']
    own = attention.project_kv(weights, normed, config.num_heads)
    return own, cross, None

  hidden, _ = stacks.run_decoder(
    params,
    config,
    inputs,
    kv_fn=kv_fn,
    bias=stacks.decoder_bias(params, config, length),
    self_mask=attention.make_causal_mask(length)
    & attention.make_attention_mask(real, real),
    cross_mask=(cache.source_tokens(rows) > 0)[:, None, None, :],
    memories=cache.project_source(params, config, encoded),
  )
  logits = network.logits(params, config, hidden)
  picked = jnp.take_along_axis(logits, targets[:, :, None], axis=2)[..., 0]
  log_probs = picked - jax.nn.logsumexp(logits, axis=-1)  # [B*C, T]
  total = jnp.sum(jnp.where(real, log_probs, 0.0), axis=1)
  total = jnp.where(jnp.any(real, axis=1), total, -jnp.inf)
  return total.reshape(batch, num_options)
