# SPDX-License-Identifier: Apache-2.0
"""While a server is down all calls wait together, and no row fails for it."""

import asyncio
import dataclasses
import signal
import types

import pytest

from dsbs_jax.runtime import progress
from rationales.client import failures, online, server_config
from rationales.client.failures import ExitReason
from rationales.record import calls
from tests.rationales import virtual_time
from tests.rationales.client.test_online import CALL, Record

HOUR = 3600.0


class Backend:
  """Answers in a second, except while it is down."""

  name = 'chat http://x/v1'

  def __init__(self, down_from, down_until, server=failures.UNREACHABLE):
    self.down_from, self.down_until, self.server = down_from, down_until, server
    self.attempts = []  # while it was down

  async def complete(self, call):
    clock = asyncio.get_running_loop().time
    await asyncio.sleep(0.5)
    if self.down_from <= clock() < self.down_until:
      self.attempts.append(clock())
      raise failures.TransientError(
        'nobody listens', overload=True, server=self.server
      )
    await asyncio.sleep(0.5)
    return calls.Answer(('x',), ('stop',), None, 'm', ({},))

  async def close(self):
    pass


class Outcomes(Record):
  """Counts how calls ended."""

  def __init__(self):
    super().__init__()
    self.answered, self.failed = 0, []
    self.file = types.SimpleNamespace(
      check=lambda: None, sync=lambda: None, path='out.jsonl'
    )
    self.monitor = types.SimpleNamespace(
      tick=lambda: None, retried=lambda reason: None
    )

  def answer(self, call, answer):
    self.answered += 1

  def failure(self, call, reason, status):
    self.failed.append(reason)


@pytest.fixture
def said(monkeypatch):
  lines = []
  monkeypatch.setattr(progress, 'say', lines.append)
  return lines


def _ctrl_c(runner):
  signal.raise_signal(signal.SIGINT)


def _run(backend, todo=(CALL,) * 200, *, after=None, act=None):
  server = types.SimpleNamespace(
    concurrency=16,
    rpm=0,
    tpm=0,
    backoff=server_config.Backoff(attempts=2),
    timeout=120.0,
    outage_timeout=HOUR,
  )
  record = Outcomes()

  async def run():
    runner = online.OnlineRunner(backend, server, record)
    if act:
      asyncio.get_running_loop().call_later(after, act, runner)
    await runner.run(iter(todo))
    return runner, asyncio.get_running_loop().time()

  runner, seconds = virtual_time.run(run())
  return runner, record, seconds


@pytest.mark.parametrize('server', [failures.UNREACHABLE, failures.LOADING])
def test_no_row_fails_while_the_server_is_down_for_half_an_hour(server, said):
  backend = Backend(5.0, 1800.0, server)
  runner, record, seconds = _run(backend)
  assert runner.exit_reason == ExitReason.DONE
  assert record.answered == 200 and not record.failed
  # It is asked by one call at a time, every ten seconds, not by all.
  assert len(backend.attempts) < 16 + 1800 / 10 + 10
  assert 1800 < seconds < 1900
  down, back = said
  assert down.startswith('chat http://x/v1 is down (nobody listens).')
  assert 'at most 1:00:00; Ctrl-C stops.' in down
  assert back.startswith('chat http://x/v1 is back after 0:29:')


def test_the_run_ends_where_the_server_stays_away(said):
  runner, record, seconds = _run(Backend(5.0, 1e9))
  assert runner.exit_reason == ExitReason.REFUSED
  assert 'gave up waiting for chat http://x/v1, down for 1:00:' in (
    runner.message
  )
  assert 'nobody listens' in runner.message
  assert not record.failed and HOUR < seconds < HOUR + 60


def test_an_address_where_nobody_ever_answered_is_doubted_soon(said):
  runner, record, seconds = _run(Backend(0.0, 1e9))
  assert runner.exit_reason == ExitReason.REFUSED
  assert not record.failed and 60 < seconds < 90
  assert 'Is it started, and the address right?' in said[0]
  # What is loading is there.
  runner, record, _ = _run(Backend(0.0, 600.0, failures.LOADING))
  assert record.answered == 200


def test_ctrl_c_says_what_was_waited_for(said):
  backend = Backend(5.0, 1e9)
  runner, record, seconds = _run(backend, after=48.0, act=_ctrl_c)
  assert runner.exit_reason == ExitReason.INTERRUPTED
  assert runner.message == (
    'interrupted; the same command continues; the run was waiting for'
    ' chat http://x/v1, down for 0:00:42 (nobody listens)'
  )
  assert not record.failed and seconds < 50


def test_ctrl_c_says_how_long_calls_in_flight_are_waited_for(said):
  runner, record, _ = _run(Backend(1e9, 1e9), after=1.2, act=_ctrl_c)
  [line] = said
  assert 'waiting for 16 calls, at most 120 s' in line
  assert 'All answers are in out.jsonl' in line
  assert runner.message == 'interrupted; the same command continues'
  assert record.answered == 8 + 16


def test_a_row_for_which_alone_the_server_is_down_fails(said):
  class Spiteful(Backend):
    async def complete(self, call):
      if call.example_id == 'bad':
        raise failures.TransientError('503', server=failures.LOADING)
      return await super().complete(call)

  bad = dataclasses.replace(CALL, example_id='bad')
  todo = [CALL] * 20 + [bad] + [CALL] * 400
  _, record, _ = _run(Spiteful(1e9, 1e9), todo)
  assert record.answered == 420 and record.failed == ['503 (2 attempts)']
