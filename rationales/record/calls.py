# SPDX-License-Identifier: Apache-2.0
"""One call to an LLM: its request and its answer (failures: failures.py).

The HTTP backend and the Batch API share the JSON of requests and answers.
"""

import dataclasses
import re
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data import soft_labels
from dsbs_jax.data.source import completions as completions_lib
from rationales.record import completions_file

CHAT = 'chat'
COMPLETIONS = 'completions'
ENDPOINTS = (CHAT, COMPLETIONS)

# Fields of which a server says that it does not take them, by these codes.
_REPLACEABLE = ('max_tokens', 'temperature')
_UNSUPPORTED = ('unsupported_parameter', 'unsupported_value')
_INSTEAD = re.compile(r"Use '(\w+)' instead")


@dataclasses.dataclass(frozen=True)
class Call:
  """One request for some samples of one row.

  `gold` is the label that counts as right: the row's human label, '' where it
  has none; of a counterfactual the wrong label that was asked for.
  """

  kind: str  # one of completions_file.ANSWERS
  example_id: str
  samples: tuple[int, ...]  # numbers of the samples asked for
  content: str | list[dict[str, str]]  # the prompt's text, or chat messages
  prompt_hash: str  # see `worklist`
  prompt_bytes: int  # in UTF-8
  gold: str
  hinted: bool = False  # whether the prompt contains that label
  fingerprint: str | None = None  # see `dsbs_jax.data.source.rows`
  replaces: int = -1  # offset of the newest answer that this call's replaces
  about: str | None = None  # of a verdict, the digest of its completion

  def sample_keys(self) -> list[completions_file.SampleKey]:
    return [
      completions_file.SampleKey(self.kind, self.example_id, sample)
      for sample in self.samples
    ]


@dataclasses.dataclass(frozen=True)
class Sampling:
  """The settings that the calls for all rows share.

  Raises:
    contract.UserError: a setting is out of range.
  """

  model: str  # its name on the server
  endpoint: str  # CHAT or COMPLETIONS
  temperature: float  # 0 is greedy
  max_tokens: int  # upper limit of a completion; 0 leaves it to the server
  stop: tuple[str, ...]  # a completion ends before the first of them
  extra: Mapping[str, Any]  # further fields of the request: {'top_p': 0.9}
  logprobs: int = 0  # alternatives wanted of each token of a completion

  def __post_init__(self):
    if not self.model:
      raise contract.UserError(
        '--model is missing, expected the name that the server gives the model.'
      )
    if not 0 <= self.temperature < float('inf') or self.max_tokens < 0:
      raise contract.UserError(
        f'--temperature is {self.temperature} and --max_tokens'
        f' {self.max_tokens}, expected 0 or more of both.'
      )
    if '' in self.stop:
      raise contract.UserError(
        '--stop is empty, expected a text at which an answer ends. Leave it out'
        ' for none in a chat.'
      )
    if not 0 <= self.logprobs <= 1000:
      raise contract.UserError(
        f'--logprobs is {self.logprobs}, expected 0 (none) to what the server'
        ' gives, such as 20.'
      )

  @property
  def path(self) -> str:
    """Where requests go, after the /v1 of the server's address."""
    return '/chat/completions' if self.endpoint == CHAT else '/completions'

  def body(self, call: Call) -> dict[str, Any]:
    """The request's JSON."""
    prompt = 'messages' if self.endpoint == CHAT else 'prompt'
    body = {
      'model': self.model,
      prompt: call.content,
      'temperature': self.temperature,
    }
    if self.max_tokens:
      body['max_tokens'] = self.max_tokens
    if len(call.samples) > 1:
      body['n'] = len(call.samples)
    if self.stop:
      body['stop'] = list(self.stop)
    if self.logprobs and call.kind == completions_file.COMPLETION:
      wanted = {'logprobs': True, 'top_logprobs': self.logprobs}
      if self.endpoint == COMPLETIONS:
        wanted = {'logprobs': self.logprobs}
      body |= wanted
    return body | self.extra


