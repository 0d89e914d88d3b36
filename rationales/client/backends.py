# SPDX-License-Identifier: Apache-2.0
"""Who answers: a server that speaks OpenAI's protocol, or a recorded file.

A backend has a `name`, whether it is `free`, `await complete(call) -> Answer`
and `await close()`. It makes one attempt and raises how that failed. Waiting
and trying again is done in `online`, so the client's own retries are off.
"""

import asyncio
import email.utils
import json
import pathlib
import time
import weakref
from collections.abc import Mapping
from typing import Any

import httpx2
import openai

from dsbs_jax import contract
from rationales.client import (
  bounded_response,
  failures,
  probe,
  secret,
  server_config,
)
from rationales.record import calls, completions_file

# Worth another attempt; every other 4xx says that the request itself is bad.
_RETRIED = {408, 409, 425, 429}
_OVERLOAD = {429, 503, 504, 529}
_FATAL = {401, 403}
# Without a Retry-After: a server that is loading, or gone behind its proxy.
_DOWN = {502, 503, 504}
# 429 means "slow down", except if it means "no money left".
_NO_MONEY = 'insufficient_quota'
# The request never reached the server.
_UNREACHABLE = (httpx2.ConnectError, httpx2.ConnectTimeout)
_NOT_SENT = (*_UNREACHABLE, httpx2.PoolTimeout)

# Errors of the client that `classify` sorts.
API_ERRORS = (openai.APIStatusError, openai.APIConnectionError)

_MESSAGE_LENGTH = 300
_NOTES = ('reasoning', 'refusal', 'logprobs')


class Http:
  """A server with the endpoints /chat/completions and /completions."""

  free = False

  def __init__(
    self,
    sampling: calls.Sampling,
    server: server_config.ServerConfig,
    substitutes: calls.Substitutes | None = None,
  ):
    self.name = f'{sampling.endpoint} {server.public_url}'
    self._sampling, self._server = sampling, server
    self._substitutes = substitutes or calls.Substitutes()
    self._client = server.client()
    # Per connection that is open: a hash of the last answer on it.
    self._last_answer: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
    self._distrusted: weakref.WeakSet = weakref.WeakSet()

  async def complete(self, call: calls.Call) -> calls.Answer:
    """Makes one attempt.

    Raises:
      failures.TransientError, failures.PermanentError, failures.FatalError: it
        failed.
    """
    key, timeout = self._server.key, self._server.timeout
    try:
      async with asyncio.timeout(timeout):
        response = await self._post(self._sampling.body(call))
        await self._check_delivery(response)
    except (TimeoutError, openai.APITimeoutError) as error:
      raise failures.TransientError(
        f'no answer within {timeout:g} s',
        overload=True,
        maybe_paid=not isinstance(error.__cause__, _NOT_SENT),
        server=failures.UNREACHABLE
        if isinstance(error.__cause__, _UNREACHABLE)
        else None,
      ) from None
    except API_ERRORS as error:
      found = classify(error, key)
      if isinstance(found, failures.FatalError) and not key.reveal():
        found = failures.FatalError(f'{found}{self._server.key_hint}')
      raise found from None
    try:
      return calls.read_answer(json.loads(response.content), call)
    except ValueError as error:
      reason = key.redact(f'malformed answer: {error}')[:_MESSAGE_LENGTH]
      raise failures.TransientError(reason, maybe_paid=True) from None

  async def explain(
    self, call: calls.Call, error: failures.PermanentError
  ) -> str | None:
    """What to change after the first call was refused; None if unknown."""
    return await probe.explain(
      self._client, self._server, self._sampling, call=call, error=error
    )

  async def close(self) -> None:
    await self._client.close()

  async def _post(self, body: dict[str, Any]) -> httpx2.Response:
    while True:
      sent = self._substitutes.apply(body)
      try:
        # The client's typed methods build a tree of objects per message and
        # accept answers that lack every field; the plain response takes a
        # quarter of the time and is checked by `read_answer`.
        return await self._client.post(
          self._sampling.path, body=sent, cast_to=httpx2.Response
        )
      except openai.BadRequestError as error:
        if not self._substitutes.learn(error.body, sent):
          raise

  async def _check_delivery(self, response: httpx2.Response) -> None:
    """Refuses an answer that was meant for the call before this one.

    If a server or a proxy delivers one answer twice on a kept-alive
    connection, the client takes the second copy for the answer of the next
    call, and every later answer on the connection is off by one: rows would
    silently get the rationales of other rows. A copy is recognized by its
    body, whose id is unique. Then the connection is closed, and other calls
    that still get an answer from it fail, too.
    """
    stream = response.extensions.get('network_stream')
    if stream is None:
      return
    body = response.content
    copy = self._last_answer.get(stream) == hash(body) and b'"id"' in body
    self._last_answer[stream] = hash(body)
    if copy or stream in self._distrusted:
      self._distrusted.add(stream)
      await stream.aclose()
      raise failures.TransientError(
        'one answer was delivered twice', maybe_paid=True
      )


