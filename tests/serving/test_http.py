# SPDX-License-Identifier: Apache-2.0
"""Whatever is sent, a server answers it once, in order, or says why not."""

import concurrent.futures
import gzip
import json
import socket
import threading

import hypothesis
import pytest
from hypothesis import strategies
from prometheus_client import parser

from dsbs_jax.inference import predictor
from tests.serving import serving_stub


@pytest.fixture(scope='module')
def stub():
  with serving_stub.Stub() as running:
    yield running


def in_threads(calls):
  """Runs calls at once; their results in order."""
  with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
    return [future.result() for future in [pool.submit(c) for c in calls]]


def test_inputs_are_answered_in_order_and_rationales_only_on_request(stub):
  texts = [f'{"very " * (i % 5)}odd {i}?' for i in range(8)]
  status, body = stub.ask({'inputs': texts})
  assert status == 200 and body['model'] == serving_stub.MODEL
  assert [answer['rationale'] for answer in body['answers']] == [
    f'{text} is why.' for text in texts
  ]
  assert body['answers'][0].keys() == {
    *('label', 'probability', 'rationale', 'cut')
  }
  status, body = stub.ask({'input': texts[0], 'rationales': False})
  assert status == 200
  (answer,) = body['answers']
  assert answer == {'label': 'first', 'probability': 0.75, 'cut': False}


def test_many_clients_each_get_their_own_answers(stub):
  def call(number):
    texts = [f'{number}:{i}' for i in range(number % 3 + 1)]
    while True:
      status, body = stub.ask({'inputs': texts})
      if status == 200:
        assert [a['rationale'] for a in body['answers']] == [
          f'{text} is why.' for text in texts
        ]
        return True
      assert (status, body['error']['code']) == (503, 'queue_full')

  assert all(in_threads([lambda n=n: call(n) for n in range(40)]))
  # They went together, and never more than the largest batch.
  batches = stub.count('dsbs_batch_inputs_count')
  answered = stub.count('dsbs_batch_inputs_sum')
  assert batches < answered
  assert stub.count('dsbs_batch_inputs_bucket{le="4.0"}') == batches


LONG = json.dumps({'input': 'x' * 60}).encode()


@pytest.mark.parametrize(
  ('body', 'code', 'words'),
  [
    (b'{', 'invalid_json', 'expected a JSON object'),
    (b'', 'invalid_json', 'expected a JSON object'),
    (b'[]', 'invalid_json', 'is a JSON list'),
    (b'[' * 4000, 'invalid_json', 'too deep'),
    (b'{"input": NaN}', 'invalid_json', 'NaN is not JSON'),
    (b'{"input": "\xff"}', 'invalid_utf8', 'byte 0xff at position 11'),
    (b'{"input": "a\\u0000b"}', 'invalid_value', 'NUL character at position 1'),
    (b'{"input": "a\\ud800"}', 'invalid_value', 'surrogate at position 1'),
    (b'{"inputs": ["a", " "]}', 'invalid_value', 'inputs[1] is blank'),
    (b'{"inputs": ["a", 7]}', 'invalid_type', 'inputs[1] is a JSON int'),
    (b'{"inputs": "a"}', 'invalid_type', 'expected a list'),
    (b'{"inputs": []}', 'invalid_value', '0 items, expected 1 to 8'),
    (
      b'{"inputs": ["1","2","3","4","5","6","7","8","9"]}',
      *('invalid_value', '9 items, expected 1 to 8'),
    ),
    (b'{"input": "a", "inputs": ["a"]}', 'invalid_value', 'one of them'),
    (b'{"rationales": true}', 'invalid_value', 'one of them'),
    (b'{"input": "a", "rationales": 1}', 'invalid_type', 'true or false'),
    (b'{"input": "a", "temprature": 0}', 'unknown_field', "'temprature'"),
    (b'{"input": {"text": "a"}}', 'unknown_field', "'text'"),
    (b'{"input": {"choices": ["a"]}}', 'invalid_value', 'has no input'),
    (
      b'{"input": {"input": "a", "choices": ["a", "b", "c"]}}',
      *('invalid_value', 'input has 3 choices, expected at most 2'),
    ),
    (
      b'{"input": {"input": "a", "choices": ["a", "a"]}}',
      *('invalid_value', 'names one twice'),
    ),
    (
      b'{"input": {"input": "a", "choices": ["eight by"]}}',
      *('invalid_value', 'choice of 8 tokens'),
    ),
    # 60 bytes, 12 of the longer prefix, and the end.
    (
      LONG,
      'context_length_exceeded',
      'input has 73 tokens, expected at most 64',
    ),
  ],
  ids=lambda value: str(value)[:24],
)
def test_what_cannot_be_answered_is_a_400_that_says_why(
  stub, body, code, words
):
  status, answer = stub.ask(body)
  assert status == 400, answer
  error = answer['error']
  assert (error['type'], error['code']) == ('invalid_request_error', code)
  assert words in error['message']