@dataclasses.dataclass(frozen=True)
class Substitutes:
  """What is sent in place of fields that the server has refused.

  OpenAI's reasoning models take no `max_tokens` and no temperature but 1. Each
  refused field has the one that gets its value instead, None if it is left out;
  `on_learned` is called with the name of one that is added.
  """

  fields: dict[str, str | None] = dataclasses.field(default_factory=dict)
  on_learned: Callable[[str], None] = lambda name: None

  def apply(self, body: Mapping[str, Any]) -> dict[str, Any]:
    """A request's JSON with the substitutes."""
    names = {name: self.fields.get(name, name) for name in body}
    return {names[name]: body[name] for name in body if names[name]}

  def learn(self, error: Any, sent: Container[str]) -> bool:
    """Whether a refused request can be sent again, in another way.

    Source: the errors of https://platform.openai.com/docs/api-reference/chat

    Args:
      error: the answer's `error` object.
      sent: names of the fields that the request had.
    """
    if not isinstance(error, dict) or error.get('code') not in _UNSUPPORTED:
      return False
    name, words = error.get('param'), str(error.get('message'))
    if name not in _REPLACEABLE or name not in sent:
      return False
    instead = _INSTEAD.search(words)
    if name == 'max_tokens' and not instead:
      return False  # the budget needs the limit
    if name not in self.fields:
      self.fields[name] = instead and instead[1]
      self.on_learned(name)
    return True


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a server answered: a completion per sample, or fewer."""

  texts: tuple[str, ...]
  finish_reasons: tuple[str | None, ...]
  usage: dict[str, int] | None  # None if the server did not report it
  model: str  # as the server names it
  notes: tuple[Mapping[str, str], ...]  # `reasoning`, `refusal`
  # The tokens of each text, as the server wrote it, with their alternatives;
  # None where the server told none. Empty: not asked for.
  logprobs: tuple[Sequence[soft_labels.Token] | None, ...] = ()


def read_answer(body: Any, call: Call) -> Answer:
  """The answer in a response, with no more samples than were asked for.

  Raises:
    ValueError: the JSON does not have the form of an answer.
  """
  if isinstance(body, dict) and 'choices' not in body:
    raise ValueError(str(body.get('error', 'no choices')))
  try:
    choices = body['choices'][: len(call.samples)]
    texts, notes = (
      zip(*map(_said, choices), strict=True) if choices else ((), ())
    )
    reasons = tuple(choice.get('finish_reason') for choice in choices)
    logprobs = tuple(map(read_logprobs, choices))
    model = str(body.get('model') or '')
  except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
    raise ValueError(f'{type(error).__name__}: {error}') from None
  if not texts:
    raise ValueError('no choices')
  return Answer(texts, reasons, _usage(body), model, notes, logprobs)


def _usage(body: Mapping[str, Any]) -> dict[str, int] | None:
  """The usage of an answer; None if it is missing or malformed.

  The answer has been paid for, so it is kept even then.
  """
  usage = body.get('usage')
  if not completions_file.is_usage(usage):
    return None
  return {name: usage[name] for name in completions_file.USAGE_FIELDS}


def _said(choice: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
  """The completion of a choice, '' for a refusal, and what came beside it."""
  message = choice.get('message', {})
  if 'message' in choice and choice.get('finish_reason'):
    # Gemini leaves it out where the limit met the reasoning.
    text = message.get('content')
  else:
    text = message['content'] if 'message' in choice else choice['text']
  if isinstance(text, list):  # parts, of which those of reasoning are others
    text = ''.join(p['text'] for p in text if p.get('type') == 'text')
  if not isinstance(text, str | None):
    raise TypeError(f'content is {text!r}')
  answer, thought = completions_lib.split_reasoning(text or '')
  notes = {
    'reasoning': thought
    or message.get('reasoning_content')
    or message.get('reasoning'),
    'refusal': message.get('refusal'),
  }
  return answer, {k: v for k, v in notes.items() if v and isinstance(v, str)}


def read_logprobs(choice: Mapping[str, Any]) -> list[soft_labels.Token] | None:
  """The tokens and alternatives of a choice; None if missing or malformed.

  Source: https://platform.openai.com/docs/api-reference, of both endpoints.
  """
  found = choice.get('logprobs') or {}
  try:
    if 'content' in found:  # chat
      return [
        _token(
          token['token'],
          token['logprob'],
          {t['token']: t['logprob'] for t in token['top_logprobs']},
        )
        for token in found['content']
      ]
    columns = found['tokens'], found['token_logprobs'], found['top_logprobs']
    return [_token(*token) for token in zip(*columns, strict=True)]
  except (KeyError, TypeError, ValueError):
    return None


def _token(text: Any, log_prob: Any, others: Any) -> soft_labels.Token:
  """A token; ValueError or TypeError where it is malformed."""
  odds = {other: float(value) for other, value in dict(others or {}).items()}
  if not all(isinstance(each, str) for each in (text, *odds)):
    raise ValueError(f'{text!r} is no text')
  return text, float(log_prob), odds
