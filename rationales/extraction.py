# SPDX-License-Identifier: Apache-2.0
"""One extraction: reads the file, shows the costs, makes the missing calls."""

import asyncio
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data import soft_labels
from dsbs_jax.runtime import progress, terminal_text
from rationales import further_passes, worklist
from rationales.client import (
  backends,
  batch,
  first_answers,
  monitor,
  online,
  recorder,
  server_config,
)
from rationales.client.failures import ExitReason
from rationales.record import calls, costs, ledger

# Exit statuses beside 0, 1 where rows failed, and 2 for a user's mistake.
_STATUSES = {ExitReason.BUDGET: 3, ExitReason.INTERRUPTED: 130}
# Without an exemplar to go by: two sentences.
_ANSWER_BYTES = 200.0

_Runner = batch.BatchRunner | online.OnlineRunner


@dataclasses.dataclass(frozen=True)
class Extraction:
  """Who is asked what, and where the answers go."""

  path: pathlib.Path  # the completions file
  work: worklist.Worklist
  sampling: calls.Sampling
  prompt_settings: Mapping[str, Any]  # identify the prompt in the file's header
  server: server_config.ServerConfig
  prices: costs.Prices
  rationalize: bool = False  # whether this is the second pass, with hints
  further: further_passes.FurtherPass | None = None  # over answered rows
  stop_early: bool = True  # whether a run whose first calls are of no use ends

  def show_costs(self) -> int:
    """Prints what the run would cost; changes no file and asks no server."""
    _, lines = self._estimate(self._read())
    print('\n'.join(lines))
    return 0

  def run(self) -> int:
    """Makes the calls that are missing; returns the exit status.

    Raises:
      contract.UserError: the file or the settings are wrong, or the server
        refuses all calls.
    """
    with ledger.Ledger(self.path, self.server.key.redact) as file:
      if file.repaired:
        progress.say(f'{self.path}: an incomplete last line was cut off')
      contents = self._read()
      if contents.jobs.pending():
        runner, counts = self._collect_pending(file, contents)
        if contents.jobs.pending():
          return self._status(runner, counts)
        if runner.message:
          progress.say(terminal_text.visible(runner.message))
        contents = self._read()
      while True:
        estimate, lines = self._estimate(contents)
        for line in lines:
          progress.say(line)
        if not estimate.calls:
          return 0
        if contents.settings != (settings := self._settings()):
          known = self._substitutes(contents)
          file.append(ledger.header(settings, known))
        todo = self._calls(contents)
        runner, counts = self._ask(todo, estimate, file, contents)
        if not runner.again or runner.exit_reason != ExitReason.DONE:
          return self._status(runner, counts)
        contents = self._read()

  def _settings(self) -> dict[str, Any]:
    """What must not change while a completions file grows."""
    return {
      'benchmark': self.work.benchmark.name,
      'split': self.work.split,
      **self.prompt_settings,
      **dataclasses.asdict(self.sampling),
      'stop': list(self.sampling.stop),  # as JSON gives it back
    }

  def _substitutes(self, contents: ledger.Contents) -> dict[str, str | None]:
    """What earlier runs have learned about this model."""
    same = contents.settings.get('model') == self.sampling.model
    return dict(contents.substitutes) if same else {}

  def _read(self) -> ledger.Contents:
    prompt = self.work.prompt
    answers = [
      len(prompt.exemplar_answer(exemplar).encode())
      for exemplar in prompt.exemplars
    ]
    tracker = costs.CostTracker(
      self.prices,
      max_tokens=self.sampling.max_tokens,
      answer_bytes=sum(answers) / len(answers) if answers else _ANSWER_BYTES,
    )
    contents = ledger.read(self.path, tracker)
    begun = len(contents.index) or contents.jobs.pending()
    if begun and not self.work.force:
      settings = self._settings()
      if self.work.retry:  # with a higher limit, or another draw
        for name in ('max_tokens', 'temperature'):
          settings[name] = contents.settings.get(name)
      ledger.check_settings(self.path, contents.settings, settings)
    return contents

  def _estimate(
    self, contents: ledger.Contents
  ) -> tuple[costs.Estimate, list[str]]:
    """The work that is left, and the same in words."""
    estimate = costs.estimate_calls(self._calls(contents), contents.tracker)
    foreign = self.work.answers_of_no_row(contents.index)
    lines = _cost_lines(
      estimate, contents, answered=len(contents.index) - len(foreign)
    )
    if foreign:
      with self.path.open('rb') as file:
        file.seek(foreign[0])
        first = json.loads(file.readline())['id']
      lines.append(
        f'foreign  {len(foreign):,} answers in {self.path} are to ids that no'
        f' row of {self.work.split} has, such as {first!r}; they count for'
        ' nothing'
      )
    return estimate, lines

  def preview_further(self, count: int) -> int:
    """Prints the first prompts of a further pass as they would be sent."""
    text = self.further.preview(count, self._read().index, self.path)
    print(terminal_text.visible(text))
    return 0

  def _calls(self, contents: ledger.Contents) -> Iterator[calls.Call]:
    if self.further:
      return self.further.todo(contents.index)
    if not self.rationalize:
      return self.work.first_pass(contents.index)
    if not self.path.is_file():
      raise contract.UserError(
        f'{self.path} does not exist, expected the completions of a first'
        ' pass: --rationalize asks again about their wrong labels. Run'
        ' without it first, or correct --out.'
      )
    return self.work.second_pass(contents.index)

  def _collect_pending(
    self, file: ledger.Ledger, contents: ledger.Contents
  ) -> tuple[_Runner, monitor.Monitor]:
    """Collects the batches of an earlier run, before anything else is asked."""
    ids = ', '.join(job.batch_id or '?' for job in contents.jobs.pending())
    if self.server.backend != 'batch':
      raise contract.UserError(
        f'{self.path} waits for batches ({ids}). Collect them with'
        ' --backend=batch first: their rows would be paid twice.'
      )
    progress.say(f'waiting for batches of an earlier run: {ids}')
    return self._ask(iter(()), costs.Estimate(), file, contents)

  def _ask(
    self,
    todo: Iterator[calls.Call],
    estimate: costs.Estimate,
    file: ledger.Ledger,
    contents: ledger.Contents,
  ) -> tuple[_Runner, monitor.Monitor]:
    """Makes calls by the chosen backend."""
    server, tracker = self.server, contents.tracker
    counts = monitor.Monitor(self.work.benchmark, estimate, tracker)
    record = functools.partial(
      recorder.Recorder,
      file,
      tracker,
      counts,
      contents.models,
      self.work.force,
      answer_tokens=self._answer_tokens if self.sampling.logprobs else None,
    )
    fields = self._substitutes(contents)

    def on_learned(name: str) -> None:
      instead = fields[name]
      progress.say(
        f'the server refuses {name}: '
        + (f'{instead} is sent instead' if instead else 'it is left out')
      )
      file.append(ledger.header(self._settings(), fields))

    substitutes = calls.Substitutes(fields, on_learned)
    if server.backend == 'batch':
      source = f'batch {server.public_url}'
      runner = batch.BatchRunner(
        self.sampling, server, record(source), contents, substitutes
      )
    else:
      if server.backend == 'replay':
        backend = backends.Replay(pathlib.Path(server.replay))
      else:
        backend = backends.Http(self.sampling, server, substitutes)
      runner = online.OnlineRunner(
        backend,
        server,
        record(backend.name, free=backend.free),
        None
        if backend.free
        else first_answers.FirstAnswers(
          self.work.benchmark, self.sampling.model, stop=self.stop_early
        ),
      )
    asyncio.run(runner.run(todo))
    counts.finish()
    return runner, counts

  def _answer_tokens(
    self, text: str, tokens: Sequence[soft_labels.Token]
  ) -> list[list[Any]] | None:
    return soft_labels.at_answer(text, tokens, self.work.benchmark.parse)

  def _status(self, runner: _Runner, counts: monitor.Monitor) -> int:
    """Says how the run ended; returns the exit status."""
    if runner.exit_reason == ExitReason.REFUSED:
      raise contract.UserError(
        f'The run was stopped: {runner.message}. What was answered is in'
        f' {self.path}; the same command continues from there.'
      )
    if runner.message:
      progress.say(terminal_text.visible(f'stopped: {runner.message}'))
    progress.say(f'completions: {self.path}')
    return _STATUSES.get(runner.exit_reason, int(counts.any_failed))


def _cost_lines(
  estimate: costs.Estimate, contents: ledger.Contents, *, answered: int
) -> list[str]:
  """What is to be done and what it costs, for the user."""
  tokens, bound = estimate.tokens, estimate.upper_bound
  tracker, prices = contents.tracker, contents.tracker.prices
  lines = [
    f'to do    {estimate.calls:,} calls for {estimate.samples:,} completions;'
    f' {answered:,} are answered already',
    f'tokens   about {tokens.prompt:,.0f} prompt, {tokens.completion:,.0f}'
    f' completion (at most {bound.prompt:,.0f} and'
    f' {bound.completion:,.0f}); longest prompt {estimate.longest:,.0f}',
  ]
  if prices.prompt or prices.completion:
    lines.append(
      f'money    about {prices.cost(tokens):,.4f} (at most'
      f' {prices.cost(bound):,.4f}); spent so far {tracker.spent():,.4f}'
    )
  if prices.budget is not None:
    lines.append(f'budget   {prices.budget:,.4f}')
  return lines
