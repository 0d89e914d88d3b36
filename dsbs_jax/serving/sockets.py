# SPDX-License-Identifier: Apache-2.0
"""Accepts connections up to a bound; stops without losing one."""

import asyncio
import contextlib
import ipaddress
import resource
import socket

from absl import logging
from aiohttp import web

from dsbs_jax import contract
from dsbs_jax.serving import http

_BACKLOG = 1024
_MAX_CONNECTIONS = 1024
# Seconds until it looks again whether it can take another connection.
_FULL_SECONDS = 0.05
_ERROR_SECONDS = 1.0
# Seconds for the requests of open connections to arrive, when it stops.
_LAST_REQUESTS_TIMEOUT = 5.0
_POLL_SECONDS = 0.01


def listen(host: str, port: int) -> socket.socket:
  """A socket that listens at the address; port 0 takes a free one.

  Raises:
    UserError: the address cannot be taken.
  """
  try:
    family, kind, protocol, _, address = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen(_BACKLOG)
  except (OSError, OverflowError) as error:
    raise contract.UserError(
      f'HOST {host!r} and PORT {port} cannot be listened at ({error}). Take'
      ' another PORT (--port); 0 takes a free one.'
    ) from error
  listener.setblocking(False)
  return listener


def is_loopback(host: str) -> bool:
  """Whether only this machine can reach the address."""
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host == 'localhost'


def url(listener: socket.socket) -> str:
  """The address at which the socket listens."""
  host, port = listener.getsockname()[:2]
  return f'http://[{host}]:{port}' if ':' in host else f'http://{host}:{port}'


def max_connections() -> int:
  """At most half of the files that the process may have open."""
  soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
  half = _MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else soft // 2
  return max(1, min(half, _MAX_CONNECTIONS))


class Acceptor:
  """Accepts connections up to a bound; others wait in the kernel's queue.

  While others wait, answers close their connections.
  """

  def __init__(
    self,
    listener: socket.socket,
    runner: web.AppRunner,
    service: http.Service,
    *,
    most: int,
  ):
    self._listener, self._most = listener, most
    self._server, self._service = runner.server, service
    self._loop = asyncio.get_running_loop()
    self._connecting: set[asyncio.Task] = set()
    self._watch()

  async def close(self) -> None:
    """Stops listening, but waits for the requests of clients that connected.

    Closing alone would reset connections that wait to be accepted, and those
    whose first request is on its way.
    """
    self._timer.cancel()
    self._loop.remove_reader(self._listener)
    with self._listener, contextlib.suppress(OSError):
      while True:
        self._connect(self._listener.accept()[0])
    with contextlib.suppress(TimeoutError):
      async with asyncio.timeout(_LAST_REQUESTS_TIMEOUT):
        while self._connecting or not self._all_heard():
          await asyncio.sleep(_POLL_SECONDS)

  def _watch(self, seconds: float = 0.0) -> None:
    """Accepts from now on, or after some seconds."""
    self._loop.remove_reader(self._listener)
    self._timer = self._loop.call_later(
      seconds, self._loop.add_reader, self._listener, self._accept
    )

  def _accept(self) -> None:
    num_open = len(self._server.connections) + len(self._connecting)
    self._service.crowded = num_open >= self._most
    if self._service.crowded:
      self._watch(_FULL_SECONDS)
      return
    try:
      self._connect(self._listener.accept()[0])
    except (BlockingIOError, ConnectionAbortedError):
      return
    except OSError as error:  # no descriptor is left
      logging.warning('no connection can be accepted: %s', error)
      self._service.crowded = True
      self._watch(_ERROR_SECONDS)

  def _connect(self, connection: socket.socket) -> None:
    connection.setblocking(False)
    task = self._loop.create_task(
      self._loop.connect_accepted_socket(self._server, connection)
    )
    self._connecting.add(task)
    task.add_done_callback(self._connecting.discard)

  def _all_heard(self) -> bool:
    transports = [found.transport for found in self._server.connections]
    return all(one is None or one in self._service.heard for one in transports)
