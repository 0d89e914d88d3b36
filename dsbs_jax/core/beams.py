# SPDX-License-Identifier: Apache-2.0
"""Beam search over the cached decoder, by T5X's rules or by Hugging Face's."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from dsbs_jax import contract
from dsbs_jax.core import network

# Log probability of what must never be chosen, as in T5X.
NEG_INF = -1e9


@dataclasses.dataclass(frozen=True)
class BrevityPenalty:
  """T5X's rules: sum of log p / ((5 + length) / 6) ** alpha.

  Every candidate that ends is a result; an output that is cut off at the last
  position is one only if nothing ended in its row. The search stops when no
  live output can overtake, so stopping early never changes the result.

  Source: Wu et al. 2016 (arXiv:1609.08144), equation 14; t5x/decoding.py.
  """

  alpha: float = 0.6

  def __post_init__(self):
    if self.alpha < 0.0:
      raise contract.UserError(
        f'BrevityPenalty.alpha is {self.alpha}, expected a number >= 0.'
      )

  def score(self, log_probs: jax.Array, length: jax.Array) -> jax.Array:
    """The score of finished outputs.

    Args:
      log_probs: float32 of any shape, sums of log p.
      length: int32, tokens, the end token included.

    Returns:
      float32, shaped as `log_probs`.
    """
    length = jnp.asarray(length, jnp.float32)
    return log_probs / ((5.0 + length) / 6.0) ** self.alpha

  def best_attainable_score(
    self, log_probs: jax.Array, length: jax.Array, max_decode_len: int
  ) -> jax.Array:
    """The best score that live outputs of a length may still reach.

    Args:
      log_probs: float32 of any shape, sums of log p so far.
      length: int32, tokens so far.
      max_decode_len: tokens at most.

    Returns:
      float32, shaped as `log_probs`: no lower than what `score` will give.
    """
    del length
    return self.score(log_probs, max_decode_len + 1)  # T5X counts the start.

  def finished(self, ended: jax.Array, is_last: jax.Array) -> jax.Array:
    """Which candidates become results.

    Args:
      ended: [B, 2G] bool, candidates with an end token, best first.
      is_last: bool scalar, whether no further token may follow.

    Returns:
      [B, 2G] bool.
    """
    del is_last
    return ended


@dataclasses.dataclass(frozen=True)
class LengthPenalty:
  """The rules of Hugging Face transformers: sum of log p / length ** exponent.

  Only the better half of the candidates may end; at the last position all of
  that half does. Live outputs are scored at their present length, so a row may
  stop before a longer, better output is found. Methods as in BrevityPenalty.

  Source: transformers 4.57.6, generation/utils.py, early_stopping=False.
  """

  exponent: float = 1.0

  def score(self, log_probs, length):
    return log_probs / jnp.asarray(length, jnp.float32) ** self.exponent

  def best_attainable_score(self, log_probs, length, max_decode_len):
    del max_decode_len
    return self.score(log_probs, length)

  def finished(self, ended, is_last):
    better_half = jnp.arange(ended.shape[1]) < ended.shape[1] // 2
    return (ended | is_last) & better_half


BeamRules = BrevityPenalty | LengthPenalty


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
  rules: BeamRules,
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
  finished_tokens, finished_mask = _take(
    (
      jnp.concatenate([state.tokens, tokens], axis=1),
      jnp.concatenate([state.finished_mask, finished_mask], axis=1),
    ),
    kept,
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
  rules: BeamRules | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Keeps the G best unfinished outputs of each row, returns the best finished.

  Args:
    params: the whole parameter tree.
    config: its size.
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
  rules: BeamRules | None = None,
) -> tuple[jax.Array, jax.Array]:
  """What `beam_search` does after the encoder.

  Args:
    params: the whole parameter tree.
    config: its size.
    prefilled: of the rows, for outputs of L tokens.
    num_beams: G.
    rules: as in `beam_search`.
  """
  if num_beams < 1:
    raise contract.UserError(f'num_beams is {num_beams}, expected at least 1.')
  rules = BrevityPenalty() if rules is None else rules
  cache = network.cache(config)
  params = cache.decoding_params(params, config)
  batch, max_decode_len = (
    prefilled.empty_mask.shape[0],
    prefilled.max_decode_len,
  )

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
  live = (~jnp.any(state.finished_mask, axis=1) & ~prefilled.empty_mask)[
    :, None
  ]
  # Sums of log p stay NaN once they are, and beat no finished output.
  broken = jnp.any(jnp.isnan(state.live_log_probs), axis=1)[:, None]
  scores = jnp.where(live, state.live_log_probs, state.scores)
  live_tokens = state.decode.tokens.reshape(tokens.shape)
  return (
    jnp.where(live[:, :, None], live_tokens, tokens),
    jnp.where(broken & ~prefilled.empty_mask[:, None], jnp.nan, scores),
  )
