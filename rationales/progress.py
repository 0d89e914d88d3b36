# SPDX-License-Identifier: Apache-2.0
"""The line that a person watches: rows, rate, time left, tokens, money, quality.

On a terminal it stays in place; elsewhere a line is printed now and then.
"""

import collections
import time

import rich.console
import rich.live
import rich.text

from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import parsing
from dsbs_jax.data.source import joining
from rationales import bill, calls, worklist

_PER_SECOND = 4
_PLAIN_SECONDS = 10.0
_SHOWN_FAILURES = 20
_CUT = 'length'  # the finish reason of a completion that met max_tokens


class Progress:
  """Counts what comes in and shows it.

  Args:
    benchmark: parses and scores the completions.
    survey: what is to be done.
    account: the money.
    console: where it is shown.
  """

  def __init__(
    self,
    benchmark: benchmark_lib.Benchmark,
    survey: worklist.Survey,
    account: bill.Bill,
    console: rich.console.Console,
  ):
    self._benchmark, self._survey = benchmark, survey
    self._account, self._console = account, console
    self._start = self._printed = time.monotonic()
    self._live = None
    self.done = self.cut = self.parsed = self.judged = self.right = 0
    self.failures: collections.Counter[str] = collections.Counter()
    self.failed_rows: list[str] = []
    self.faults: collections.Counter[str] = collections.Counter()

  def __enter__(self) -> 'Progress':
    if self._console.is_terminal:
      self._live = rich.live.Live(
        console=self._console,
        get_renderable=lambda: rich.text.Text(
          self.line(), no_wrap=True, overflow='ellipsis'
        ),
        refresh_per_second=_PER_SECOND,
        transient=True,
      )
      self._live.start()
    return self

  def __exit__(self, *_) -> None:
    if self._live is not None:
      self._live.stop()
    self._console.print(self.line())

  def tick(self) -> None:
    """Prints a line where no terminal keeps one in place."""
    due = time.monotonic() - self._printed > _PLAIN_SECONDS
    if self._live is None and due:
      self._printed = time.monotonic()
      self._console.print(self.line())

  def answered(self, call: calls.Call, answer: calls.Answer) -> None:
    """Takes in the completions of a call."""
    self.cut += answer.finish_reasons.count(_CUT)
    for text in answer.texts:
      self.done += 1
      outcome = self._benchmark.parse(text)
      self.parsed += isinstance(outcome, parsing.Parsed)
      right = call.gold and joining.is_correct(
        self._benchmark, call.gold, outcome.label
      )
      if call.gold and right is not None:
        self.judged += 1
        self.right += right

  def failed(self, call: calls.Call, reason: str) -> None:
    """Takes in a row that failed for good."""
    self.failures[reason.partition(':')[0]] += 1
    if len(self.failed_rows) < _SHOWN_FAILURES:
      self.failed_rows.append(f'{call.example_id}: {reason}')

  def fault(self, reason: str) -> None:
    """Takes in an attempt that will be made again."""
    self.faults[reason.partition(':')[0]] += 1

  def line(self) -> str:
    """The state in one line."""
    seconds = max(time.monotonic() - self._start, 1e-9)
    rate = self.done / seconds
    total = self._survey.samples
    left = max(total - self.done, 0)
    paid = self._account.paid
    parts = [
      f'{self.done:,} of {total:,}' if total else f'{self.done:,}',
      f'{rate:,.1f}/s',
      f'left {_clock(left / rate)}' if rate and left else '',
      f'tokens {paid.prompt:,.0f}+{paid.completion:,.0f}',
      self._money(),
    ]
    if self.done:
      parts.append(f'parsed {self.parsed / self.done:.1%}')
    if self.judged:
      parts.append(f'right {self.right / self.judged:.1%}')
    if self.cut:
      parts.append(f'cut {self.cut / self.done:.1%}')
    if self.faults:
      parts.append(f'retried {sum(self.faults.values()):,}')
    if self.failures:
      parts.append(f'failed {sum(self.failures.values()):,}')
    return ' | '.join(part for part in parts if part)

  def _money(self) -> str:
    prices = self._account.prices
    if not (prices.prompt or prices.completion):
      return ''
    corrected = self._account.correct(self._survey.tokens)
    share = 1 - self.done / max(self._survey.samples, 1)
    rest = prices.cost(corrected) * max(share, 0.0)
    spent = self._account.spent()
    sure = '' if self._account.corrected else ' (estimate)'
    return f'money {spent:,.4f} of {spent + rest:,.4f}{sure}'

  def summary(self) -> list[str]:
    """What went wrong, for the end of a run."""
    lines = [
      f'retried {count:,}: {reason}'
      for reason, count in self.faults.most_common()
    ]
    if self.cut:
      lines.append(
        f'{self.cut:,} completions were cut at --max_tokens, perhaps before'
        ' their label'
      )
    total = sum(self.failures.values())
    if total:
      lines.append(
        f'{total:,} calls failed for good; they are in the file with their'
        ' reason, and the same command takes them up again:'
      )
      lines += [f'  {row}' for row in self.failed_rows]
      hidden = total - len(self.failed_rows)
      lines += [f'  and {hidden:,} more'] if hidden else []
    return lines


def _clock(seconds: float) -> str:
  minutes, second = divmod(int(max(seconds, 0)), 60)
  hours, minute = divmod(minutes, 60)
  return f'{hours}:{minute:02}:{second:02}'
