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
        _token(
          token['token'],
          token['logprob'],
          {t['token']: t['logprob'] for t in token['top_logprobs']},
        )
        for token in found['content']
      ]
    columns = found['tokens'], found['token_logprobs'], found['top_logprobs']
    return [_token(*token) for token in zip(*columns, strict=True)]
  except (KeyError, TypeError, ValueError):
    return None


def _token(text: Any, log_prob: Any, others: Any) -> soft_labels.Token:
  """A token; ValueError or TypeError where it is malformed."""
  odds = {other: float(value) for other, value in dict(others or {}).items()}
  if not all(isinstance(each, str) for each in (text, *odds)):
    raise ValueError(f'{text!r} is no text')
  return text, float(log_prob), odds
