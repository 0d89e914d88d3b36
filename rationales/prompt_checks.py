# SPDX-License-Identifier: Apache-2.0
"""A prompt is checked before anything is sent: do its examples read back?"""

import re
from collections.abc import Iterator

from dsbs_jax import contract
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import parsing
from dsbs_jax.data.source import rows
from rationales import prompt as prompt_lib
from rationales.client import first_answers

TODO = 'TODO'
_WORD = re.compile(rf'\b{TODO}\b')


def check(
  prompt: prompt_lib.Prompt, benchmark: benchmark_lib.Benchmark, path: object
) -> None:
  """Checks a prompt against the benchmark that will read the answers.

  Each exemplar's answer, as the prompt renders it, goes through the
  benchmark's parser, which must find the exemplar's label in it; the label
  must be one that the benchmark allows.

  Raises:
    contract.UserError: an exemplar is not read back, or a part is unwritten.
  """
  unwritten = [place for place, text in _texts(prompt) if _WORD.search(text)]
  if unwritten:
    raise contract.UserError(
      f'{path} still has {TODO} in {", ".join(unwritten)}, expected your own'
      ' words there. Write them and run the command again.'
    )
  for number, exemplar in enumerate(prompt.exemplars, 1):
    text = prompt.exemplar_answer(exemplar)
    outcome = benchmark.parse(text)
    found = (
      repr(outcome.label)
      if isinstance(outcome, parsing.Parsed)
      else f'no label ({outcome.reason})'
    )
    if found != repr(exemplar.label):
      raise contract.UserError(
        f'{path}, exemplar {number}: the parser of {benchmark.name!r} reads'
        f" {found} in the answer {text!r:.400}, expected the exemplar's label"
        f' {exemplar.label!r}. The prompt must ask for answers as the parser'
        ' reads them: correct "answer", or the exemplar.'
      )
    wrong = first_answers.problem(benchmark, text)
    if wrong is not None:
      allowed = {
        rows.OUTSIDE_LABELS: f'one of {", ".join(benchmark.labels)}',
        rows.MALFORMED_LABEL: 'one that its metric can read',
      }
      raise contract.UserError(
        f'{path}, exemplar {number} has the label {exemplar.label!r} in the'
        f' answer {text!r:.400}, expected {allowed[wrong]}. Correct it.'
      )


def _texts(prompt: prompt_lib.Prompt) -> Iterator[tuple[str, str]]:
  yield 'instruction', prompt.instruction
  yield 'answer', prompt.answer
  for number, exemplar in enumerate(prompt.exemplars, 1):
    yield f'exemplar {number}', f'{exemplar.rationale}\n{exemplar.answer}'
