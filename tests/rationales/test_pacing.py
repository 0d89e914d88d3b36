# SPDX-License-Identifier: Apache-2.0
"""The gate: never wider than allowed, narrow after overload, even in time."""

import asyncio
import time

import pytest

from rationales import pacing


def test_waits_grow_to_the_cap_and_respect_the_server(monkeypatch):
  backoff = pacing.Backoff(base=0.5, cap=10.0)
  limits = []
  monkeypatch.setattr(
    pacing.random, 'uniform', lambda low, high: limits.append(high) or high
  )
  waits = [backoff.wait(attempt, None) for attempt in range(1, 8)]
  assert waits == [0.5, 1, 2, 4, 8, 10, 10] == limits
  assert backoff.wait(1, 7.0) == 7.5


def test_waits_are_spread():
  backoff = pacing.Backoff()
  waits = [backoff.wait(4, None) for _ in range(200)]
  assert 0 <= min(waits) < 0.5 and 3.5 < max(waits) <= 4.0


def test_a_meter_spreads_its_amount_over_the_minute(monkeypatch):
  clock = [100.0]
  monkeypatch.setattr(pacing.time, 'monotonic', lambda: clock[0])
  meter = pacing.Meter(120)  # two per second
  waits = [meter.wait(1) for _ in range(6)]
  # One second's worth at once, then every half second.
  assert waits == pytest.approx([0, 0, 0, 0.5, 1.0, 1.5])
  clock[0] += 100
  assert meter.wait(1) == 0
  meter.wait(120)
  assert meter.wait(1) > 59
  meter.give_back(120)
  assert [meter.wait(1), meter.wait(1)] == pytest.approx([0, 0.5])
  assert pacing.Meter(0).wait(1e9) == 0


def _run(pace, num_calls, *, act):
  """Sends calls through the gate; the most that were in it at once."""
  inside, most = 0, 0

  async def call(number):
    nonlocal inside, most
    ticket = await pace.enter(1)
    inside += 1
    most = max(most, inside)
    await asyncio.sleep(0.001)
    act(number, ticket)
    inside -= 1
    pace.leave()

  async def run():
    await asyncio.gather(*map(call, range(num_calls)))

  asyncio.run(run())
  return most


def test_the_gate_opens_to_its_limit_and_no_further():
  pace = pacing.Pace(20)
  assert pace.limit == 8
  most = _run(pace, 300, act=lambda *_: pace.went_well())
  assert most == 20 == pace.limit


def test_overload_narrows_the_gate_once_per_flight():
  pace = pacing.Pace(100)
  _run(pace, 300, act=lambda *_: pace.went_well())
  assert pace.limit == 100

  async def one_flight():
    tickets = [await pace.enter(0) for _ in range(10)]
    for ticket in tickets:
      pace.overloaded(ticket, None)
      pace.leave()

  asyncio.run(one_flight())
  assert pace.limit == 70
  most = _run(pace, 50, act=lambda _, ticket: pace.overloaded(ticket, None))
  assert most <= 70 and 1 <= pace.limit < 70
  # Past its threshold the gate opens by about one call per round.
  before = pace.limit
  _run(pace, 3 * before, act=lambda *_: pace.went_well())
  assert before < pace.limit <= before + 4


def test_the_gate_never_closes_for_good():
  pace = pacing.Pace(4)
  most = _run(pace, 60, act=lambda _, ticket: pace.overloaded(ticket, None))
  assert most <= 4 and pace.limit == 1


def test_retry_after_holds_every_call_back():
  pace = pacing.Pace(8)

  async def run():
    ticket = await pace.enter(0)
    pace.overloaded(ticket, 0.3)
    pace.leave()
    start = time.monotonic()
    await asyncio.gather(*(pace.enter(0) for _ in range(4)))
    return time.monotonic() - start

  assert 0.28 < asyncio.run(run()) < 20


def test_a_cancelled_call_leaves_its_place_to_others():
  async def run():
    pace = pacing.Pace(1)
    await pace.enter(0)
    waiting = [asyncio.create_task(pace.enter(0)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    pace.leave()
    await asyncio.sleep(0)
    waiting[1].cancel()  # it has the place already, or is about to
    await asyncio.sleep(0)
    if not waiting[1].cancelled():
      pace.leave()
    await asyncio.wait_for(waiting[2], 1)

  asyncio.run(run())


@pytest.mark.parametrize('most, rpm', [(0, 0), (1, -1)])
def test_senseless_limits_are_refused(most, rpm):
  with pytest.raises(ValueError, match='expected at least 1, 0 and 0'):
    pacing.Pace(most, rpm=rpm)
  with pytest.raises(ValueError, match='--attempts is 0'):
    pacing.Backoff(attempts=0)
