# SPDX-License-Identifier: Apache-2.0
"""How requests begin and end: admitted or refused, in time, counted."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from absl import logging
from aiohttp import web

from dsbs_jax.serving import errors, handlers, prometheus

_JSON = 'application/json'
# Seconds for a body to arrive.
_BODY_SECONDS = 30.0
# Larger bodies are read in a thread, so that others need not wait for them.
_LARGE_BODY = 16 << 10
# In the counts, of a client that did not wait; no response has it.
_CLIENT_LEFT = 499


class Service:
  """Admits requests, has them answered, and counts.

  Args:
    max_body_bytes: of a request.
    max_requests: that are read and answered at once.
    request_seconds: until a request is given up.
    metrics: counts.

  Attributes:
    progress: what the server is at before it answers.
    num_answered: requests with a body that were answered.
    num_in_flight: requests with a body that are not answered yet.
  """

  def __init__(
    self,
    *,
    max_body_bytes: int,
    max_requests: int,
    request_seconds: float,
    metrics: prometheus.ServerMetrics,
  ):
    self._max_body_bytes, self._max_requests = max_body_bytes, max_requests
    self._request_seconds, self._metrics = request_seconds, metrics
    self._idle = asyncio.Event()
    self._idle.set()
    self._stopping = False
    self._routes: handlers.Handlers | None = None
    self.progress = 'reading the checkpoint'
    self.num_answered = self.num_in_flight = 0

  def application(self) -> web.Application:
    """The routes."""
    app = web.Application(
      middlewares=[self._observe], client_max_size=self._max_body_bytes
    )
    posted, got = self._posted, self._got
    app.add_routes(
      [
        web.post('/v1/answers', posted(handlers.Handlers.answers)),
        web.post('/v1/completions', posted(handlers.Handlers.completions)),
        web.post('/v1/chat/completions', posted(handlers.Handlers.chat)),
        web.get('/v1/models', got(handlers.Handlers.models)),
        web.get('/v1/models/{model:.+}', got(handlers.Handlers.one_model)),
        web.get('/healthz', self._health),
        web.get('/metrics', self._show_metrics),
      ]
    )
    return app

  def open(self, found: handlers.Handlers) -> None:
    """Begins to answer."""
    self._routes = found
    self._metrics.ready.set(1)

  def close(self) -> None:
    """Refuses what comes from now on."""
    self._stopping = True
    self._metrics.ready.set(0)

  async def drained(self) -> None:
    """Waits until no request is in flight."""
    await self._idle.wait()

  @web.middleware
  async def _observe(
    self, request: web.Request, handler: Callable
  ) -> web.StreamResponse:
    """Counts, and makes a response of whatever goes wrong."""
    start, route = time.perf_counter(), _pattern(request)
    status, code = _CLIENT_LEFT, 'client_left'  # unless there is a response
    try:
      response, code = await self._respond(request, handler)
      status = response.status
      return response
    finally:
      self._metrics.requests.labels(route, str(status)).inc()
      self._metrics.seconds.labels(route).observe(time.perf_counter() - start)
      if code is not None:
        self._metrics.errors.labels(code).inc()

  async def _respond(
    self, request: web.Request, handler: Callable
  ) -> tuple[web.StreamResponse, str | None]:
    """The response, and the code of the error in it."""
    try:
      return await handler(request), None
    except errors.APIError as error:
      refusal = error
    except web.HTTPException as error:
      refusal = self._of_http(error)
    except Exception:
      logging.exception('%s failed', request.path)
      refusal = errors.APIError(
        500, 'the server failed; its log has the reason.', code='internal_error'
      )
    response = _json(refusal.body(), status=refusal.status)
    response.headers.update(refusal.headers())
    if refusal.close:
      response.force_close()
    return response, refusal.code

  def _posted(self, answer: Callable) -> Callable:
    """A handler of bodies: admits, reads, answers in time."""

    async def handle(request: web.Request) -> web.Response:
      found = self._admit(request)
      self._enter(1)
      try:
        async with asyncio.timeout(self._request_seconds):
          content = await self._content(request)
          call = _here if len(content) < _LARGE_BODY else asyncio.to_thread
          response = _json(await answer(found, content, call))
      except TimeoutError:
        raise errors.APIError(
          504,
          f'there was no answer within {self._request_seconds:g} s. Send fewer'
          ' inputs at once, or start the server with a longer'
          ' REQUEST_TIMEOUT.',
          code='timeout',
        ) from None
      finally:
        self._enter(-1)
      self.num_answered += 1
      return response

    return handle

  def _got(self, answer: Callable) -> Callable:
    """A handler without a body."""

    async def handle(request: web.Request) -> web.Response:
      return _json(answer(self._opened(), **request.match_info))

    return handle

  def _enter(self, change: int) -> None:
    self.num_in_flight += change
    self._metrics.in_flight.set(self.num_in_flight)
    (self._idle.clear if self.num_in_flight else self._idle.set)()

  def _opened(self) -> handlers.Handlers:
    """Raises where nothing is answered now, whatever is asked."""
    if self._stopping:
      raise errors.APIError(
        503,
        'the server is stopping.',
        code='stopping',
        retry_after=1,
        close=True,
      )
    if self._routes is None:
      raise errors.APIError(
        503,
        f'the server is starting: {self.progress}.',
        code='starting',
        retry_after=1,
      )
    return self._routes

  def _admit(self, request: web.Request) -> handlers.Handlers:
    """Raises where this is refused before it is read."""
    found = self._opened()
    if self.num_in_flight >= self._max_requests:
      raise errors.APIError(
        503,
        f'{self.num_in_flight:,} requests are being answered, as many as the'
        ' queue holds. Try again after Retry-After.',
        code='queue_full',
        retry_after=1,
        close=True,
      )
    if request.content_type != _JSON:
      raise errors.APIError(
        415,
        f'the content type is {request.content_type!r}, expected {_JSON!r}.',
        code='unsupported_media_type',
      )
    if (request.content_length or 0) > self._max_body_bytes:
      raise self._too_large()
    return found

  async def _content(self, request: web.Request) -> bytes:
    try:
      async with asyncio.timeout(_BODY_SECONDS):
        return await request.read()
    except TimeoutError:
      raise errors.APIError(
        408,
        f'the body did not arrive within {_BODY_SECONDS:g} s.',
        code='timeout',
        close=True,
      ) from None
    except web.RequestPayloadError as error:
      raise errors.invalid_request(f'the body is broken: {error}.') from None

  async def _health(self, request: web.Request) -> web.Response:
    del request
    if self._stopping:
      return _json({'status': 'stopping'}, status=503)
    if self._routes is None:
      starting = {'status': 'starting', 'progress': self.progress}
      return _json(starting, status=503)
    return _json({'status': 'ready'})

  async def _show_metrics(self, request: web.Request) -> web.Response:
    del request
    headers = {'Content-Type': prometheus.CONTENT_TYPE}
    return web.Response(body=self._metrics.text(), headers=headers)

  def _of_http(self, error: web.HTTPException) -> errors.APIError:
    """aiohttp's own errors: unknown paths and methods, bodies too large."""
    if error.status == web.HTTPRequestEntityTooLarge.status_code:
      return self._too_large()
    code = error.reason.lower().replace(' ', '_')
    return errors.APIError(error.status, f'{error.reason}.', code=code)

  def _too_large(self) -> errors.APIError:
    return errors.APIError(
      413,
      f'the body has more than {self._max_body_bytes:,} bytes. Send fewer'
      ' inputs at once, or start the server with a larger MAX_BODY_BYTES.',
      code='body_too_large',
      close=True,
    )


async def _here(function: Callable, *arguments: Any) -> Any:
  return function(*arguments)


def _json(value: dict[str, Any], *, status: int = 200) -> web.Response:
  return web.Response(text=json.dumps(value), status=status, content_type=_JSON)


def _pattern(request: web.Request) -> str:
  """The route's pattern: paths that nobody serves are one of them."""
  resource = request.match_info.route.resource
  return 'none' if resource is None else resource.canonical