def test_the_longest_input_is_let_in_whole(stub):
  status, body = stub.ask({'input': 'x' * 51})
  assert status == 200
  assert body['answers'][0]['rationale'] == f'{"x" * 51} is why.'


def test_bodies_over_the_limit_are_413_however_they_come(stub):
  body = json.dumps({'input': 'x' * 5000}).encode()
  assert stub.ask(body)[0] == 413

  def chunked():
    yield body[:2000]
    yield body[2000:]

  assert stub.ask(chunked())[0] == 413
  bomb = gzip.compress(b' ' * (1 << 20) + b'{"input": "a"}')
  assert len(bomb) < 4096
  assert stub.ask(bomb, **{'Content-Encoding': 'gzip'})[0] == 413
  status, answer = stub.ask(
    gzip.compress(b'{"input": "a"}'), **{'Content-Encoding': 'gzip'}
  )
  assert status == 200, answer


def test_other_paths_methods_and_types_are_refused_in_json(stub):
  assert stub.send('GET', '/v1/nothing')[0] == 404
  assert stub.send('GET', '/v1/answers')[0] == 405
  status, answer = stub.ask(b'input=a', **{'Content-Type': 'text/plain'})
  assert (status, answer['error']['code']) == (415, 'unsupported_media_type')
  status, answer = stub.ask({'input': 'a', 'model': 'other'})
  assert (status, answer['error']['code']) == (404, 'model_not_found')


def test_metrics_are_read_by_prometheus_and_add_up(stub):
  stub.ask({'input': 'a'})
  stub.ask(b'{')
  text = stub.send('GET', '/metrics')[2].decode()
  families = {f.name: f for f in parser.text_string_to_metric_families(text)}
  requests = {
    tuple(sample.labels.values()): sample.value
    for sample in families['dsbs_requests'].samples
    if sample.name == 'dsbs_requests_total'
  }
  assert requests['/v1/answers', '200'] >= 1
  assert requests['/v1/answers', '400'] >= 1
  errors = sum(
    sample.value
    for sample in families['dsbs_errors'].samples
    if sample.name == 'dsbs_errors_total'
  )
  assert errors == sum(
    value for (_, status), value in requests.items() if status != '200'
  )
  assert families['dsbs_request_seconds'].type == 'histogram'
  assert stub.count('dsbs_requests_in_flight') == 0


def test_a_batch_that_fails_ends_its_requests_only():
  def brittle(inputs, rationales):
    if any(one.text == 'bad' for one in inputs):
      raise RuntimeError('secret path')
    return serving_stub.echo(inputs, rationales)

  with serving_stub.Stub(brittle) as stub:
    status, body = stub.ask({'inputs': ['bad', 'good']})
    assert status == 500 and 'secret' not in json.dumps(body)
    assert body['error']['code'] == 'internal_error'
    assert stub.ask({'input': 'good'})[0] == 200


