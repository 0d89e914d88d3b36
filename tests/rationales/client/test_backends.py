# SPDX-License-Identifier: Apache-2.0
"""One attempt at a time against the server, and how each fault is sorted."""

import asyncio
import email.utils
import json
import tracemalloc

import pytest

from dsbs_jax import contract
from rationales.client import (
  backends,
  bounded_response,
  failures,
  secret,
  server_config,
)
from rationales.record import calls, completions_file
from tests.rationales import command, sums


def _call(number, samples=1, chat=True):
  question = sums.row(number)['q']
  return calls.Call(
    kind=completions_file.COMPLETION,
    example_id=f'train-{number}',
    samples=tuple(range(samples)),
    content=[{'role': 'user', 'content': question}] if chat else question,
    prompt_hash='0' * 16,
    prompt_bytes=10,
    gold='',
  )


def _sampling(endpoint=calls.CHAT, **changes):
  settings = {
    'model': 'teacher',
    'temperature': 0.5,
    'max_tokens': 9,
    'stop': (),
    'extra': {},
  }
  return calls.Sampling(endpoint=endpoint, **settings | changes)


def _config(base_url, timeout=600):
  return server_config.ServerConfig(
    'http', base_url, secret.Secret(command.KEY), timeout=timeout
  )


def _ask(server, *asked, timeout=600, sampling=None):
  """Answers to the calls or errors, one after another on one client."""

  async def run():
    config = _config(server.base_url, timeout)
    backend = backends.Http(sampling or _sampling(), config)
    found = []
    for call in asked:
      try:
        found.append(await backend.complete(call))
      except (
        failures.TransientError,
        failures.PermanentError,
        failures.FatalError,
      ) as error:
        found.append(error)
    await backend.close()
    return found

  return asyncio.run(run())


@pytest.mark.parametrize('endpoint', calls.ENDPOINTS)
def test_both_endpoints_answer(server, endpoint):
  chat = endpoint == calls.CHAT
  call = _call(4, samples=3, chat=chat)
  [answer] = _ask(server, call, sampling=_sampling(endpoint))
  question = sums.row(4)['q']
  assert answer.texts == tuple(sums.answer(question, i) for i in range(3))
  assert answer.finish_reasons == ('stop',) * 3
  assert set(answer.usage) == {'prompt_tokens', 'completion_tokens'}
  assert answer.model == 'teacher'


def test_a_request_says_what_was_set_and_nothing_else():
  sampling = _sampling(stop=('\n\n',), extra={'top_p': 0.9})
  assert sampling.body(_call(1, samples=2)) == {
    'model': 'teacher',
    'messages': _call(1).content,
    'temperature': 0.5,
    'max_tokens': 9,
    'n': 2,
    'stop': ['\n\n'],
    'top_p': 0.9,
  }
  bare = _sampling(calls.COMPLETIONS, max_tokens=0).body(_call(1, chat=False))
  assert bare == {
    'model': 'teacher',
    'prompt': sums.row(1)['q'],
    'temperature': 0.5,
  }


def test_an_empty_stop_is_an_error():
  with pytest.raises(contract.UserError, match='--stop is empty'):
    _sampling(stop=('',))


@pytest.mark.parametrize('kind', ['duplicate', 'late_duplicate'])
def test_a_second_copy_is_not_taken_for_the_next_rows_answer(server, kind):
  """The client alone would shift every later answer by one row."""
  server.configure(faults=1.0, kinds=[kind])
  found = _ask(server, *map(_call, range(6)))
  for number, answer in list(enumerate(found))[::2]:
    assert answer.texts == (sums.answer(sums.row(number)['q'], 0),)
  for error in found[1::2]:
    assert isinstance(error, failures.TransientError) and error.maybe_paid
    assert 'delivered twice' in str(error)


@pytest.mark.parametrize(
  'kind, words, overload, maybe_paid',
  [
    ('rate_limit', '429: slow down', True, False),
    ('error_500', '500: broken', False, False),
    ('hang', 'no answer within 0.4 s', True, True),
    ('reset', '', False, True),
    ('truncated', 'malformed answer', False, True),
  ],
)
def test_faults_that_may_pass_are_transient(
  server, kind, words, overload, maybe_paid
):
  server.configure(faults=1.0, kinds=[kind], retry_after=1.5)
  [error] = _ask(server, _call(1), timeout=0.4 if kind == 'hang' else 600)
  assert isinstance(error, failures.TransientError), error
  assert words in str(error)
  assert (error.overload, error.maybe_paid) == (overload, maybe_paid)
  assert error.retry_after == (1.5 if kind == 'rate_limit' else None)


def test_a_slow_answer_is_awaited_and_an_endless_one_is_not(server):
  server.configure(faults=1.0, kinds=['drip'])
  [answer] = _ask(server, _call(1))
  assert isinstance(answer, calls.Answer)
  server.configure(faults=1.0, kinds=['drip_forever'])
  [error] = _ask(server, _call(1), timeout=0.3)
  assert isinstance(error, failures.TransientError)
  assert 'no answer within 0.3 s' in str(error)


