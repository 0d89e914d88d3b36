# SPDX-License-Identifier: Apache-2.0
"""A server on loopback that speaks OpenAI's protocol, badly when told so.

`python -m tests.rationales.loopback` prints its port and serves until its
standard input closes. It is a process of its own, so that it outlives the
clients that the tests kill and does not share their CPU time.

  POST /v1/chat/completions  /v1/completions
  POST /v1/files  GET /v1/files/ID/content
  POST /v1/batches  GET /v1/batches  GET /v1/batches/ID
  POST /configure   replaces `teaching.Behaviour`, forgets what was counted
  POST /change      changes some of it, forgets nothing
  POST /answers     {question: completion}: teach it what to say
  GET /stats        what was counted
"""

import asyncio
import dataclasses
import json
import sys
import time

from tests.rationales import teaching

_BLANK_LINE = b'\r\n\r\n'
_REASONS = {200: 'OK', 401: 'Unauthorized', 404: 'Not Found', 429: 'Slow down'}


class Connection(asyncio.Protocol):
  """One client connection, one request at a time."""

  def __init__(self, teacher: teaching.Teacher):
    self.teacher = teacher
    self.buffer = b''
    self.busy = False
    self.spoiled = False
    self.answered_at = 0.0
    self.served = False

  def connection_made(self, transport):
    self.transport = transport

  def connection_lost(self, exc):
    # A client that is killed may not have read the last answer yet.
    fresh = time.time() - self.answered_at < 0.5
    if self.served:
      self.teacher.cuts.append((time.time(), self.busy or fresh))
    if self.busy:
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
      self.complete(json.loads(body), headers)
    elif path == '/stats':
      self.send(200, teacher.stats())
    elif path == '/configure':
      teacher.configure(teaching.Behaviour(**json.loads(body)))
      self.send(200, {})
    elif path == '/change':
      changes = json.loads(body)
      teacher.behaviour = dataclasses.replace(teacher.behaviour, **changes)
      self.send(200, {})
    elif path == '/answers':
      teacher.answers = json.loads(body)
      self.send(200, {})
    else:
      self.send(*teacher.batches.handle(method, path, headers, body))

  def complete(self, body, headers):
    teacher, behaviour = self.teacher, self.teacher.behaviour
    self.busy = self.served = True
    teacher.flying += 1
    teacher.most_flying = max(teacher.most_flying, teacher.flying)
    teacher.times.append(time.time())
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
    fault = None
    if teacher.random.random() < behaviour.faults:
      fault = teacher.random.choice(behaviour.kinds)
      teacher.faults[fault] += 1
    act = getattr(self, fault or 'answer')
    if behaviour.delay:
      loop = asyncio.get_running_loop()
      loop.call_later(behaviour.delay, act, body)
    else:
      act(body)

  # What can happen to a request.

  def answer(self, body, copies=1):
    if self.transport.is_closing():
      return
    reply = self.teacher.completion(body)
    self.charge(body)
    self.finished()
    for _ in range(copies):
      self.send(200, reply)
    self.spoiled = copies > 1

  def duplicate(self, body):
    self.answer(body, copies=2)

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
    data = _response(200, self.teacher.completion(body))
    self.transport.write(data[: len(data) - 20])
    asyncio.get_running_loop().call_later(0.01, self.transport.abort)

  def truncated(self, body):
    self.finished()
    text = json.dumps(self.teacher.completion(body))
    self.send(200, text[: len(text) // 2])

  def drip(self, body):
    data = _response(200, self.teacher.completion(body))
    asyncio.get_running_loop().create_task(self.dripping(body, data))

  async def dripping(self, body, data):
    step = len(data) // 10 + 1
    for start in range(0, len(data), step):
      await asyncio.sleep(0.02)
      if self.transport.is_closing():
        return
      self.transport.write(data[start : start + step])
    self.charge(body)
    self.finished()

  def charge(self, body):
    """Counts a call as paid, unless the client cannot get its answer.

    After a duplicate the client reads the copy in place of this answer.
    """
    if self.spoiled:
      self.teacher.spoiled += 1
    else:
      self.teacher.paid[self.teacher.question(body)] += 1
    self.answered_at = time.time()

  def finished(self):
    self.busy = False
    self.teacher.flying -= 1

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
