# SPDX-License-Identifier: Apache-2.0
"""Bounds the size of an answer, so that no server can fill the memory."""

from collections.abc import AsyncIterable, AsyncIterator

import httpx2

from dsbs_jax.data.source import json_reader

# An answer becomes a line, in which a byte takes up to three.
MAX_ANSWER_BYTES = json_reader.MAX_LINE_BYTES // 4
MAX_FILE_BYTES = 1 << 30  # all answers of a batch


class TooLongError(httpx2.RequestError):
  """An answer has more bytes than any that was asked for."""


class _Bounded(httpx2.AsyncByteStream):
  """The bytes of a response, up to a limit; its source is closed at the end."""

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
        raise TooLongError(
          f'an answer of more than {self._limit:,} bytes; ask for less with'
          ' --max_tokens or --samples_per_call'
        )
      yield part

  async def aclose(self) -> None:
    await self._source.aclose()


async def bound(response: httpx2.Response) -> None:
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
