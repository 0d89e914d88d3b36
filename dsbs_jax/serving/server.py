# SPDX-License-Identifier: Apache-2.0
"""Serves a student over HTTP, from the first socket to the last answer.

One thread runs the model, one the connections. What was accepted before a
signal to stop is answered; a second signal ends the process at once.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import signal
import time
from collections.abc import Sequence

from aiohttp import web

from dsbs_jax import contract
from dsbs_jax.inference import input_lines, length_buckets, predictor, student
from dsbs_jax.runtime import field_checks, progress
from dsbs_jax.serving import (
  batcher,
  completion_format,
  handlers,
  http,
  prometheus,
  request_checks,
  sockets,
  warmup,
)

UNANSWERED_STATUS = 1

_BACKLOG = 1024
_SECONDS_BETWEEN_LINES = 5.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig(student.StudentConfig):
  """Settings of a server; gin/serve.gin binds every field.

  Attributes:
    host: address to listen at.
    port: the same; 0 takes a free one.
    model_name: the id of the model in OpenAI's protocol; None for the task.
    prompt: the last question of a prompt, with `{input}` for the input.
    completion: what a teacher answers, with `{rationale}` and `{label}`; None
      takes the benchmark's.
    batch_sizes: numbers of rows that are compiled, rising.
    input_lengths: lengths of inputs that are compiled, rising; a longer input
      is refused.
    max_wait_ms: milliseconds that an input waits for others.
    max_queue: inputs that wait at most.
    max_inputs: inputs of one request.
    max_choices: choices of an input; 0 where none may be given.
    max_body_bytes: bytes of a request.
    request_timeout: seconds until a request is given up.
    drain_timeout: seconds after a signal for what was accepted.
  """

  host: str
  port: int
  model_name: str | None
  prompt: str
  completion: str | None
  batch_sizes: tuple[int, ...]
  input_lengths: tuple[int, ...]
  max_wait_ms: float
  max_queue: int
  max_inputs: int
  max_choices: int
  max_body_bytes: int
  request_timeout: float
  drain_timeout: float

  def __post_init__(self):
    super().__post_init__()
    for name in ('batch_sizes', 'input_lengths'):
      if isinstance(sizes := getattr(self, name), list):
        object.__setattr__(self, name, tuple(sizes))
    field_checks.rising(self, 'batch_sizes', 'input_lengths')
    field_checks.texts(self, 'host', 'prompt')
    field_checks.texts_or_none(self, 'model_name', 'completion')
    field_checks.counts(self, 'port', least=0, below=1 << 16)
    field_checks.counts(self, 'max_queue', 'max_inputs', 'max_body_bytes')
    field_checks.counts(self, 'max_choices', least=0)
    field_checks.numbers(
      self, 'max_wait_ms', 'request_timeout', 'drain_timeout'
    )
    if self.max_inputs > self.max_queue:
      raise contract.UserError(
        f'MAX_INPUTS is {self.max_inputs}, expected at most MAX_QUEUE'
        f' ({self.max_queue}): such a request would never be let in.'
      )
    if not self.request_timeout:
      raise contract.UserError(
        'request_timeout is 0, expected seconds above 0.'
      )
    chosen = self.score_labels and not self.taught.labels
    rows = self.row_benchmark
    if not self.max_choices and (chosen or (rows and rows.options)):
      raise contract.UserError(
        'MAX_CHOICES is 0, but inputs will have choices. Set it to their'
        ' largest number, such as 5 for cqa.'
      )

  @property
  def name(self) -> str:
    """The id of the model."""
    return self.model_name or self.mixture_or_task_name

  def reader(
    self, answerer: predictor.Predictor
  ) -> request_checks.RequestReader:
    """What checks the questions that it is asked."""
    return request_checks.RequestReader(
      request_checks.RequestLimits(
        inputs=self.max_inputs,
        input_tokens=self.input_lengths[-1],
        choices=self.max_choices,
        choice_tokens=self.max_decode_len,
      ),
      answerer,
      self.load_vocabulary(),
      benchmark=self.row_benchmark,
      must_choose=self.score_labels and not self.taught.labels,
    )

  def possible_shapes(self) -> length_buckets.CompiledShapes:
    """The shapes that its batches can have."""
    return warmup.compiled_shapes(
      self.answering(batch_size=self.batch_sizes[-1]),
      self.load_vocabulary(),
      batch_sizes=self.batch_sizes,
      input_lengths=self.input_lengths,
      max_choices=self.max_choices,
    )


def serve(run: ServeConfig) -> int:
  """Serves until a signal.

  Args:
    run: all settings.

  Returns:
    The exit status: 0, or 1 where `drain_timeout` was not enough to answer
    what had been accepted.

  Raises:
    UserError: the checkpoint, the port or a setting cannot be used.
  """
  wording = completion_format.for_benchmark(
    run.taught,
    prompt=run.prompt,
    completion=run.completion,
    rationales=run.rationales,
  )
  server = _Server(run, run.possible_shapes(), wording)
  return asyncio.run(server.run())


class _Server:
  """One server, from start to stop."""

  def __init__(
    self,
    run: ServeConfig,
    shapes: length_buckets.CompiledShapes,
    wording: completion_format.CompletionFormat | None,
  ):
    self._run, self._shapes, self._wording = run, shapes, wording
    self._metrics = prometheus.ServerMetrics(run.batch_sizes)
    self._worker = concurrent.futures.ThreadPoolExecutor(1, 'model')

  async def run(self) -> int:
    run = self._run
    self._stop = asyncio.Event()
    self._service = http.Service(
      max_body_bytes=run.max_body_bytes,
      max_requests=run.max_queue,
      request_seconds=run.request_timeout,
      metrics=self._metrics,
    )
    listener = sockets.listen(run.host, run.port)
    runner = web.AppRunner(
      self._service.application(), handler_cancellation=True, access_log=None
    )
    await runner.setup()
    site = web.SockSite(runner, listener, backlog=_BACKLOG)
    await site.start()
    self._greet(site.name)
    self._watch_signals()
    work = asyncio.create_task(self._work())
    stopped = asyncio.create_task(self._stop.wait())
    try:
      await asyncio.wait((work, stopped), return_when='FIRST_COMPLETED')
      if work.done():
        work.result()  # raises why the student could not be opened
      await sockets.close(listener, runner, site)
      return await self._drain()
    finally:
      self._stop.set()
      work.cancel()
      await asyncio.wait((work, stopped))
      await runner.cleanup()
      self._worker.shutdown(wait=False, cancel_futures=True)

  def _greet(self, address: str) -> None:
    run = self._run
    progress.say(f'{run.name} at {address}, which answers after the warm-up')
    if not sockets.is_loopback(run.host):
      progress.say(
        f'HOST is {run.host!r}: there is no password and no encryption;'
        ' whoever reaches the port is answered'
      )

  async def _work(self) -> None:
    """Opens the student, warms it up, and answers until cancelled."""
    run, loop = self._run, asyncio.get_running_loop()
    opened = await loop.run_in_executor(self._worker, self._open)

    def answer(
      asked: Sequence[input_lines.ModelInput], rationales: bool
    ) -> list[predictor.Prediction]:
      return opened.answerer.answer_all(asked, rationales=rationales)

    batches = batcher.Batcher(
      answer,
      self._worker,
      shapes=self._shapes,
      max_queue=run.max_queue,
      max_wait=run.max_wait_ms / 1000,
      metrics=self._metrics,
    )
    self._service.open(
      handlers.Handlers(
        model=run.name,
        reader=run.reader(opened.answerer),
        batches=batches,
        vocabulary=run.load_vocabulary(),
        wording=self._wording,
        metrics=self._metrics,
      )
    )
    await batches.run()

  def _open(self) -> student.LoadedStudent:
    """Reads the checkpoint and compiles, in the model's thread."""
    run, start = self._run, time.monotonic()
    opened = student.load_student(
      run, batch_size=run.batch_sizes[-1], shapes=self._shapes
    )
    settings = run.answering(batch_size=run.batch_sizes[-1])
    steps = list(warmup.calls(opened.programs, settings, self._shapes))
    shown = time.monotonic()
    for number, step in enumerate(steps):
      if self._stop.is_set():
        return opened
      self._service.progress = f'{number} of {len(steps)} programs are compiled'
      if time.monotonic() - shown > _SECONDS_BETWEEN_LINES:
        progress.say(self._service.progress)
        shown = time.monotonic()
      step()
    seconds = time.monotonic() - start
    progress.say(f'ready after {seconds:.1f} s, {len(steps)} programs')
    return opened

  def _watch_signals(self) -> None:
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
      for other in _SIGNALS:  # the next one ends the process
        loop.remove_signal_handler(other)
        signal.signal(other, signal.SIG_DFL)
      progress.say(
        f'{signal.Signals(number).name}: answering what was accepted'
      )
      self._stop.set()

    for number in _SIGNALS:
      loop.add_signal_handler(number, stop, number)

  async def _drain(self) -> int:
    """Answers what was accepted, refuses the rest, and says so."""
    self._service.close()
    with contextlib.suppress(TimeoutError):
      async with asyncio.timeout(self._run.drain_timeout):
        await self._service.drained()
    left = self._service.num_in_flight
    progress.say(
      f'{self._service.num_answered:,} requests answered, {left:,} not'
    )
    return UNANSWERED_STATUS if left else 0
