# SPDX-License-Identifier: Apache-2.0
"""One extraction from the first look at the file to the last line on screen."""

import asyncio
import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import rich.console

from dsbs_jax.runtime import terminal_text
from rationales import (
  backends,
  batch,
  bill,
  calls,
  history,
  ledger,
  pacing,
  progress,
  secret,
  session,
  worklist,
)
from rationales import prompt as prompt_lib

BACKENDS = ('http', 'batch', 'replay')

# Beside 0, and 2 for wrong input.
_FAILED_ROWS = 1
_OUT_OF_MONEY = 3
_INTERRUPTED = 130

_MOST_CONNECTIONS = 1000


@dataclasses.dataclass(frozen=True)
class Server:
  """Who answers, and how gently it is asked.

  Attributes:
    backend: one of BACKENDS.
    base_url, key, timeout: see `backends.Http`.
    concurrency, rpm, tpm: see `pacing.Pace`.
    backoff: waits between attempts.
    poll_seconds, batch_size: see `batch.Batches`.
    replay: the completions file of the replay backend.
    forget_batches: see `batch.Batches`.
  """

  backend: str
  base_url: str
  key: secret.Secret
  timeout: float
  concurrency: int
  rpm: float
  tpm: float
  backoff: pacing.Backoff
  poll_seconds: float
  batch_size: int
  replay: str | None
  forget_batches: bool = False

  def __post_init__(self):
    if not 0 < self.timeout < math.inf:
      raise ValueError(f'--timeout is {self.timeout}, expected more than 0.')
    if self.concurrency < 1 or not (self.rpm >= 0 and self.tpm >= 0):
      raise ValueError(
        f'--concurrency is {self.concurrency}, --rpm {self.rpm}, --tpm'
        f' {self.tpm}; expected at least 1, 0 and 0 (0 sets no limit).'
      )
    if self.concurrency > _MOST_CONNECTIONS:
      raise ValueError(
        f'--concurrency is {self.concurrency}, expected at most'
        f' {_MOST_CONNECTIONS}, the connections that the client opens.'
      )
    if self.backend == 'replay' and not self.replay:
      raise ValueError('--backend=replay needs --replay=FILE.')


