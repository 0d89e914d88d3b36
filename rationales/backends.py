# SPDX-License-Identifier: Apache-2.0
"""Who answers: a server that speaks OpenAI's protocol, or a recorded file.

A backend has a `name`, whether it is `free`, `await complete(call) -> Answer`
and `await close()`.
It makes one attempt and says how that went; waiting and trying again is the
session's work, so the client's own retries are off.
"""

import asyncio
import email.utils
import json
import pathlib
import time
import urllib.parse
import weakref
from collections.abc import Mapping

import httpx2
import openai

from rationales import calls, records, secret

# Worth another attempt; every other 4xx says that the request itself is bad.
_RETRIED = {408, 409, 425, 429}
_OVERLOAD = {429, 503, 504, 529}
_FATAL = {401, 403}
# 429 means "slow down", except where it means "no money left".
_NO_MONEY = 'insufficient_quota'
_NOT_SENT = {'ConnectError', 'ConnectTimeout', 'PoolTimeout'}

_MESSAGE_LENGTH = 300


class Http:
  """A server with the endpoints /chat/completions and /completions.

  Args:
    sampling: what every call shares.
    base_url: the server's address up to and with `/v1`.
    key: the API key.
    timeout: seconds for a whole call, however slowly its bytes drip in.
  """

  free = False

  def __init__(
    self,
    sampling: calls.Sampling,
    *,
    base_url: str,
    key: secret.Secret,
    timeout: float,
  ):
    self.name = f'{sampling.endpoint} {public_address(base_url)}'
    self._sampling, self._key, self._timeout = sampling, key, timeout
    self._client = connect(base_url, key, timeout=timeout)
    self._path = (
      '/chat/completions' if sampling.endpoint == calls.CHAT else '/completions'
    )
    self._last_body: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
    self._distrusted: weakref.WeakSet = weakref.WeakSet()

  async def complete(self, call: calls.Call) -> calls.Answer:
    """Makes one attempt.

    Raises:
      calls.Transient, calls.Permanent, calls.Fatal: how it failed.
    """
    try:
      async with asyncio.timeout(self._timeout):
        # The client's typed methods build a tree of objects per message and
        # accept answers that lack every field; the plain response takes a
        # quarter of the time and is checked below.
        response = await self._client.post(
          self._path,
          body=self._sampling.body(call),
          cast_to=httpx2.Response,
        )
        await self._check_delivery(response)
    except (TimeoutError, openai.APITimeoutError) as error:
      sent = type(error.__cause__).__name__ not in _NOT_SENT
      raise calls.Transient(
        f'no answer within {self._timeout:g} s',
        overload=True,
        maybe_paid=sent,
      ) from None
    except openai.APIStatusError as error:
      raise status_fault(error, self._key) from None
    except openai.APIConnectionError as error:
      raise connection_fault(error, self._key) from None
    except openai.OpenAIError as error:
      reason = self._key.redact(f'{type(error).__name__}: {error}')
      raise calls.Permanent(reason[:_MESSAGE_LENGTH]) from None
    try:
      body = json.loads(response.content)
      return calls.read_answer(body, call, self.name)
    except ValueError as error:
      reason = self._key.redact(f'malformed answer: {error}')
      raise calls.Transient(reason[:_MESSAGE_LENGTH], maybe_paid=True) from None

  async def close(self) -> None:
    await self._client.close()

  async def _check_delivery(self, response) -> None:
    """Refuses an answer that was meant for the call before this one.

    Where a server or a proxy delivers one answer twice on a connection that
    is kept alive, the client takes the second copy for the answer of the next
    call, and every later answer on the connection is off by one. A row would
    silently get the rationale of another row. The copy is known by its body,
    whose id is unique; then the connection is closed, and whatever else comes
    over it is not believed either.
    """
    stream = response.extensions.get('network_stream')
    if stream is None:
      return
    body = response.content
    copy = self._last_body.get(stream) == hash(body) and b'"id"' in body
    self._last_body[stream] = hash(body)
    if copy or stream in self._distrusted:
      self._distrusted.add(stream)
      await stream.aclose()
      raise calls.Transient('one answer was delivered twice', maybe_paid=True)


class Replay:
  """Answers from a completions file that was recorded before.

  Args:
    path: the file.

  Raises:
    ValueError: there is no such file, or it holds no answers.
  """

  free = True

  def __init__(self, path: pathlib.Path):
    if not path.is_file():
      raise ValueError(f'--replay is {path}, expected a completions file.')
    index = records.Index()
    for offset, record in records.scan(path):
      index.add(offset, record)
    self._index = index.freeze()
    if not len(self._index):
      raise ValueError(f'{path} holds no completions to replay.')
    self.name = f'replay {path.name}'
    self._file = path.open('rb')

  async def complete(self, call: calls.Call) -> calls.Answer:
    """Looks the call up.

    Raises:
      calls.Permanent: the file has no answer to it.
    """
    found = [self._index.read(slot, self._file) for slot in call.slots()]
    if None in found:
      raise calls.Permanent('the recorded file has no answer for this row')
    return calls.Answer(
      texts=tuple(record['text'] for record in found),
      finish_reasons=tuple(record.get('finish_reason') for record in found),
      usage=None,
      model=found[0].get('model'),
      source=self.name,
    )

  async def close(self) -> None:
    self._file.close()


def connect(
  base_url: str, key: secret.Secret, *, timeout: float
) -> openai.AsyncOpenAI:
  """The official client, without retries of its own."""
  parts = urllib.parse.urlsplit(base_url)
  if parts.scheme not in ('http', 'https') or not parts.netloc:
    raise ValueError(
      f'--base_url is {public_address(base_url)!r}, expected an address such'
      ' as http://localhost:8000/v1.'
    )
  return openai.AsyncOpenAI(
    base_url=base_url,
    api_key=key.reveal() or 'none',
    max_retries=0,
    timeout=timeout,
  )


def public_address(base_url: str) -> str:
  """The address without user, password and query, which may hold a key."""
  parts = urllib.parse.urlsplit(base_url)
  host = parts.netloc.rpartition('@')[2]
  return urllib.parse.urlunsplit((parts.scheme, host, parts.path, '', ''))


def status_fault(
  error: openai.APIStatusError, key: secret.Secret
) -> calls.Transient | calls.Permanent | calls.Fatal:
  """Sorts an HTTP error by what can be done about it."""
  status = error.status_code
  body = error.body if isinstance(error.body, dict) else {}
  words = str(body.get('message') or error.message)
  reason = f'{status}: {key.redact(words)}'[:_MESSAGE_LENGTH]
  if status in _FATAL or error.code == _NO_MONEY:
    return calls.Fatal(reason)
  if status in _RETRIED or status >= 500:
    return calls.Transient(
      reason,
      retry_after=retry_after(error.response.headers),
      overload=status in _OVERLOAD,
    )
  return calls.Permanent(reason, status)


def retry_after(headers: Mapping[str, str]) -> float | None:
  """Seconds the server wants no calls for, if it says so.

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
    parsed = email.utils.parsedate_tz(value)
  if parsed is None:
    return None
  return max(0.0, email.utils.mktime_tz(parsed) - time.time())


def connection_fault(
  error: openai.APIConnectionError, key: secret.Secret
) -> calls.Transient:
  cause = error.__cause__ or error
  name = type(cause).__name__
  refused = name in _NOT_SENT
  reason = key.redact(f'{name}: {cause}')[:_MESSAGE_LENGTH]
  return calls.Transient(reason, overload=refused, maybe_paid=not refused)
