# SPDX-License-Identifier: Apache-2.0
"""Prompts -> inputs of a student, and predictions -> completions.

An LLM is sent a prompt, often with worked examples before the question; a
student reads the question alone. An LLM writes one text with rationale and
label; a student predicts the two, which are put together so that the
benchmark's own parser takes them apart again.
"""

import dataclasses
import re

from dsbs_jax import contract
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.inference import predictor
from dsbs_jax.serving import errors

INPUT, RATIONALE, LABEL = '{input}', '{rationale}', '{label}'

# Separates the examples of a prompt (see rationales/prompt.py).
_SEPARATOR = '\n\n'
_PLACEHOLDERS = re.compile('|'.join(map(re.escape, (RATIONALE, LABEL))))
# Tried where a benchmark has no closed set: its parser reads one of them.
_TEST_LABELS = ('7', '( 7.0 - 3.0 )')
_TEST_RATIONALE = 'One sees it.'


@dataclasses.dataclass(frozen=True)
class CompletionFormat:
  """How prompts and completions read; a prompt of another form is an APIError.

  Attributes:
    prompt: the last question of a prompt, with `{input}` for the input.
    completion: what an LLM answers, with `{rationale}` and `{label}`.
    benchmark: whose parser reads the completions.
    rationales: whether the student gives rationales.
  """

  prompt: str
  completion: str
  benchmark: benchmark_lib.Benchmark
  rationales: bool

  def __post_init__(self):
    if self.prompt.count(INPUT) != 1:
      raise contract.UserError(
        f'PROMPT is {self.prompt!r}, expected {INPUT} in it once, such as'
        " 'Q: {input}\\nA:'."
      )
    counts = [
      self.completion.count(placeholder) for placeholder in (LABEL, RATIONALE)
    ]
    if counts[0] != 1 or counts[1] > 1 or self.rationales > counts[1]:
      raise contract.UserError(
        f'COMPLETION is {self.completion!r}, expected {RATIONALE} and {LABEL}'
        ' in it once each.'
      )
    self._check_round_trip()

  def chat_input(self, message: str, param: str = 'messages') -> str:
    """The input in the last message of a conversation.

    What PROMPT has after the input may be missing: in a chat, the end of the
    turn ends the question.
    """
    before, _, after = self.prompt.partition(INPUT)
    if not message.startswith(before):
      raise _question_missing(self.prompt, param)
    return message[len(before) :].removesuffix(after)

  def plain_input(self, prompt: str, param: str = 'prompt') -> str:
    """The input in the last example of a text to be continued."""
    before, _, after = self.prompt.partition(INPUT)
    start = 0
    if before and (found := prompt.rfind(_SEPARATOR + before)) >= 0:
      start = found + len(_SEPARATOR)
    block = prompt[start:]
    if not block.startswith(before) or not block.endswith(after):
      raise _question_missing(self.prompt, param)
    return block[len(before) :].removesuffix(after)

  def completion_text(self, prediction: predictor.Prediction) -> str:
    """The completion that says what a student predicts."""
    parts = {RATIONALE: prediction.rationale or '', LABEL: prediction.label}
    filled = _PLACEHOLDERS.sub(lambda match: parts[match[0]], self.completion)
    return filled if prediction.rationale else filled.lstrip()

  def round_trips(self, prediction: predictor.Prediction) -> bool:
    """Whether the benchmark's parser reads the same from the completion."""
    label, rationale = prediction.label, prediction.rationale or ''
    found = self.benchmark.parse(self.completion_text(prediction))
    key = self.benchmark.vote or str
    same = found.label == label or key(found.label) == key(label)
    whole = bool(label.strip()) and found.rationale.strip() == rationale.strip()
    return same and whole

  def _check_round_trip(self) -> None:
    rationale = _TEST_RATIONALE if self.rationales else None
    labels = self.benchmark.labels
    tried = [
      predictor.Prediction(label, 1.0, rationale)
      for label in labels or _TEST_LABELS
    ]
    right = list(map(self.round_trips, tried))
    if all(right) if labels else any(right):
      return
    text = self.completion_text(tried[right.index(False)])
    raise contract.UserError(
      f'COMPLETION is {self.completion!r}, but of {text!r} the parser of'
      f' {self.benchmark.name!r} reads {self.benchmark.parse(text)}. Write it'
      " as the benchmark's completions are written."
    )


def for_benchmark(
  benchmark: benchmark_lib.Benchmark,
  *,
  prompt: str,
  completion: str | None,
  rationales: bool,
) -> CompletionFormat | None:
  """The format with a given or the benchmark's own completion; None without.

  Raises:
    UserError: the benchmark's parser does not read such completions.
  """
  completion = completion or benchmark.completion
  if completion is None:
    return None
  return CompletionFormat(prompt, completion, benchmark, rationales)


def _question_missing(prompt: str, param: str) -> errors.APIError:
  return errors.invalid_request(
    f'{param} does not end with a question of the form {prompt!r}, which this'
    ' server was started with (PROMPT).',
    param=param,
    code='no_question',
  )
