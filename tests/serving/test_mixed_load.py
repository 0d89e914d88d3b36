# SPDX-License-Identifier: Apache-2.0
"""Sixty-four clients of all kinds for ten minutes: nothing is wrong or lost.

`DSBS_LOAD_SECONDS` sets another duration and `DSBS_LOAD_PAUSE` how many seconds
clients rest between two requests. `pytest -m long -s` prints the figures.
"""

import asyncio
import collections
import contextlib
import json
import os
import random
import statistics
import time

import aiohttp
import psutil
import pytest

from tests.inference import small_student
from tests.serving import serving_process

SECONDS = float(os.environ.get('DSBS_LOAD_SECONDS', '600'))
PAUSE = float(os.environ.get('DSBS_LOAD_PAUSE', '0'))
FILES = ('models/nano', 'benchmarks/parcels')
MACROS = {
  'RATIONALES': True,
  'BATCH_SIZES': (1, 8, 32),
  'INPUT_LENGTHS': (64,),
  'MAX_BODY_BYTES': 20_000,
}
# Of each kind, as many clients; the kinds are methods of `Load`.
CLIENTS = {
  'steady': 28,
  'connection_per_request': 6,
  'slow_writer': 6,
  'leaver': 8,
  'half_sent_body': 4,
  'half_sent_head': 4,
  'refused': 8,
}
TEXTS = [f'{"big " * (i % 4)}parcel {i} or parcel {i + 1}?' for i in range(60)]
REQUESTS = [
  *(('/v1/answers', {'input': text}) for text in TEXTS),
  *(('/v1/answers', {'inputs': TEXTS[i : i + 7]}) for i in range(0, 50, 5)),
  *(
    ('/v1/completions', {'model': 'parcels_gt_dsbs', 'prompt': text})
    for text in TEXTS[:10]
  ),
]
REFUSED = [
  ('/v1/answers', b'{"input": ', 400),
  ('/v1/answers', b'{"input": 7}', 400),
  ('/v1/answers', b'{"input": "' + b'a' * 30_000 + b'"}', 413),
  ('/v1/answers', b'{"input": "' + b'long ' * 100 + b'"}', 400),
  ('/nothing', b'{}', 404),
]


def _head(path, length):
  return (
    f'POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n'
    f'Content-Length: {length}\r\nConnection: close\r\n\r\n'
  ).encode()


def _content(body):
  """An answer without what differs each time."""
  return {k: v for k, v in body.items() if k not in ('id', 'created')}


