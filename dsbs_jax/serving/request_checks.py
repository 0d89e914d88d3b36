# SPDX-License-Identifier: Apache-2.0
"""What a request asks -> questions that are sure to be answered.

Everything that could be wrong with an input is found here, before it joins a
batch with the inputs of others.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import vocabularies
from dsbs_jax.inference import input_lines, predictor
from dsbs_jax.serving import bodies, errors

_FIELDS = ('input', 'inputs', 'rationales', 'model')
_INPUT_FIELDS = ('input', 'choices')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """What a request may hold.

  Attributes:
    inputs: inputs per request.
    input_tokens: tokens of an input, with its prefix and end.
    choices: choices of an input; 0 where none may be given.
    choice_tokens: tokens of a choice.
  """

  inputs: int
  input_tokens: int
  choices: int
  choice_tokens: int


@dataclasses.dataclass(frozen=True)
class Asked:
  """A question that is sure to be answered.

  Attributes:
    question: what is asked.
    num_tokens: tokens that the student reads of it.
  """

  question: input_lines.Question
  num_tokens: int


@dataclasses.dataclass(frozen=True)
class Reader:
  """Reads and checks what is asked.

  Attributes:
    limits: what a request may hold.
    answerer: counts tokens.
    vocabulary: of the student.
    benchmark: reads raw rows; None where inputs are text.
    must_choose: whether every input needs choices.
  """

  limits: Limits
  answerer: predictor.Answerer
  vocabulary: vocabularies.Vocabulary
  benchmark: benchmark_lib.Benchmark | None = None
  must_choose: bool = False

  def read(self, body: dict[str, Any]) -> tuple[list[Asked], bool]:
    """Reads the body of /v1/answers.

    Args:
      body: the JSON object.

    Returns:
      The questions in order, and whether their rationales are wanted.

    Raises:
      refusals.Refusal: something is wrong with it.
    """
    bodies.check_fields(body, _FIELDS)
    if ('input' in body) == ('inputs' in body):
      raise errors.invalid(
        'the body has both or none of input and inputs, expected one of them.',
        param='inputs',
      )
    rationales = body.get('rationales', True)
    if not isinstance(rationales, bool):
      raise errors.invalid(
        f'rationales is {str(rationales)[:40]!r}, expected true or false.',
        param='rationales',
        code='invalid_type',
      )
    if 'input' in body:
      items, places = [body['input']], ['input']
    else:
      items = bodies.sized(body['inputs'], 'inputs', most=self.limits.inputs)
      places = [f'inputs[{i}]' for i in range(len(items))]
    asked = [
      self._question(item, place)
      for item, place in zip(items, places, strict=True)
    ]
    return self.checked(asked, places), rationales

  def checked(
    self, asked: Sequence[input_lines.Question], places: Sequence[str]
  ) -> list[Asked]:
    """Checks lengths and choices.

    Args:
      asked: the questions.
      places: where each stands in the body.

    Raises:
      refusals.Refusal: one of them is too long, or has no choices.
    """
    lengths = self.answerer.lengths(asked)
    for question, length, place in zip(asked, lengths, places, strict=True):
      if length > self.limits.input_tokens:
        raise errors.invalid(
          f'{place} has {length:,} tokens, expected at most'
          f' {self.limits.input_tokens:,}. Shorten it, or start the server'
          ' with larger INPUT_LENGTHS.',
          param=place,
          code='context_length_exceeded',
        )
      self._check_choices(question, place)
    return [Asked(*pair) for pair in zip(asked, lengths, strict=True)]

  def _question(self, item: Any, place: str) -> input_lines.Question:
    if isinstance(item, dict) and self.benchmark is not None:
      found = input_lines.of_row(item, place, benchmark=self.benchmark)
      if isinstance(found, input_lines.Unreadable):
        raise errors.invalid(found.reason, param=place)
      for text in (found.text, *found.choices):
        bodies.text(text, place)
      return found
    if not isinstance(item, dict):
      return input_lines.Question(bodies.text(item, place))
    bodies.check_fields(item, _INPUT_FIELDS)
    if 'input' not in item:
      raise errors.invalid(f'{place} has no input.', param=place)
    text, choices = bodies.text(item['input'], f'{place}.input'), ()
    if item.get('choices') is not None:
      param = f'{place}.choices'
      choices = tuple(bodies.texts(item['choices'], param, most=1 << 20))
      if len(set(choices)) < len(choices):
        raise errors.invalid(f'{param} names one twice.', param=param)
    return input_lines.Question(text, choices)

  def _check_choices(self, question: input_lines.Question, place: str) -> None:
    choices, limits = question.choices, self.limits
    if self.must_choose and not choices:
      raise errors.invalid(
        f'{place} has no choices, and this server chooses among given ones'
        ' (SCORE_LABELS). Send an object with input and choices to'
        ' /v1/answers.',
        param=place,
      )
    if len(choices) > limits.choices:
      raise errors.invalid(
        f'{place} has {len(choices)} choices, expected at most'
        f' {limits.choices}. Start the server with a larger MAX_CHOICES.',
        param=place,
      )
    for choice, ids in zip(
      choices, self.vocabulary.encode_all(choices), strict=True
    ):
      if len(ids) > limits.choice_tokens:
        raise errors.invalid(
          f'{place} has a choice of {len(ids):,} tokens ({choice[:40]!r}),'
          f' expected at most {limits.choice_tokens:,}. Shorten it, or start'
          ' the server with a larger MAX_DECODE_LEN.',
          param=place,
        )
