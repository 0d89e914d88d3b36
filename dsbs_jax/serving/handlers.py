# SPDX-License-Identifier: Apache-2.0
"""What each path answers: bodies of requests in, JSON of responses out."""

import dataclasses
import time
from collections.abc import Awaitable, Callable
from typing import Any

from dsbs_jax.data.vocabulary import vocabularies
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

# Calls a function at once, or in a thread if the body is large, so that other
# requests go on meanwhile.
CallFn = Callable[..., Awaitable[Any]]


@dataclasses.dataclass(frozen=True)
class Handlers:
  """The handlers of a student that is loaded and compiled.

  Attributes:
    completion_format: None where the benchmark has none.
    created: when the server was started, in seconds since 1970.
  """

  model: str
  reader: request_checks.RequestReader
  batcher: batcher.Batcher
  vocabulary: vocabularies.Vocabulary
  completion_format: completion_format.CompletionFormat | None
  metrics: prometheus.ServerMetrics
  created: int = dataclasses.field(default_factory=lambda: int(time.time()))

  async def answers(self, content: bytes, call: CallFn) -> dict[str, Any]:
    """/v1/answers: labels, probabilities and rationales, in order."""
    body = await self._body(content, call, needs_model=False)
    inputs, rationales = await call(self.reader.read, body)
    predictions = await self.batcher.submit(inputs, rationales=rationales)
    return {
      'model': self.model,
      'answers': [
        {
          name: value
          for name, value in dataclasses.asdict(prediction).items()
          if value is not None
        }
        for prediction in predictions
      ],
    }

  async def completions(self, content: bytes, call: CallFn) -> dict[str, Any]:
    """/v1/completions: the text that continues a prompt."""
    body = await self._body(content, call)
    request = openai_api.read_plain(body, most=self.reader.max_inputs)
    return await self._complete(request, call)

  async def chat(self, content: bytes, call: CallFn) -> dict[str, Any]:
    """/v1/chat/completions: the reply to the last message."""
    body = await self._body(content, call)
    return await self._complete(openai_api.read_chat(body), call)

  def models(self) -> dict[str, Any]:
    """/v1/models: there is one."""
    return {'object': 'list', 'data': [self.one_model(self.model)]}

  def one_model(self, model: str) -> dict[str, Any]:
    """/v1/models/MODEL."""
    openai_api.check_model({'model': model}, self.model, required=True)
    return {
      'id': model,
      'object': 'model',
      'created': self.created,
      'owned_by': 'dsbs_jax',
    }

  async def _body(
    self, content: bytes, call: CallFn, *, needs_model: bool = True
  ) -> dict[str, Any]:
    """The JSON of a request for this model."""
    body = await call(json_body.decode, content)
    openai_api.check_model(body, self.model, required=needs_model)
    return body

  async def _complete(
    self, request: openai_api.CompletionRequest, call: CallFn
  ) -> dict[str, Any]:
    if self.completion_format is None:
      raise errors.invalid_request(
        'this server does not know how completions of its benchmark read.'
        ' Start it with COMPLETION, or ask /v1/answers.',
        code='no_completion_format',
      )
    inputs = await call(self._inputs, request, self.completion_format)
    predictions = await self.batcher.submit(inputs, rationales=True)
    completions = []
    for prediction in predictions:
      if not self.completion_format.round_trips(prediction):
        self.metrics.unreadable.inc()
      completions.append(
        openai_api.truncate(
          self.completion_format.completion_text(prediction),
          request,
          cut=prediction.cut,
          count=lambda text: len(self.vocabulary.encode(text)),
        )
      )
    return openai_api.response(
      request,
      completions,
      model=self.model,
      prompt_tokens=sum(one.num_tokens for one in inputs),
    )

  def _inputs(
    self,
    request: openai_api.CompletionRequest,
    completions: completion_format.CompletionFormat,
  ) -> list[request_checks.CheckedInput]:
    """The student's inputs that the prompts hold."""
    find = completions.chat_input if request.chat else completions.plain_input
    inputs = [
      input_lines.ModelInput(json_body.text(find(prompt, place), place))
      for prompt, place in zip(request.prompts, request.places, strict=True)
    ]
    return self.reader.check(inputs, request.places)
