# SPDX-License-Identifier: Apache-2.0
"""The progress line: rows, rate, time left, tokens, money, label accuracy."""

import collections
import time
from collections.abc import Callable

from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import parsing
from dsbs_jax.data.source import joining
from dsbs_jax.runtime import progress, terminal_text
from rationales.record import calls, completions_file, costs

_LISTED_FAILURES = 20


class Monitor:
  """Counts what comes in and shows it, beside the work estimated at the start.

  The progress is shown on a line of stderr, or the one that is given.
  """

  def __init__(
    self,
    benchmark: benchmark_lib.Benchmark,
    estimate: costs.Estimate,
    tracker: costs.CostTracker,
    *,
    line: progress.ProgressLine | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._benchmark, self._estimate = benchmark, estimate
    self._tracker = tracker
    self._line = line or progress.ProgressLine()
    self._clock, self._start = clock, clock()
    self._done = self._cut = self._empty = 0
    self._parsed = self._judged = self._correct = 0
    self._failures: collections.Counter[str] = collections.Counter()
    self._failed_rows: list[str] = []
    self._retries: collections.Counter[str] = collections.Counter()

  @property
  def any_failed(self) -> bool:
    """Whether a row failed for good."""
    return bool(self._failures)

  def tick(self) -> None:
    """Shows the state; called about once a second."""
    self._line.update(self.text())

  def finish(self) -> None:
    """Shows the last state and what went wrong."""
    for text in (self.text(), *self.summary()):
      self._line.say(terminal_text.visible(text))

  def answered(self, call: calls.Call, answer: calls.Answer) -> None:
    """Counts the completions of a call, and how many have its gold label."""
    self._cut += answer.finish_reasons.count(completions_file.LENGTH)
    for text in answer.texts:
      self._done += 1
      self._empty += not text.strip()
      if call.kind == completions_file.VERDICT:
        self._parsed += parsing.verdict(text) != parsing.UNREADABLE
        continue
      outcome = self._benchmark.parse(text)
      self._parsed += isinstance(outcome, parsing.Parsed)
      correct = call.gold and joining.is_correct(
        self._benchmark, call.gold, outcome.label
      )
      if call.gold and correct is not None:
        self._judged += 1
        self._correct += correct

  def failed(self, call: calls.Call, reason: str) -> None:
    """Counts a call that failed for good, by its reason up to a ':'."""
    self._failures[reason.partition(':')[0]] += 1
    if len(self._failed_rows) < _LISTED_FAILURES:
      self._failed_rows.append(f'{call.example_id}: {reason}')

  def retried(self, reason: str) -> None:
    """Counts an attempt that will be made again."""
    self._retries[reason.partition(':')[0]] += 1

  def text(self) -> str:
    """The state in one line."""
    rate = self._done / max(self._clock() - self._start, 1e-9)
    total = self._estimate.samples
    left = max(total - self._done, 0)
    paid = self._tracker.paid
    parts = [
      f'{self._done:,} of {total:,}' if total else f'{self._done:,}',
      f'{rate:,.1f}/s',
      f'ETA {progress.duration(left / rate)}' if rate and left else '',
      f'tokens {paid.prompt:,.0f}+{paid.completion:,.0f}',
      self._money(),
      f'parsed {self._parsed / self._done:.1%}' if self._done else '',
      f'correct {self._correct / self._judged:.1%}' if self._judged else '',
      f'cut {self._cut / self._done:.1%}' if self._cut else '',
      f'retried {self._retries.total():,}' if self._retries else '',
      f'failed {self._failures.total():,}' if self._failures else '',
    ]
    return ' | '.join(part for part in parts if part)

  def _money(self) -> str:
    prices = self._tracker.prices
    if not (prices.prompt or prices.completion):
      return ''
    total = prices.cost(self._tracker.calibrate(self._estimate.tokens))
    left = max(1 - self._done / max(self._estimate.samples, 1), 0.0)
    spent = self._tracker.spent()
    note = '' if self._tracker.calibrated else ' (estimate)'
    return f'money {spent:,.4f} of {spent + total * left:,.4f}{note}'

  def summary(self) -> list[str]:
    """What went wrong, for the end of a run."""
    lines = [
      f'retried {count:,} times: {reason}'
      for reason, count in self._retries.most_common()
    ]
    if self._cut:
      lines.append(
        f'{self._cut:,} completions were cut at --max_tokens, perhaps before'
        ' their label: --retry=cut with a higher limit asks again'
      )
    if self._empty:
      lines.append(
        f'{self._empty:,} completions are empty: --retry=empty asks again'
      )
    total = self._failures.total()
    if total:
      lines.append(
        f'{total:,} calls failed for good; the file has the reasons, and the'
        ' same command asks these rows again:'
      )
      lines += [f'  {row}' for row in self._failed_rows]
      hidden = total - len(self._failed_rows)
      lines += [f'  and {hidden:,} more'] if hidden else []
    return lines
