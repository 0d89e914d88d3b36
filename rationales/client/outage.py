# SPDX-License-Identifier: Apache-2.0
"""While the server is down all calls wait together, and one at a time asks."""

import asyncio

from dsbs_jax.runtime import progress

# Seconds between two attempts to reach the server.
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 10.0
# Where nobody has answered yet the address may be wrong.
_FIRST_CONTACT_SECONDS = 60.0


class Outage:
  """Holds calls back while the server cannot be reached, or is loading.

  Args:
    name: the server's, for people.
    longest: seconds after which the run gives up.

  Attributes:
    reason: what the last attempt met.
  """

  def __init__(self, name: str, longest: float):
    self.reason = ''
    self._name, self._longest = name, longest
    self._patience = longest
    self._since: float | None = None
    self._contact = self._told = False
    self._attempts = 0
    self._turn = asyncio.Lock()

  @property
  def seconds(self) -> float | None:
    """For how long the server has been down; None if it is not."""
    if self._since is None:
      return None
    return asyncio.get_running_loop().time() - self._since

  def describe(self) -> str:
    """The server, for how long it has been down, and what was met."""
    duration = progress.duration(self.seconds)
    return f'{self._name}, down for {duration} ({self.reason})'

  def begin(self, reason: str, *, loading: bool) -> bool:
    """Notes that an attempt found the server down, or loading.

    Returns:
      Whether the server was not known to be down.
    """
    self.reason = reason
    began = self._since is None
    known = self._contact or loading
    self._patience = (
      self._longest if known else min(self._longest, _FIRST_CONTACT_SECONDS)
    )
    if began:
      self._since = asyncio.get_running_loop().time()
      self._attempts, self._told = 0, False
    elif not self._told:  # it is more than one call's bad luck
      self._told = True
      asked = '' if known else ' Is it started, and the address right?'
      progress.say(
        f'{self._name} is down ({reason}).{asked} All calls wait for it, for'
        f' at most {progress.duration(self._patience)}; Ctrl-C stops.'
      )
    return began

  def end(self) -> None:
    """Notes that the server answered a call."""
    self._contact = True
    if self._since is not None:
      if self._told:
        progress.say(
          f'{self._name} is back after {progress.duration(self.seconds)}'
        )
      self._since = None

  async def wait(self) -> bool:
    """Waits until a call may be sent; False if it has been too long.

    While the server is down the calls return from here one by one, each after
    a pause, to try; all return together once one of them had an answer.
    """
    if self._since is None:
      return True
    async with self._turn:
      if self._since is None:
        return True
      if self.seconds >= self._patience:
        return False
      pause = min(_LONGEST_WAIT, _FIRST_WAIT * 2**self._attempts)
      self._attempts += 1
      await asyncio.sleep(pause)
    return True