@dataclasses.dataclass(frozen=True)
class Extraction:
  """What is asked of whom, and where it goes.

  Attributes:
    path: the completions file.
    todo: the rows and prompts.
    sampling: what every call shares.
    about: names the prompt in the file's header.
    server: who answers.
    prices: what it costs.
    rationalize: whether this is the second pass.
  """

  path: pathlib.Path
  todo: worklist.Worklist
  sampling: calls.Sampling
  about: Mapping[str, Any]
  server: Server
  prices: bill.Prices
  rationalize: bool = False

  def show_bill(self) -> int:
    """Prints what the run would cost; touches neither file nor server."""
    console, account = _console(), self._account()
    past = self._history(account)
    _show(console, self._survey(past, account), account, past)
    return 0

  def run(self) -> int:
    """Makes the calls that are left; returns the exit status."""
    console = _console(stderr=True)
    with ledger.Ledger(self.path, self.server.key.redact) as file:
      if file.repaired:
        console.print(f'repaired {self.path}: a torn last line was cut off')
      account = self._account()
      past = self._history(account)
      if past.jobs.pending():
        ending, watch = self._await_batches(file, past, account, console)
        if past.jobs.pending():  # asked again, their rows would be paid twice
          return self._status(ending, watch, console)
        account = self._account()
        past = self._history(account)
      survey = self._survey(past, account)
      _show(console, survey, account, past)
      if not survey.calls:
        return 0
      if past.settings != self._settings():
        file.append(ledger.header(self._settings()))
      with progress.Progress(
        self.todo.benchmark, survey, account, console
      ) as watch:
        ending = self._ask(self._calls(past), file, past, account, watch)
    for line in watch.summary():
      console.print(terminal_text.visible(line))
    return self._status(ending, watch, console)

  def _account(self) -> bill.Bill:
    exemplars = self.todo.prompt.exemplars
    answers = [
      len(prompt_lib.exemplar_answer(self.todo.prompt, exemplar).encode())
      for exemplar in exemplars
    ]
    # Without an exemplar to go by: two sentences.
    mean = sum(answers) / len(answers) if answers else 200.0
    return bill.Bill(
      self.prices, max_tokens=self.sampling.max_tokens, answer_bytes=mean
    )

  def _settings(self) -> dict[str, Any]:
    """What must not change while a completions file grows."""
    return {
      'benchmark': self.todo.benchmark.name,
      'split': self.todo.split,
      **self.about,
      'model': self.sampling.model,
      'endpoint': self.sampling.endpoint,
      'temperature': self.sampling.temperature,
      'max_tokens': self.sampling.max_tokens,
      'stop': list(self.sampling.stop),
      'extra': dict(self.sampling.extra),
    }

  def _history(self, account: bill.Bill) -> history.History:
    past = history.read(self.path, account)
    begun = len(past.index) or past.jobs.pending()
    if begun and not self.todo.force:
      ledger.check_settings(self.path, past.settings, self._settings())
    return past

  def _calls(self, past: history.History) -> Iterator[calls.Call]:
    if self.rationalize:
      if not self.path.is_file():
        raise ValueError(
          f'{self.path} does not exist, expected the completions of a first'
          ' pass: --rationalize asks again about their wrong labels. Run'
          ' without it first, or correct --out.'
        )
      return self.todo.second_pass(past.index, self.path)
    return self.todo.first_pass(past.index)

  def _survey(
    self, past: history.History, account: bill.Bill
  ) -> worklist.Survey:
    return worklist.survey(self._calls(past), account)

  def _await_batches(
    self, file, past, account, console
  ) -> tuple[tuple[session.Ending, str], progress.Progress]:
    """Collects the batches of an earlier run, before more is asked."""
    numbers = ', '.join(job.batch_id or '?' for job in past.jobs.pending())
    if self.server.backend != 'batch':
      raise ValueError(
        f'{self.path} waits for batches ({numbers}). Collect them with'
        ' --backend=batch first: their rows would be paid twice.'
      )
    console.print(f'waiting for batches of an earlier run: {numbers}')
    with progress.Progress(
      self.todo.benchmark, worklist.Survey(), account, console
    ) as watch:
      ending = self._ask(iter(()), file, past, account, watch)
    if ending[0] != session.Ending.DONE and not past.jobs.pending():
      console.print(terminal_text.visible(ending[1]))
    return ending, watch

  def _ask(
    self, todo, file, past, account, watch
  ) -> tuple[session.Ending, str]:
    """Makes the calls by one of the backends."""
    server = self.server
    address = {
      'base_url': server.base_url,
      'key': server.key,
      'timeout': server.timeout,
    }
    if server.backend == 'batch':
      runner = batch.Batches(
        self.sampling,
        **address,
        file=file,
        known=past.jobs,
        backoff=server.backoff,
        account=account,
        poll_seconds=server.poll_seconds,
        size=server.batch_size,
        forget=server.forget_batches,
      )
      try:
        return asyncio.run(runner.run(todo, past.index, watch)), runner.reason
      except KeyboardInterrupt:  # nothing is lost: batches are collected later
        reason = 'interrupted; the same command goes on'
        return session.Ending.INTERRUPTED, reason
    if server.backend == 'replay':
      backend = backends.Replay(pathlib.Path(server.replay))
    else:
      backend = backends.Http(self.sampling, **address)
    runner = session.Session(
      backend=backend,
      file=file,
      pace=pacing.Pace(server.concurrency, rpm=server.rpm, tpm=server.tpm),
      backoff=server.backoff,
      account=account,
      watch=watch,
      most=server.concurrency,
    )
    return asyncio.run(runner.run(todo)), runner.reason

  def _status(self, ending: tuple[session.Ending, str], watch, console) -> int:
    kind, reason = ending
    if kind == session.Ending.REFUSED:
      raise ValueError(
        f'The run was stopped: {reason}. What was answered is in {self.path};'
        ' the same command goes on from there.'
      )
    if reason:
      console.print(terminal_text.visible(f'stopped: {reason}'))
    console.print(f'completions: {self.path}')
    statuses = {
      session.Ending.BUDGET: _OUT_OF_MONEY,
      session.Ending.INTERRUPTED: _INTERRUPTED,
    }
    return statuses.get(kind, _FAILED_ROWS if watch.failures else 0)


def _console(*, stderr: bool = False) -> rich.console.Console:
  """A console that prints what it is given, not what it looks like."""
  return rich.console.Console(
    stderr=stderr, soft_wrap=True, highlight=False, markup=False, emoji=False
  )


def _show(
  console: rich.console.Console,
  survey: worklist.Survey,
  account: bill.Bill,
  past: history.History,
) -> None:
  """Prints the bill."""
  tokens, utmost, prices = survey.tokens, survey.utmost, account.prices
  lines = [
    f'to do    {survey.calls:,} calls for {survey.samples:,} completions;'
    f' {len(past.index):,} are answered already',
    f'tokens   about {tokens.prompt:,.0f} prompt, {tokens.completion:,.0f}'
    f' completion (at most {utmost.prompt:,.0f} and'
    f' {utmost.completion:,.0f}); longest prompt {survey.longest:,.0f}',
  ]
  if prices.prompt or prices.completion:
    spent = account.spent()
    lines.append(
      f'money    about {prices.cost(tokens):,.4f} (at most'
      f' {prices.cost(utmost):,.4f}); spent so far {spent:,.4f}'
    )
  if prices.budget is not None:
    lines.append(f'budget   {prices.budget:,.4f}')
  for line in lines:
    console.print(line)
