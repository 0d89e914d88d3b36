# SPDX-License-Identifier: Apache-2.0
"""Never more calls than allowed, fewer after overload, spread over time."""

import asyncio

import pytest

from rationales.client import limiter, server_config
from tests.rationales import virtual_time


def test_waits_grow_to_the_cap_and_respect_the_server(monkeypatch):
  backoff = server_config.Backoff(base=0.5, cap=10.0)
  limits = []
  monkeypatch.setattr(
    server_config.random,
    'uniform',
    lambda low, high: limits.append(high) or high,
  )
  waits = [backoff.wait(attempt, None) for attempt in range(1, 8)]
  assert waits == [0.5, 1, 2, 4, 8, 10, 10] == limits
  assert backoff.wait(1, 7.0) == 7.5


def test_waits_are_spread():
  backoff = server_config.Backoff()
  server_config.random.seed(0)
  waits = [backoff.wait(4, None) for _ in range(200)]
  assert 0 <= min(waits) < 0.5 and 3.5 < max(waits) <= 4.0


def test_a_rate_limit_spreads_its_amount_over_the_minute():
  limit = limiter.RateLimit(120)  # two per second
  waits = [limit.take(1, now=100.0) for _ in range(6)]
  # One second's worth at once, then every half second.
  assert waits == pytest.approx([0, 0, 0, 0.5, 1.0, 1.5])
  assert limit.take(1, now=200.0) == 0
  limit.take(120, now=200.0)
  assert limit.take(1, now=200.0) > 59
  limit.give_back(120)
  waits = [limit.take(1, now=200.0) for _ in range(2)]
  assert waits == pytest.approx([0, 0.5])
  assert limiter.RateLimit(0).take(1e9, now=0.0) == 0


def _run(gate, num_calls, *, act):
  """Makes calls of a second each; the most that were in flight at once."""
  in_flight, most = 0, 0

  async def call(number):
    nonlocal in_flight, most
    epoch = await gate.acquire(1)
    in_flight += 1
    most = max(most, in_flight)
    await asyncio.sleep(1)
    act(number, epoch)
    in_flight -= 1
    gate.release()

  async def run():
    await asyncio.gather(*map(call, range(num_calls)))

  virtual_time.run(run())
  return most


def test_the_limit_rises_to_its_maximum_and_no_further():
  gate = limiter.Limiter(20)
  assert gate.limit == 8
  most = _run(gate, 300, act=lambda *_: gate.on_success())
  assert most == 20 == gate.limit


def test_overload_lowers_the_limit_once_for_calls_in_flight_together():
  gate = limiter.Limiter(100)
  _run(gate, 300, act=lambda *_: gate.on_success())
  assert gate.limit == 100

  async def together():
    epochs = [await gate.acquire(0) for _ in range(10)]
    for epoch in epochs:
      gate.on_overload(epoch, None)
      gate.release()

  virtual_time.run(together())
  assert gate.limit == 70
  most = _run(gate, 50, act=lambda _, epoch: gate.on_overload(epoch, None))
  assert most <= 70 and 1 <= gate.limit < 70
  # Past its threshold the limit grows by about one call per round.
  before = gate.limit
  _run(gate, 3 * before, act=lambda *_: gate.on_success())
  assert before < gate.limit <= before + 4


def test_one_call_is_always_allowed():
  gate = limiter.Limiter(4)
  most = _run(gate, 60, act=lambda _, epoch: gate.on_overload(epoch, None))
  assert most <= 4 and gate.limit == 1


def test_retry_after_holds_every_call_back():
  async def run():
    gate = limiter.Limiter(8)
    epoch = await gate.acquire(0)
    gate.on_overload(epoch, 30.0)
    gate.release()
    await asyncio.gather(*(gate.acquire(0) for _ in range(4)))
    return asyncio.get_running_loop().time()

  assert virtual_time.run(run()) == pytest.approx(30.0)


@pytest.mark.parametrize('limits', [{'rpm': 600}, {'tpm': 6000}])
def test_calls_keep_to_the_rates(limits):
  async def run():
    gate = limiter.Limiter(100, **limits)
    for _ in range(50):  # of 10 tokens each
      await gate.acquire(10)
      gate.release()
    return asyncio.get_running_loop().time()

  # The first and ten more at once, then ten per second.
  assert virtual_time.run(run()) == pytest.approx(3.9)


def test_a_cancelled_call_leaves_its_place_to_others():
  async def run():
    gate = limiter.Limiter(1)
    await gate.acquire(0)
    waiting = [asyncio.create_task(gate.acquire(0)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    gate.release()
    await asyncio.sleep(0)
    waiting[1].cancel()  # it has the place already, or is about to
    await asyncio.sleep(0)
    if not waiting[1].cancelled():
      gate.release()
    await waiting[2]
    assert gate.limit == 1

  virtual_time.run(run())


def test_no_attempt_at_all_is_refused():
  with pytest.raises(ValueError, match='--attempts is 0'):
    server_config.Backoff(attempts=0)


class Slots:
  """A server that works on some calls at once; the others wait in silence."""

  def __init__(self, slots, seconds):
    self.slots, self.seconds = asyncio.Semaphore(slots), seconds
    self.in_flight = self.most = self.timeouts = 0

  async def answer(self, number):
    self.in_flight += 1
    self.most = max(self.most, self.in_flight)
    try:
      async with self.slots:
        # Completions differ in length.
        await asyncio.sleep(self.seconds * (0.7, 1.0, 1.3)[number % 3])
    finally:
      self.in_flight -= 1


def _ask_all(server, num_calls, *, timeout=120.0, concurrency=64):
  """Makes calls, the first one alone; when the last one was answered."""

  async def run():
    gate = limiter.Limiter(concurrency, timeout=timeout)
    loop = asyncio.get_running_loop()

    async def call(number):
      epoch = await gate.acquire(1)
      begun = loop.time()
      try:
        async with asyncio.timeout(timeout):
          await server.answer(number)
        gate.on_success(loop.time() - begun)
      except TimeoutError:
        server.timeouts += 1
        gate.on_overload(epoch, None)
      gate.release()

    await call(0)
    await asyncio.gather(*map(call, range(1, num_calls)))
    return loop.time()

  return virtual_time.run(run())


@pytest.mark.parametrize(
  'slots, seconds', [(2, 5.0), (1, 20.0), (1, 40.0), (2, 40.0), (8, 50.0)]
)
def test_no_call_waits_at_the_server_until_it_times_out(slots, seconds):
  server = Slots(slots, seconds)
  took = _ask_all(server, 200)
  assert not server.timeouts
  assert slots <= server.most < 40
  # And the slots are seldom short of work.
  assert took < 1.5 * 200 * seconds / slots


@pytest.mark.parametrize('seconds', [0.1, 5.0, 25.0, 50.0])
def test_a_server_that_answers_all_at_once_gets_as_many_as_allowed(seconds):
  server = Slots(10_000, seconds)
  _ask_all(server, 2000)
  assert server.most == 64 and not server.timeouts


def test_a_server_that_slows_down_gets_fewer_calls():
  server = Slots(2, 1.0)

  async def slow(number, answer=server.answer):
    server.seconds = 1.0 if number < 200 else 3.0
    await answer(number)

  server.answer = slow
  _ask_all(server, 400)
  assert not server.timeouts and server.most > 20
