# SPDX-License-Identifier: Apache-2.0
"""Who answers: a server that speaks OpenAI's protocol, or a recorded file.

A backend has a `name`, whether it is `free`, `await complete(call) -> Answer`
and `await close()`. It makes one attempt and raises how that failed. Waiting
and trying again is done in `online`, so the client's own retries are off.
"""

import asyncio
import dataclasses
import email.utils
import json
import math
import pathlib
import time
import urllib.parse
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from typing import Any

import httpx2
import openai

from dsbs_jax import contract
from dsbs_jax.data.source import json_reader
from rationales import calls, completions_file, limiter, secret

BACKENDS = ('http', 'batch', 'replay')

# Worth another attempt; every other 4xx says that the request itself is bad.
_RETRIED = {408, 409, 425, 429}
_OVERLOAD = {429, 503, 504, 529}
_FATAL = {401, 403}
# 429 means "slow down", except if it means "no money left".
_NO_MONEY = 'insufficient_quota'
# The request never reached the server.
_NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)

# Errors of the client that `classify` sorts.
API_ERRORS = (openai.APIStatusError, openai.APIConnectionError)

_MAX_CONNECTIONS = 1000  # that the client opens
# An answer becomes a line, in which a byte takes up to three.
MAX_ANSWER_BYTES = json_reader.MAX_LINE_BYTES // 4
MAX_FILE_BYTES = 1 << 30  # all answers of a batch
_MESSAGE_LENGTH = 300
_NOTES = ('reasoning', 'refusal')


@dataclasses.dataclass(frozen=True)
class ServerConfig:
  """Who answers, and how fast it may be asked.

  Attributes:
    backend: one of BACKENDS.
    base_url: the server's address up to and with `/v1`.
    key: the API key.
    timeout: seconds for a whole call, however slowly its bytes arrive.
    concurrency: calls at once, at most.
    rpm, tpm: requests and tokens per minute; 0 sets no limit.
    backoff: waits between attempts.
    poll_seconds: seconds between two polls of a batch.
    batch_size: calls per batch, at most.
    forget_batches: whether batches that the server no longer knows are given
      up: their cost counts as lost, their rows are asked again.
    replay: the completions file of the replay backend.

  Raises:
    contract.UserError: a value is out of range or missing.
  """

  backend: str
  base_url: str
  key: secret.Secret
  timeout: float = 120.0
  concurrency: int = 64
  rpm: float = 0.0
  tpm: float = 0.0
  backoff: limiter.Backoff = limiter.Backoff()
  poll_seconds: float = 30.0
  batch_size: int = 20_000
  forget_batches: bool = False
  replay: str | None = None

  def __post_init__(self):
    try:
      parts = urllib.parse.urlsplit(self.base_url)
      valid = parts.scheme in ('http', 'https') and parts.hostname
      valid, shown = valid and parts.port != 0, repr(self.public_url)
    except ValueError as error:
      valid, shown = False, f'no address ({error})'
    if not valid:
      raise contract.UserError(
        f'--base_url is {shown}, expected an address such as'
        ' http://localhost:8000/v1.'
      )
    if not 0 < self.timeout < math.inf:
      raise contract.UserError(
        f'--timeout is {self.timeout}, expected more than 0 seconds.'
      )
    if not (
      1 <= self.concurrency <= _MAX_CONNECTIONS
      and self.rpm >= 0
      and self.tpm >= 0
    ):
      raise contract.UserError(
        f'--concurrency is {self.concurrency}, --rpm {self.rpm}, --tpm'
        f' {self.tpm}; expected at least 1 (and at most {_MAX_CONNECTIONS}), 0'
        ' and 0 (0 sets no limit).'
      )
    if self.batch_size < 1 or self.poll_seconds < 0:
      raise contract.UserError(
        f'--batch_size is {self.batch_size} and --poll_seconds'
        f' {self.poll_seconds}, expected at least 1 and 0.'
      )
    if self.backend == 'replay' and not self.replay:
      raise contract.UserError('--backend=replay needs --replay=FILE.')

  @property
  def public_url(self) -> str:
    """The address without user, password and query, which may hold a key."""
    parts = urllib.parse.urlsplit(self.base_url)
    host = parts.netloc.rpartition('@')[2]
    return urllib.parse.urlunsplit((parts.scheme, host, parts.path, '', ''))

  def client(self) -> openai.AsyncOpenAI:
    """The official client, without retries of its own."""
    return openai.AsyncOpenAI(
      base_url=self.base_url,
      api_key=self.key.reveal() or 'none',
      max_retries=0,
      timeout=self.timeout,
      http_client=openai.DefaultAsyncHttpxClient(
        timeout=self.timeout, event_hooks={'response': [_bound]}
      ),
    )


class _TooLongError(httpx2.RequestError):
  """An answer has more bytes than any that was asked for."""