class Replay:
  """Answers from a completions file of an earlier run.

  Raises:
    contract.UserError: there is no such file, or it holds no answers.
  """

  free = True

  def __init__(self, path: pathlib.Path):
    if not path.is_file():
      raise contract.UserError(
        f'--replay is {path}, expected a completions file.'
      )
    index = completions_file.Index(path)
    for offset, record in completions_file.scan(path):
      index.add(offset, record)
    self._index = index.freeze()
    if not len(self._index):
      raise contract.UserError(
        f'{path} holds no completions, expected some to answer from. Give'
        ' another file with --replay.'
      )
    self.name = f'replay {path.name}'

  async def complete(self, call: calls.Call) -> calls.Answer:
    """Looks the answer up.

    Raises:
      failures.PermanentError: the file has none to this call.
      failures.FatalError: it has one to another row.
    """
    found = [self._index.read(key) for key in call.sample_keys()]
    if None in found:
      raise failures.PermanentError(
        'the recorded file has no answer for this row'
      )
    rows = {record.get('fingerprint') for record in found}
    if not rows <= {None, call.fingerprint}:
      raise failures.FatalError(
        f'the recorded answer for {call.example_id} is to another row: replay'
        ' the file of these rows'
      )
    return calls.Answer(
      texts=tuple(record['text'] for record in found),
      finish_reasons=tuple(record.get('finish_reason') for record in found),
      usage=None,
      model=found[0].get('model'),
      notes=tuple(
        {name: record[name] for name in _NOTES if name in record}
        for record in found
      ),
    )

  async def close(self) -> None:
    """Nothing is open."""


def classify(
  error: openai.APIStatusError | openai.APIConnectionError, key: secret.Secret
) -> failures.TransientError | failures.PermanentError | failures.FatalError:
  """The error to raise instead, by what can be done about it."""
  if not isinstance(error, openai.APIStatusError):
    cause = error.__cause__ or error
    if isinstance(cause, bounded_response.TooLongError):
      return failures.PermanentError(str(cause), maybe_paid=True)
    not_sent = isinstance(cause, _NOT_SENT)
    unreachable = isinstance(cause, _UNREACHABLE)
    server = failures.UNREACHABLE if unreachable else None
    reason = key.redact(f'{type(cause).__name__}: {cause}')[:_MESSAGE_LENGTH]
    return failures.TransientError(
      reason, overload=not_sent, maybe_paid=not not_sent, server=server
    )
  status = error.status_code
  body = error.body if isinstance(error.body, dict) else {}
  words = str(body.get('message') or error.message)
  reason = f'{status}: {key.redact(words)}'[:_MESSAGE_LENGTH]
  if status in _FATAL or error.code == _NO_MONEY:
    return failures.FatalError(reason)
  if status in _RETRIED or status >= 500:
    wait = retry_after(error.response.headers)
    return failures.TransientError(
      reason,
      retry_after=wait,
      overload=status in _OVERLOAD,
      server=failures.LOADING
      if status in _DOWN and wait is None
      else failures.ANSWERED,
    )
  return failures.PermanentError(reason, status=status)


def retry_after(headers: Mapping[str, str]) -> float | None:
  """Seconds for which the server wants no calls, if it says so.

  A date counts from the date of the answer, so that a clock of this machine
  that is wrong, or jumps, does not matter.

  Source: RFC 9110, section 10.2.3 (seconds or a date), and the
  `retry-after-ms` of OpenAI and Azure.
  """
  try:
    return max(0.0, float(headers['retry-after-ms']) / 1000)
  except (KeyError, ValueError):
    value = headers.get('retry-after', '')
  try:
    return max(0.0, float(value))
  except ValueError:
    until = _seconds(value)
  if until is None:
    return None
  now = _seconds(headers.get('date', ''))
  return max(0.0, until - (time.time() if now is None else now))


def _seconds(date: str) -> float | None:
  """Seconds since 1970 of a date in a header, None where it is none."""
  parsed = email.utils.parsedate_tz(date)
  return None if parsed is None else email.utils.mktime_tz(parsed)
