# SPDX-License-Identifier: Apache-2.0
"""Serves a student over HTTP, from the first connection to the last answer.

A request's way: `http` admits it, `handlers` reads its body and checks its
inputs (`request_checks`, or `openai_api` and `completion_format` first),
`batcher` puts them into a batch for the model. One thread runs the model, one
the connections. Requests that were accepted before a signal are answered; a
second signal ends the process at once.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import signal
import time

from dsbs_jax import contract
from dsbs_jax.inference import (
  student,
  student_config,
)
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

_SECONDS_BETWEEN_LINES = 5.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig(student_config.StudentConfig):
  """Settings of a server; gin/serve.gin binds every field.

  Attributes:
    host: address to listen at.
    port: the same; 0 takes a free one.
    model_name: the id of the model in OpenAI's protocol; None for the task.
    prompt: the last question of a prompt, with `{input}` for the input.
    completion: what an LLM answers, with `{rationale}` and `{label}`; None
      takes the benchmark's.
    batch_sizes: numbers of rows that are compiled, rising.
    input_lengths: lengths of inputs that are compiled, rising; a longer input
      is refused.
    max_wait_ms: milliseconds that an input waits for others.
    max_queue: inputs that wait at most.
    max_inputs: inputs of one request.
    max_choices: choices of an input; 0 where none may be given.
    max_body_bytes: bytes of a request.
    request_timeout: seconds from a request to its answer, else 504.
    drain_timeout: seconds after a signal to answer accepted requests.
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
    chosen = self.score_labels and not self.trained_benchmark.labels
    rows = self.row_benchmark
    if not self.max_choices and (chosen or (rows and rows.options)):
      raise contract.UserError(
        'MAX_CHOICES is 0, but inputs will have choices. Set it to their'
        ' largest number, such as 5 for cqa.'
      )

  @property
  def max_given_choices(self) -> int:
    """As its requests may bring."""
    return self.max_choices

  @property
  def name(self) -> str:
    """The id of the model."""
    return self.model_name or self.mixture_or_task_name


def serve(config: ServeConfig) -> int:
  """Serves until a signal.

  Returns:
    The exit status: 0, or 1 where `drain_timeout` was not enough to answer
    all accepted requests.

  Raises:
    UserError: the checkpoint, the port or a setting cannot be used.
  """
  return asyncio.run(_Server(config).run())


class _Server:
  """One server, from start to stop."""

  def __init__(self, config: ServeConfig):
    self._config = config
    self._completions = completion_format.for_benchmark(
      config.trained_benchmark,
      prompt=config.prompt,
      completion=config.completion,
      rationales=config.rationales,
    )
    self._shapes = warmup.compiled_shapes(
      config.predictor_config(),
      config.load_vocabulary(),
      batch_sizes=config.batch_sizes,
      input_lengths=config.input_lengths,
      max_choices=config.max_choices,
    )
    self._metrics = prometheus.ServerMetrics(config.batch_sizes)
    self._model_thread = concurrent.futures.ThreadPoolExecutor(1, 'model')

  async def run(self) -> int:
    config = self._config
    self._stop = asyncio.Event()
    self._service = http.Service(
      max_body_bytes=config.max_body_bytes,
      request_timeout=config.request_timeout,
      metrics=self._metrics,
    )
    listener = sockets.listen(config.host, config.port)
    runner = self._service.runner()
    await runner.setup()
    acceptor = sockets.Acceptor(
      *(listener, runner, self._service), most=sockets.max_connections()
    )
    progress.say(
      f'{config.name} at {sockets.url(listener)}, which answers after the'
      ' warm-up'
    )
    if not sockets.is_loopback(config.host):
      progress.say(
        f'HOST is {config.host!r}: there is no password and no encryption;'
        ' whoever reaches the port is answered'
      )
    self._watch_signals()
    work = asyncio.create_task(self._predict_until_cancelled())
    stopped = asyncio.create_task(self._stop.wait())
    try:
      await asyncio.wait((work, stopped), return_when='FIRST_COMPLETED')
      if work.done():
        work.result()  # raises why the student could not be loaded
      await acceptor.close()
      return await self._drain()
    finally:
      self._stop.set()
      work.cancel()
      await asyncio.wait((work, stopped))
      listener.close()
      await runner.cleanup()
      self._model_thread.shutdown(wait=False, cancel_futures=True)

  async def _predict_until_cancelled(self) -> None:
    """Loads the student, compiles, then runs batches."""
    config, loop = self._config, asyncio.get_running_loop()
    loaded = await loop.run_in_executor(self._model_thread, self._load)
    queue = batcher.Batcher(
      loaded.predictor.predict,
      self._model_thread,
      shapes=self._shapes,
      max_queue=config.max_queue,
      max_wait=config.max_wait_ms / 1000,
      metrics=self._metrics,
    )
    vocabulary = config.load_vocabulary()
    reader = request_checks.RequestReader(
      loaded.predictor,
      vocabulary,
      max_inputs=config.max_inputs,
      max_input_tokens=config.input_lengths[-1],
      max_choices=config.max_choices,
      max_choice_tokens=config.max_decode_len,
      rationales=config.rationales,
      benchmark=config.row_benchmark,
      needs_choices=config.score_labels and not config.trained_benchmark.labels,
    )
    self._service.open(
      handlers.Handlers(
        model=config.name,
        reader=reader,
        batcher=queue,
        vocabulary=vocabulary,
        completion_format=self._completions,
        metrics=self._metrics,
      )
    )
    await queue.run()

  def _load(self) -> student.LoadedStudent:
    """Reads the checkpoint and compiles, in the model's thread."""
    config, start = self._config, time.monotonic()
    loaded = student.load_student(config, shapes=self._shapes)
    calls = list(
      warmup.calls(loaded.decode_fns, config.predictor_config(), self._shapes)
    )
    shown = time.monotonic()
    for number, call in enumerate(calls):
      if self._stop.is_set():
        return loaded
      self._service.progress = f'{number} of {len(calls)} programs are compiled'
      if time.monotonic() - shown > _SECONDS_BETWEEN_LINES:
        progress.say(self._service.progress)
        shown = time.monotonic()
      call()
    seconds = time.monotonic() - start
    is_compiled = 'backend' not in loaded.fingerprint
    programs = f', {len(calls)} programs' if is_compiled else ''
    progress.say(f'ready after {seconds:.1f} s{programs}')
    return loaded

  def _watch_signals(self) -> None:
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
      for other in _SIGNALS:  # the next one ends the process
        loop.remove_signal_handler(other)
        signal.signal(other, signal.SIG_DFL)
      name = signal.Signals(number).name
      progress.say(f'{name}: answering the accepted requests, then stopping')
      self._stop.set()

    for number in _SIGNALS:
      loop.add_signal_handler(number, stop, number)

  async def _drain(self) -> int:
    """Answers accepted requests, refuses others; the exit status."""
    self._service.close()
    with contextlib.suppress(TimeoutError):
      async with asyncio.timeout(self._config.drain_timeout):
        await self._service.drained()
    left = self._service.num_in_flight
    progress.say(
      f'{self._service.num_answered:,} requests answered, {left:,} not'
    )
    return UNANSWERED_STATUS if left else 0
