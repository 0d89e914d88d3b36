# SPDX-License-Identifier: Apache-2.0
"""How many calls at once, how often, and how long to wait after a fault.

Concurrency follows the server as TCP follows a network: it doubles until the
first sign of overload, falls by a third at each sign and then feels its way
up by one call per round. A Retry-After stops all calls, not just the one that
was told. `--rpm` and `--tpm` are spread evenly over the minute.

Source: slow start and congestion avoidance of RFC 5681, with the decrease
factor of RFC 9438 (0.7); full jitter as in
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/.
"""

import asyncio
import collections
import dataclasses
import random
import time

_FIRST_CALLS = 8
_DECREASE = 0.7
_BURST_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Backoff:
  """Waiting times between the attempts of one call.

  Attributes:
    attempts: calls made for one row before it counts as failed.
    base: upper limit of the first wait, in seconds; doubles each time.
    cap: upper limit of all waits.
    longest: a Retry-After beyond this many seconds ends the run.
  """

  attempts: int = 8
  base: float = 0.5
  cap: float = 60.0
  longest: float = 600.0

  def __post_init__(self):
    if self.attempts < 1:
      raise ValueError(f'--attempts is {self.attempts}, expected 1 or more.')

  def wait(self, attempt: int, retry_after: float | None) -> float:
    """Seconds before the attempt after this one (1 is the first).

    The wait is drawn from [0, limit], so that calls that failed together do
    not return together; never less than the server asked for.
    """
    limit = min(self.cap, self.base * 2 ** (attempt - 1))
    return (retry_after or 0.0) + random.uniform(0, limit)


class Meter:
  """Spreads an amount per minute evenly, with one second's worth at once.

  Args:
    per_minute: the limit; 0 sets none.
  """

  def __init__(self, per_minute: float):
    self._seconds_each = 60.0 / per_minute if per_minute else 0.0
    self._next = 0.0

  def wait(self, amount: float) -> float:
    """Takes an amount; seconds until it may be used."""
    if not self._seconds_each:
      return 0.0
    clock = time.monotonic()
    self._next = max(self._next, clock - _BURST_SECONDS)
    wait = max(0.0, self._next - clock)
    self._next += amount * self._seconds_each
    return wait

  def give_back(self, amount: float) -> None:
    """Returns what was taken and not used."""
    self._next -= amount * self._seconds_each


class Pace:
  """The gate that every attempt of every call passes.

  Args:
    most: upper limit of calls at once.
    rpm: requests per minute, 0 for no limit.
    tpm: tokens per minute, prompt and completion, 0 for no limit.
  """

  def __init__(self, most: int, *, rpm: float = 0, tpm: float = 0):
    if most < 1 or rpm < 0 or tpm < 0:
      raise ValueError(
        f'--concurrency is {most}, --rpm {rpm}, --tpm {tpm}; expected at'
        ' least 1, 0 and 0 (0 sets no limit).'
      )
    self._most = most
    self._limit = float(min(most, _FIRST_CALLS))
    self._threshold = float(most)
    self._flying = 0
    self._epoch = 0
    self._open_at = 0.0
    self._queue: collections.deque[asyncio.Future] = collections.deque()
    self._requests, self._tokens = Meter(rpm), Meter(tpm)

  @property
  def limit(self) -> int:
    """Calls that may fly at once now."""
    return int(self._limit)

  async def enter(self, tokens: float) -> int:
    """Waits for a place.

    Args:
      tokens: what the call may use of `tpm`.

    Returns:
      A ticket to `leave` with.
    """
    if self._queue or self._flying >= self.limit:
      place = asyncio.get_running_loop().create_future()
      self._queue.append(place)
      try:
        await place
      except asyncio.CancelledError:
        if place.done() and not place.cancelled():
          self._vacate()
        raise
    else:
      self._flying += 1
    try:
      wait = max(self._requests.wait(1), self._tokens.wait(tokens))
      while (wait := max(wait, self._open_at - time.monotonic())) > 0:
        await asyncio.sleep(wait)
        wait = 0.0
    except asyncio.CancelledError:
      self._vacate()
      raise
    return self._epoch

  def leave(self, *, unused_tokens: float = 0.0) -> None:
    """Gives the place to the next call."""
    self._tokens.give_back(unused_tokens)
    self._vacate()

  def went_well(self) -> None:
    """Widens the gate: an answer came."""
    step = 1.0 if self._limit < self._threshold else 1.0 / self._limit
    self._limit = min(float(self._most), self._limit + step)

  def overloaded(self, ticket: int, retry_after: float | None) -> None:
    """Narrows the gate, once for all calls that flew together.

    Args:
      ticket: what `enter` gave to the call.
      retry_after: seconds for which the server wants no call, if it said so.
    """
    if retry_after:
      self._open_at = max(self._open_at, time.monotonic() + retry_after)
    if ticket == self._epoch:
      self._epoch += 1
      self._limit = max(1.0, self._limit * _DECREASE)
      self._threshold = self._limit

  def _vacate(self) -> None:
    self._flying -= 1
    while self._queue and self._flying < self.limit:
      place = self._queue.popleft()
      if not place.cancelled():
        self._flying += 1
        place.set_result(None)
