# SPDX-License-Identifier: Apache-2.0
"""Beam search over the cached decoder; the rules: beam_rules.py."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from dsbs_jax import contract
from dsbs_jax.core import beam_rules, network
from dsbs_jax.core.layers import parameter_tree

# Log probability of what must never be chosen, as in T5X.
NEG_INF = -1e9


@struct.dataclass
class BeamState:
  """What a step of the beam search reads and writes.

  Attributes:
    decode: the live beams' tokens and KV cache, R = B * G rows.
    live_log_probs: [B, G] float32, sums of log p, best first.
    tokens: [B, G, L] int32, the best finished outputs so far, best first.
    scores: [B, G] float32, their scores; NEG_INF where there is none yet.
    finished_mask: [B, G] bool, False where there is none yet.
  """

  decode: Any
  live_log_probs: jax.Array
  tokens: jax.Array
  scores: jax.Array
  finished_mask: jax.Array


def _take(tree, chosen: jax.Array):
  """Picks entries of axis 1 of each leaf [B, X, ...] by indices [B, Y]."""

  def take(leaf):
    index = chosen.reshape(chosen.shape + (1,) * (leaf.ndim - 2))
    return jnp.take_along_axis(leaf, index, axis=1)

  return jax.tree.map(take, tree)


def _reorder(
  kv_cache: dict, parents: jax.Array, config: network.Config
) -> dict:
  """The cache of the beam, [B, G], that each live one continues."""
  batch, num_beams = parents.shape
  rows = (parents + num_beams * jnp.arange(batch)[:, None]).reshape(-1)
  axis = 1 if config.scan_layers else 0
  return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=axis), kv_cache)


def _candidates(
  state: BeamState, log_probs: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The 2 G most likely continuations of each row, best first.

  At most G of them end, one per beam, so at least G can be continued. From log
  p of the next token, [B, G, V], to sums of log p [B, 2G], the continued beams
  [B, 2G] and tokens [B, 2G, L].
  """
  batch, num_beams, vocab = log_probs.shape
  total = log_probs + state.live_log_probs[:, :, None]
  best, flat = jax.lax.top_k(total.reshape(batch, -1), 2 * num_beams)
  parents = flat // vocab
  tokens = _take(state.decode.tokens.reshape(batch, num_beams, -1), parents)
  tokens = jax.lax.dynamic_update_slice_in_dim(
    tokens, (flat % vocab)[:, :, None], state.decode.index, axis=2
  )
  return best, parents, tokens


def _advance(
  state: BeamState,
  kv_cache: dict,
  log_probs: jax.Array,
  *,
  config: network.Config,
  rules: beam_rules.BeamRules,
) -> BeamState:
  """Chooses the next live beams and merges the outputs that ended.

  `kv_cache` has this step's position; `log_probs` are of the next token,
  [B, G, V].
  """
  num_beams = log_probs.shape[1]
  best, parents, tokens = _candidates(state, log_probs)
  max_decode_len = tokens.shape[2]
  index, done_mask = state.decode.index, state.decode.done_mask
  length = index + 1
  newest = jax.lax.dynamic_index_in_dim(tokens, index, axis=2, keepdims=False)
  ended = newest == contract.EOS_ID

  live_log_probs, live = jax.lax.top_k(
    jnp.where(ended, NEG_INF, best), num_beams
  )
  finished_mask = rules.finished(ended, length == max_decode_len)
  finished_mask &= ~done_mask[:, None] & (best > NEG_INF / 2)
  scores = jnp.where(finished_mask, rules.score(best, length), NEG_INF)
  scores, kept = jax.lax.top_k(
    jnp.concatenate([state.scores, scores], axis=1), num_beams
  )
  outputs = (state.tokens, state.finished_mask), (tokens, finished_mask)
  finished_tokens, finished_mask = _take(
    jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *outputs), kept
  )
  best = rules.best_attainable_score(
    live_log_probs[:, 0], length, max_decode_len
  )
  beaten = jnp.all(finished_mask, axis=1) & (best <= scores[:, -1])
  return BeamState(
    decode=state.decode.replace(
      index=length,
      tokens=_take(tokens, live).reshape(-1, max_decode_len),
      kv_cache=_reorder(kv_cache, _take(parents, live), config),
      done_mask=done_mask | beaten,
    ),
    live_log_probs=live_log_probs,
    tokens=finished_tokens,
    scores=scores,
    finished_mask=finished_mask,
  )


