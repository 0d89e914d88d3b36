# SPDX-License-Identifier: Apache-2.0
"""How a call ended: a line in the file, its cost, and its count on screen."""

import dataclasses
from typing import Any

from rationales import calls, completions_file, costs, ledger
from rationales import monitor as monitor_lib


@dataclasses.dataclass(frozen=True)
class Recorder:
  """Writes down every outcome, in the same way for all backends.

  Attributes:
    file: the completions file.
    tracker: the money.
    monitor: the counters on screen.
    source: the backend's name, for the lines.
    free: whether the backend charges nothing.
  """

  file: ledger.Ledger
  tracker: costs.CostTracker
  monitor: monitor_lib.Monitor
  source: str
  free: bool = False

  def answer(self, call: calls.Call, answer: calls.Answer) -> calls.Call | None:
    """Records an answer to the call's first samples; a call for the others."""
    given = len(answer.texts)
    answered = dataclasses.replace(call, samples=call.samples[:given])
    usage = answer.usage
    if usage is None and not self.free:
      usage = self.tracker.upper_bound(answered).estimated_usage()
    hint = {'hint': call.gold} if call.hinted else {}
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
        | hint
        for position, sample in enumerate(answered.samples)
      )
    )
    self.tracker.record_answer(answered, usage)
    self.monitor.answered(answered, answer)
    missing = call.samples[given:]
    return dataclasses.replace(call, samples=missing) if missing else None

  def failure(self, call: calls.Call, reason: str, status: int | None) -> None:
    """Records a call that failed for good, with its HTTP status if any."""
    failed = {'of': call.kind, 'text': None, 'error': reason, 'status': status}
    self.file.append(
      *(
        self._line(completions_file.FAILURE, call, sample) | failed
        for sample in call.samples
      )
    )
    self.monitor.failed(call, reason)

  def lost(self, call: calls.Call, reason: str) -> None:
    """Records a call that may have been paid and gave no answer."""
    bound = self.tracker.record_lost(call)
    self.file.append(
      {
        'kind': completions_file.LOST,
        'id': call.example_id,
        'reason': reason,
        'usage': bound.estimated_usage(),
        'backend': self.source,
      }
    )

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
