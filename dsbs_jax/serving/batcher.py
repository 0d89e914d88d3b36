# SPDX-License-Identifier: Apache-2.0
"""Puts inputs of many requests into batches of the model.

While the model is busy, inputs queue up. If the last batch held several, the
oldest input waits a few milliseconds for others, then goes with those that have
come; otherwise it goes at once. The oldest input decides the padded length of
its batch: shorter ones go with it, longer ones wait for the next batch, so that
nobody pays for another client's long input and nobody is passed over twice.
"""

import asyncio
import collections
import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence

from absl import logging

from dsbs_jax.inference import length_buckets, predictor
from dsbs_jax.serving import errors, prometheus, request_checks

# Weight of the newest batch in the mean time per input, for Retry-After.
_EMA_WEIGHT = 0.2

# (inputs, *, rationales: bool) -> predictions; runs in the model's thread.
PredictFn = Callable[..., list[predictor.Prediction]]


@dataclasses.dataclass
class _Pending:
  """An input in the queue; `since` is its arrival in the loop's time."""

  checked: request_checks.CheckedInput
  rationales: bool
  since: float
  future: asyncio.Future


class Batcher:
  """The queue in front of the model.

  Args:
    max_queue: inputs that may wait.
    max_wait: seconds that an input waits for others.
  """

  def __init__(
    self,
    predict: PredictFn,
    executor: concurrent.futures.Executor,
    *,
    shapes: length_buckets.CompiledShapes,
    max_queue: int,
    max_wait: float,
    metrics: prometheus.ServerMetrics,
  ):
    self._predict, self._executor, self._shapes = predict, executor, shapes
    self._max_queue, self._max_wait = max_queue, max_wait
    self._metrics = metrics
    self._queue: collections.deque[_Pending] = collections.deque()
    self._arrived = asyncio.Event()
    self._expects_others = False
    self._seconds_per_input = 0.0

  async def submit(
    self, inputs: Sequence[request_checks.CheckedInput], *, rationales: bool
  ) -> list[predictor.Prediction]:
    """Predicts for a request's inputs, in order; cancelled, it drops them.

    Args:
      inputs: of one request; all of them join the queue, or none.

    Raises:
      errors.APIError: the queue is full, or the batch failed.
    """
    self.check_room(len(inputs))
    loop = asyncio.get_running_loop()
    pending = [
      _Pending(checked, rationales, loop.time(), loop.create_future())
      for checked in inputs
    ]
    self._queue.extend(pending)
    self._metrics.queue.set(len(self._queue))
    self._arrived.set()
    try:
      return list(await asyncio.gather(*(one.future for one in pending)))
    finally:
      self._drop(pending)

  def check_room(self, num_inputs: int) -> None:
    """Raises `errors.APIError` if the queue cannot take so many inputs."""
    if len(self._queue) + num_inputs > self._max_queue:
      raise errors.APIError(
        503,
        f'{len(self._queue):,} inputs are waiting, and the queue holds'
        f' {self._max_queue:,}. Try again after Retry-After.',
        code='queue_full',
        retry_after=len(self._queue) * self._seconds_per_input,
      )

  def _drop(self, pending: Sequence[_Pending]) -> None:
    """Takes inputs out that nobody waits for; answered ones are out already."""
    for one in pending:
      one.future.cancel()
    kept = [one for one in self._queue if not one.future.done()]
    self._metrics.dropped.inc(len(self._queue) - len(kept))
    self._queue = collections.deque(kept)
    self._metrics.queue.set(len(kept))

  async def run(self) -> None:
    """Runs batch after batch, until it is cancelled."""
    while True:
      await self._wait_for_inputs()
      batch = self._take_batch()
      if batch:
        await self._run_batch(batch)
        self._expects_others = len(batch) > 1 or bool(self._queue)

  async def _wait_for_inputs(self) -> None:
    """Waits for a full batch, or until the oldest input has waited enough."""
    while not self._queue:
      await self._next_arrival()
    if not self._expects_others:
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

  def _take_batch(self) -> list[_Pending]:
    """Takes the oldest inputs that fit the padded length of the very oldest."""
    batch, left = [], collections.deque()
    length = None
    for one in self._queue:
      if one.future.done():  # its client left, or its request timed out
        self._metrics.dropped.inc()
        continue
      if length is None:
        length = self._shapes.input_length(one.checked.num_tokens)
      fits = one.checked.num_tokens <= length
      taken = fits and len(batch) < self._shapes.max_rows
      (batch if taken else left).append(one)
    self._queue = left
    self._metrics.queue.set(len(self._queue))
    return batch

  async def _run_batch(self, batch: list[_Pending]) -> None:
    inputs = [one.checked.input for one in batch]
    rationales = any(one.rationales for one in batch)
    loop, start = asyncio.get_running_loop(), time.perf_counter()
    try:
      predictions = await loop.run_in_executor(
        self._executor,
        functools.partial(self._predict, rationales=rationales),
        inputs,
      )
    except Exception:  # ends these requests, not the server
      logging.exception('a batch of %d inputs failed', len(batch))
      for one in batch:
        if not one.future.done():
          one.future.set_exception(
            errors.APIError(
              500,
              'the model failed on the batch with this input; the log of the'
              ' server has the reason.',
              code='internal_error',
            )
          )
      return
    seconds = time.perf_counter() - start
    self._metrics.batch_inputs.observe(len(batch))
    self._metrics.batch_seconds.observe(seconds)
    newest = seconds / len(batch)
    mean = self._seconds_per_input or newest
    self._seconds_per_input = mean + _EMA_WEIGHT * (newest - mean)
    for one, prediction in zip(batch, predictions, strict=True):
      if one.future.done():
        self._metrics.dropped.inc()
        continue
      if not one.rationales:
        prediction = dataclasses.replace(prediction, rationale=None)
      one.future.set_result(prediction)
