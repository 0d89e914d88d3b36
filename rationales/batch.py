# SPDX-License-Identifier: Apache-2.0
"""The Batch API: upload, poll, collect, at any pace and across restarts.

Each step is a line of the completions file, written before the next begins:

  uploaded   the requests are on the server; costs nothing
  created    the server works on them and will charge
  collected  every answer is a line of the completions file

A process that dies between `uploaded` and `created` may have created the
batch without having written so. The next one asks the server for a batch of
that file before it creates another, so nothing is paid twice.

What the requests asked lies beside the completions file until collected:
`FILE.batch-N.requests` (uploaded as it is) and `FILE.batch-N.calls`.

Source: https://platform.openai.com/docs/guides/batch
"""

import asyncio
import dataclasses
import itertools
import json
from collections.abc import Iterator

import openai

from rationales import (
  backends,
  bill,
  calls,
  jobs,
  ledger,
  lines,
  pacing,
  progress,
  records,
  secret,
  session,
)

_RUNNING = {'validating', 'in_progress', 'finalizing', 'cancelling'}
_SLACK_SECONDS = 3600  # clocks of two machines differ


class Batches:
  """Sends calls in batches and collects the answers.

  Args:
    sampling: what every call shares.
    base_url, key, timeout: the server, as of `backends.Http`.
    file: where steps and answers go.
    known: the file's batches.
    backoff: waits between attempts of a request of ours.
    account: the money.
    poll_seconds: between two looks at a batch.
    size: most calls in a batch.
    forget: whether batches that the server no longer knows are given up:
      their cost is booked as lost, their rows are asked again.
  """

  def __init__(
    self,
    sampling: calls.Sampling,
    *,
    base_url: str,
    key: secret.Secret,
    timeout: float,
    file: ledger.Ledger,
    known: jobs.Jobs,
    backoff: pacing.Backoff,
    account: bill.Bill,
    poll_seconds: float,
    size: int,
    forget: bool = False,
  ):
    if size < 1 or poll_seconds < 0:
      raise ValueError(
        f'--batch_size is {size} and --poll_seconds {poll_seconds}, expected'
        ' at least 1 and 0.'
      )
    self.name = f'batch {backends.public_address(base_url)}'
    self.ending, self.reason = session.Ending.DONE, ''
    self._client = backends.connect(base_url, key, timeout=timeout)
    self._sampling, self._key, self._file = sampling, key, file
    self._jobs, self._backoff, self._account = known, backoff, account
    self._poll_seconds, self._size = poll_seconds, size
    self._forget = forget

  async def run(
    self,
    todo: Iterator[calls.Call],
    index: records.Index,
    watch: progress.Progress,
  ) -> session.Ending:
    """Submits the calls, then waits for all batches and collects them.

    Args:
      todo: the calls; none where only batches of an earlier run are awaited.
      index: answers of the file: a batch may be half collected.
      watch: counts the answers.

    Returns:
      Why it ended; `reason` has the words.
    """
    try:
      affordable = self._affordable(todo)
      while chunk := list(itertools.islice(affordable, self._size)):
        await self._submit(chunk)
      await self._collect_all(index, watch)
    except calls.Fatal as error:
      self.ending, self.reason = session.Ending.REFUSED, str(error)
    finally:
      await self._client.close()
    return self.ending

  def _affordable(self, todo: Iterator[calls.Call]) -> Iterator[calls.Call]:
    for call in todo:
      if not self._account.admits(call):
        self.ending = session.Ending.BUDGET
        self.reason = 'the next call might pass the budget'
        return
      yield call

  async def _submit(self, chunk: list[calls.Call]) -> None:
    number = self._jobs.next_number()
    requests, kept = jobs.paths(self._file.path, number)
    jobs.write(kept, map(jobs.call_record, chunk))
    jobs.write(
      requests,
      (
        jobs.request(self._sampling, call, place)
        for place, call in enumerate(chunk)
      ),
    )
    uploaded = await self._insist(
      lambda: self._client.files.create(file=requests, purpose='batch')
    )
    job = jobs.Job(
      number, jobs.UPLOADED, uploaded.id, None, uploaded.created_at
    )
    self._note(job)
    await self._start(job, known=False)

  async def _start(self, job: jobs.Job, *, known: bool) -> None:
    """Creates the batch of an uploaded file, unless there is one.

    Args:
      job: the uploaded file.
      known: whether an earlier attempt may have created it.
    """

    async def create() -> str:
      nonlocal known
      found = await self._find(job) if known else None
      known = True
      if found is not None:
        return found
      chat = self._sampling.endpoint == calls.CHAT
      created = await self._client.batches.create(
        input_file_id=job.file_id,
        endpoint='/v1/chat/completions' if chat else '/v1/completions',
        completion_window='24h',
      )
      return created.id

    batch_id = await self._insist(create)
    self._note(dataclasses.replace(job, event=jobs.CREATED, batch_id=batch_id))

  async def _find(self, job: jobs.Job) -> str | None:
    """The server's batch of this file, if it has one."""
    async for found in self._client.batches.list(limit=100):
      if found.input_file_id == job.file_id:
        return found.id
      if found.created_at < job.uploaded_at - _SLACK_SECONDS:
        break
    return None

  async def _collect_all(
    self, index: records.Index, watch: progress.Progress
  ) -> None:
    for job in self._jobs.pending():
      if job.event == jobs.UPLOADED and not await self._given_up(job):
        await self._start(job, known=True)
    waiting = self._jobs.pending()
    while waiting:
      for job in list(waiting):
        state = await self._insist(lambda job=job: self._look(job))
        if state is None:
          self._give_up(job, watch)
          waiting.remove(job)
        elif state.status not in _RUNNING:
          await self._collect(job, state, index, watch)
          waiting.remove(job)
      watch.tick()
      if waiting:
        await asyncio.sleep(self._poll_seconds)

  async def _look(self, job: jobs.Job):
    """The server's state of a batch; None where it knows none and may not."""
    try:
      return await self._client.batches.retrieve(job.batch_id)
    except openai.NotFoundError as error:
      if self._forget:
        return None
      raise calls.Fatal(
        f'the server does not know the batch {job.batch_id} (404): it belongs'
        ' to another account or --base_url, or its answers are gone. Give the'
        ' right one, or ask its rows again with --forget_batches'
      ) from error

  async def _given_up(self, job: jobs.Job) -> bool:
    """Drops an upload that became no batch, where that is wanted: it is free."""
    if not self._forget or await self._insist(lambda: self._find(job)):
      return False
    self._drop(job)
    return True

  def _give_up(self, job: jobs.Job, watch: progress.Progress) -> None:
    """Books a batch as paid for nothing; its rows are open again."""
    _, kept = jobs.paths(self._file.path, job.number)
    reason = f'the server no longer knows the batch {job.batch_id}'
    for record in jobs.read(kept):
      call = jobs.call(record)
      utmost = self._account.lose(call)
      self._file.append(lines.lost(call, reason, utmost, self.name))
    watch.fault(reason)
    self._drop(job)

  def _drop(self, job: jobs.Job) -> None:
    self._note(dataclasses.replace(job, event=jobs.COLLECTED))
    for path in jobs.paths(self._file.path, job.number):
      path.unlink(missing_ok=True)

  async def _collect(self, job, state, index, watch) -> None:
    """Writes the answers of a batch that has ended, however it ended."""
    _, kept = jobs.paths(self._file.path, job.number)
    asked = [jobs.call(record) for record in jobs.read(kept)]
    for file_id in (state.output_file_id, state.error_file_id):
      if file_id is None:
        continue
      content = await self._insist(
        lambda file_id=file_id: self._client.files.content(file_id)
      )
      for line in content.content.splitlines():
        self._keep(asked, json.loads(line), index, watch)
    self._file.sync()
    self._drop(job)
    if state.status != 'completed':
      errors = getattr(state.errors, 'data', None) or []
      words = '; '.join(str(error.message) for error in errors[:3])
      self.ending = session.Ending.REFUSED
      self.reason = self._key.redact(
        f'batch {job.batch_id} is {state.status}: {words or "no reason"}'
      )

  def _keep(self, asked, line, index, watch) -> None:
    """Books one line of a batch's output or error file."""
    call = asked[int(line['custom_id'])]
    if any(slot in index for slot in call.slots()):
      return
    response = line.get('response') or {}
    status = response.get('status_code')
    try:
      if status != 200:
        raise ValueError(json.dumps(line.get('error') or response.get('body')))
      answer = calls.read_answer(response['body'], call, self.name)
    except ValueError as error:
      reason = self._key.redact(f'{status}: {error}')
      self._file.append(*lines.failure(call, reason, status, self.name))
      watch.failed(call, reason)
      return
    got = dataclasses.replace(call, samples=call.samples[: len(answer.texts)])
    if answer.usage is None:
      utmost = self._account.at_most(got)
      answer = dataclasses.replace(answer, usage=utmost.usage(estimated=True))
    self._file.append(*lines.answer(got, answer))
    self._account.answer(got, answer.usage)
    watch.answered(got, answer)

  async def _insist(self, request):
    """Makes a request of ours until it goes well."""
    for attempt in itertools.count(1):
      try:
        return await request()
      except openai.APIStatusError as error:
        fault = backends.status_fault(error, self._key)
      except openai.APIConnectionError as error:
        fault = backends.connection_fault(error, self._key)
      hopeless = not isinstance(fault, calls.Transient)
      if hopeless or attempt >= self._backoff.attempts:
        raise calls.Fatal(str(fault)) from None
      await asyncio.sleep(self._backoff.wait(attempt, fault.retry_after))

  def _note(self, job: jobs.Job) -> None:
    self._file.append(job.line())
    self._file.sync()
    self._jobs.remember(job.line())
