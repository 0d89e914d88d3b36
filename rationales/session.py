# SPDX-License-Identifier: Apache-2.0
"""The run: calls in, lines out, whatever the server and the user do.

Every call ends in exactly one of: its answer in the file, a failure in the
file, or nothing because the run was stopped (a rerun makes it again).
"""

import asyncio
import dataclasses
import enum
import signal
from collections.abc import Iterator

from rationales import bill, calls, ledger, lines, pacing, progress

_SYNC_SECONDS = 1.0
# Calls that wait for another attempt leave the gate, so that a few faults do
# not slow the others; at most so many per place in the gate.
_WAITING_PER_PLACE = 4
_HOPELESS = 20


class Ending(enum.Enum):
  """Why a run ended."""

  DONE = 'done'
  BUDGET = 'the budget is used up'
  REFUSED = 'the server refuses all calls'
  INTERRUPTED = 'interrupted'


@dataclasses.dataclass
class Session:
  """Makes calls until all are answered or something stops the run.

  Attributes:
    backend: who answers (see `backends`).
    file: where the answers go.
    pace: the gate.
    backoff: waits between attempts.
    account: the money.
    watch: the counters.
    most: calls at once, at most.
  """

  backend: object
  file: ledger.Ledger
  pace: pacing.Pace
  backoff: pacing.Backoff
  account: bill.Bill
  watch: progress.Progress
  most: int
  ending: Ending = dataclasses.field(default=Ending.DONE, init=False)
  reason: str = dataclasses.field(default='', init=False)

  def __post_init__(self):
    self._tasks: set[asyncio.Task] = set()
    self._room = asyncio.Semaphore(self.most * (1 + _WAITING_PER_PLACE))
    self._flying: set[asyncio.Task] = set()
    self._changed = asyncio.Event()
    self._stopped = False
    self._crash: BaseException | None = None
    self._failures_in_a_row = 0

  async def run(self, todo: Iterator[calls.Call]) -> Ending:
    """Makes the calls.

    Args:
      todo: the calls; taken one by one, when there is room.

    Returns:
      Why it ended; `reason` has the words.
    """
    upkeep = asyncio.create_task(self._keep())
    upkeep.add_done_callback(self._note_crash)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
      loop.add_signal_handler(number, self._interrupt)
    await self._launch(todo)
    while self._tasks:
      await self._change()
    for number in (signal.SIGINT, signal.SIGTERM):
      loop.remove_signal_handler(number)
    upkeep.cancel()
    await self.backend.close()
    if self._crash is not None:
      raise self._crash
    return self.ending

  async def _launch(self, todo: Iterator[calls.Call]) -> None:
    """Makes a task of each call until there are no more, or the run stops."""
    try:
      for call in todo:
        if not await self._admit(call):
          break
        task = asyncio.create_task(self._settle(call))
        self._tasks.add(task)
        task.add_done_callback(self._landed)
    except Exception as error:  # raised again once the paid calls have landed
      self._crash = error
      self.stop(Ending.INTERRUPTED, 'an error')

  def stop(self, ending: Ending, reason: str) -> None:
    """Starts no more calls; those in flight are awaited and kept."""
    if self._stopped:
      return
    self.ending, self.reason, self._stopped = ending, reason, True
    for task in self._tasks - self._flying:
      if task is not asyncio.current_task():
        task.cancel()
    self._changed.set()

  async def _admit(self, call: calls.Call) -> bool:
    """Waits until there is room and money for a call; False to stop."""
    await self._room.acquire()
    while not self._stopped:
      if self.account.admits(call):
        return True
      if not self._tasks:
        self._out_of_money()
      else:
        await self._change()
    return False

  async def _settle(self, call: calls.Call) -> None:
    """Sees one call through all its attempts, and its samples."""
    left: calls.Call | None = call
    while left is not None:
      try:
        answer = await self._answer(left)
      except calls.Permanent as error:
        self._fail(left, str(error), error.status)
        answer = None
      finally:
        self.account.release(left)
      if answer is None:
        return
      left = self._keep_answer(left, answer)
      if left is not None and not self.account.admits(left):
        self._out_of_money()
        return

  async def _answer(self, call: calls.Call) -> calls.Answer | None:
    """Tries until there is an answer; None where the run stops first."""
    for attempt in range(1, self.backoff.attempts + 1):
      fault = await self._attempt(call)
      if not isinstance(fault, calls.Transient):
        return fault
      if fault.maybe_paid:
        self._lose(call, str(fault))
      wait = self.backoff.wait(attempt, fault.retry_after)
      if (fault.retry_after or 0) > self.backoff.longest:
        self.stop(Ending.REFUSED, f'the server asks to wait {wait:,.0f} s')
      if self._stopped:
        return None
      if attempt < self.backoff.attempts:
        self.watch.fault(str(fault))
        await asyncio.sleep(wait)
    raise calls.Permanent(f'{fault} ({self.backoff.attempts} attempts)')

  async def _attempt(
    self, call: calls.Call
  ) -> calls.Answer | calls.Transient | None:
    """One attempt, through the gate; None where the run stops."""
    tokens = self.account.expected(call).total
    ticket = await self.pace.enter(tokens)
    used = 0.0
    self._flying.add(asyncio.current_task())
    try:
      answer = await self.backend.complete(call)
      usage = answer.usage or {}
      used = sum(usage.values()) if usage else tokens
      self.pace.went_well()
      return answer
    except calls.Transient as fault:
      if fault.overload:
        self.pace.overloaded(ticket, fault.retry_after)
      return fault
    except calls.Fatal as fault:
      self.stop(Ending.REFUSED, str(fault))
      return None
    finally:
      self._flying.discard(asyncio.current_task())
      self.pace.leave(unused_tokens=tokens - used)

  def _keep_answer(
    self, call: calls.Call, answer: calls.Answer
  ) -> calls.Call | None:
    """Writes an answer; returns the call for samples that it left out."""
    got = dataclasses.replace(call, samples=call.samples[: len(answer.texts)])
    if answer.usage is None and not self.backend.free:
      utmost = self.account.at_most(got)
      answer = dataclasses.replace(answer, usage=utmost.usage(estimated=True))
    self.file.append(*lines.answer(got, answer))
    self.account.answer(got, answer.usage)
    self.watch.answered(got, answer)
    self._failures_in_a_row = 0
    rest = call.samples[len(answer.texts) :]
    return dataclasses.replace(call, samples=rest) if rest else None

  def _lose(self, call: calls.Call, reason: str) -> None:
    utmost = self.account.lose(call)
    self.file.append(lines.lost(call, reason, utmost, self.backend.name))
    if self.account.overdrawn():
      self._out_of_money()

  def _fail(self, call: calls.Call, reason: str, status: int | None) -> None:
    self.file.append(*lines.failure(call, reason, status, self.backend.name))
    self.watch.failed(call, reason)
    self._failures_in_a_row += 1
    if self._failures_in_a_row >= _HOPELESS:
      self.stop(
        Ending.REFUSED,
        f'{_HOPELESS} rows in a row failed for good, the last with: {reason}',
      )

  def _out_of_money(self) -> None:
    budget = self.account.prices.budget
    self.stop(
      Ending.BUDGET,
      f'{self.account.spent():,.4f} are spent, and the next call might pass'
      f' the budget of {budget:,.4f}',
    )

  async def _change(self) -> None:
    """Waits until a call has landed or the run was stopped."""
    self._changed.clear()
    await self._changed.wait()

  def _landed(self, task: asyncio.Task) -> None:
    self._tasks.discard(task)
    self._room.release()
    self._changed.set()
    self._note_crash(task)

  def _note_crash(self, task: asyncio.Task) -> None:
    """Ends the run where a task met something that no one expected."""
    if not task.cancelled() and task.exception() is not None:
      self._crash = self._crash or task.exception()
      self.stop(Ending.INTERRUPTED, 'an error')

  def _interrupt(self) -> None:
    """The first Ctrl-C lets the paid calls land, the second does not."""
    if self._stopped:
      for task in self._tasks:
        task.cancel()
    self.stop(Ending.INTERRUPTED, 'interrupted; the same command goes on')

  async def _keep(self) -> None:
    """Syncs the file beside the calls, and ticks."""
    while True:
      await asyncio.sleep(_SYNC_SECONDS)
      self.watch.tick()
      await asyncio.to_thread(self.file.sync)
