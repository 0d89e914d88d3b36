# SPDX-License-Identifier: Apache-2.0
"""How many calls at once, how often, and how long to wait after a failure.

Concurrency follows the server as TCP follows a network: it doubles until the
first sign of overload, falls by 30 % at each sign and then grows by one call
per round. A Retry-After stops all calls, not just the one that got it. `--rpm`
and `--tpm` are spread evenly over the minute.

Source: slow start and congestion avoidance of RFC 5681, with the decrease
factor of RFC 9438 (0.7); full jitter as in
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/.
"""

import asyncio
import collections
import dataclasses
import math
import random

from dsbs_jax import contract

_INITIAL_CALLS = 8
_DECREASE = 0.7
_BURST_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Backoff:
  """Waiting times between the attempts of one call.

  Attributes:
    attempts: attempts for one call before it counts as failed.
    base: upper limit of the first wait, in seconds; doubles each time.
    cap: upper limit of all waits, in seconds.
    longest: a Retry-After of more seconds ends the run.

  Raises:
    contract.UserError: there is no attempt.
  """

  attempts: int = 8
  base: float = 0.5
  cap: float = 60.0
  longest: float = 600.0

  def __post_init__(self):
    if self.attempts < 1:
      raise contract.UserError(
        f'--attempts is {self.attempts}, expected 1 or more.'
      )

  def wait(self, attempt: int, retry_after: float | None) -> float:
    """Seconds to wait after a failed attempt.

    The wait is drawn from [0, limit], so that calls that failed together do
    not return together, and added to what the server asked for.

    Args:
      attempt: number of the attempt, from 1.
      retry_after: seconds the server asked to wait, if it did.
    """
    limit = min(self.cap, self.base * 2 ** (attempt - 1))
    return (retry_after or 0.0) + random.uniform(0, limit)


class RateLimit:
  """Spreads an amount per minute evenly; one second's worth may go at once.

  Args:
    per_minute: the limit; 0 sets none.
  """

  def __init__(self, per_minute: float):
    self._seconds_each = 60.0 / per_minute if per_minute else 0.0
    self._next = -math.inf

  def take(self, amount: float, *, now: float) -> float:
    """Takes an amount; returns the seconds until it may be used.

    Args:
      amount: of what is limited: requests or tokens.
      now: seconds of a monotonic clock.
    """
    if not self._seconds_each:
      return 0.0
    self._next = max(self._next, now - _BURST_SECONDS)
    wait = max(0.0, self._next - now)
    self._next += amount * self._seconds_each
    return wait

  def give_back(self, amount: float) -> None:
    """Returns what was taken and not used."""
    self._next -= amount * self._seconds_each


class Limiter:
  """Decides when an attempt may be made; all attempts pass it.

  Args:
    max_concurrency: upper limit of calls at once, at least 1.
    rpm: requests per minute, 0 for no limit.
    tpm: tokens per minute, prompt and completion, 0 for no limit.
  """

  def __init__(self, max_concurrency: int, *, rpm: float = 0, tpm: float = 0):
    self._max = float(max_concurrency)
    self._limit = min(self._max, float(_INITIAL_CALLS))
    self._threshold = self._max  # below it the limit doubles per round
    self._in_flight = 0
    self._epoch = 0
    self._paused_until = 0.0
    self._queue: collections.deque[asyncio.Future] = collections.deque()
    self._requests, self._tokens = RateLimit(rpm), RateLimit(tpm)

  @property
  def limit(self) -> int:
    """Calls that may be in flight now."""
    return int(self._limit)

  async def acquire(self, tokens: float) -> int:
    """Waits until an attempt may use so many tokens; `on_overload`'s epoch."""
    if self._queue or self._in_flight >= self.limit:
      turn = asyncio.get_running_loop().create_future()
      self._queue.append(turn)
      try:
        await turn
      except asyncio.CancelledError:
        if turn.done() and not turn.cancelled():
          self._free_place()
        raise
    else:
      self._in_flight += 1
    try:
      clock = asyncio.get_running_loop().time
      request_wait = self._requests.take(1, now=clock())
      wait = max(request_wait, self._tokens.take(tokens, now=clock()))
      while (wait := max(wait, self._paused_until - clock())) > 0:
        await asyncio.sleep(wait)
        wait = 0.0
    except asyncio.CancelledError:
      self._free_place()
      raise
    return self._epoch

  def release(self, *, unused_tokens: float = 0.0) -> None:
    """Ends an attempt; the next one in the queue may start."""
    self._tokens.give_back(unused_tokens)
    self._free_place()

  def on_success(self) -> None:
    """Raises the limit: an answer came."""
    step = 1.0 if self._limit < self._threshold else 1.0 / self._limit
    self._limit = min(self._max, self._limit + step)

  def on_overload(self, epoch: int, retry_after: float | None) -> None:
    """Lowers the limit, once for all calls that were in flight together.

    Args:
      epoch: what `acquire` returned for the attempt.
      retry_after: seconds for which the server wants no call, if it said so.
    """
    if retry_after:
      resume = asyncio.get_running_loop().time() + retry_after
      self._paused_until = max(self._paused_until, resume)
    if epoch == self._epoch:
      self._epoch += 1
      self._limit = max(1.0, self._limit * _DECREASE)
      self._threshold = self._limit

  def _free_place(self) -> None:
    self._in_flight -= 1
    while self._queue and self._in_flight < self.limit:
      turn = self._queue.popleft()
      if not turn.cancelled():
        self._in_flight += 1
        turn.set_result(None)
