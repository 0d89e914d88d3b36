# SPDX-License-Identifier: Apache-2.0
"""Calls keep to the tokens per minute, by the server's count where it counts."""

import asyncio
import itertools
import types

import pytest

from rationales.client import online, server_config
from rationales.record import calls, costs
from tests.rationales import virtual_time

# 100 tokens of prompt and 10 of answer, by the estimate: one call a second.
TOKENS = 110
CALL = calls.Call(
  kind='completion',
  example_id='r0',
  samples=(0,),
  content='x' * 400,
  prompt_hash='0',
  prompt_bytes=400,
  gold='',
)


class Backend:
  """Answers at once, and remembers when."""

  def __init__(self, usage):
    self.name, self.usage, self.times = 'fake', usage, []

  async def complete(self, call):
    self.times.append(asyncio.get_running_loop().time())
    return calls.Answer(('x',), ('stop',), self.usage, 'm', ({},))

  async def close(self):
    pass


class Record:
  """Keeps nothing."""

  file = types.SimpleNamespace(check=lambda: None, sync=lambda: None)
  monitor = types.SimpleNamespace(tick=lambda: None)

  def __init__(self):
    self.tracker = costs.CostTracker(
      costs.Prices(), max_tokens=100, answer_bytes=40
    )

  def answer(self, call, answer):
    del call, answer


@pytest.mark.parametrize(
  ('usage', 'seconds'),
  [
    (None, 1.0),
    ({'prompt_tokens': 100, 'completion_tokens': 10}, 1.0),
    ({'prompt_tokens': 50, 'completion_tokens': 5}, 0.5),
  ],
)
def test_a_call_takes_the_tokens_it_used_or_else_was_estimated(usage, seconds):
  backend, record = Backend(usage), Record()
  assert record.tracker.estimate(CALL).total == TOKENS
  server = types.SimpleNamespace(
    concurrency=1,
    rpm=0,
    tpm=60 * TOKENS,
    backoff=server_config.Backoff(),
    timeout=120.0,
    outage_timeout=60.0,
  )

  async def run():
    runner = online.OnlineRunner(backend, server, record)
    await runner.run(iter([CALL] * 8))

  virtual_time.run(run())
  gaps = [b - a for a, b in itertools.pairwise(backend.times)]
  # One second's worth goes at once, the rest is spread evenly.
  assert gaps[2:] == pytest.approx([seconds] * 5)
