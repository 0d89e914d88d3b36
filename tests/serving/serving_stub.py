# SPDX-License-Identifier: Apache-2.0
"""A server on loopback whose student is a function: all but the model."""

import asyncio
import concurrent.futures
import contextlib
import http.client
import json
import threading
import time

from dsbs_jax.data import register, task_forms
from dsbs_jax.inference import length_buckets, predictor
from dsbs_jax.serving import (
  batcher,
  completion_format,
  handlers,
  prometheus,
  request_checks,
  sockets,
)
from dsbs_jax.serving import http as http_lib
from tests.inference import small_student

MODEL = 'a-student'
SHAPES = length_buckets.CompiledShapes((1, 4), (32, 64), (8,), (2,))


HALF_A_REQUEST = (
  b'POST /v1/answers HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n'
  b'Content-Type: application/json\r\n\r\n{"input"'
)
_HANG_SECONDS = 300


def echo(inputs, rationales):
  """A student that repeats its input."""
  del rationales
  return [
    predictor.Prediction('first', 0.75, f'{one.text} is why.') for one in inputs
  ]


class Gate:
  """A student that answers when the gate is opened."""

  def __init__(self):
    self.open, self.entered = threading.Event(), threading.Event()
    self.seen = []

  def __call__(self, inputs, rationales):
    self.seen.append([one.text for one in inputs])
    self.entered.set()
    assert self.open.wait(_HANG_SECONDS)
    return echo(inputs, rationales)


def wait_until(condition):
  """Waits for the server; if it never comes, pytest's timeout ends the test."""
  while not condition():
    time.sleep(0.005)


class SkippingLoop(asyncio.SelectorEventLoop):
  """An event loop whose clock can be put forward, so that no test waits."""

  skipped = 0.0

  def time(self):
    return super().time() + self.skipped

  def skip(self, seconds):
    self.skipped += seconds


class Stub:
  """The server; a context that runs it in a thread of its own."""

  def __init__(
    self,
    predict=echo,
    *,
    max_queue=16,
    max_inputs=8,
    max_choices=2,
    max_body_bytes=4096,
    request_timeout=600.0,
    max_wait=0.002,
    max_connections=100,
    ready=True,
  ):
    self.max_connections = max_connections
    self.predict = predict
    self.limits = {
      'max_body_bytes': max_body_bytes,
      'request_timeout': request_timeout,
    }
    self.queue = {'max_queue': max_queue, 'max_wait': max_wait}
    self.max_inputs, self.max_choices = max_inputs, max_choices
    self.ready = ready
    self.metrics = prometheus.ServerMetrics(SHAPES.batch_sizes)
    self._started = threading.Event()
    self.predictor = predictor.Predictor(
      predictor.PredictorConfig(
        task='parcels_gt_label',
        model=small_student.MODEL,
        prefixes=task_forms.prefixes('paper'),
        rationales=True,
      ),
      None,
      vocabulary=small_student.BYTES,
      shapes=SHAPES,
    )

  def __enter__(self):
    self.thread = threading.Thread(target=self._run_loop)
    self.thread.start()
    assert self._started.wait(_HANG_SECONDS)
    return self

  def __exit__(self, *_):
    if isinstance(self.predict, Gate):
      self.predict.open.set()  # where a test failed before it did
    self.loop.call_soon_threadsafe(self._stop.set)
    self.thread.join(_HANG_SECONDS)
    assert not self.thread.is_alive()

  def skip(self, seconds):
    """Puts the server's clock forward."""
    self.loop.call_soon_threadsafe(self.loop.skip, seconds)

  def _run_loop(self):
    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
      runner.run(self._run())

  async def _run(self):
    self.loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
    self.service = http_lib.Service(**self.limits, metrics=self.metrics)
    listener = sockets.listen('127.0.0.1', 0)
    self.port = listener.getsockname()[1]
    runner = self.service.runner()
    await runner.setup()
    acceptor = sockets.Acceptor(
      listener, runner, self.service, most=self.max_connections
    )
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
      queue = batcher.Batcher(
        self.predict, thread, shapes=SHAPES, metrics=self.metrics, **self.queue
      )
      work = asyncio.create_task(queue.run())
      self.handlers = self._handlers(queue)
      if self.ready:
        self.service.open(self.handlers)
      self._started.set()
      await self._stop.wait()
      work.cancel()
      await acceptor.close()
      await runner.cleanup()

  def _handlers(self, queue):
    reader = request_checks.RequestReader(
      self.predictor,
      small_student.BYTES,
      max_inputs=self.max_inputs,
      max_input_tokens=64,
      max_choices=self.max_choices,
      max_choice_tokens=7,
      rationales=True,
    )
    completions = completion_format.for_benchmark(
      register.benchmark('parcels'),
      prompt='Q: {input}\nA:',
      completion=None,
      rationales=True,
    )
    return handlers.Handlers(
      MODEL, reader, queue, small_student.BYTES, completions, self.metrics
    )

  def connect(self):
    """A connection that closes itself."""
    return contextlib.closing(
      http.client.HTTPConnection('127.0.0.1', self.port, timeout=_HANG_SECONDS)
    )

  def send(self, method, path, body=None, **headers):
    """One request on a connection of its own: status, headers, body."""
    if isinstance(body, dict):
      body = json.dumps(body).encode()
    if body is not None:
      headers = {'Content-Type': 'application/json', **headers}
    with self.connect() as connection:
      connection.request(method, path, body, headers)
      response = connection.getresponse()
      return response.status, dict(response.headers), response.read()

  def ask(self, body, path='/v1/answers', **headers):
    """Posts JSON: status and JSON."""
    status, _, content = self.send('POST', path, body, **headers)
    return status, json.loads(content)

  def count(self, line):
    """The value of a line of /metrics, 0 where there is none."""
    text = self.send('GET', '/metrics')[2].decode()
    found = [r for r in text.splitlines() if r.startswith(f'{line} ')]
    return float(found[0].split()[-1]) if found else 0.0