class Load:
  """The clients, and what they counted."""

  def __init__(self, address, expected):
    self.address = address
    self.expected = expected
    self.host, self.port = address.removeprefix('http://').split(':')
    self.counts = collections.Counter()
    self.wrong = []
    self.draw = random.Random(0)
    self.end = time.monotonic() + SECONDS

  async def run(self):
    async with asyncio.TaskGroup() as group:
      for kind, number in CLIENTS.items():
        for _ in range(number):
          group.create_task(self._repeat(getattr(self, kind)))

  async def _repeat(self, once):
    while time.monotonic() < self.end:
      await once()
      await asyncio.sleep(self.draw.uniform(0, 2 * PAUSE))

  def _count(self, kind, index, status, body):
    """Compares one answer with the one that was given before the load."""
    if status == 200 and _content(body) == self.expected[index]:
      self.counts[f'{kind}: right'] += 1
      return
    self.counts['wrong' if status == 200 else f'status {status}'] += 1
    self.wrong.append((REQUESTS[index], self.expected[index], status, body))

  async def _ask(self, kind, session):
    index = self.draw.randrange(len(REQUESTS))
    path, body = REQUESTS[index]
    try:
      async with session.post(self.address + path, json=body) as got:
        self._count(kind, index, got.status, await got.json())
    except aiohttp.ClientError as error:
      self.counts[f'lost: {type(error).__name__}'] += 1

  async def steady(self):
    async with aiohttp.ClientSession() as session:
      for _ in range(100):
        if time.monotonic() >= self.end:
          return
        await self._ask('steady', session)
        await asyncio.sleep(self.draw.uniform(0, 2 * PAUSE))

  async def connection_per_request(self):
    async with aiohttp.ClientSession() as session:
      await self._ask('connection per request', session)

  async def slow_writer(self):
    """Writes its body in four pieces."""
    index = self.draw.randrange(len(REQUESTS))
    path, request = REQUESTS[index]
    body = json.dumps(request).encode()
    async with self._connection() as (reader, writer):
      writer.write(_head(path, len(body)))
      for start in range(0, len(body), len(body) // 4 + 1):
        writer.write(body[start : start + len(body) // 4 + 1])
        await asyncio.sleep(0.1)
      status, answer = await self._read(reader)
      self._count('slow writer', index, status, json.loads(answer))

  async def leaver(self):
    """Does not wait for its answers."""
    body = json.dumps({'inputs': TEXTS[:8]}).encode()
    async with self._connection() as (_, writer):
      writer.write(_head('/v1/answers', len(body)) + body)
      await writer.drain()
      await asyncio.sleep(self.draw.choice((0, 0.01, 0.05)))
      self.counts['left'] += 1
    await asyncio.sleep(0.1)

  async def half_sent_body(self):
    async with self._connection() as (_, writer):
      writer.write(_head('/v1/answers', 100) + b'{"input": "')
      await asyncio.sleep(2)
      self.counts['half sent'] += 1

  async def half_sent_head(self):
    async with self._connection() as (_, writer):
      writer.write(b'POST /v1/answers HTTP/1.1\r\nHost:')
      await asyncio.sleep(2)
      self.counts['half sent'] += 1

  async def refused(self):
    """Sends what is wrong, and reads why."""
    path, body, expected = self.draw.choice(REFUSED)
    async with self._connection() as (reader, writer):
      writer.write(_head(path, len(body)) + body)
      status, answer = await self._read(reader)
      if status == expected and json.loads(answer)['error']['message']:
        self.counts['refused: right'] += 1
      else:
        self.counts['wrong refusals'] += 1
        self.wrong.append((path, body[:60], status, answer))
    await asyncio.sleep(0.1)

  @contextlib.asynccontextmanager
  async def _connection(self):
    try:
      reader, writer = await asyncio.open_connection(self.host, self.port)
      try:
        yield reader, writer
      finally:
        writer.close()
        with contextlib.suppress(OSError):
          await writer.wait_closed()
    except OSError as error:
      self.counts[f'lost: {type(error).__name__}'] += 1

  async def _read(self, reader):
    text = await reader.read()
    head, _, body = text.partition(b'\r\n\r\n')
    return int(head.split()[1]), body


async def _watch(process, end, resident):
  while time.monotonic() < end:
    resident.append(process.memory_info().rss / 1e6)
    await asyncio.sleep(SECONDS / 60)


@pytest.mark.long
@pytest.mark.timeout(SECONDS + 900)
def test_under_all_kinds_of_clients_every_answer_is_right(tmp_path):
  small_student.write(tmp_path / 'run')
  macros = small_student.MACROS | MACROS
  with serving_process.Process(
    tmp_path / 'log', *FILES, CHECKPOINT_PATH=str(tmp_path / 'run'), **macros
  ) as server:
    server.wait()
    expected = []
    for path, body in REQUESTS:
      status, answer = server.post(path, body)
      assert status == 200, answer
      expected.append(_content(answer))
    process = psutil.Process(server.process.pid)
    descriptors, resident = process.num_fds(), []
    load = Load(server.address(), expected)

    async def both():
      await asyncio.gather(load.run(), _watch(process, load.end, resident))

    asyncio.run(both())
    metrics = server.get('/metrics')[1].decode()
    server.wait_until(lambda: process.num_fds() <= descriptors)
    assert server.stop() == 0, server.log
    log = server.log
  second, last = resident[15:30], resident[45:]
  print(
    f'\n{SECONDS:.0f} s: {dict(sorted(load.counts.items()))}; resident'
    f' {resident[0]:.0f} MB at first, {statistics.median(second):.0f} in the'
    f' second quarter, {statistics.median(last):.0f} in the last; descriptors'
    f' {descriptors} before and after'
  )
  assert not load.wrong, load.wrong[:3]
  assert not [name for name in load.counts if name.startswith('lost')]
  for kind in ('steady', 'connection per request', 'slow writer', 'refused'):
    assert load.counts[f'{kind}: right']
  assert statistics.median(last) < 1.05 * statistics.median(second)
  assert 'Traceback' not in log
  assert 'dsbs_queue_inputs 0.0' in metrics
