# SPDX-License-Identifier: Apache-2.0
"""Log probabilities in a server's answer: of tokens and their alternatives."""

from collections.abc import Mapping
from typing import Any

from dsbs_jax.data import soft_labels


def read(choice: Mapping[str, Any]) -> list[soft_labels.Token] | None:
  """The tokens of a choice; None where they are missing or malformed.

  Source: https://platform.openai.com/docs/api-reference, of both endpoints.
  """
  found = choice.get('logprobs') or {}
  try:
    if 'content' in found:  # chat
      return [
        (
          token['token'],
          float(token['logprob']),
          {t['token']: float(t['logprob']) for t in token['top_logprobs']},
        )
        for token in found['content']
      ]
    columns = found['tokens'], found['token_logprobs'], found['top_logprobs']
    return [
      (token, float(log_prob), dict(others or {}))
      for token, log_prob, others in zip(*columns, strict=True)
    ]
  except (KeyError, TypeError, ValueError):
    return None
