# SPDX-License-Identifier: Apache-2.0
"""What a server answers: bodies of requests in, JSON of responses out."""

import dataclasses
import time
from collections.abc import Awaitable, Callable
from typing import Any

from dsbs_jax.data import vocabularies
from dsbs_jax.inference import input_lines
from dsbs_jax.serving import (
  batcher,
  completion_format,
  errors,
  json_body,
  openai_api,
  prometheus,
  request_checks,
)

# Calls a function, here or in a thread; large bodies must not stop the others.
Calling = Callable[..., Awaitable[Any]]


@dataclasses.dataclass(frozen=True)
class Handlers:
  """The answers of a student that is loaded and warm.

  Attributes:
    model: its id.
    reader: checks what is asked.
    batches: answers it.
    vocabulary: counts tokens.
    wording: of completions; None where the benchmark has no form of them.
    metrics: counts.
    created: when the server was started, in seconds since 1970.
  """

  model: str
  reader: request_checks.RequestReader
  batches: batcher.Batcher
  vocabulary: vocabularies.Vocabulary
  wording: completion_format.CompletionFormat | None
  metrics: prometheus.ServerMetrics
  created: int = dataclasses.field(default_factory=lambda: int(time.time()))

  async def answers(self, content: bytes, call: Calling) -> dict[str, Any]:
    """/v1/answers: labels, probabilities and rationales, in order."""
    body = await call(json_body.decode, content)
    openai_api.check_model(body, self.model, required=False)
    asked, rationales = await call(self.reader.read, body)
    answers = await self.batches.ask(asked, rationales=rationales)
    return {
      'model': self.model,
      'answers': [
        {
          name: value
          for name, value in dataclasses.asdict(answer).items()
          if value is not None
        }
        for answer in answers
      ],
    }

  async def completions(self, content: bytes, call: Calling) -> dict[str, Any]:
    """/v1/completions: the text that continues a prompt."""
    body = await call(json_body.decode, content)
    openai_api.check_model(body, self.model, required=True)
    request = openai_api.read_plain(body, most=self.reader.limits.inputs)
    return await self._complete(request, call)

  async def chat(self, content: bytes, call: Calling) -> dict[str, Any]:
    """/v1/chat/completions: the answer to the last message."""
    body = await call(json_body.decode, content)
    openai_api.check_model(body, self.model, required=True)
    return await self._complete(openai_api.read_chat(body), call)

  def models(self) -> dict[str, Any]:
    """/v1/models: there is one."""
    return {'object': 'list', 'data': [self.one_model(self.model)]}

  def one_model(self, model: str) -> dict[str, Any]:
    """/v1/models/MODEL."""
    openai_api.check_model({'model': model}, self.model, required=True)
    return openai_api.model_card(self.model, created=self.created)

  async def _complete(
    self, request: openai_api.CompletionRequest, call: Calling
  ) -> dict[str, Any]:
    if self.wording is None:
      raise errors.invalid_request(
        'this server does not know how completions of its benchmark read.'
        ' Start it with COMPLETION, or ask /v1/answers.',
        code='no_completion_format',
      )
    asked = await call(self._questions, request, self.wording)
    answers = await self.batches.ask(asked, rationales=True)
    finished = []
    for answer in answers:
      if not self.wording.reads_back(answer):
        self.metrics.unreadable.inc()
      finished.append(
        openai_api.truncate(
          self.wording.write(answer),
          request,
          cut=answer.cut,
          count=lambda text: len(self.vocabulary.encode(text)),
        )
      )
    return openai_api.response(
      request,
      finished,
      model=self.model,
      prompt_tokens=sum(one.num_tokens for one in asked),
    )

  def _questions(
    self,
    request: openai_api.CompletionRequest,
    wording: completion_format.CompletionFormat,
  ) -> list[request_checks.CheckedInput]:
    asked = []
    for prompt, place in zip(request.prompts, request.places, strict=True):
      if request.chat:
        text = wording.chat_input(prompt, place)
      else:
        text = wording.plain_input(prompt, place)
      asked.append(input_lines.ModelInput(json_body.text(text, place)))
    return self.reader.checked(asked, request.places)
