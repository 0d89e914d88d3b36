# SPDX-License-Identifier: Apache-2.0
"""Makes calls by the Batch API: upload, poll, collect, across restarts.

Each step is a line of the completions file, written before the next begins:

  uploaded   the requests are on the server; costs nothing
  created    the server works on them and will charge
  collected  every answer is a line of the completions file

A process that dies between `uploaded` and `created` may have created the
batch without having written so. The next one asks the server for a batch of
that file before it creates another, so nothing is paid twice.

The requests lie beside the completions file until they are collected:
`FILE.batch-N.requests` (uploaded as it is) and `FILE.batch-N.calls`.

Source: https://platform.openai.com/docs/guides/batch
"""

import asyncio
import dataclasses
import itertools
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import openai
from openai.types import batch as openai_batch

from rationales.client import backends, failures, recorder, server_config
from rationales.client.failures import INTERRUPTED, ExitReason
from rationales.record import batch_jobs, calls, ledger

_RUNNING = {'validating', 'in_progress', 'finalizing', 'cancelling'}
_CLOCK_SKEW_SECONDS = 3600  # between this machine and the server

_Result = TypeVar('_Result')


class BatchRunner:
  """Sends calls in batches and collects the answers.

  `contents` tells of earlier batches, of which one may be half collected.

  Attributes:
    exit_reason, message: why the run ended, for programs and for people.
    again: whether rows are to be asked again: with other fields, or for
      samples that are missing.
  """

  def __init__(
    self,
    sampling: calls.Sampling,
    server: server_config.ServerConfig,
    record: recorder.Recorder,
    contents: ledger.Contents,
    substitutes: calls.Substitutes,
  ):
    self.exit_reason, self.message = ExitReason.DONE, ''
    self.again, self._substitutes = False, substitutes
    self._sampling, self._server, self._record = sampling, server, record
    self._jobs, self._index = contents.jobs, contents.index
    self._client = server.client()

  async def run(self, todo: Iterator[calls.Call]) -> None:
    """Submits the calls, then waits for all batches and collects them."""
    try:
      affordable = self._affordable(todo)
      while chunk := list(
        itertools.islice(affordable, self._server.batch_size)
      ):
        await self._submit(chunk)
      await self._collect_all()
    except failures.FatalError as error:
      self._stop(ExitReason.REFUSED, str(error))
    except asyncio.CancelledError:  # Ctrl-C; batches can be collected later
      self._stop(ExitReason.INTERRUPTED, INTERRUPTED)
    finally:
      await self._client.close()

  def _stop(self, reason: ExitReason, message: str) -> None:
    self.exit_reason, self.message = reason, message

  def _affordable(self, todo: Iterator[calls.Call]) -> Iterator[calls.Call]:
    for call in todo:
      if not self._record.tracker.try_reserve(call):
        self._stop(ExitReason.BUDGET, 'the next call might exceed the budget')
        return
      yield call

  async def _submit(self, chunk: list[calls.Call]) -> None:
    number = self._jobs.next_number()
    requests = batch_jobs.write(
      self._record.file.path,
      number,
      self._sampling,
      chunk,
      substitutes=self._substitutes,
    )
    uploaded = await self._with_retries(
      lambda: self._client.files.create(file=requests, purpose='batch')
    )
    job = batch_jobs.BatchJob(
      number, batch_jobs.UPLOADED, uploaded.id, None, uploaded.created_at
    )
    self._note(job)
    await self._create(job, maybe_created=False)

  async def _create(
    self, job: batch_jobs.BatchJob, *, maybe_created: bool
  ) -> None:
    """Creates the batch of an upload, which may have been created before."""

    async def create() -> str:
      nonlocal maybe_created
      found = await self._find(job) if maybe_created else None
      maybe_created = True
      if found is not None:
        return found
      created = await self._client.batches.create(
        input_file_id=job.file_id,
        endpoint=f'/v1{self._sampling.path}',
        completion_window='24h',
      )
      return created.id

    batch_id = await self._with_retries(create)
    self._note(
      dataclasses.replace(job, event=batch_jobs.CREATED, batch_id=batch_id)
    )

  async def _find(self, job: batch_jobs.BatchJob) -> str | None:
    """The id of the server's batch of this file, if it has one."""
    async for found in self._client.batches.list(limit=100):
      if found.input_file_id == job.file_id:
        return found.id
      if found.created_at < job.uploaded_at - _CLOCK_SKEW_SECONDS:
        break
    return None

  async def _collect_all(self) -> None:
    for job in self._jobs.pending():
      if job.event != batch_jobs.UPLOADED:
        continue
      if self._server.forget_batches and not await self._with_retries(
        lambda job=job: self._find(job)
      ):
        self._drop(job)
      else:
        await self._create(job, maybe_created=True)
    while waiting := self._jobs.pending():
      for job in waiting:
        state = await self._with_retries(lambda job=job: self._poll(job))
        if state is None:
          self._forget_batch(job)
        elif state.status not in _RUNNING:
          await self._collect(job, state)
      self._record.monitor.tick()
      if self._jobs.pending():
        await asyncio.sleep(self._server.poll_seconds)

  async def _poll(self, job: batch_jobs.BatchJob) -> openai_batch.Batch | None:
    """The server's state of a batch; None if it is unknown and given up."""
    try:
      return await self._client.batches.retrieve(job.batch_id)
    except openai.NotFoundError as error:
      if self._server.forget_batches:
        return None
      raise failures.FatalError(
        f'the server does not know the batch {job.batch_id} (404): it belongs'
        ' to another account or --base_url, or its answers were deleted. Give'
        ' the right one, or ask its rows again with --forget_batches'
      ) from error

  def _forget_batch(self, job: batch_jobs.BatchJob) -> None:
    """Counts a batch as paid without answers; its rows are asked again."""
    reason = f'the server no longer knows the batch {job.batch_id}'
    for call in batch_jobs.read_calls(self._record.file.path, job.number):
      self._record.lost(call, reason)
    self._record.monitor.retried(reason)
    self._drop(job)

  def _drop(self, job: batch_jobs.BatchJob) -> None:
    self._note(dataclasses.replace(job, event=batch_jobs.COLLECTED))
    for path in batch_jobs.paths(self._record.file.path, job.number):
      path.unlink(missing_ok=True)

  async def _collect(
    self, job: batch_jobs.BatchJob, state: openai_batch.Batch
  ) -> None:
    """Records the answers of a batch that has ended, however it ended."""
    asked = batch_jobs.read_calls(self._record.file.path, job.number)
    asked = {str(number): call for number, call in enumerate(asked)}
    answered = set()
    sent = batch_jobs.sent_fields(self._record.file.path, job.number)
    for file_id in (state.output_file_id, state.error_file_id):
      if file_id is None:
        continue
      content = await self._with_retries(
        lambda file_id=file_id: self._client.files.content(file_id)
      )
      for text in content.content.splitlines():
        try:
          line = json.loads(text)
          call = asked[line['custom_id']]
        except (ValueError, LookupError, TypeError) as error:
          raise failures.FatalError(
            f'file {file_id} of batch {job.batch_id} has a line that cannot be'
            f" read ({error!r:.100}). Ask the server's operator"
          ) from error
        answered.add(line['custom_id'])
        self._record_line(call, line, sent)
    for number, call in asked.items():
      if state.status == 'completed' and number not in answered:
        line = {'error': 'the batch has no line for it'}
        self._record_line(call, line, sent)
    self._record.file.sync()
    self._drop(job)
    if state.status != 'completed':
      errors = getattr(state.errors, 'data', None) or []
      words = '; '.join(str(error.message) for error in errors[:3])
      message = (
        f'batch {job.batch_id} is {state.status}: {words or "no reason"}'
      )
      self._stop(ExitReason.REFUSED, self._server.key.redact(message))

  def _record_line(
    self, call: calls.Call, line: dict[str, Any], sent: set[str]
  ) -> None:
    """Records one line of a batch's output or error file."""
    newest = max(map(self._index.offset, call.sample_keys()))
    if newest > call.replaces:  # recorded before an interruption
      return
    response = line.get('response') or {}
    status, body = response.get('status_code'), response.get('body')
    error = body.get('error') if isinstance(body, dict) else None
    if status == 400 and self._substitutes.learn(error, sent):
      self.again = True
      return
    try:
      if status != 200:
        raise ValueError(json.dumps(line.get('error') or response.get('body')))
      answer = calls.read_answer(response['body'], call)
    except ValueError as error:
      reason = f'{status}: {error}' if status else str(error)
      reason = self._server.key.redact(reason)
      self._record.failure(call, reason, status)
    else:  # servers may give fewer samples than asked
      self.again |= self._record.answer(call, answer) is not None

  async def _with_retries(
    self, request: Callable[[], Awaitable[_Result]]
  ) -> _Result:
    """Makes one of the requests for files and batches until it succeeds."""
    backoff = self._server.backoff
    for attempt in itertools.count(1):
      self._record.file.check()
      try:
        return await request()
      except backends.API_ERRORS as error:
        failure = backends.classify(error, self._server.key)
      transient = isinstance(failure, failures.TransientError)
      if not transient or attempt >= backoff.attempts:
        raise failures.FatalError(str(failure)) from None
      await asyncio.sleep(backoff.wait(attempt, failure.retry_after))

  def _note(self, job: batch_jobs.BatchJob) -> None:
    self._record.file.append(job.line())
    self._record.file.sync()
    self._jobs.restore(job.line())
