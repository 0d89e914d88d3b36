# SPDX-License-Identifier: Apache-2.0
"""What lines of a completions file say beside the texts of completions."""

import hashlib
from collections.abc import Sequence
from typing import Any

from dsbs_jax.data import soft_labels


def logprobs(found: Any) -> Sequence[soft_labels.Token]:
  """The tokens of an answer; () where they are missing or malformed."""
  try:
    return tuple(
      (
        str(token),
        _log_prob(own),
        {str(other): _log_prob(value) for other, value in others.items()},
      )
      for token, own, others in found or ()
    )
  except (TypeError, ValueError, AttributeError):
    return ()


def _log_prob(value: Any) -> float:
  found = float(value)
  if not found < 1e-3:  # rounding may leave 0 behind; not so NaN
    raise ValueError(f'{value!r} is no logarithm of a probability')
  return min(found, 0.0)


def digest(text: str) -> str:
  """What a verdict names the completion by that it is about."""
  data = text.encode('utf-8', 'surrogatepass')
  return hashlib.sha256(data).hexdigest()[:16]