def test_before_and_after_its_time_a_server_says_so():
  with serving_stub.Stub(ready=False) as stub:
    for path, body in (('/healthz', None), ('/v1/answers', {'input': 'a'})):
      status, _, content = stub.send('POST' if body else 'GET', path, body)
      assert status == 503 and b'starting' in content
    stub.loop.call_soon_threadsafe(stub.service.open, stub.handlers)
    assert stub.ask({'input': 'a'})[0] == 200
    stub.loop.call_soon_threadsafe(stub.service.close)
    status, headers, content = stub.send('POST', '/v1/answers', {'input': 'a'})
    assert status == 503 and b'stopping' in content
    assert headers['Connection'] == 'close'
    with socket.create_connection(('127.0.0.1', stub.port)) as connection:
      connection.sendall(b'POST /v1/answers HTTP/1.1\r\nHost: x\r\n\r\n')
      with connection.makefile('rb') as file:
        assert b'stopping' in file.read()  # to its end: the server hangs up
    assert stub.send('GET', '/healthz')[0] == 503


def test_half_a_request_stops_nobody(stub):
  with socket.create_connection(('127.0.0.1', stub.port)) as slow:
    slow.sendall(serving_stub.HALF_A_REQUEST)
    assert stub.ask({'input': 'a'})[0] == 200
  with socket.create_connection(('127.0.0.1', stub.port)) as rude:
    rude.sendall(b'\x16\x03\x01 this is no HTTP\r\n\r\n')
    assert b' 400 ' in rude.recv(1000)
  assert stub.ask({'input': 'a'})[0] == 200


def test_large_bodies_are_read_beside_the_loop(monkeypatch):
  in_loop = []
  with serving_stub.Stub(max_body_bytes=1 << 20) as stub:
    num_tokens = stub.predictor.num_tokens

    def noting(inputs):
      in_loop.append(threading.current_thread() is stub.thread)
      return num_tokens(inputs)

    monkeypatch.setattr(stub.predictor, 'num_tokens', noting)
    padding = ' ' * (17 << 10)
    assert stub.ask(b'{"input": "a"}' + padding.encode())[0] == 200
    assert stub.ask(b'{"input": "a"}')[0] == 200
  assert in_loop == [False, True]


def test_answers_are_plain_json_numbers():
  def certain(inputs, rationales):
    del rationales
    return [predictor.Prediction('é\u2028', 1.0) for _ in inputs]

  with serving_stub.Stub(certain) as stub:
    (answer,) = stub.ask({'input': 'a'})[1]['answers']
  assert answer == {'label': 'é\u2028', 'probability': 1.0, 'cut': False}


_NAMES = strategies.sampled_from(
  [
    *('input', 'inputs', 'choices', 'rationales', 'model', 'prompt'),
    *('messages', 'role', 'content', 'stop', 'max_tokens', 'n', 'stream'),
    *('temperature', 'type', 'text', 'logit_bias', 'tools', 'user'),
  ]
)
_LEAVES = (
  strategies.none()
  | strategies.booleans()
  | strategies.integers(-(2**70), 2**70)
  | strategies.floats(allow_nan=False)
  | strategies.sampled_from(['user', 'a', 'Q: a', serving_stub.MODEL, '\ud800'])
  | strategies.text(max_size=8)
)
_VALUES = strategies.recursive(
  _LEAVES,
  lambda inner: (
    strategies.lists(inner, max_size=3)
    | strategies.dictionaries(_NAMES | strategies.text(), inner, max_size=4)
  ),
  max_leaves=8,
)


@hypothesis.settings(max_examples=100)
@hypothesis.given(
  path=strategies.sampled_from(['answers', 'completions', 'chat/completions']),
  body=strategies.dictionaries(_NAMES, _VALUES, max_size=4),
  model=strategies.booleans(),
)
def test_no_json_whatsoever_is_the_servers_fault(stub, path, body, model):
  if model:
    body = body | {'model': serving_stub.MODEL}
  status, answer = stub.ask(json.dumps(body).encode(), f'/v1/{path}')
  assert status in (200, 400, 404), (body, answer)
  assert status == 200 or answer['error']['message']
