# SPDX-License-Identifier: Apache-2.0
"""From rows to answers: greedy decoding, beam search, scoring of options.

All three run the encoder once per row. Outputs do not contain the decoder's
start token and hold 0 after the end token. `params` is always the whole
parameter tree.
"""

import jax
import jax.numpy as jnp

from dsbs_jax import contract
from dsbs_jax.core import beam_rules, beams, network, platform
from dsbs_jax.core.layers import parameter_tree

beam_search = beams.beam_search
beam_steps = beams.beam_steps
BrevityPenalty = beam_rules.BrevityPenalty
LengthPenalty = beam_rules.LengthPenalty

# Ids of a block of `argmax_for_cpu`; divides the public vocabulary of 32,128.
_BLOCK = 128
# In place of a token: the logits were not finite there.
NOT_FINITE = -1


def greedy(
  params: dict,
  config: network.Config,
  rows: dict[str, jax.Array],
  *,
  max_decode_len: int,
  stop: tuple[int, ...] = (),
) -> jax.Array:
  """Takes the most likely token at every position until all rows have ended.

  Args:
    rows: encoder_input_tokens [B, S] int32, one example per row; a row of
      padding counts as ended.
    max_decode_len: L, tokens at most, the end token included.
    stop: ids other than 0; a row also ends once its last tokens are these.

  Returns:
    [B, L] int32, 0 after the end token or the last of `stop`; a row ends with
    NOT_FINITE where the best of its logits is not finite.
  """
  prefilled = network.cache(config).prefill(
    params, config, rows, max_decode_len=max_decode_len
  )
  return greedy_steps(params, config, prefilled, stop=stop)


def greedy_steps(
  params: dict,
  config: network.Config,
  prefilled: network.Prefilled,
  *,
  stop: tuple[int, ...],
) -> jax.Array:
  """What `greedy` does after the encoder, of rows `prefilled` for L."""
  cache = network.cache(config)
  # Once, not once per token: the results are the same bits.
  params = parameter_tree.round_large(params, config.dtype)

  def step(state):
    hidden, kv_cache = cache.decode_step(params, config, prefilled, state=state)
    logits = network.logits(params, config, hidden)
    chosen = argmax(logits)
    best = jnp.take_along_axis(logits, chosen[:, None], axis=1)[:, 0]
    chosen = jnp.where(jnp.isfinite(best), chosen, NOT_FINITE)
    chosen = jnp.where(state.done_mask, contract.PAD_ID, chosen)
    tokens = jax.lax.dynamic_update_slice_in_dim(
      state.tokens, chosen[:, None], state.index, axis=1
    )
    return state.replace(
      index=state.index + 1,
      tokens=tokens,
      kv_cache=kv_cache,
      done_mask=state.done_mask
      | (chosen == contract.EOS_ID)
      | (chosen == NOT_FINITE)
      | _ends_with(tokens, stop, state.index),
    )

  state = cache.init_decode_state(config, prefilled)
  return jax.lax.while_loop(lambda s: s.unfinished, step, state).tokens


def argmax(logits: jax.Array) -> jax.Array:
  """[R, V] -> [R] int32, the id of the highest score, the lowest of equals."""
  return platform.choose(logits, cpu=argmax_for_cpu, others=plain_argmax)


def plain_argmax(logits: jax.Array) -> jax.Array:
  """`argmax` in one reduction."""
  return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def argmax_for_cpu(logits: jax.Array) -> jax.Array:
  """Two-stage argmax: same result, lowest id wins, faster on XLA's CPU backend.

  That backend vectorises a maximum but not an argmax, so an argmax only finds
  the block with the highest maximum, and then the id within the block.
  """
  num_rows, vocab_size = logits.shape
  if vocab_size % _BLOCK:
    return plain_argmax(logits)
  blocks = logits.reshape(num_rows, -1, _BLOCK)  # [R, V / block, block]
  block = jnp.argmax(jnp.max(blocks, axis=-1), axis=-1)
  within = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
  chosen = block * _BLOCK + jnp.argmax(within, axis=-1)
  return chosen.astype(jnp.int32)


def _ends_with(
  tokens: jax.Array, stop: tuple[int, ...], index: jax.Array
) -> jax.Array | bool:
  """Whether tokens[:, :index + 1] end with `stop`, [B] bool."""
  if not 0 < len(stop) <= tokens.shape[1]:
    return False
  # While there are fewer tokens, the window holds zeros and never matches.
  start = index - len(stop) + 1
  last = jax.lax.dynamic_slice_in_dim(tokens, start, len(stop), axis=1)
  return jnp.all(last == jnp.array(stop, tokens.dtype), axis=1)


def score_options(
  params: dict,
  config: network.Config,
  rows: dict[str, jax.Array],
  *,
  options_tokens: jax.Array,
) -> jax.Array:
  """Log probabilities of given outputs, such as the options of a question.

  Args:
    rows: encoder_input_tokens [B, S] int32, one example per row.
    options_tokens: [B, options, T] int32, each with its end token, 0 where
      padded.

  Returns:
    [B, options] float32, the sum of log p over an option's tokens; -inf for an
    option without tokens, NaN where its logits are not finite.
  """
  batch, num_options, length = options_tokens.shape
  targets = options_tokens.reshape(-1, length)
  target_mask = targets > 0
  hidden = network.cache(config).option_states(
    params, config, rows, targets=targets
  )
  logits = network.logits(params, config, hidden)
  picked = jnp.take_along_axis(logits, targets[:, :, None], axis=2)[..., 0]
  log_probs = picked - jax.nn.logsumexp(logits, axis=-1)  # [B * options, T]
  total = jnp.sum(jnp.where(target_mask, log_probs, 0.0), axis=1)
  total = jnp.where(jnp.isfinite(total), total, jnp.nan)
  total = jnp.where(jnp.any(target_mask, axis=1), total, -jnp.inf)
  return total.reshape(batch, num_options)
