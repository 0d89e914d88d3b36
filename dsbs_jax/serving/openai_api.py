# SPDX-License-Identifier: Apache-2.0
"""OpenAI's protocol, for a student that decodes greedily.

A field that would change the answer is obeyed or refused (`errors.APIError`),
never ignored.
Requests and responses are those that the official client sends and reads.
"""

import bisect
import dataclasses
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from dsbs_jax.serving import errors, json_body

_MAX_STOPS = 4

# Accepted values: what a student does anyway; null is accepted everywhere.
_ONLY = {
  'n': (1,),
  'stream': (False,),
  'temperature': (0,),
  'top_p': (1,),
  'presence_penalty': (0,),
  'frequency_penalty': (0,),
  'logit_bias': ({},),
  'stream_options': (),
}
_ONLY_PLAIN = {
  'best_of': (1,),
  'echo': (False,),
  'logprobs': (),
  'suffix': ('',),
}
_ONLY_CHAT = {
  'logprobs': (False,),
  'top_logprobs': (),
  'response_format': ({'type': 'text'},),
  'modalities': (['text'],),
  'tools': ([],),
  'tool_choice': ('none',),
}
# Without effect on a greedy answer.
_IGNORED = ('metadata', 'seed', 'service_tier', 'store', 'user')
_ROLES = ('system', 'developer', 'user', 'assistant', 'tool', 'function')


@dataclasses.dataclass(frozen=True)
class CompletionRequest:
  """A checked request for completions.

  Attributes:
    prompts: texts to continue, or the one last message of a conversation.
    places: where each stands in the body.
    chat: whether it is a conversation, not a text.
    max_tokens: of a completion; None sets no limit.
    stop: texts before which a completion ends.
  """

  prompts: list[str]
  places: list[str]
  chat: bool
  max_tokens: int | None
  stop: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Completion:
  """A completion as it is sent.

  Attributes:
    reason: OpenAI's finish_reason, 'stop' or 'length'.
    num_tokens: its tokens by the student's vocabulary.
  """

  text: str
  reason: str
  num_tokens: int


def read_plain(body: dict[str, Any], *, most: int) -> CompletionRequest:
  """Reads the body of /v1/completions."""
  _check(body, ('prompt', 'max_tokens'), _ONLY | _ONLY_PLAIN)
  prompt = body.get('prompt')
  if isinstance(prompt, str):
    prompts, places = [json_body.text(prompt, 'prompt')], ['prompt']
  else:
    prompts = json_body.texts(prompt, 'prompt', most=most)
    places = [f'prompt[{i}]' for i in range(len(prompts))]
  limit = _max_tokens(body, 'max_tokens')
  return CompletionRequest(prompts, places, False, limit, _stop(body))


def read_chat(body: dict[str, Any]) -> CompletionRequest:
  """Reads the body of /v1/chat/completions.

  A student answers the last message; the others are checked, not used.
  """
  limits = ('max_completion_tokens', 'max_tokens')
  _check(body, ('messages', *limits), _ONLY | _ONLY_CHAT)
  messages = json_body.items(body.get('messages'), 'messages', most=1 << 20)
  for i, message in enumerate(messages):
    if not isinstance(message, dict) or message.get('role') not in _ROLES:
      raise errors.invalid_request(
        f'messages[{i}] has no role of {", ".join(_ROLES)}.',
        param=f'messages[{i}]',
      )
  place = f'messages[{len(messages) - 1}]'
  if messages[-1]['role'] != 'user':
    raise errors.invalid_request(
      f'{place} is of the role {messages[-1]["role"]!r}, expected the question'
      ' of a user at the end.',
      param=place,
    )
  text = json_body.text(_content(messages[-1], place), f'{place}.content')
  given = [name for name in limits if body.get(name) is not None]
  limit = _max_tokens(body, given[0]) if given else None
  return CompletionRequest([text], [place], True, limit, _stop(body))


