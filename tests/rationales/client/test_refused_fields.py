# SPDX-License-Identifier: Apache-2.0
"""Reasoning models: fields that they refuse, and reasoning beside the answer."""

import asyncio
import threading

import pytest
from aiohttp import web

from rationales.record import calls, completions_file
from tests.rationales import batches, command, sums
from tests.rationales.client.test_batch import FLAGS
from tests.rationales.test_extraction import assert_one_good_line_per_row


class ReasoningServer:
  """Answers as OpenAI's reasoning models do; keeps the bodies it was sent."""

  def __init__(self):
    self.bodies, self.refused = [], []
    self.loop = asyncio.new_event_loop()
    self.thread = threading.Thread(target=self.loop.run_forever)
    self.thread.start()
    self.base_url = self._run(self._start())

  def close(self):
    self._run(self.runner.cleanup())
    self.loop.call_soon_threadsafe(self.loop.stop)
    self.thread.join()
    self.loop.close()

  def _run(self, work):
    return asyncio.run_coroutine_threadsafe(work, self.loop).result()

  async def _start(self):
    app = web.Application()
    app.router.add_post('/v1/chat/completions', self.complete)
    self.runner = web.AppRunner(app)
    await self.runner.setup()
    await web.TCPSite(self.runner, '127.0.0.1', 0).start()
    return f'http://127.0.0.1:{self.runner.addresses[0][1]}/v1'

  async def complete(self, request):
    body = await request.json()
    error = batches.refusal(body)
    if error:
      self.refused.append(body)
      return web.json_response({'error': error}, status=400)
    self.bodies.append(body)
    text = sums.answer(body['messages'][-1]['content'], 0)
    message = {'role': 'assistant', 'content': text, 'refusal': None}
    choice = {'index': 0, 'finish_reason': 'stop', 'message': message}
    return web.json_response(
      {
        'id': f'chatcmpl-{len(self.bodies)}',
        'model': 'o9-2099-01-01',
        'choices': [choice],
        'usage': {'prompt_tokens': 50, 'completion_tokens': 90},
      }
    )


@pytest.fixture
def reasoning():
  server = ReasoningServer()
  yield server
  server.close()


def test_refused_fields_are_learned_once_and_recorded(reasoning, extract, out):
  url = f'--base_url={reasoning.base_url}'
  done = extract(20, url, '--max_tokens=77', '--concurrency=1')
  assert done.status == 0, done.output
  assert_one_good_line_per_row(out, 20)
  assert len(reasoning.refused) == 2  # one for each field
  for body in reasoning.bodies:
    assert body['max_completion_tokens'] == 77
    assert 'max_tokens' not in body and 'temperature' not in body
  for words in (
    'refuses max_tokens: max_completion_tokens is sent instead',
    'refuses temperature: it is left out',
  ):
    assert done.output.count(words) == 1, done.output
  header = command.lines(out, completions_file.HEADER)[-1]
  assert header['settings']['temperature'] == 0.0  # as it was asked for
  assert header['substitutes'] == {
    'max_tokens': 'max_completion_tokens',
    'temperature': None,
  }
  assert not command.lines(out, completions_file.FAILURE)
  assert extract(25, url, '--max_tokens=77').status == 0
  assert len(reasoning.refused) == 2  # known from the file


def test_many_calls_at_once_learn_it_together(reasoning, extract, out):
  done = extract(40, f'--base_url={reasoning.base_url}', '--concurrency=20')
  assert done.status == 0, done.output
  assert_one_good_line_per_row(out, 40)
  assert done.output.count('refuses max_tokens') == 1


def test_a_batch_of_refused_requests_is_sent_again(server, extract, out):
  server.configure(reasoning=True)
  done = extract(8, *FLAGS)
  assert done.status == 0, done.output
  assert_one_good_line_per_row(out, 8)
  assert server.stats()['batches'] == 3 and server.stats()['paid'] == 8
  assert done.output.count('refuses temperature: it is left out') == 1
  assert not command.lines(out, completions_file.FAILURE)


@pytest.mark.parametrize(
  'change',
  [
    {'code': 'invalid_value'},
    {'param': 'messages'},
    {'message': 'max_tokens is not supported.'},
  ],
)
def test_what_has_no_substitute_stays_refused(change):
  substitutes = calls.Substitutes()
  error = batches.refusal({'max_tokens': 9})
  assert not substitutes.learn(error | change, {'max_tokens', 'messages'})
  assert not substitutes.learn(error, {'max_completion_tokens'})
  assert not substitutes.learn('no', {'max_tokens'})
  assert not substitutes.fields


@pytest.mark.parametrize('place', ['tags', 'field'])
def test_reasoning_is_kept_apart_from_the_answer(server, extract, out, place):
  server.configure(thinking=place)
  done = extract(4)
  assert done.status == 0 and 'parsed 100.0%' in done.output
  for line in command.answers(out):
    assert line['text'].startswith('Take 0: '), line
    assert line['reasoning'] == f'Hm, {line["text"]}'
  replayed = extract(
    None,
    '--backend=replay',
    f'--replay={out}',
    f'--out={out.parent}/replayed.jsonl',
  )
  assert replayed.status == 0, replayed.output
  for line in command.answers(out.parent / 'replayed.jsonl'):
    assert line['reasoning'] == f'Hm, {line["text"]}'