@pytest.mark.parametrize('kind', ['flood', 'bomb'])
def test_an_answer_of_too_many_bytes_is_not_read(server, kind):
  server.configure(faults=1.0, kinds=[kind])
  tracemalloc.start()
  [error] = _ask(server, _call(1))
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert isinstance(error, failures.PermanentError) and error.maybe_paid
  assert 'an answer of more than 4,194,304 bytes' in str(error)
  assert peak < 5 * bounded_response.MAX_ANSWER_BYTES


def test_packed_answers_are_unpacked(server):
  server.configure(faults=1.0, kinds=['packed'])
  [answer] = _ask(server, _call(1))
  assert answer.texts == (sums.answer(sums.row(1)['q'], 0),)


@pytest.mark.parametrize(
  'status, code, kind',
  [
    (400, None, failures.PermanentError),
    (401, None, failures.FatalError),
    (403, None, failures.FatalError),
    (404, None, failures.PermanentError),
    (408, None, failures.TransientError),
    (422, None, failures.PermanentError),
    (429, None, failures.TransientError),
    (429, 'insufficient_quota', failures.FatalError),
    (503, None, failures.TransientError),
    (529, None, failures.TransientError),
  ],
)
def test_statuses_are_sorted_and_the_key_is_masked(server, status, code, kind):
  server.configure(status=status, code=code, message='bad key {key}!')
  [error] = _ask(server, _call(1))
  assert type(error) is kind
  assert str(error).startswith(f'{status}: ')
  assert 'bad key [key]!' in str(error) and command.KEY not in str(error)


def test_nobody_listening_is_an_overload_and_free(server):
  class Closed:
    base_url = 'http://127.0.0.1:9/v1'

  [error] = _ask(Closed, _call(1))
  assert isinstance(error, failures.TransientError)
  assert error.overload and not error.maybe_paid


@pytest.mark.parametrize(
  'headers, seconds',
  [
    ({}, None),
    ({'retry-after': '7'}, 7.0),
    ({'retry-after': '0.5'}, 0.5),
    ({'retry-after': '-3'}, 0.0),
    ({'retry-after': 'soon'}, None),
    ({'retry-after-ms': '250', 'retry-after': '9'}, 0.25),
  ],
)
def test_retry_after_is_read_in_all_its_forms(headers, seconds):
  assert backends.retry_after(headers) == seconds


def test_retry_after_may_be_a_date(monkeypatch):
  monkeypatch.setattr(backends.time, 'time', lambda: 1e9)
  date = email.utils.formatdate(1e9 + 30, usegmt=True)
  assert backends.retry_after({'retry-after': date}) == 30


@pytest.mark.parametrize('jump', [-86_400, 86_400])
def test_a_clock_that_is_wrong_changes_no_wait(monkeypatch, jump):
  """The date of the answer tells what the server's clock says."""
  monkeypatch.setattr(backends.time, 'time', lambda: 1e9 + jump)
  now, until = (email.utils.formatdate(1e9 + x, usegmt=True) for x in (0, 30))
  assert backends.retry_after({'retry-after': until, 'date': now}) == 30


@pytest.mark.parametrize(
  'body',
  [
    None,
    [],
    'text',
    {},
    {'choices': []},
    {'choices': [{}]},
    {'choices': [{'message': {}}]},
    {'choices': [{'text': 5}]},
  ],
)
def test_answers_without_their_parts_are_malformed(body):
  with pytest.raises(ValueError):
    calls.read_answer(body, _call(1))


def test_an_error_in_a_good_response_is_told():
  with pytest.raises(ValueError, match='overloaded'):
    calls.read_answer({'error': {'message': 'overloaded'}}, _call(1))


@pytest.mark.parametrize('usage', [None, 5, {}, {'prompt_tokens': 1}])
def test_an_answer_without_usage_is_kept(usage):
  body = {'choices': [{'text': 'a'}], 'usage': usage}
  answer = calls.read_answer(body, _call(1))
  assert answer.texts == ('a',) and answer.usage is None


@pytest.mark.parametrize('message', [{'content': None}, {'role': 'assistant'}])
def test_a_refusal_is_an_empty_completion(message):
  body = {'choices': [{'message': message, 'finish_reason': 'stop'}]}
  assert calls.read_answer(body, _call(1)).texts == ('',)


def test_content_in_parts_is_its_texts():
  thought = {'type': 'thinking', 'thinking': [{'type': 'text', 'text': 'Hm.'}]}
  parts = [
    thought,
    *({'type': 'text', 'text': text} for text in ('So. ', '4.')),
  ]
  body = {'choices': [{'message': {'content': parts}}]}
  assert calls.read_answer(body, _call(1)).texts == ('So. 4.',)
  body['choices'][0]['message']['content'] = ['4.']
  with pytest.raises(ValueError):
    calls.read_answer(body, _call(1))


def test_replay_answers_by_id_and_sample(tmp_path):
  path = tmp_path / 'recorded.jsonl'
  lines = [
    {
      'kind': 'completion',
      'id': 'train-1',
      'sample': sample,
      'text': f'said {sample}',
      'finish_reason': 'stop',
      'prompt_hash': '0',
      'model': 'palm',
    }
    for sample in (1, 0)
  ]
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  replay = backends.Replay(path)
  answer = asyncio.run(replay.complete(_call(1, samples=2)))
  assert answer.texts == ('said 0', 'said 1') and answer.usage is None
  with pytest.raises(failures.PermanentError, match='no answer for this row'):
    asyncio.run(replay.complete(_call(2)))
