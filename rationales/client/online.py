# SPDX-License-Identifier: Apache-2.0
"""Makes calls one by one, many at once, whatever the server and the user do.

Every call ends in exactly one of: its answer in the file, a failure in the
file, or nothing because the run was stopped (a rerun makes it again).
"""

import asyncio
import dataclasses
import signal
from collections.abc import Iterator

from dsbs_jax.runtime import progress
from rationales.client import (
  backends,
  failures,
  first_answers,
  limiter,
  outage,
  recorder,
  server_config,
)
from rationales.client.failures import INTERRUPTED, ExitReason
from rationales.record import calls

_SYNC_SECONDS = 1.0
# Calls that wait for another attempt do not count as in flight, so that a few
# failures do not slow down the others; there may be so many per call in flight.
_WAITING_PER_CALL = 4
_MAX_FAILURES_IN_A_ROW = 20


@dataclasses.dataclass
class OnlineRunner:
  """Makes calls until all are answered or something stops the run.

  Attributes:
    backend: who answers (see `backends`).
    server: its limits and waiting times.
    record: where the outcomes go.
    first: looks at the first answers; the first call is then made alone, so
      that what is wrong with all calls is paid for once. None for no look.
    exit_reason, message: why the run ended, for programs and for people.
    again: whether calls are to be made again after the run: never.
  """

  backend: backends.Http | backends.Replay
  server: server_config.ServerConfig
  record: recorder.Recorder
  first: first_answers.FirstAnswers | None = None

  def __post_init__(self):
    self.exit_reason, self.message, self.again = ExitReason.DONE, '', False
    server = self.server
    self._limiter = limiter.Limiter(
      server.concurrency, rpm=server.rpm, tpm=server.tpm, timeout=server.timeout
    )
    self._outage = outage.Outage(self.backend.name, server.outage_timeout)
    self._probing = self.first is not None
    self._tasks: set[asyncio.Task] = set()
    self._in_flight: set[asyncio.Task] = set()
    self._max_tasks = asyncio.Semaphore(
      server.concurrency * (1 + _WAITING_PER_CALL)
    )
    self._changed = asyncio.Event()
    self._stopped = False
    self._crash: BaseException | None = None
    self._failures_in_a_row = 0

  async def run(self, todo: Iterator[calls.Call]) -> None:
    """Makes the calls, taken one by one as soon as one can be made."""
    upkeep = asyncio.create_task(self._sync_regularly())
    upkeep.add_done_callback(self._note_crash)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
      loop.add_signal_handler(number, self._interrupt)
    await self._start_all(todo)
    while self._tasks:
      await self._wait_for_change()
    for number in (signal.SIGINT, signal.SIGTERM):
      loop.remove_signal_handler(number)
    upkeep.cancel()
    await self.backend.close()
    if self._crash is not None:
      raise self._crash

  async def _start_all(self, todo: Iterator[calls.Call]) -> None:
    """Starts a task per call until there are no more, or the run stops."""
    try:
      for call in todo:
        if not await self._wait_for_turn(call):
          break
        task = asyncio.create_task(self._run_call(call))
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        if self._probing:
          await asyncio.wait([task])
          self._probing = False
        await self._wait_for_use()
    except Exception as error:  # raised again when the paid calls are answered
      self._crash = error
      self._stop(ExitReason.INTERRUPTED, 'an error')

  async def _wait_for_use(self) -> None:
    """Waits while no answer has been of use and enough calls are made."""
    while self._tasks and not self._stopped:
      if self.first is None or self.first.allows(len(self._tasks)):
        return
      await self._wait_for_change()

  async def _wait_for_turn(self, call: calls.Call) -> bool:
    """Waits until a call can be started and paid; False to stop."""
    await self._max_tasks.acquire()
    while not self._stopped:
      if self.record.tracker.try_reserve(call):
        return True
      if not self._tasks:
        self._stop_for_budget()
      else:
        await self._wait_for_change()
    return False

  async def _run_call(self, call: calls.Call) -> None:
    """Makes a call until all its samples are answered, or it fails."""
    tracker = self.record.tracker
    missing: calls.Call | None = call
    while missing is not None:
      try:
        answer = await self._with_retries(missing)
      except failures.PermanentError as error:
        await self._fail(missing, error)
        answer = None
      finally:
        tracker.release(missing)
      if answer is None:
        return
      try:
        answered, missing = missing, self.record.answer(missing, answer)
        useless = self.first and self.first.add(answered, answer)
      except failures.FatalError as error:
        self.record.lost(missing, str(error), answer)
        self._stop(ExitReason.REFUSED, str(error))
        return
      if useless:
        self._stop(ExitReason.REFUSED, useless)
      self._failures_in_a_row = 0
      if missing is not None and not tracker.try_reserve(missing):
        self._stop_for_budget()
        return

  async def _with_retries(self, call: calls.Call) -> calls.Answer | None:
    """Tries until there is an answer; None if the run stops first."""
    backoff, attempt = self.server.backoff, 0
    while attempt < backoff.attempts:
      result = await self._attempt(call)
      if not isinstance(result, failures.TransientError):
        return result
      if result.down and not self._stopped:
        loading = result.server == failures.LOADING
        if not self._outage.begin(str(result), loading=loading):
          continue  # waits with the others: no row fails for it
      attempt += 1
      if result.maybe_paid:
        self.record.lost(call, str(result))
        if self.record.tracker.over_budget():
          self._stop_for_budget()
      if (result.retry_after or 0) > backoff.longest:
        self._stop(
          ExitReason.REFUSED,
          f'the server asks to wait {result.retry_after:,.0f} s, expected at'
          f' most {backoff.longest:,.0f} s',
        )
      if self._stopped:
        return None
      if attempt < backoff.attempts:
        self.record.monitor.retried(str(result))
        await asyncio.sleep(backoff.wait(attempt, result.retry_after))
    raise failures.PermanentError(f'{result} ({backoff.attempts} attempts)')

  async def _attempt(
    self, call: calls.Call
  ) -> calls.Answer | failures.TransientError | None:
    """One attempt within the limits; None if the run has to stop."""
    tokens = self.record.tracker.estimate(call).total
    epoch = await self._limiter.acquire(tokens)
    used, clock = 0.0, asyncio.get_running_loop().time
    try:
      if not await self._outage.wait():
        message = f'gave up waiting for {self._outage.describe()}'
        self._stop(ExitReason.REFUSED, message)
        return None
      self.record.file.check()
      self._in_flight.add(asyncio.current_task())
      sent = clock()
      answer = await self.backend.complete(call)
      used = sum(answer.usage.values()) if answer.usage else tokens
      self._outage.end()
      self._limiter.on_success(clock() - sent)
      return answer
    except failures.TransientError as error:
      if error.server == failures.ANSWERED:
        self._outage.end()
      if error.overload and self._outage.seconds is None:
        self._limiter.on_overload(epoch, error.retry_after)
      return error
    except failures.PermanentError:
      self._outage.end()
      raise
    except failures.FatalError as error:
      self._stop(ExitReason.REFUSED, str(error))
      return None
    finally:
      self._in_flight.discard(asyncio.current_task())
      self._limiter.release(unused_tokens=tokens - used)

  async def _fail(
    self, call: calls.Call, error: failures.PermanentError
  ) -> None:
    """Records a failure, unless it is known what all calls would meet."""
    explain = getattr(self.backend, 'explain', None)
    if self._probing and explain and (why := await explain(call, error)):
      self._stop(ExitReason.REFUSED, f'{error}; {why}')
      return
    if error.maybe_paid:
      self.record.lost(call, str(error))
    self.record.failure(call, str(error), error.status)
    self._failures_in_a_row += 1
    persist = self.first is not None and not self.first.stop
    if self._failures_in_a_row >= _MAX_FAILURES_IN_A_ROW and not persist:
      self._stop(
        ExitReason.REFUSED,
        f'{_MAX_FAILURES_IN_A_ROW} rows in a row failed for good, the last'
        f' with: {error} (--nostop_early goes on all the same)',
      )

  def _stop(self, reason: ExitReason, message: str) -> None:
    """Starts no more calls; those in flight are awaited and recorded."""
    if self._stopped:
      return
    self.exit_reason, self.message, self._stopped = reason, message, True
    for task in self._tasks - self._in_flight:
      if task is not asyncio.current_task():
        task.cancel()
    self._changed.set()

  def _stop_for_budget(self) -> None:
    tracker = self.record.tracker
    self._stop(
      ExitReason.BUDGET,
      f'{tracker.spent():,.4f} are spent, and the next call might exceed the'
      f' budget of {tracker.prices.budget:,.4f}',
    )

  async def _wait_for_change(self) -> None:
    """Waits until a task is done or the run was stopped."""
    self._changed.clear()
    await self._changed.wait()

  def _on_task_done(self, task: asyncio.Task) -> None:
    self._tasks.discard(task)
    self._max_tasks.release()
    self._changed.set()
    self._note_crash(task)

  def _note_crash(self, task: asyncio.Task) -> None:
    """Ends the run if a task raised an unexpected exception."""
    if not task.cancelled() and task.exception() is not None:
      self._crash = self._crash or task.exception()
      self._stop(ExitReason.INTERRUPTED, 'an error')

  def _interrupt(self) -> None:
    """The first Ctrl-C waits for the paid calls, the second does not."""
    if self._stopped:
      for task in self._tasks:
        task.cancel()
      return
    words = INTERRUPTED
    if self._outage.seconds is not None:
      words += f'; the run was waiting for {self._outage.describe()}'
    else:
      progress.say(
        f'interrupted: waiting for {len(self._in_flight):,} calls, at most'
        f' {self.server.timeout:g} s, because they are paid; a second Ctrl-C'
        f' does not wait. All answers are in {self.record.file.path}'
      )
    self._stop(ExitReason.INTERRUPTED, words)

  async def _sync_regularly(self) -> None:
    """Syncs the file and prints the progress while calls are made."""
    while True:
      await asyncio.sleep(_SYNC_SECONDS)
      self.record.monitor.tick()
      await asyncio.to_thread(self.record.file.sync)