class _Bounded(httpx2.AsyncByteStream):
  """The bytes of a response, up to a limit.

  Args:
    parts: the bytes.
    source: what is closed at the end.
    limit: how many there may be.
  """

  def __init__(
    self,
    parts: AsyncIterable[bytes],
    source: httpx2.AsyncByteStream,
    limit: int,
  ):
    self._parts, self._source, self._limit = parts, source, limit

  async def __aiter__(self) -> AsyncIterator[bytes]:
    size = 0
    async for part in self._parts:
      size += len(part)
      if size > self._limit:
        raise _TooLongError(
          f'an answer of more than {self._limit:,} bytes; ask for less with'
          ' --max_tokens or --samples_per_call'
        )
      yield part

  async def aclose(self) -> None:
    await self._source.aclose()


async def _bound(response: httpx2.Response) -> None:
  """Bounds the bytes of a response, before and after they are unpacked.

  httpx2 unpacks a MiB at a time, but would keep all of them.
  """
  whole_file = response.url.path.endswith('/content')
  limit = MAX_FILE_BYTES if whole_file else MAX_ANSWER_BYTES
  source = response.stream
  unpacked = httpx2.Response(
    response.status_code,
    headers=response.headers,
    stream=_Bounded(source, source, limit),
  )
  response.headers.pop('content-encoding', None)
  response.stream = _Bounded(unpacked.aiter_bytes(), source, limit)


class Http:
  """A server with the endpoints /chat/completions and /completions.

  Args:
    sampling: what all calls share.
    server: the address, the key and the timeout.
    substitutes: for fields that the server refuses.
  """

  free = False

  def __init__(
    self,
    sampling: calls.Sampling,
    server: ServerConfig,
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
      calls.TransientError, calls.PermanentError, calls.FatalError: it failed.
    """
    key, timeout = self._server.key, self._server.timeout
    try:
      async with asyncio.timeout(timeout):
        response = await self._post(self._sampling.body(call))
        await self._check_delivery(response)
    except (TimeoutError, openai.APITimeoutError) as error:
      raise calls.TransientError(
        f'no answer within {timeout:g} s',
        overload=True,
        maybe_paid=not isinstance(error.__cause__, _NOT_SENT),
      ) from None
    except API_ERRORS as error:
      raise classify(error, key) from None
    try:
      return calls.read_answer(json.loads(response.content), call)
    except ValueError as error:
      reason = key.redact(f'malformed answer: {error}')[:_MESSAGE_LENGTH]
      raise calls.TransientError(reason, maybe_paid=True) from None

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
      raise calls.TransientError(
        'one answer was delivered twice', maybe_paid=True
      )


class Replay:
  """Answers from a completions file of an earlier run.

  Args:
    path: the file.

  Raises:
    contract.UserError: there is no such file, or it holds no answers.
  """

  free = True

  def __init__(self, path: pathlib.Path):
    if not path.is_file():
      raise contract.UserError(
        f'--replay is {path}, expected a completions file.'
      )
    index = completions_file.Index()
    for offset, record in completions_file.scan(path):
      index.add(offset, record)
    self._index = index.freeze()
    if not len(self._index):
      raise contract.UserError(
        f'{path} holds no completions, expected some to answer from. Give'
        ' another file with --replay.'
      )
    self.name = f'replay {path.name}'
    self._file = path.open('rb')

  async def complete(self, call: calls.Call) -> calls.Answer:
    """Looks the answer up.

    Raises:
      calls.PermanentError: the file has none to this call.
      calls.FatalError: it has one to another row.
    """
    found = [self._index.read(key, self._file) for key in call.sample_keys()]
    if None in found:
      raise calls.PermanentError('the recorded file has no answer for this row')
    rows = {record.get('fingerprint') for record in found}
    if not rows <= {None, call.fingerprint}:
      raise calls.FatalError(
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
    self._file.close()


def classify(
  error: openai.APIStatusError | openai.APIConnectionError, key: secret.Secret
) -> calls.TransientError | calls.PermanentError | calls.FatalError:
  """The error to raise instead, by what can be done about it.

  Args:
    error: one of API_ERRORS.
    key: masked in the reason.
  """
  if not isinstance(error, openai.APIStatusError):
    cause = error.__cause__ or error
    if isinstance(cause, _TooLongError):
      return calls.PermanentError(str(cause), maybe_paid=True)
    not_sent = isinstance(cause, _NOT_SENT)
    reason = key.redact(f'{type(cause).__name__}: {cause}')[:_MESSAGE_LENGTH]
    return calls.TransientError(
      reason, overload=not_sent, maybe_paid=not not_sent
    )
  status = error.status_code
  body = error.body if isinstance(error.body, dict) else {}
  words = str(body.get('message') or error.message)
  reason = f'{status}: {key.redact(words)}'[:_MESSAGE_LENGTH]
  if status in _FATAL or error.code == _NO_MONEY:
    return calls.FatalError(reason)
  if status in _RETRIED or status >= 500:
    return calls.TransientError(
      reason,
      retry_after=retry_after(error.response.headers),
      overload=status in _OVERLOAD,
    )
  return calls.PermanentError(reason, status)


def retry_after(headers: Mapping[str, str]) -> float | None:
  """Seconds for which the server wants no calls, if it says so.

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
