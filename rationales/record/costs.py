# SPDX-License-Identifier: Apache-2.0
"""What a run will cost, what it has cost, and whether a call fits the budget.

Three figures per call:

  estimate     bytes / 4 tokens of prompt and the exemplars' mean answer; once
               20 answers are in, both are scaled by the usage that the server
               reported. This is what the user sees.
  upper bound  a token per byte of prompt (no byte-level vocabulary makes more)
               and `max_tokens` per sample. `--budget` reserves it before a
               call is sent, so that the total cannot exceed the budget.
  paid         the server's usage. It is in the file, so that a restart adds to
               it.

A call that may have been paid but gave no answer counts with its upper bound.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from dsbs_jax import contract
from rationales.record import calls, completions_file

CALIBRATED_AFTER = 20

_BYTES_PER_TOKEN = 4.0
_TOKENS_PER_MESSAGE = 8  # what a chat template adds to each message


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

  def estimated_usage(self) -> dict[str, Any]:
    """The `usage` of a line that the server reported none for."""
    return {
      'prompt_tokens': int(self.prompt),
      'completion_tokens': int(self.completion),
      'estimated': True,
    }


@dataclasses.dataclass(frozen=True)
class Prices:
  """Money per million tokens.

  Raises:
    contract.UserError: a price is negative, or there is a budget but no price.
  """

  prompt: float = 0.0
  completion: float = 0.0
  budget: float | None = None  # of a completions file in all; None: no limit

  def __post_init__(self):
    figures = (self.prompt, self.completion, self.budget or 0)
    if not all(0 <= figure < math.inf for figure in figures):
      raise contract.UserError(
        f'--price_in is {self.prompt}, --price_out {self.completion},'
        f' --budget {self.budget}; expected 0 or more, in money per million'
        ' tokens.'
      )
    if self.budget is not None and not (self.prompt or self.completion):
      raise contract.UserError(
        f'--budget is {self.budget} but no price is known. Give --price_in'
        ' and --price_out, in money per million tokens.'
      )

  def cost(self, tokens: Tokens) -> float:
    return (
      tokens.prompt * self.prompt + tokens.completion * self.completion
    ) / 1e6


def prompt_tokens(call: calls.Call) -> float:
  """Estimated tokens of a call's prompt, before any usage is known."""
  return call.prompt_bytes / _BYTES_PER_TOKEN + _template_tokens(call)


def _template_tokens(call: calls.Call) -> int:
  chat = not isinstance(call.content, str)
  return _TOKENS_PER_MESSAGE * len(call.content) if chat else 0


class CostTracker:
  """Estimates, payments and reservations of one completions file.

  Args:
    prices: what tokens cost, and the budget.
    max_tokens: upper limit of a completion, in tokens; 0 sets none.
    answer_bytes: mean length of an exemplar's answer.

  Attributes:
    paid: tokens of all answers in the file, as the server counted them.
    lost: upper bound of the tokens that were paid without an answer.
    reserved: upper bound of the calls that are being made.

  Raises:
    contract.UserError: there is a budget but no limit of a completion.
  """

  def __init__(self, prices: Prices, *, max_tokens: int, answer_bytes: float):
    if prices.budget is not None and not max_tokens:
      raise contract.UserError(
        '--budget needs --max_tokens: without a limit, one completion can'
        ' cost anything.'
      )
    self.prices = prices
    self.paid = self.lost = self.reserved = Tokens()
    self._max_tokens = max_tokens
    answer_tokens = answer_bytes / _BYTES_PER_TOKEN
    self._answer_tokens = min(answer_tokens, max_tokens or math.inf)
    # Of the answers whose usage this run knows: their number, and their tokens
    # by the first estimate and by the server's count.
    self._answers = 0
    self._estimated = self._counted = Tokens()

  def estimate(self, call: calls.Call) -> Tokens:
    """The likely tokens of a call, by the usage seen so far."""
    return self.calibrate(self._first_estimate(call))

  def _first_estimate(self, call: calls.Call) -> Tokens:
    return Tokens(prompt_tokens(call), self._answer_tokens * len(call.samples))

  def upper_bound(self, call: calls.Call) -> Tokens:
    """The tokens that a call cannot exceed."""
    prompt = call.prompt_bytes + _template_tokens(call)
    return Tokens(prompt, self._max_tokens * len(call.samples))

  @property
  def calibrated(self) -> bool:
    """Whether enough usage is known to scale the estimates by it."""
    return self._answers >= CALIBRATED_AFTER

  def calibrate(self, estimate: Tokens) -> Tokens:
    """Scales a first estimate by the usage seen so far."""
    if not self.calibrated or not self._estimated.completion:
      return estimate
    counted, estimated = self._counted, self._estimated
    return Tokens(
      estimate.prompt * counted.prompt / estimated.prompt,
      estimate.completion * counted.completion / estimated.completion,
    )

  def spent(self) -> float:
    """Money paid, with the upper bound of what was lost."""
    return self.prices.cost(self.paid + self.lost)

  def try_reserve(self, call: calls.Call) -> bool:
    """Reserves a call's upper bound; False if the budget has less left."""
    bound = self.upper_bound(call)
    self.reserved += bound
    if self.over_budget():
      self.reserved -= bound
      return False
    return True

  def release(self, call: calls.Call) -> None:
    """Takes the reservation of a call back."""
    self.reserved -= self.upper_bound(call)

  def record_answer(
    self, call: calls.Call, usage: dict[str, Any] | None
  ) -> None:
    """Counts an answer of this run; one without usage is free.

    Usage with 'estimated' in it is ours, and teaches the estimate nothing.
    """
    if usage is None:
      return
    counted = _tokens(usage)
    self.paid += counted
    if 'estimated' not in usage:
      self._estimated += self._first_estimate(call)
      self._counted += counted
      self._answers += 1

  def record_lost(self, call: calls.Call) -> Tokens:
    """Counts a call that may have been paid without an answer; its bound."""
    bound = self.upper_bound(call)
    self.lost += bound
    return bound

  def restore(self, record: dict[str, Any]) -> None:
    """Counts a line that an earlier run wrote."""
    usage = record.get('usage')
    if usage and record['kind'] in completions_file.ANSWERS:
      self.paid += _tokens(usage)
    elif usage and record['kind'] == completions_file.LOST:
      self.lost += _tokens(usage)

  def over_budget(self) -> bool:
    """Whether what is spent and reserved exceeds the budget."""
    everything = self.paid + self.lost + self.reserved
    budget = self.prices.budget
    return budget is not None and self.prices.cost(everything) > budget


def _tokens(usage: dict[str, int]) -> Tokens:
  return Tokens(usage['prompt_tokens'], usage['completion_tokens'])


@dataclasses.dataclass
class Estimate:
  """The work that is left, counted before the first call."""

  calls: int = 0
  samples: int = 0  # completions that they ask for
  tokens: Tokens = Tokens()  # likely
  upper_bound: Tokens = Tokens()
  longest: float = 0.0  # estimated tokens of the longest prompt


def estimate_calls(
  todo: Iterator[calls.Call], tracker: CostTracker
) -> Estimate:
  """Counts the calls that are left, and by the tracker what they will cost."""
  result = Estimate()
  for call in todo:
    tokens = tracker.estimate(call)
    result.tokens += tokens
    result.upper_bound += tracker.upper_bound(call)
    result.calls += 1
    result.samples += len(call.samples)
    result.longest = max(result.longest, tokens.prompt)
  return result
