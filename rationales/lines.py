# SPDX-License-Identifier: Apache-2.0
"""Calls and how they ended -> lines of a completions file (see `records`)."""

from rationales import bill, calls, records


def answer(call: calls.Call, given: calls.Answer) -> list[dict]:
  """The lines of an answer, one per sample."""
  found = []
  usage = given.usage
  pairs = zip(given.texts, given.finish_reasons, strict=True)
  for sample, (text, reason) in zip(call.samples, pairs, strict=True):
    found.append(
      {
        'kind': call.kind,
        'id': call.example_id,
        'sample': sample,
        'text': text,
        'finish_reason': reason,
        'usage': usage,
        'model': given.model,
        'prompt_hash': call.prompt_hash,
        'backend': given.source,
      }
    )
    if call.hinted:
      found[-1]['hint'] = call.gold
    usage = None
  return found


def failure(
  call: calls.Call, reason: str, status: int | None, source: str
) -> list[dict]:
  """The lines of a call that failed for good, one per sample."""
  return [
    {
      'kind': records.FAILURE,
      'of': call.kind,
      'id': call.example_id,
      'sample': sample,
      'text': None,
      'error': reason,
      'status': status,
      'prompt_hash': call.prompt_hash,
      'backend': source,
    }
    for sample in call.samples
  ]


def lost(
  call: calls.Call, reason: str, utmost: bill.Tokens, source: str
) -> dict:
  """The line of a call that may have been paid and gave no answer."""
  return {
    'kind': records.LOST,
    'id': call.example_id,
    'reason': reason,
    'usage': utmost.usage(estimated=True),
    'backend': source,
  }
