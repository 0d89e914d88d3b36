# SPDX-License-Identifier: Apache-2.0
"""How beam search scores and stops: by T5X's rules or by Hugging Face's."""

import dataclasses

import jax
import jax.numpy as jnp

from dsbs_jax import contract


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
    """The score of finished outputs, float32, shaped as `log_probs`.

    Args:
      log_probs: float32 of any shape, sums of log p.
      length: int32, tokens, the end token included.
    """
    length = jnp.asarray(length, jnp.float32)
    return log_probs / ((5.0 + length) / 6.0) ** self.alpha

  def best_attainable_score(
    self, log_probs: jax.Array, length: jax.Array, max_decode_len: int
  ) -> jax.Array:
    """No lower than what `score` will give to live outputs of a length.

    Args:
      log_probs: as in `score`, so far.
      length: likewise.
      max_decode_len: tokens at most.
    """
    del length
    return self.score(log_probs, max_decode_len + 1)  # T5X counts the start.

  def finished(self, ended: jax.Array, is_last: jax.Array) -> jax.Array:
    """Which candidates become results, [B, 2G] bool.

    Args:
      ended: [B, 2G] bool, candidates with an end token, best first.
      is_last: bool scalar, whether no further token may follow.
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
