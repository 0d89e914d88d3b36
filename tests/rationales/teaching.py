# SPDX-License-Identifier: Apache-2.0
"""What the loopback server says, how it misbehaves, and what it counts."""

import collections
import dataclasses
import json
import math
import random
import re
from collections.abc import Callable

from tests.rationales import batches, sums

# What passes without anyone waiting.
FAULTS = (
  'rate_limit',
  'error_500',
  'reset',
  'truncated',
  'duplicate',
  'late_duplicate',
  'drip',
)


@dataclasses.dataclass
class Behaviour:
  """How the server answers.

  Attributes:
    faults: share of requests that meet a fault.
    kinds: the faults to draw from.
    seed: decides which requests.
    hold_after: calls after so many are charged, but not answered until a
      change of the behaviour.
    retry_after: what a rate limit asks for, in seconds.
    status: if not 200, the status of every answer.
    message: the error's text then; `{key}` becomes the caller's key.
    code: the error's code then.
    most_choices: completions per request, however many are asked for.
    usage: whether usage is reported.
    failing: questions with one of these words are answered by 400.
    left_out: batches have no line for questions with one of these words.
    broken_lines: what stands behind the lines of a batch's answers.
    batch_polls: polls of a batch until it is completed.
    batch_end: status in which a batch ends.
    lost_creations: batches that are created, and then 500 is answered.
    batches_unreachable: whether polls of a batch are answered with 503.
    batches_forgotten: whether the first batch is unknown (404).
    model: what the server calls its model; None for what is asked for.
    reasoning: whether batches refuse what reasoning models refuse.
    cut: answers to questions with one of these words meet the token limit.
    withheld: answers to questions with one of these words are refusals.
    thinking: 'tags', 'field' or '', where reasoning stands.
    prefix: what stands before /models and the other paths; requests elsewhere
      are answered by 404. None allows all.
    models: what GET /models lists; empty answers 404.
    key: without it all is answered by 401; '' wants none.
    most_n: a request for more choices is answered by 400; 0 allows all.
    loading: so many calls are answered by 503 first.
    extras: whether answers have llama.cpp's fields of its own, too.
    logprobs: whether alternatives are told where they are asked for.
  """

  faults: float = 0.0
  kinds: tuple[str, ...] = FAULTS
  seed: int = 0
  hold_after: int | None = None
  retry_after: float = 0.01
  status: int = 200
  message: str = 'no'
  code: str | None = None
  most_choices: int = 100
  usage: bool = True
  failing: tuple[str, ...] = ()
  left_out: tuple[str, ...] = ()
  broken_lines: tuple[str, ...] = ()
  batch_polls: int = 1
  batch_end: str = 'completed'
  lost_creations: int = 0
  batches_unreachable: bool = False
  batches_forgotten: bool = False
  model: str | None = None
  reasoning: bool = False
  cut: tuple[str, ...] = ()
  withheld: tuple[str, ...] = ()
  thinking: str = ''
  prefix: str | None = None
  models: tuple[str, ...] = ()
  key: str = ''
  most_n: int = 0
  loading: int = 0
  extras: bool = False
  logprobs: bool = True


def logprobs(text: str, *, chat: bool) -> dict:
  """Words as tokens, each with half of the mass; a number more has a quarter."""
  words = re.findall(r'\s*\w+|\s*\W', text)
  half, quarter = math.log(0.5), math.log(0.25)
  others = []
  for word in words:
    number = word.strip().isdigit() and f' {int(word) + 1}'
    others.append({word: half} | ({number: quarter} if number else {}))
  if not chat:
    return {
      'tokens': words,
      'token_logprobs': [half] * len(words),
      'top_logprobs': others,
    }
  return {
    'content': [
      {
        'token': word,
        'logprob': half,
        'top_logprobs': [{'token': t, 'logprob': p} for t, p in other.items()],
      }
      for word, other in zip(words, others, strict=True)
    ]
  }


