# SPDX-License-Identifier: Apache-2.0
"""What a run will cost, what it has cost, and where it must stop.

Three figures per call, each with its use:

  expected   bytes / 4 tokens of prompt and the exemplars' mean answer, both
             corrected by the usage that the server reports once 20 answers
             are in: the estimate that is shown.
  at most    a token per byte of prompt (no byte-level vocabulary makes more)
             and `max_tokens` per sample: what `--budget` sets aside before a
             call flies, so that the sum cannot pass the budget.
  paid       the server's usage, from the file: a restart goes on counting.

A call that may have been paid but gave no answer counts at most.
"""

import dataclasses
import math
from typing import Any

from rationales import calls, records

CORRECTED_AFTER = 20

_BYTES_PER_TOKEN = 4.0
_MESSAGE_TOKENS = 8  # a chat message's own marks
_MILLION = 1e6


@dataclasses.dataclass(frozen=True)
class Prices:
  """Money per million tokens.

  Attributes:
    prompt, completion: the server's prices.
    budget: what a completions file may cost in all; None sets no limit.
  """

  prompt: float = 0.0
  completion: float = 0.0
  budget: float | None = None

  def __post_init__(self):
    figures = (self.prompt, self.completion, self.budget or 0)
    if not all(0 <= figure < math.inf for figure in figures):
      raise ValueError(
        f'--price_in is {self.prompt}, --price_out {self.completion},'
        f' --budget {self.budget}; expected 0 or more, in money per million'
        ' tokens.'
      )
    if self.budget is not None and not (self.prompt or self.completion):
      raise ValueError(
        f'--budget is {self.budget} but no price is known. Give --price_in'
        ' and --price_out, in money per million tokens.'
      )

  def cost(self, tokens: 'Tokens') -> float:
    return (
      tokens.prompt * self.prompt + tokens.completion * self.completion
    ) / _MILLION


@dataclasses.dataclass(frozen=True)
class Tokens:
  """Numbers of tokens, counted or estimated."""

  prompt: float = 0.0
  completion: float = 0.0

  def __add__(self, other: 'Tokens') -> 'Tokens':
    return Tokens(
      self.prompt + other.prompt, self.completion + other.completion
    )

  def __sub__(self, other: 'Tokens') -> 'Tokens':
    return Tokens(
      self.prompt - other.prompt, self.completion - other.completion
    )

  @property
  def total(self) -> float:
    return self.prompt + self.completion

  def usage(self, *, estimated: bool) -> dict[str, Any]:
    """The `usage` of a line."""
    usage = {
      'prompt_tokens': int(self.prompt),
      'completion_tokens': int(self.completion),
    }
    return usage | ({'estimated': True} if estimated else {})


def prompt_tokens(call: calls.Call) -> float:
  """Estimated tokens of a call's prompt, before any usage is known."""
  return call.prompt_bytes / _BYTES_PER_TOKEN + _marks(call)


def _marks(call: calls.Call) -> int:
  chat = not isinstance(call.content, str)
  return _MESSAGE_TOKENS * len(call.content) if chat else 0


class Bill:
  """Estimates, payments and reservations of one completions file.

  Args:
    prices: what tokens cost, and the budget.
    max_tokens: upper limit of a completion.
    answer_bytes: mean length of an exemplar's answer.

  Attributes:
    paid: tokens of all answers in the file, as the server counted them.
    lost: at most so many tokens were paid for nothing.
    answered: calls whose usage is in `paid`, of this run.
  """

  def __init__(self, prices: Prices, *, max_tokens: int, answer_bytes: float):
    if prices.budget is not None and not max_tokens:
      raise ValueError(
        '--budget needs --max_tokens: without a limit, one completion can'
        ' cost anything.'
      )
    self.prices = prices
    self.paid = self.lost = self.reserved = Tokens()
    self.answered = 0
    self._max_tokens = max_tokens
    self._answer = answer_bytes / _BYTES_PER_TOKEN
    # Of this run's answers: (estimated, counted) tokens, and samples.
    self._guessed = self._counted = Tokens()
    self._samples = 0

  def expected(self, call: calls.Call) -> Tokens:
    """The likely tokens of a call, by the usage seen so far."""
    prompt, completion = prompt_tokens(call), self._answer
    if self.corrected:
      prompt *= self._counted.prompt / self._guessed.prompt
      completion = self._counted.completion / self._samples
    elif self._max_tokens:
      completion = min(completion, self._max_tokens)
    return Tokens(prompt, completion * len(call.samples))

  def at_most(self, call: calls.Call) -> Tokens:
    """The tokens that a call cannot exceed."""
    prompt = call.prompt_bytes + _marks(call)
    return Tokens(prompt, self._max_tokens * len(call.samples))

  @property
  def corrected(self) -> bool:
    """Whether enough usage is known to correct the estimate."""
    return self.answered >= CORRECTED_AFTER

  def correct(self, todo: Tokens) -> Tokens:
    """An estimate made before the run, by the usage seen since."""
    if not self.corrected or not self._guessed.completion:
      return todo
    return Tokens(
      todo.prompt * self._counted.prompt / self._guessed.prompt,
      todo.completion * self._counted.completion / self._guessed.completion,
    )

  def spent(self) -> float:
    """Money paid, and at most lost."""
    return self.prices.cost(self.paid + self.lost)

  def admits(self, call: calls.Call) -> bool:
    """Sets the call's utmost cost aside, if the budget has that much left."""
    utmost = self.at_most(call)
    self.reserved += utmost
    if self.overdrawn():
      self.reserved -= utmost
      return False
    return True

  def release(self, call: calls.Call) -> None:
    """Takes the reservation of a call back."""
    self.reserved -= self.at_most(call)

  def answer(self, call: calls.Call, usage: dict[str, Any] | None) -> None:
    """Books an answer of this run; one without usage is free."""
    if usage is None:
      return
    counted = _tokens(usage)
    self.paid += counted
    if 'estimated' not in usage:
      plain = Tokens(prompt_tokens(call), self._answer * len(call.samples))
      self._guessed += plain
      self._counted += counted
      self._samples += len(call.samples)
      self.answered += 1

  def lose(self, call: calls.Call) -> Tokens:
    """Books a call that may have been paid for nothing."""
    utmost = self.at_most(call)
    self.lost += utmost
    return utmost

  def overdrawn(self) -> bool:
    """Whether what is spent and set aside is more than the budget."""
    everything = self.paid + self.lost + self.reserved
    budget = self.prices.budget
    return budget is not None and self.prices.cost(everything) > budget

  def remember(self, record: dict[str, Any]) -> None:
    """Books a line that an earlier run wrote."""
    usage = record.get('usage')
    if usage and record['kind'] in records.ANSWERS:
      self.paid += _tokens(usage)
    elif usage and record['kind'] == records.LOST:
      self.lost += _tokens(usage)


def _tokens(usage: dict[str, int]) -> Tokens:
  return Tokens(usage['prompt_tokens'], usage['completion_tokens'])
