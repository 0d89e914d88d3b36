# SPDX-License-Identifier: Apache-2.0
"""HTTP routes: a request is admitted or refused, answered in time, counted."""

import asyncio
import json
import time
import weakref
from collections.abc import Callable
from typing import Any

from absl import logging
from aiohttp import web

from dsbs_jax.serving import errors, handlers, prometheus

_JSON = 'application/json'
_BODY_TIMEOUT = 30.0  # seconds for a body to arrive
# Seconds for a head to arrive, on a new connection or after an answer. Proxies
# close idle connections after 60, and should be the first to do so.
_KEEPALIVE_TIMEOUT = 75.0
# Seconds to read on after a refusal, so that whoever still writes can read it.
_LINGERING_TIME = 60.0
# Seconds for connections to end, after everything is answered or given up.
_SHUTDOWN_TIMEOUT = 1.0
# Larger bodies are parsed in a thread, so that other requests go on.
_LARGE_BODY_BYTES = 16 << 10
# Counted for a client that left before its response; never sent.
_CLIENT_CLOSED_REQUEST = 499


class Service:
  """Admits requests, calls their handlers, limits their time, and counts.

  Args:
    max_body_bytes: of a request.
    request_timeout: seconds from a request's head to its response.

  Attributes:
    progress: what the server does before it is ready.
    num_answered: POST requests that were answered.
    num_in_flight: POST requests that are not answered yet.
    heard: connections on which a request has arrived.
    crowded: whether others wait for a connection to end.
  """

  def __init__(
    self,
    *,
    max_body_bytes: int,
    request_timeout: float,
    metrics: prometheus.ServerMetrics,
  ):
    self._max_body_bytes = max_body_bytes
    self._request_timeout, self._metrics = request_timeout, metrics
    self._idle = asyncio.Event()
    self._idle.set()
    self._stopping = False
    self._handlers: handlers.Handlers | None = None
    self.heard: weakref.WeakSet[asyncio.BaseTransport] = weakref.WeakSet()
    self.crowded = False
    self.progress = 'reading the checkpoint'
    self.num_answered = self.num_in_flight = 0

  def runner(self) -> web.AppRunner:
    """Runs the paths and their handlers."""
    app = web.Application(
      middlewares=[self._observe], client_max_size=self._max_body_bytes
    )
    post, get = self._post_handler, self._get_handler
    app.add_routes(
      [
        web.post('/v1/answers', post(handlers.Handlers.answers)),
        web.post('/v1/completions', post(handlers.Handlers.completions)),
        web.post('/v1/chat/completions', post(handlers.Handlers.chat)),
        web.get('/v1/models', get(handlers.Handlers.models)),
        web.get('/v1/models/{model:.+}', get(handlers.Handlers.one_model)),
        web.get('/healthz', self._health),
        web.get('/metrics', self._show_metrics),
      ]
    )
    return web.AppRunner(
      app,
      handler_cancellation=True,
      access_log=None,
      keepalive_timeout=_KEEPALIVE_TIMEOUT,
      lingering_time=_LINGERING_TIME,
      shutdown_timeout=_SHUTDOWN_TIMEOUT,
    )

  def open(self, ready: handlers.Handlers) -> None:
    """Starts to answer."""
    self._handlers = ready
    self._metrics.ready.set(1)

  def close(self) -> None:
    """Refuses requests from now on."""
    self._stopping = True
    self._metrics.ready.set(0)

  async def drained(self) -> None:
    """Waits until no request is in flight."""
    await self._idle.wait()

  @web.middleware
  async def _observe(
    self, request: web.Request, handler: Callable
  ) -> web.StreamResponse:
    """Counts, and turns whatever goes wrong into a response."""
    self.heard.add(request.transport)
    start, resource = time.perf_counter(), request.match_info.route.resource
    route = 'none' if resource is None else resource.canonical
    # Unless there is a response:
    status, code = _CLIENT_CLOSED_REQUEST, 'client_left'
    try:
      response, code = await self._respond(request, handler)
      status = response.status
      if self.crowded:
        response.force_close()
      return response
    finally:
      self._metrics.requests.labels(route, str(status)).inc()
      self._metrics.seconds.labels(route).observe(time.perf_counter() - start)
      if code is not None:
        self._metrics.errors.labels(code).inc()

  async def _respond(
    self, request: web.Request, handler: Callable
  ) -> tuple[web.StreamResponse, str | None]:
    """The response, and its error code, None if it is none."""
    try:
      return await handler(request), None
    except errors.APIError as error:
      failure = error
    except web.HTTPException as error:
      failure = self._from_aiohttp(error)
    except Exception:  # a bug ends this request, not the server
      logging.exception('%s failed', request.path)
      failure = errors.APIError(
        500, 'the server failed; its log has the reason.', code='internal_error'
      )
    response = _json(failure.body(), status=failure.status)
    response.headers.update(failure.headers())
    if failure.close:
      response.force_close()
    return response, failure.code

  def _post_handler(self, handler: Callable) -> Callable:
    """Handles a POST: admits it, reads its body, answers in time."""

    async def handle(request: web.Request) -> web.Response:
      ready = self._admit(request)
      self._enter(1)
      try:
        async with asyncio.timeout(self._request_timeout):
          content = await self._content(request)
          call = (
            _call if len(content) < _LARGE_BODY_BYTES else asyncio.to_thread
          )
          response = _json(await handler(ready, content, call))
      except TimeoutError:
        raise errors.APIError(
          504,
          f'there was no answer within {self._request_timeout:g} s. Send fewer'
          ' inputs at once, or start the server with a longer'
          ' REQUEST_TIMEOUT.',
          code='timeout',
        ) from None
      finally:
        self._enter(-1)
      self.num_answered += 1
      return response

    return handle

  def _get_handler(self, handler: Callable) -> Callable:
    async def handle(request: web.Request) -> web.Response:
      return _json(handler(self._ready_handlers(), **request.match_info))

    return handle

  def _enter(self, change: int) -> None:
    self.num_in_flight += change
    self._metrics.in_flight.set(self.num_in_flight)
    (self._idle.clear if self.num_in_flight else self._idle.set)()

  def _ready_handlers(self) -> handlers.Handlers:
    """The handlers; raises before the server is ready and after it closed."""
    if self._stopping:
      raise errors.APIError(
        503,
        'the server is stopping.',
        code='stopping',
        retry_after=1,
        close=True,
      )
    if self._handlers is None:
      raise errors.APIError(
        503,
        f'the server is starting: {self.progress}.',
        code='starting',
        retry_after=1,
      )
    return self._handlers

  def _admit(self, request: web.Request) -> handlers.Handlers:
    """The handlers; raises if the request is refused before it is read."""
    ready = self._ready_handlers()
    ready.batcher.check_room(1)
    if request.content_type != _JSON:
      raise errors.APIError(
        415,
        f'the content type is {request.content_type!r}, expected {_JSON!r}.',
        code='unsupported_media_type',
      )
    if (request.content_length or 0) > self._max_body_bytes:
      raise self._too_large()
    return ready

  async def _content(self, request: web.Request) -> bytes:
    try:
      async with asyncio.timeout(_BODY_TIMEOUT):
        return await request.read()
    except TimeoutError:
      raise errors.APIError(
        408,
        f'the body did not arrive within {_BODY_TIMEOUT:g} s.',
        code='timeout',
        close=True,
      ) from None
    except web.RequestPayloadError as error:
      raise errors.invalid_request(f'the body is broken: {error}.') from None

  async def _health(self, request: web.Request) -> web.Response:
    del request
    if self._stopping:
      return _json({'status': 'stopping'}, status=503)
    if self._handlers is None:
      starting = {'status': 'starting', 'progress': self.progress}
      return _json(starting, status=503)
    return _json({'status': 'ready'})

  async def _show_metrics(self, request: web.Request) -> web.Response:
    del request
    headers = {'Content-Type': prometheus.CONTENT_TYPE}
    return web.Response(body=self._metrics.text(), headers=headers)

  def _from_aiohttp(self, error: web.HTTPException) -> errors.APIError:
    """For aiohttp's errors: unknown paths and methods, bodies too large."""
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


async def _call(function: Callable, *arguments: Any) -> Any:
  return function(*arguments)


def _json(value: dict[str, Any], *, status: int = 200) -> web.Response:
  return web.Response(text=json.dumps(value), status=status, content_type=_JSON)
