# SPDX-License-Identifier: Apache-2.0
"""How a call ended: a line in the file, its cost, and its count on screen."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from dsbs_jax.data import soft_labels
from dsbs_jax.runtime import progress, terminal_text
from rationales.client import failures
from rationales.client import monitor as monitor_lib
from rationales.record import calls, completions_file, costs, ledger


@dataclasses.dataclass(frozen=True)
class Recorder:
  """Writes down every outcome, in the same way for all backends."""

  file: ledger.Ledger
  tracker: costs.CostTracker
  monitor: monitor_lib.Monitor
  models: set[str]  # who gave the answers in the file, by the server's names
  mixed: bool  # whether another model may answer, too
  source: str  # the backend's name, for the lines
  free: bool = False  # whether the backend charges nothing
  # A completion and its tokens -> those that spell the answer, which are kept.
  answer_tokens: Callable[[str, Sequence[soft_labels.Token]], Any] | None = None

  def answer(self, call: calls.Call, answer: calls.Answer) -> calls.Call | None:
    """Records an answer to the call's first samples.

    Returns:
      A call for the samples without a text, None if there is none.

    Raises:
      failures.FatalError: another model has answered; nothing is recorded.
    """
    self._check_model(answer.model)
    given = len(answer.texts)
    answered = dataclasses.replace(call, samples=call.samples[:given])
    usage = answer.usage
    if usage is None and not self.free:
      usage = self.tracker.upper_bound(answered).estimated_usage()
    extra = {'hint': call.gold} if call.hinted else {}
    if call.about is not None:
      extra['about'] = call.about
    if call.replaces >= 0:
      extra['retry'] = True
    self.file.append(
      *(
        self._line(call.kind, call, sample)
        | {
          'text': answer.texts[position],
          'finish_reason': answer.finish_reasons[position],
          # Once per call: the sum over lines is what was paid.
          'usage': None if position else usage,
          'model': answer.model,
        }
        | answer.notes[position]
        | self._logprobs(call, answer, position)
        | extra
        for position, sample in enumerate(answered.samples)
      )
    )
    self.tracker.record_answer(answered, usage)
    self.monitor.answered(answered, answer)
    missing = call.samples[given:]
    return dataclasses.replace(call, samples=missing) if missing else None

  def _logprobs(
    self, call: calls.Call, answer: calls.Answer, position: int
  ) -> dict[str, Any]:
    """What the server said of the answer's tokens; {} where it said nothing."""
    tokens = answer.logprobs[position] if answer.logprobs else None
    if not tokens or call.kind != completions_file.COMPLETION:
      return {}
    kept = self.answer_tokens and self.answer_tokens(
      answer.texts[position], tokens
    )
    return {'logprobs': kept} if kept else {}

  def failure(self, call: calls.Call, reason: str, status: int | None) -> None:
    """Records a call that failed for good, by a reason free of keys."""
    failed = {'of': call.kind, 'text': None, 'error': reason, 'status': status}
    self.file.append(
      *(
        self._line(completions_file.FAILURE, call, sample) | failed
        for sample in call.samples
      )
    )
    self.monitor.failed(call, reason)

  def lost(
    self, call: calls.Call, reason: str, answer: calls.Answer | None = None
  ) -> None:
    """Records a call that may have been paid and gave no usable answer.

    The usage of an unusable answer is the cost; without one the upper bound is.
    """
    usage = answer and answer.usage
    if usage:
      self.tracker.record_answer(call, usage)
    elif not self.free:
      usage = self.tracker.record_lost(call).estimated_usage()
    unused = {'model': answer.model, 'texts': answer.texts} if answer else {}
    self.file.append(
      {
        'kind': completions_file.LOST,
        'id': call.example_id,
        'reason': reason,
        'usage': usage,
        'backend': self.source,
      }
      | unused
    )

  def _check_model(self, model: str) -> None:
    if not model or model in self.models:
      return
    if self.models:
      words = (
        f'the server answers as {model!r}, and the answers in'
        f' {self.file.path} are of {", ".join(sorted(self.models))}'
      )
      if not self.mixed:
        raise failures.FatalError(
          f'{words}; serve that model again, give another --out, or mix them'
          ' with --force'
        )
      progress.say(terminal_text.visible(words))
    self.models.add(model)

  def _line(self, kind: str, call: calls.Call, sample: int) -> dict[str, Any]:
    """What the lines of answers and failures have in common."""
    return {
      'kind': kind,
      'id': call.example_id,
      'sample': sample,
      'fingerprint': call.fingerprint,
      'prompt_hash': call.prompt_hash,
      'backend': self.source,
    }
