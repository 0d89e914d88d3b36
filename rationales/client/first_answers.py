# SPDX-License-Identifier: Apache-2.0
"""Looks at a run's first answers: shows one, and stops a run without use."""

import collections
import dataclasses

from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import parsing
from dsbs_jax.data.source import counterfactuals, rows
from dsbs_jax.runtime import progress, terminal_text
from rationales.record import calls, completions_file

# So many calls decide whether the others are made.
JUDGED_CALLS = 20
_SHOWN_CHARS = 300


def problem(benchmark: benchmark_lib.Benchmark, text: str) -> str | None:
  """Why a completion gives no label of the benchmark; None if it gives one.

  Choices of single rows are not checked.
  """
  outcome = benchmark.parse(text)
  if isinstance(outcome, parsing.Unparsed):
    return outcome.reason
  fixed = dataclasses.replace(benchmark, options=None)
  return rows.label_problem(fixed, {}, outcome.label)


class FirstAnswers:
  """Shows the first answer as parsed, and judges the first twenty.

  If they are of no use, `stop` tells whether the run ends.
  """

  def __init__(
    self, benchmark: benchmark_lib.Benchmark, model: str, *, stop: bool
  ):
    self.stop = stop
    self._benchmark, self._model = benchmark, model
    self._calls, self._useful, self._cut = 0, False, 0
    self._reasons: collections.Counter[str] = collections.Counter()
    self._example = ''

  def allows(self, in_flight: int) -> bool:
    """Whether one more call than those in flight may be made.

    Until an answer is of use no more calls are made than decide it.
    """
    decided = self._useful or not self.stop
    return decided or self._calls + in_flight < JUDGED_CALLS

  def add(self, call: calls.Call, answer: calls.Answer) -> str | None:
    """Looks at an answer; why the run should end, or None."""
    if not self._calls:
      self._show(call, answer)
    self._calls += 1
    if self._useful or self._calls > JUDGED_CALLS:
      return None
    for text, reason in zip(answer.texts, answer.finish_reasons, strict=True):
      wrong = self._problem(call, text)
      if wrong is None:
        self._useful = True
        return None
      self._reasons[wrong] += 1
      self._cut += reason == completions_file.LENGTH
      self._example = self._example or f'{call.example_id}: {_short(text)}'
    if self._calls < JUDGED_CALLS or not self.stop:
      return None
    reasons = ', '.join(f'{n} {r}' for r, n in self._reasons.most_common())
    cut = f', {self._cut} of them cut at --max_tokens' if self._cut else ''
    wanted = f'a label that the benchmark {self._benchmark.name!r} reads'
    if call.kind == completions_file.VERDICT:
      wanted = 'a yes or no'
    if call.kind == completions_file.COUNTERFACTUAL:
      wanted = 'the wrong label that was asked for'
    return (
      f'none of the first {JUDGED_CALLS} answers has {wanted}'
      f' ({reasons}{cut}), such as'
      f' {self._example}. --preview shows the prompt. Correct it and give'
      ' another --out, or go on with --nostop_early'
    )

  def _problem(self, call: calls.Call, text: str) -> str | None:
    """Why an answer is of no use; None if it is of use."""
    if call.kind == completions_file.VERDICT:
      unread = parsing.verdict(text) == parsing.UNREADABLE
      return parsing.UNREADABLE if unread else None
    if call.kind != completions_file.COUNTERFACTUAL:
      return problem(self._benchmark, text)
    outcome = self._benchmark.parse(text)
    if isinstance(outcome, parsing.Unparsed):
      return outcome.reason
    argued = counterfactuals.argued(self._benchmark, outcome, call.gold)
    return None if argued else 'another_label'

  def _show(self, call: calls.Call, answer: calls.Answer) -> None:
    text, asked = answer.texts[0], len(call.samples)
    model = repr(answer.model) if answer.model else 'an unnamed model'
    if answer.model not in ('', self._model):
      model += f', where {self._model!r} was asked for'
    lines = [f'first answer, to {call.example_id}, by {model}:']
    wrong = self._problem(call, text)
    if wrong is None and call.kind == completions_file.VERDICT:
      lines.append(f'  verdict    {parsing.verdict(text)}: {_short(text)}')
    elif wrong is None:
      said = self._benchmark.parse(text)
      whose = 'the human label'
      if call.kind == completions_file.COUNTERFACTUAL:
        whose = 'asked for'
      human = f' ({whose}: {_short(call.gold)})' if call.gold else ''
      lines += [
        f'  rationale  {_short(said.rationale)}',
        f'  label      {_short(said.label)}{human}',
      ]
    else:
      lines += [f'  answer     {_short(text)}', f'  no label   {wrong}']
    if answer.finish_reasons[0] == completions_file.LENGTH:
      lines.append('  note       it was cut at --max_tokens')
    thought = answer.notes[0].get('reasoning')
    if thought:
      lines.append(
        f'  note       {len(thought):,} characters of reasoning came before'
        ' it; --max_tokens counts them, too'
      )
    if len(answer.texts) < asked:
      lines.append(
        f'  note       {asked} samples were asked for and {len(answer.texts)}'
        ' came: the others are asked for again, as with --samples_per_call=1'
      )
    for line in lines:
      progress.say(terminal_text.visible(line))


def _short(text: str) -> str:
  """A text in one line, with its middle left out if it is long."""
  if len(text) > _SHOWN_CHARS:
    text = f'{text[: _SHOWN_CHARS // 2]} [...] {text[-_SHOWN_CHARS // 2 :]}'
  return repr(text)
