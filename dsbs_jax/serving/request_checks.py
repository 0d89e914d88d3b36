# SPDX-License-Identifier: Apache-2.0
"""Checks the inputs of a request: what passes can be predicted for.

Everything that could be wrong with an input is found here, before it joins a
batch with the inputs of others, and raised as `errors.APIError`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.inference import input_lines
from dsbs_jax.inference import predictor as predictor_lib
from dsbs_jax.serving import errors, json_body

_FIELDS = ('input', 'inputs', 'rationales', 'model')
_INPUT_FIELDS = ('input', 'choices')


@dataclasses.dataclass(frozen=True)
class CheckedInput:
  """An input that can be predicted for; its tokens with prefix and end."""

  input: input_lines.ModelInput
  num_tokens: int


@dataclasses.dataclass(frozen=True)
class RequestReader:
  """Reads and checks the inputs of requests.

  Attributes:
    max_input_tokens: tokens of an input, with its prefix and end.
    max_choice_tokens: tokens of a choice.
    benchmark: whose raw rows inputs may be; None for texts only.
    needs_choices: whether every input must have choices.
  """

  predictor: predictor_lib.Predictor
  vocabulary: vocabularies.Vocabulary
  _: dataclasses.KW_ONLY
  max_inputs: int
  max_input_tokens: int
  max_choices: int
  max_choice_tokens: int
  rationales: bool
  benchmark: benchmark_lib.Benchmark | None = None
  needs_choices: bool = False

  def read(self, body: dict[str, Any]) -> tuple[list[CheckedInput], bool]:
    """The inputs of a body of /v1/answers; and whether it wants rationales."""
    json_body.check_fields(body, _FIELDS)
    if ('input' in body) == ('inputs' in body):
      raise errors.invalid_request(
        'the body has both or none of input and inputs, expected one of them.',
        param='inputs',
      )
    rationales = body.get('rationales', self.rationales)
    if not isinstance(rationales, bool):
      raise errors.invalid_request(
        f'rationales is {str(rationales)[:40]!r}, expected true or false.',
        param='rationales',
        code='invalid_type',
      )
    if rationales and not self.rationales:
      raise errors.invalid_request(
        'rationales is true, but this server gives none. Leave it out, or start'
        ' the server with --rationales.',
        param='rationales',
      )
    if 'input' in body:
      items, places = [body['input']], ['input']
    else:
      items = json_body.items(body['inputs'], 'inputs', most=self.max_inputs)
      places = [f'inputs[{i}]' for i in range(len(items))]
    inputs = [
      self._model_input(item, place)
      for item, place in zip(items, places, strict=True)
    ]
    return self.check(inputs, places), rationales

  def check(
    self, inputs: Sequence[input_lines.ModelInput], places: Sequence[str]
  ) -> list[CheckedInput]:
    """Checks lengths and choices."""
    lengths = self.predictor.num_tokens(inputs)
    for one, length, place in zip(inputs, lengths, places, strict=True):
      if length > self.max_input_tokens:
        raise errors.invalid_request(
          f'{place} has {length:,} tokens, expected at most'
          f' {self.max_input_tokens:,}. Shorten it, or start the server'
          ' with larger INPUT_LENGTHS.',
          param=place,
          code='context_length_exceeded',
        )
      self._check_choices(one.choices, place)
    return [CheckedInput(*pair) for pair in zip(inputs, lengths, strict=True)]

  def _model_input(self, item: Any, place: str) -> input_lines.ModelInput:
    if isinstance(item, dict) and self.benchmark is not None:
      found = input_lines.from_row(item, place, benchmark=self.benchmark)
      if isinstance(found, input_lines.InvalidInput):
        raise errors.invalid_request(found.reason, param=place)
      for text in (found.text, *found.choices):
        json_body.text(text, place)
      return found
    if not isinstance(item, dict):
      return input_lines.ModelInput(json_body.text(item, place))
    json_body.check_fields(item, _INPUT_FIELDS)
    if 'input' not in item:
      raise errors.invalid_request(f'{place} has no input.', param=place)
    text, choices = json_body.text(item['input'], f'{place}.input'), ()
    if item.get('choices') is not None:
      param = f'{place}.choices'
      choices = tuple(json_body.texts(item['choices'], param, most=1 << 20))
      if len(set(choices)) < len(choices):
        raise errors.invalid_request(f'{param} names one twice.', param=param)
    return input_lines.ModelInput(text, choices)

  def _check_choices(self, choices: Sequence[str], place: str) -> None:
    if self.needs_choices and not choices:
      raise errors.invalid_request(
        f'{place} has no choices, and this server chooses among given ones'
        ' (SCORE_LABELS). Send an object with input and choices to'
        ' /v1/answers.',
        param=place,
      )
    if len(choices) > self.max_choices:
      raise errors.invalid_request(
        f'{place} has {len(choices)} choices, expected at most'
        f' {self.max_choices}. Start the server with a larger MAX_CHOICES.',
        param=place,
      )
    for choice, ids in zip(
      choices, self.vocabulary.encode_all(choices), strict=True
    ):
      if len(ids) > self.max_choice_tokens:
        raise errors.invalid_request(
          f'{place} has a choice of {len(ids):,} tokens ({choice[:40]!r}),'
          f' expected at most {self.max_choice_tokens:,}. Shorten it, or start'
          ' the server with a larger MAX_DECODE_LEN.',
          param=place,
        )
