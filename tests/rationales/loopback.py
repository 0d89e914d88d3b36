# SPDX-License-Identifier: Apache-2.0
"""A server on loopback that speaks OpenAI's protocol, badly when told so.

`python -m tests.rationales.loopback` prints its port and serves until its
standard input closes. It is a process of its own, so that it outlives the
clients that the tests kill and does not share their CPU time.

  POST /v1/chat/completions  /v1/completions
  GET /v1/models
  POST /v1/files  GET /v1/files/ID/content
  POST /v1/batches  GET /v1/batches  GET /v1/batches/ID
  POST /configure   replaces `teaching.Behaviour`, forgets what was counted
  POST /change      changes some of it, forgets nothing
  POST /answers     {question: completion}: teach it what to say
  GET /stats        what was counted
  POST /wait        {count: number}: the same, once the count is that high
"""

import asyncio
import contextlib
import dataclasses
import gzip
import json
import os
import pathlib
import subprocess
import sys
import zlib
from collections.abc import Iterator

from tests.rationales import teaching

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
_BLANK_LINE = b'\r\n\r\n'
_REASONS = {200: 'OK', 401: 'Unauthorized', 404: 'Not Found', 429: 'Slow down'}


class Connection(asyncio.Protocol):
  """One client connection, one request at a time."""

  def __init__(self, teacher: teaching.Teacher):
    self.teacher = teacher
    self.buffer = b''
    self.busy = False
    self.held = None
    self.late_copy = b''
    self.spoiled = False

  def connection_made(self, transport):
    self.transport = transport

  def connection_lost(self, exc):
    if self.busy:
      self.teacher.lost += self.held is not None
      self.finished()

  def data_received(self, data):
    self.buffer += data
    head, blank, body = self.buffer.partition(_BLANK_LINE)
    if not blank:
      return
    lines = head.decode('latin-1').split('\r\n')
    headers = {
      name.lower(): value.strip()
      for name, _, value in (line.partition(':') for line in lines[1:])
    }
    length = int(headers.get('content-length', 0))
    if len(body) >= length:
      self.buffer = body[length:]
      method, path, _ = lines[0].split(' ')
      self.handle(method, path, headers, body[:length])

  def handle(self, method, path, headers, body):
    teacher = self.teacher
    if path.endswith('/completions'):
      self.complete(path, json.loads(body), headers)
    elif path.endswith('/models'):
      self.send(*teacher.listed(path))
    elif path == '/stats':
      self.send(200, teacher.stats())
    elif path == '/wait':
      teacher.when(json.loads(body), lambda: self.send(200, teacher.stats()))
    elif path == '/configure':
      teacher.configure(teaching.Behaviour(**json.loads(body)))
      self.send(200, {})
    elif path == '/change':
      changes = json.loads(body)
      teacher.behaviour = dataclasses.replace(teacher.behaviour, **changes)
      teacher.release()
      self.send(200, {})
    elif path == '/answers':
      teacher.answers = json.loads(body)
      self.send(200, {})
    else:
      self.send(*teacher.batches.handle(method, path, headers, body))
    teacher.notify()

  def complete(self, path, body, headers):
    teacher, behaviour = self.teacher, self.teacher.behaviour
    self.busy = True
    teacher.calls += 1
    teacher.flying.add(self)
    self.transport.write(self.late_copy)
    self.late_copy = b''
    refused = teacher.refusal(path, body, headers)
    if refused:
      self.finished()
      self.send(*refused)
      return
    question = teacher.question(body)
    if behaviour.status != 200 or any(w in question for w in behaviour.failing):
      status = behaviour.status if behaviour.status != 200 else 400
      key = headers.get('authorization', '').removeprefix('Bearer ')
      text = behaviour.message.replace('{key}', key)
      error = {'message': text, 'type': 'error', 'code': behaviour.code}
      more = f'Retry-After: {behaviour.retry_after}\r\nX-Echo: {key}\r\n'
      self.finished()
      self.send(status, {'error': error}, more)
      return
    if (
      behaviour.hold_after is not None and teacher.calls > behaviour.hold_after
    ):
      self.held = body
      self.charge(body)
      return
    fault = None
    if teacher.random.random() < behaviour.faults:
      fault = teacher.random.choice(behaviour.kinds)
      teacher.faults[fault] += 1
    getattr(self, fault or 'answer')(body)

  def release(self):
    """Sends the answer that was held back."""
    if self.held is not None:
      body, self.held = self.held, None
      self.finished()
      self.send(200, self.teacher.completion(body))

  # What can happen to a request.

  def answer(self, body):
    self.charge(body)
    self.finished()
    self.send(200, self.teacher.completion(body))

  def duplicate(self, body):
    """Both copies come in one write, so that the client reads them at once."""
    self.charge(body)
    self.finished()
    self.transport.write(_response(200, self.teacher.completion(body)) * 2)
    self.spoiled = True

  def late_duplicate(self, body):
    """The second copy comes once the connection's next request is there."""
    self.charge(body)
    self.finished()
    self.late_copy = _response(200, self.teacher.completion(body))
    self.transport.write(self.late_copy)
    self.spoiled = True

  def rate_limit(self, body):
    self.finished()
    more = f'Retry-After: {self.teacher.behaviour.retry_after}\r\n'
    self.send(429, {'error': {'message': 'slow down'}}, more)

  def error_500(self, body):
    self.finished()
    self.send(500, {'error': {'message': 'broken'}})

  def hang(self, body):
    """Nothing ever comes; the call stays in flight until the client leaves."""

  def reset(self, body):
    self.transport.write(_response(200, self.teacher.completion(body))[:-20])
    self.transport.close()

  def truncated(self, body):
    self.finished()
    text = json.dumps(self.teacher.completion(body))
    self.send(200, text[: len(text) // 2])

  def drip(self, body):
    """The answer comes byte by byte."""
    self.charge(body)
    self.finished()
    for byte in _response(200, self.teacher.completion(body)):
      self.transport.write(bytes([byte]))

  def drip_forever(self, body):
    """Blanks before an answer that never begins."""
    head = b'HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n'
    self.transport.write(head)
    asyncio.get_running_loop().create_task(self.dripping())

  def flood(self, body):
    """A body of a GiB, of which only the beginning need be taken."""
    self.charge(body)
    head = b'HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n'
    self.transport.write(head + b' ' * (8 << 20))

  def bomb(self, body):
    """64 MiB of blanks, packed into 64 kB."""
    self.charge(body)
    packer = zlib.compressobj(wbits=31)
    packed = b''.join(packer.compress(b' ' * (1 << 20)) for _ in range(64))
    packed += packer.flush()
    head = (
      'HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n'
      f'Content-Length: {len(packed)}\r\n\r\n'
    )
    self.finished()
    self.transport.write(head.encode() + packed)

  def packed(self, body):
    """A good answer, packed."""
    self.charge(body)
    self.finished()
    text = json.dumps(self.teacher.completion(body)).encode()
    more = 'Content-Encoding: gzip\r\n'
    self.send(200, gzip.compress(text), more)

  async def dripping(self):
    while not self.transport.is_closing():
      self.transport.write(b' ')
      await asyncio.sleep(0.01)

  def charge(self, body):
    """Counts a call as paid, unless the client cannot get its answer.

    After a duplicate the client reads the copy in place of this answer.
    """
    if not self.spoiled:
      self.teacher.paid[self.teacher.question(body)] += 1

  def finished(self):
    self.busy = False
    self.held = None
    self.teacher.flying.discard(self)
    self.teacher.notify()

  def send(self, status, body, more=''):
    self.transport.write(_response(status, body, more))


def _response(status, body, more='') -> bytes:
  if not isinstance(body, bytes):
    body = (body if isinstance(body, str) else json.dumps(body)).encode()
  head = (
    f'HTTP/1.1 {status} {_REASONS.get(status, "Error")}\r\n{more}'
    f'Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n'
  )
  return head.encode() + body


@contextlib.contextmanager
def running() -> Iterator[int]:
  """A server in a process of its own; its port."""
  process = subprocess.Popen(
    [sys.executable, '-m', 'tests.rationales.loopback'],
    cwd=REPOSITORY,
    env=os.environ | {'PYTHONPATH': str(REPOSITORY)},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    yield int(process.stdout.readline())
  finally:
    process.stdin.close()
    process.wait()


async def serve() -> None:
  loop = asyncio.get_running_loop()
  teacher = teaching.Teacher()
  server = await loop.create_server(
    lambda: Connection(teacher), '127.0.0.1', 0, backlog=1000
  )
  print(server.sockets[0].getsockname()[1], flush=True)
  await asyncio.to_thread(sys.stdin.read)


if __name__ == '__main__':
  asyncio.run(serve())
