# SPDX-License-Identifier: Apache-2.0
"""What is asked of a teacher, what it answers, and how a call can fail.

The request's JSON body and the reading of the response's are here, because
the HTTP backend and the Batch API share both.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rationales import records

CHAT = 'chat'
COMPLETIONS = 'completions'
ENDPOINTS = (CHAT, COMPLETIONS)


@dataclasses.dataclass(frozen=True)
class Call:
  """One request for some samples of one row.

  Attributes:
    kind: records.COMPLETION or records.RATIONALIZATION.
    example_id: the row's id.
    samples: numbers of the samples asked for.
    content: the prompt's text, or its chat messages.
    prompt_hash: names the prompt, see `worklist`.
    prompt_bytes: length of the prompt in UTF-8.
    gold: the row's right label.
    hinted: whether the prompt tells it.
  """

  kind: str
  example_id: str
  samples: tuple[int, ...]
  content: str | list[dict[str, str]]
  prompt_hash: str
  prompt_bytes: int
  gold: str
  hinted: bool = False

  def slots(self) -> list[records.Slot]:
    return [
      records.Slot(self.kind, self.example_id, sample)
      for sample in self.samples
    ]


@dataclasses.dataclass(frozen=True)
class Sampling:
  """The settings of a call that every row shares.

  Attributes:
    model: the server's name of the model.
    endpoint: CHAT or COMPLETIONS.
    temperature: 0 is greedy.
    max_tokens: upper limit of a completion; 0 leaves it to the server.
    stop: texts that end a completion, none of which it contains.
    extra: further fields of the request, such as {'top_p': 0.9}.
  """

  model: str
  endpoint: str
  temperature: float
  max_tokens: int
  stop: tuple[str, ...]
  extra: Mapping[str, Any]

  def __post_init__(self):
    if self.endpoint not in ENDPOINTS:
      raise ValueError(
        f'--endpoint is {self.endpoint!r}, expected chat or completions.'
      )
    if not self.model:
      raise ValueError("--model is missing: give the server's name of it.")
    if not 0 <= self.temperature < float('inf') or self.max_tokens < 0:
      raise ValueError(
        f'--temperature is {self.temperature} and --max_tokens'
        f' {self.max_tokens}, expected 0 or more of both.'
      )

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
    return body | self.extra


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a server answered.

  Attributes:
    texts: a completion per sample, possibly fewer than were asked for.
    finish_reasons: why each of them ended.
    usage: tokens as the server counted them, or None where it does not.
    model: the model that answered, by the server's word.
    source: the backend's name, for the record.
  """

  texts: tuple[str, ...]
  finish_reasons: tuple[str | None, ...]
  usage: dict[str, int] | None
  model: str
  source: str


def read_answer(body: Any, call: Call, source: str) -> Answer:
  """Reads a response's JSON.

  Args:
    body: the decoded JSON, of either endpoint.
    call: the call that it answers.
    source: the backend's name.

  Returns:
    The answer, with no more samples than the call asked for.

  Raises:
    ValueError: it has not the form of an answer.
  """
  if isinstance(body, dict) and 'choices' not in body:
    raise ValueError(str(body.get('error', 'no choices')))
  try:
    choices = body['choices'][: len(call.samples)]
    texts = tuple(map(_text, choices))
    reasons = tuple(choice.get('finish_reason') for choice in choices)
    model = str(body.get('model') or '')
  except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
    raise ValueError(f'{type(error).__name__}: {error}') from None
  if not texts:
    raise ValueError('no choices')
  return Answer(texts, reasons, _usage(body), model, source)


def _usage(body: Mapping[str, Any]) -> dict[str, int] | None:
  """The usage of an answer, or None where it is not given as it should be.

  An answer is paid for, so it is kept even then.
  """
  usage = body.get('usage')
  names = ('prompt_tokens', 'completion_tokens')
  if isinstance(usage, dict) and all(
    isinstance(usage.get(name), int) for name in names
  ):
    return {name: usage[name] for name in names}
  return None


def _text(choice: Mapping[str, Any]) -> str:
  """The completion of a choice; a refusal without content is an empty one."""
  text = choice['message']['content'] if 'message' in choice else choice['text']
  if not isinstance(text, str | None):
    raise TypeError(f'content is {text!r}')
  return text or ''


class Transient(Exception):
  """A call that may go well another time.

  Args:
    reason: for the record.
    retry_after: seconds the server asked to wait, if it did.
    overload: whether it says that there are too many calls.
    maybe_paid: whether the server may have worked and charged for it.
  """

  def __init__(
    self,
    reason: str,
    *,
    retry_after: float | None = None,
    overload: bool = False,
    maybe_paid: bool = False,
  ):
    super().__init__(reason)
    self.retry_after = retry_after
    self.overload = overload
    self.maybe_paid = maybe_paid


class Permanent(Exception):
  """A call that will fail each time, whatever the others do.

  Args:
    reason: for the record.
    status: the HTTP status, if there was one.
  """

  def __init__(self, reason: str, status: int | None = None):
    super().__init__(reason)
    self.status = status


class Fatal(Exception):
  """A fault that every call will meet: the run ends."""