def beam_search(
  params: dict,
  config: network.Config,
  rows: dict[str, jax.Array],
  *,
  num_beams: int,
  max_decode_len: int,
  rules: beam_rules.BeamRules | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Keeps the G best unfinished outputs of each row, returns the best finished.

  Args:
    params: the whole parameter tree.
    config: its network.
    rows: encoder_input_tokens [B, S] int32, one example per row.
    num_beams: G.
    max_decode_len: L, tokens at most, the end token included.
    rules: BrevityPenalty (T5X's, the default) or LengthPenalty (Hugging
      Face's).

  Returns:
    Tokens [B, G, L] int32, best first (T5X: best last), 0 after the end; if
    nothing of a row ended, its live beams, with the plain sums of log p as
    scores. Where fewer than G ended, the rest are zeros.
    Scores [B, G] float32, NEG_INF where there is no output, NaN where the
    logits of a row are not finite.
  """
  prefilled = network.cache(config).prefill(
    params, config, rows, max_decode_len=max_decode_len
  )
  return beam_steps(params, config, prefilled, num_beams=num_beams, rules=rules)


def beam_steps(
  params: dict,
  config: network.Config,
  prefilled: network.Prefilled,
  *,
  num_beams: int,
  rules: beam_rules.BeamRules | None = None,
) -> tuple[jax.Array, jax.Array]:
  """What `beam_search` does after the encoder, of rows `prefilled` for L."""
  if num_beams < 1:
    raise contract.UserError(f'num_beams is {num_beams}, expected at least 1.')
  rules = beam_rules.BrevityPenalty() if rules is None else rules
  cache = network.cache(config)
  # Once, not once per token: the results are the same bits.
  params = parameter_tree.round_large(params, config.dtype)
  (batch,) = prefilled.empty_mask.shape
  max_decode_len = prefilled.max_decode_len

  def step(state: BeamState):
    hidden, kv_cache = cache.decode_step(
      params, config, prefilled, state=state.decode
    )
    logits = network.logits(params, config, hidden)
    log_probs = jax.nn.log_softmax(logits).reshape(batch, num_beams, -1)
    return _advance(state, kv_cache, log_probs, config=config, rules=rules)

  # All beams are equal at first: only the first may be continued.
  first = jnp.where(jnp.arange(num_beams) == 0, 0.0, NEG_INF)
  state = BeamState(
    decode=cache.init_decode_state(config, prefilled, num_beams=num_beams),
    live_log_probs=jnp.tile(first[None], (batch, 1)),
    tokens=jnp.zeros((batch, num_beams, max_decode_len), jnp.int32),
    scores=jnp.full((batch, num_beams), NEG_INF),
    finished_mask=jnp.zeros((batch, num_beams), bool),
  )
  state = jax.lax.while_loop(lambda s: s.decode.unfinished, step, state)
  tokens = jnp.where(state.finished_mask[:, :, None], state.tokens, 0)
  nothing_ended = ~jnp.any(state.finished_mask, axis=1)
  live = (nothing_ended & ~prefilled.empty_mask)[:, None]
  # Sums of log p stay NaN once they are, and beat no finished output.
  broken = jnp.any(jnp.isnan(state.live_log_probs), axis=1)[:, None]
  scores = jnp.where(live, state.live_log_probs, state.scores)
  live_tokens = state.decode.tokens.reshape(tokens.shape)
  return (
    jnp.where(live[:, :, None], live_tokens, tokens),
    jnp.where(broken & ~prefilled.empty_mask[:, None], jnp.nan, scores),
  )
