# SPDX-License-Identifier: Apache-2.0
"""Questions of many requests, answered together.

While the model is busy, questions gather. Where the last batch had company, a
question waits a few milliseconds for others, then goes with those that have
come; one that comes alone goes at once. The oldest one decides how long the inputs of its batch are: shorter ones go with it, longer
ones wait for their turn, so that nobody pays for a stranger's long input and
nobody is passed over twice.
"""

import asyncio
import collections
import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Sequence

from absl import logging

from dsbs_jax.inference import input_lines, length_buckets, predictor
from dsbs_jax.serving import errors, prometheus, request_checks

# Weight of the last batch in the mean time of an input, for Retry-After.
_NEWEST = 0.2

# Answers questions, with rationales or without; runs in the model's thread.
Answer = Callable[
  [Sequence[input_lines.ModelInput], bool], list[predictor.Prediction]
]


@dataclasses.dataclass
class _Waiting:
  """A question in the queue."""

  asked: request_checks.CheckedInput
  rationales: bool
  since: float
  answer: asyncio.Future


class Batcher:
  """The queue in front of the model.

  Args:
    answer: asks the model.
    worker: the thread of the model.
    shapes: of the batches.
    max_queue: questions that may wait.
    max_wait: seconds that a question waits for others.
    metrics: counts.
  """

  def __init__(
    self,
    answer: Answer,
    worker: concurrent.futures.Executor,
    *,
    shapes: length_buckets.CompiledShapes,
    max_queue: int,
    max_wait: float,
    metrics: prometheus.ServerMetrics,
  ):
    self._answer, self._worker, self._shapes = answer, worker, shapes
    self._max_queue, self._max_wait = max_queue, max_wait
    self._metrics = metrics
    self._queue: collections.deque[_Waiting] = collections.deque()
    self._arrived = asyncio.Event()
    self._company = False
    self._seconds_each = 0.0

  async def ask(
    self, asked: Sequence[request_checks.CheckedInput], *, rationales: bool
  ) -> list[predictor.Prediction]:
    """Answers questions; cancelled, it takes those that wait out again.

    Args:
      asked: the questions of one request, which join the queue all or none.
      rationales: whether their rationales are wanted.

    Returns:
      The answers in order.

    Raises:
      errors.APIError: the queue is full.
    """
    if len(self._queue) + len(asked) > self._max_queue:
      raise errors.APIError(
        503,
        f'{len(self._queue):,} inputs are waiting, and the queue holds'
        f' {self._max_queue:,}. Try again after Retry-After.',
        code='queue_full',
        retry_after=len(self._queue) * self._seconds_each,
      )
    loop = asyncio.get_running_loop()
    waiting = [
      _Waiting(one, rationales, loop.time(), loop.create_future())
      for one in asked
    ]
    self._queue.extend(waiting)
    self._note_queue()
    self._arrived.set()
    return list(await asyncio.gather(*(one.answer for one in waiting)))

  async def run(self) -> None:
    """Answers what comes, until it is cancelled."""
    while True:
      await self._gather()
      batch = self._take()
      if batch:
        await self._answer_together(batch)
        self._company = len(batch) > 1 or bool(self._queue)

  async def _gather(self) -> None:
    """Waits until there is enough to do, or someone has waited enough."""
    while not self._queue:
      await self._next_arrival()
    if not self._company:
      return
    deadline = self._queue[0].since + self._max_wait
    try:
      async with asyncio.timeout_at(deadline):
        while len(self._queue) < self._shapes.max_rows:
          await self._next_arrival()
    except TimeoutError:
      return

  async def _next_arrival(self) -> None:
    self._arrived.clear()
    await self._arrived.wait()

  def _take(self) -> list[_Waiting]:
    """Takes the oldest questions, none longer than the very oldest's shape."""
    batch, left = [], collections.deque()
    widest = None
    for one in self._queue:
      if one.answer.done():  # its client left, or was told that it took long
        self._metrics.dropped.inc()
        continue
      if widest is None:
        widest = self._shapes.inputs(one.asked.num_tokens)
      fits = one.asked.num_tokens <= widest
      taken = fits and len(batch) < self._shapes.max_rows
      (batch if taken else left).append(one)
    self._queue = left
    self._note_queue()
    return batch

  async def _answer_together(self, batch: list[_Waiting]) -> None:
    asked = [one.asked.question for one in batch]
    rationales = any(one.rationales for one in batch)
    loop, start = asyncio.get_running_loop(), time.perf_counter()
    try:
      answers = await loop.run_in_executor(
        self._worker, self._answer, asked, rationales
      )
    except Exception as error:  # the requests end with it, the server does not
      logging.exception('a batch of %d inputs failed', len(batch))
      for one in batch:
        if not one.answer.done():
          one.answer.set_exception(_internal(error))
      return
    self._note_batch(len(batch), time.perf_counter() - start)
    for one, answer in zip(batch, answers, strict=True):
      if one.answer.done():
        self._metrics.dropped.inc()
        continue
      if not one.rationales:
        answer = dataclasses.replace(answer, rationale=None)
      one.answer.set_result(answer)

  def _note_queue(self) -> None:
    self._metrics.queue.set(len(self._queue))

  def _note_batch(self, size: int, seconds: float) -> None:
    self._metrics.batch_inputs.observe(size)
    self._metrics.batch_seconds.observe(seconds)
    each = seconds / size
    mean = self._seconds_each or each
    self._seconds_each = mean + _NEWEST * (each - mean)


def _internal(error: Exception) -> errors.APIError:
  refusal = errors.APIError(
    500,
    'the model failed on the batch with this input; the log of the server has'
    ' the reason.',
    code='internal_error',
  )
  refusal.__cause__ = error
  return refusal