def truncate(
  text: str,
  request: CompletionRequest,
  *,
  cut: bool,
  count: Callable[[str], int],
) -> Completion:
  """Cuts a completion where the request says.

  Args:
    cut: whether the student reached its maximal length.
    count: tokens of a text.

  Returns:
    The text up to the first stop sequence or up to max_tokens, whichever is
    shorter.
  """
  reason = 'length' if cut else 'stop'
  ends = [text.find(stop) for stop in request.stop if stop in text]
  if ends:
    text, reason = text[: min(ends)], 'stop'
  num = count(text)
  if request.max_tokens is not None and num > request.max_tokens:
    fitting = bisect.bisect_right(
      range(len(text)), request.max_tokens, key=lambda end: count(text[:end])
    )
    text, reason = text[: fitting - 1], 'length'
    num = count(text)
  return Completion(text, reason, num)


def response(
  request: CompletionRequest,
  completions: Sequence[Completion],
  *,
  model: str,
  prompt_tokens: int,
) -> dict[str, Any]:
  """The JSON of an answered request.

  Args:
    completions: one per prompt, in order.
    prompt_tokens: of all prompts, as the student reads them.
  """
  written = sum(completion.num_tokens for completion in completions)
  choices = []
  for index, one in enumerate(completions):
    message = {'role': 'assistant', 'content': one.text, 'refusal': None}
    choice = {'message': message} if request.chat else {'text': one.text}
    choice |= {'index': index, 'finish_reason': one.reason, 'logprobs': None}
    choices.append(choice)
  return {
    'id': f'{"chatcmpl" if request.chat else "cmpl"}-{uuid.uuid4().hex}',
    'object': 'chat.completion' if request.chat else 'text_completion',
    'created': int(time.time()),
    'model': model,
    'choices': choices,
    'usage': {
      'prompt_tokens': prompt_tokens,
      'completion_tokens': written,
      'total_tokens': prompt_tokens + written,
    },
  }


def check_model(body: dict[str, Any], model: str, *, required: bool) -> None:
  """Checks that a body asks for the model that is served.

  Args:
    required: whether the field must be there, as in OpenAI's routes.

  Raises:
    errors.APIError: 400 without the field, 404 with another model.
  """
  given = body.get('model')
  if given is None and not required:
    return
  if given is None:
    raise errors.invalid_request(
      f'model is missing, it is {model!r}.', param='model'
    )
  if given != model:
    raise errors.APIError(
      404,
      f'model is {str(given)[:100]!r}, but this server has {model!r} only.',
      param='model',
      code='model_not_found',
    )


def _check(
  body: dict[str, Any], fields: Sequence[str], only: dict[str, tuple]
) -> None:
  json_body.check_fields(body, ('model', 'stop', *fields, *only, *_IGNORED))
  for name, values in only.items():
    given = body.get(name)
    if given is None or any(
      given == value and isinstance(given, bool) == isinstance(value, bool)
      for value in values
    ):
      continue
    allowed = ' or '.join(map(repr, values)) or 'nothing'
    raise errors.invalid_request(
      f'{name} is {str(given)[:40]!r}, expected {allowed}: the student gives'
      ' one answer, the likeliest, as a whole.',
      param=name,
      code='unsupported_value',
    )


def _max_tokens(body: dict[str, Any], name: str) -> int | None:
  given = body.get(name)
  if given is None:
    return None
  if isinstance(given, bool) or not isinstance(given, int) or given < 1:
    raise errors.invalid_request(
      f'{name} is {str(given)[:40]!r}, expected a number from 1.', param=name
    )
  return given


def _stop(body: dict[str, Any]) -> tuple[str, ...]:
  given = body.get('stop')
  stops = [given] if isinstance(given, str) else given or []
  are_texts = isinstance(stops, list) and all(
    isinstance(stop, str) and stop for stop in stops
  )
  if not are_texts or len(stops) > _MAX_STOPS:
    raise errors.invalid_request(
      f'stop is not a list of at most {_MAX_STOPS} texts.', param='stop'
    )
  return tuple(stops)


def _content(message: dict[str, Any], place: str) -> Any:
  """The text of a message; its text parts are joined."""
  content = message.get('content')
  if not isinstance(content, list):
    return content
  parts = [part for part in content if isinstance(part, dict)]
  texts = [part.get('text') for part in parts if part.get('type') == 'text']
  if len(texts) < len(content) or not all(isinstance(t, str) for t in texts):
    raise errors.invalid_request(
      f'{place}.content has a part that is not text.', param=place
    )
  return ''.join(texts)