class Teacher:
  """What the server knows and counts."""

  def __init__(self):
    self.answers: dict[str, str] = {}
    self.configure(Behaviour())

  def configure(self, behaviour: Behaviour) -> None:
    self.behaviour = behaviour
    self.random = random.Random(behaviour.seed)
    self.calls = self.answered = self.lost = 0
    self.flying = set()  # connections with a call that is not answered
    self.paid: collections.Counter[str] = collections.Counter()
    self.faults: collections.Counter[str] = collections.Counter()
    self.waiting: list[tuple[dict, Callable[[], None]]] = []
    self.batches = batches.Store(self)

  def stats(self) -> dict:
    """Counts since the server was configured.

    `lost` are calls that were charged and held when their client left.
    """
    return {
      'calls': self.calls,
      'answered': self.answered,
      'held': sum(connection.held is not None for connection in self.flying),
      'idle': int(not self.flying),
      'lost': self.lost,
      'paid': self.paid.total(),
      'paid_twice': self.paid.total() - len(self.paid),
      'faults': dict(self.faults),
      'batches': len(self.batches.batches),
      'files': len(self.batches.files),
      'polls': sum(self.batches.polls.values()),
    }

  def when(self, counts: dict[str, int], act: Callable[[], None]) -> None:
    """Does something once the counts have reached these values."""
    self.waiting.append((counts, act))

  def notify(self) -> None:
    """Does what waited for the present counts."""
    if self.waiting:
      stats = self.stats()
      due = [
        entry
        for entry in self.waiting
        if all(stats[name] >= least for name, least in entry[0].items())
      ]
      self.waiting = [w for w in self.waiting if w not in due]
      for _, act in due:
        act()

  def release(self) -> None:
    """Answers the calls that were held back."""
    for connection in list(self.flying):
      connection.release()

  def completion(self, body: dict) -> dict:
    """The answer to a request's JSON."""
    chat = 'messages' in body
    if chat:
      question = body['messages'][-1]['content']
    else:
      question = body['prompt'].rpartition('\n\n')[2]
    choices = []
    for index in range(min(body.get('n', 1), self.behaviour.most_choices)):
      text = self.answers.get(question) or sums.answer(question, index)
      said = {'message': {'role': 'assistant', 'content': text}}
      if self.behaviour.thinking == 'tags':
        said['message']['content'] = f'<think>\nHm, {text}</think>\n\n{text}'
      elif self.behaviour.thinking:
        said['message']['reasoning_content'] = f'Hm, {text}'
      if any(word in question for word in self.behaviour.withheld):
        said['message'] |= {'content': None, 'refusal': 'I would rather not.'}
      cut = any(word in question for word in self.behaviour.cut)
      if cut:
        said['message']['content'] = said['message']['content'][:12]
      if body.get('logprobs') and self.behaviour.logprobs:
        said['logprobs'] = logprobs(text, chat=chat)
      choices.append(
        {
          'index': index,
          'finish_reason': 'length' if cut else 'stop',
          **(
            said if chat else {'text': text, 'logprobs': said.get('logprobs')}
          ),
        }
      )
    self.answered += 1
    answer = {
      'id': f'cmpl-{self.answered}',
      'object': 'chat.completion' if chat else 'text_completion',
      'created': 1,
      'model': self.behaviour.model or body['model'],
      'choices': choices,
    }
    if self.behaviour.usage:
      prompt = len(json.dumps(body.get('messages') or body['prompt'])) // 5
      said = sum(len(json.dumps(choice)) for choice in choices) // 5
      answer['usage'] = {
        'prompt_tokens': prompt,
        'completion_tokens': said,
        'total_tokens': prompt + said,
      }
    if self.behaviour.extras:
      answer |= {'timings': {'cache_n': 3}, 'system_fingerprint': 'b0-unknown'}
      answer['usage']['prompt_tokens_details'] = {'cached_tokens': 3}
    return answer

  def refusal(self, path: str, body: dict, headers: dict) -> tuple | None:
    """Status and error of what llama.cpp refuses, None where it answers.

    Source: llama.cpp's server, as xllamacpp 2026.10.11549 has it.
    """
    behaviour, n = self.behaviour, body.get('n', 1)
    given = headers.get('authorization', '').removeprefix('Bearer ')
    if not self.is_known(path):
      status, words, kind = 404, 'File Not Found', 'not_found_error'
    elif behaviour.key and given != behaviour.key:
      status, words, kind = 401, 'Invalid API Key', 'authentication_error'
    elif self.calls <= behaviour.loading:
      status, words, kind = 503, 'Loading model', 'unavailable_error'
    elif behaviour.most_n and n > behaviour.most_n:
      status, kind = 400, 'invalid_request_error'
      words = (
        f"Field 'n': Value must be between 1 <= value <= {behaviour.most_n},"
        f' but got {n}'
      )
    else:
      return None
    return status, {'error': {'code': status, 'message': words, 'type': kind}}

  def is_known(self, path: str) -> bool:
    """Whether something is at this path."""
    prefix = self.behaviour.prefix
    return prefix is None or path in {
      f'{prefix}/{name}'
      for name in ('models', 'chat/completions', 'completions')
    }

  def listed(self, path: str) -> tuple:
    """Status and body of GET /models."""
    if not (self.behaviour.models and self.is_known(path)):
      return 404, {'error': {'code': 404, 'message': 'File Not Found'}}
    found = [{'id': name, 'object': 'model'} for name in self.behaviour.models]
    return 200, {'object': 'list', 'data': found}

  def question(self, body: dict) -> str:
    """Names a request, for counting."""
    prompt = body.get('messages') or body['prompt']
    return prompt if isinstance(prompt, str) else prompt[-1]['content']
