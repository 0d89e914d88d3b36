# SPDX-License-Identifier: Apache-2.0
"""Listens, and stops listening without losing a connection."""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Collection

from aiohttp import web

from dsbs_jax import contract

# Seconds for the requests of open connections to arrive, when it stops.
_LAST_REQUESTS_TIMEOUT = 5.0
_POLL_SECONDS = 0.01


def listen(host: str, port: int) -> socket.socket:
  """A socket that is bound to the address.

  Args:
    host: a name or an address.
    port: 0 takes a free one.

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
  except (OSError, OverflowError) as error:
    raise contract.UserError(
      f'HOST {host!r} and PORT {port} cannot be listened at ({error}). Take'
      ' another PORT; 0 takes a free one.'
    ) from error
  listener.setblocking(False)
  return listener


def is_loopback(host: str) -> bool:
  """Whether only this machine can reach the address."""
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host == 'localhost'


async def close(
  listener: socket.socket,
  runner: web.AppRunner,
  site: web.SockSite,
  *,
  heard: Collection[asyncio.BaseTransport],
) -> None:
  """Stops listening, but waits for the requests of the clients that connected.

  Closing alone would reset connections that wait to be accepted, and those
  whose first request is on its way.

  Args:
    listener: the socket.
    runner: accepts connections.
    site: listens at the socket.
    heard: connections on which a request has arrived; grows meanwhile.
  """
  backlog = listener.dup()
  await site.stop()
  loop = asyncio.get_running_loop()
  with backlog, contextlib.suppress(BlockingIOError):
    while True:
      connection, _ = backlog.accept()
      await loop.connect_accepted_socket(runner.server, connection)

  def all_heard() -> bool:
    transports = [found.transport for found in runner.server.connections]
    return all(one is None or one in heard for one in transports)

  with contextlib.suppress(TimeoutError):
    async with asyncio.timeout(_LAST_REQUESTS_TIMEOUT):
      while not all_heard():
        await asyncio.sleep(_POLL_SECONDS)
