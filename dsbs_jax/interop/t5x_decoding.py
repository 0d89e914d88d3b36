# SPDX-License-Identifier: Apache-2.0
"""Greedy decoding under T5X, the same as the built-in engine's.

T5X decodes with a beam search by default, with one beam too, and that is not
greedy: a second-best end token already counts as a finished output, which may
then win by its length. Greedy decoding takes the likeliest token, always.
"""

from typing import Any

import jax
from t5x import decoding


def decode(*, num_decodes: int, **kwargs: Any) -> tuple[jax.Array, jax.Array]:
  """Greedy for one output, T5X's beam search for more; for `decode_fn`.

  Args:
    num_decodes: outputs per row, or beams.

  Returns:
    Tokens [B, num_decodes, L], best last; their scores, for greedy the sums
    of log p.
  """
  if num_decodes > 1:
    kwargs.pop('decode_rng', None)
    return decoding.beam_search(num_decodes=num_decodes, **kwargs)
  return decoding.temperature_sample(
    num_decodes=1, temperature=0.0, topk=0, rescale_log_probs=False, **kwargs
  )
