# SPDX-License-Identifier: Apache-2.0
"""How many calls at once, how often, and how long to wait after a failure.

Concurrency follows the server as TCP follows a network: it doubles until the
first sign of overload, falls by 30 % at each sign and then grows by one call
per round. A Retry-After stops all calls, not just the one that got it. `--rpm`
and `--tpm` are spread evenly over the minute.

Many servers give no sign: llama.cpp works on as many calls as it has slots and
lets the others wait in silence, until they time out. So the answers' rate is
measured. With N calls in flight and X answers per second a call takes N / X
seconds (Little's law); the limit grows while that is at most a quarter of the
timeout, or, slowly, while it makes calls no slower, so that none waits.

Source: slow start and congestion avoidance of RFC 5681, with the decrease
factor of RFC 9438 (0.7); the comparison with the fastest answer as in TCP
Vegas (https://doi.org/10.1145/190314.190317); full jitter as in
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/.
"""

import asyncio
import collections
import math

_INITIAL_CALLS = 8
_DECREASE = 0.7
_BURST_SECONDS = 1.0
_MEASURED_ANSWERS = 16
# Of the timeout: what a call may take by the measured rate for the limit to
# grow, and the most before it falls. The rest is for rates that change.
_GROW_SHARE, _SHRINK_SHARE = 0.25, 0.5
# Calls wait for each other where a round of them takes so many times as long,
# in the mean, as the fastest round did; else more may be tried.
_WAITING, _GROWTH, _SHORTEST_ROUND = 1.5, 1.25, 3


class RateLimit:
  """Spreads an amount per minute evenly; one second's worth may go at once.

  0 per minute sets no limit.
  """

  def __init__(self, per_minute: float):
    self._seconds_each = 60.0 / per_minute if per_minute else 0.0
    self._next = -math.inf

  def take(self, amount: float, *, now: float) -> float:
    """Takes requests or tokens at `now` (s); seconds until they may be used."""
    if not self._seconds_each:
      return 0.0
    self._next = max(self._next, now - _BURST_SECONDS)
    wait = max(0.0, self._next - now)
    self._next += amount * self._seconds_each
    return wait

  def give_back(self, amount: float) -> None:
    """Returns what was taken and not used."""
    self._next -= amount * self._seconds_each


class _Pace:
  """The server's measured rate, and how many calls at once suit it."""

  def __init__(self, timeout: float):
    self._timeout = timeout
    self._times: collections.deque[float] = collections.deque(
      maxlen=_MEASURED_ANSWERS
    )
    self._first = True
    # Of calls sent since the limit last changed: how long they took.
    self._round: list[float] = []
    self._round_start = -math.inf
    self._fastest_mean = math.inf
    self._ceiling = 0.0  # what the last round allows

  def pause(self) -> None:
    """Forgets when answers came: none came for a while, for another reason."""
    self._times.clear()

  def next_limit(self, limit: float, *, now: float, seconds: float) -> float:
    """The highest limit after an answer at `now` to a call of `seconds`."""
    quarter = _GROW_SHARE * self._timeout
    self._times.append(now)
    if now - seconds >= self._round_start:
      self._round.append(seconds)
    if self._first:  # perhaps of a server that takes one call at a time
      self._first = False
      return quarter / max(seconds, 1e-9)
    if len(self._times) < 2:
      return limit
    span = self._times[-1] - self._times[0]
    suits = quarter * (len(self._times) - 1) / max(span, 1e-9)
    if suits > limit:
      return suits
    if len(self._round) >= max(limit, _SHORTEST_ROUND):
      self._ceiling = self._after_round(limit, suits)
      self._round, self._round_start = [], now
      if self._ceiling < limit:
        return self._ceiling
    return max(limit, self._ceiling)

  def _after_round(self, limit: float, suits: float) -> float:
    """Compares a round of calls with the fastest: did they wait?"""
    mean = sum(self._round) / len(self._round)
    self._fastest_mean = min(mean, self._fastest_mean)
    waited = mean > _WAITING * self._fastest_mean
    half = _SHRINK_SHARE * self._timeout
    if not waited and mean <= half:
      return max(limit + 1, _GROWTH * limit)
    return suits if waited and mean > half else limit


class Limiter:
  """Decides when an attempt may be made; all attempts pass it.

  Args:
    max_concurrency: upper limit of calls at once, at least 1.
    rpm: requests per minute, 0 for no limit.
    tpm: tokens per minute, prompt and completion, 0 for no limit.
    timeout: seconds after which a call is given up.
  """

  def __init__(
    self,
    max_concurrency: int,
    *,
    rpm: float = 0,
    tpm: float = 0,
    timeout: float = math.inf,
  ):
    self._pace = _Pace(timeout)
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

  def on_success(self, seconds: float | None = None) -> None:
    """Raises the limit, unless calls would wait for each other: an answer came.

    Args:
      seconds: how long the call took; None where that is not known.
    """
    highest = self._max
    if seconds is not None:
      now = asyncio.get_running_loop().time()
      highest = self._pace.next_limit(self._limit, now=now, seconds=seconds)
    step = 1.0 if self._limit < self._threshold else 1.0 / self._limit
    self._limit = max(1.0, min(self._max, self._limit + step, highest))

  def on_overload(self, epoch: int, retry_after: float | None) -> None:
    """Lowers the limit, once for all calls that were in flight together.

    Args:
      epoch: what `acquire` returned for the attempt.
      retry_after: seconds for which the server wants no call, if it said so.
    """
    if retry_after:
      resume = asyncio.get_running_loop().time() + retry_after
      self._paused_until = max(self._paused_until, resume)
    self._pace.pause()
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
