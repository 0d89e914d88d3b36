# SPDX-License-Identifier: Apache-2.0
"""A student in the words of a teacher: prompts in, completions out.

A teacher is sent a prompt, often with worked examples before the question; a
student reads the question alone. A teacher writes one text with rationale and
label; a student gives the two, which are put together so that the benchmark's
own parser takes them apart again.
"""

import dataclasses
import re

from dsbs_jax import contract
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.inference import predictor
from dsbs_jax.serving import errors

INPUT, RATIONALE, LABEL = '{input}', '{rationale}', '{label}'

# What stands between the examples of a prompt (see rationales/prompt.py).
_BETWEEN = '\n\n'
_PLACES = re.compile('|'.join(map(re.escape, (RATIONALE, LABEL))))
# Labels of a benchmark without a closed set: some parser reads each.
_PROBES = ('7', '( 7.0 - 3.0 )')
_REASON = 'One sees it.'


@dataclasses.dataclass(frozen=True)
class CompletionFormat:
  """How prompts and completions read.

  Attributes:
    prompt: the last question of a prompt, with `{input}` for the input.
    completion: what is answered, with `{rationale}` and `{label}`.
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
    counts = [self.completion.count(place) for place in (LABEL, RATIONALE)]
    if counts[0] != 1 or counts[1] > 1 or self.rationales > counts[1]:
      raise contract.UserError(
        f'COMPLETION is {self.completion!r}, expected {RATIONALE} and {LABEL}'
        ' in it once each.'
      )
    self._check_round_trip()

  def chat_input(self, message: str, param: str = 'messages') -> str:
    """The input in the last message of a conversation.

    What the prompt has after the input may be missing: there, the turn ends
    the question.
    """
    before, _, after = self.prompt.partition(INPUT)
    if not message.startswith(before):
      raise _no_question(self.prompt, param)
    return message[len(before) :].removesuffix(after)

  def plain_input(self, prompt: str, param: str = 'prompt') -> str:
    """The input in the last block of a text to be continued."""
    before, _, after = self.prompt.partition(INPUT)
    start = 0
    if before and (found := prompt.rfind(_BETWEEN + before)) >= 0:
      start = found + len(_BETWEEN)
    block = prompt[start:]
    if not block.startswith(before) or not block.endswith(after):
      raise _no_question(self.prompt, param)
    return block[len(before) :].removesuffix(after)

  def write(self, answer: predictor.Prediction) -> str:
    """The completion for an answer."""
    return self._fill(answer.rationale or '', answer.label)

  def reads_back(self, answer: predictor.Prediction) -> bool:
    """Whether the benchmark's parser finds the answer in its completion."""
    return self._read_back(answer.rationale or '', answer.label)

  def _fill(self, rationale: str, label: str) -> str:
    parts = {RATIONALE: rationale, LABEL: label}
    filled = _PLACES.sub(lambda place: parts[place[0]], self.completion)
    return filled if rationale else filled.lstrip()

  def _read_back(self, rationale: str, label: str) -> bool:
    found = self.benchmark.parse(self._fill(rationale, label))
    key = self.benchmark.vote or str
    same = found.label == label or key(found.label) == key(label)
    whole = bool(label.strip()) and found.rationale.strip() == rationale.strip()
    return same and whole

  def _check_round_trip(self) -> None:
    reason = _REASON if self.rationales else ''
    labels = self.benchmark.labels
    right = [self._read_back(reason, label) for label in labels or _PROBES]
    if all(right) if labels else any(right):
      return
    wrong = (labels or _PROBES)[right.index(False)]
    text = self._fill(reason, wrong)
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
  """The wording of a benchmark, None where it has no form of completions.

  Args:
    benchmark: what the student was trained on.
    prompt: see `CompletionFormat`.
    completion: see `CompletionFormat`; None takes the benchmark's own.
    rationales: whether the student gives rationales.

  Raises:
    UserError: the benchmark's parser does not read such completions.
  """
  form = completion or benchmark.completion
  if form is None:
    return None
  return CompletionFormat(prompt, form, benchmark, rationales)


def _no_question(prompt: str, param: str) -> errors.APIError:
  return errors.invalid_request(
    f'{param} does not end with a question of the form {prompt!r}, which this'
    ' server was started with (PROMPT).',
    param=param,
    code='no_question',
  )
