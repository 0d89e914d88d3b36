# SPDX-License-Identifier: Apache-2.0
"""Where a server listens, and how it stops to without losing anyone."""

import asyncio
import contextlib
import ipaddress
import socket

from aiohttp import web

from dsbs_jax import contract

# Seconds for the requests of the last connections to arrive.
_LAST_SECONDS = 0.05


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
  listener: socket.socket, runner: web.AppRunner, site: web.SockSite
) -> None:
  """Stops listening, but serves the connections that the kernel took in.

  Closing alone would reset those that wait to be accepted.

  Args:
    listener: the socket.
    runner: accepts connections.
    site: listens at the socket.
  """
  spare = listener.dup()
  await site.stop()
  loop = asyncio.get_running_loop()
  with spare, contextlib.suppress(BlockingIOError):
    while True:
      connection, _ = spare.accept()
      await loop.connect_accepted_socket(runner.server, connection)
  await asyncio.sleep(_LAST_SECONDS)
