# SPDX-License-Identifier: Apache-2.0
"""What the loopback server says, how it misbehaves, and what it counts."""

import collections
import dataclasses
import json
import random

from tests.rationales import batches, sums

FAULTS = (
  'rate_limit',
  'error_500',
  'hang',
  'reset',
  'truncated',
  'duplicate',
  'drip',
)


@dataclasses.dataclass
class Behaviour:
  """How the server answers.

  Attributes:
    faults: share of requests that meet a fault.
    kinds: the faults to draw from.
    seed: decides which requests.
    delay: seconds before an answer.
    retry_after: what a rate limit asks for, in seconds.
    status: if not 200, the status of every answer.
    message: the error's text then; `{key}` becomes the caller's key.
    code: the error's code then.
    most_choices: completions per request, however many are asked for.
    usage: whether usage is reported.
    failing: questions with one of these words are answered by 400.
    batch_polls: looks at a batch before it is completed.
    batch_end: status in which a batch ends.
    lost_creations: batches that are created, and then 500 is answered.
    batches_unreachable: whether looks at a batch are answered with 503.
    batches_forgotten: whether the first batch is unknown (404).
  """

  faults: float = 0.0
  kinds: tuple[str, ...] = FAULTS
  seed: int = 0
  delay: float = 0.0
  retry_after: float = 0.05
  status: int = 200
  message: str = 'no'
  code: str | None = None
  most_choices: int = 100
  usage: bool = True
  failing: tuple[str, ...] = ()
  batch_polls: int = 1
  batch_end: str = 'completed'
  lost_creations: int = 0
  batches_unreachable: bool = False
  batches_forgotten: bool = False


class Teacher:
  """What the server knows and counts."""

  def __init__(self):
    self.answers: dict[str, str] = {}
    self.configure(Behaviour())

  def configure(self, behaviour: Behaviour) -> None:
    self.behaviour = behaviour
    self.random = random.Random(behaviour.seed)
    self.requests = self.flying = self.most_flying = self.spoiled = 0
    self.paid: collections.Counter[str] = collections.Counter()
    self.faults: collections.Counter[str] = collections.Counter()
    self.times: list[float] = []
    # When connections ended, and whether a call was in flight on them.
    self.cuts: list[tuple[float, bool]] = []
    self.batches = batches.Store(self)

  def stats(self) -> dict:
    return {
      'requests': self.requests,
      'paid': sum(self.paid.values()),
      'paid_twice': sum(self.paid.values()) - len(self.paid),
      'spoiled': self.spoiled,
      'faults': dict(self.faults),
      'most_flying': self.most_flying,
      'times': self.times,
      'cuts': self.cuts,
      'batches': len(self.batches.batches),
      'files': len(self.batches.files),
    }

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
      choices.append(
        {
          'index': index,
          'finish_reason': 'stop',
          **(said if chat else {'text': text}),
        }
      )
    self.requests += 1
    answer = {
      'id': f'cmpl-{self.requests}',
      'object': 'chat.completion' if chat else 'text_completion',
      'created': 1,
      'model': body['model'],
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
    return answer

  def question(self, body: dict) -> str:
    """Names a request, for counting."""
    prompt = body.get('messages') or body['prompt']
    return prompt if isinstance(prompt, str) else prompt[-1]['content']
