# SPDX-License-Identifier: Apache-2.0
"""Whatever is sent, a server answers it once, in order, or says why not."""

import concurrent.futures
import contextlib
import gzip
import http.client
import json
import os
import resource
import socket
import threading
import time

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


class Gate:
  """A student that answers when the gate is opened."""

  def __init__(self):
    self.open, self.entered = threading.Event(), threading.Event()
    self.seen = []

  def __call__(self, inputs, rationales):
    self.seen.append([one.text for one in inputs])
    self.entered.set()
    assert self.open.wait(300)
    return serving_stub.echo(inputs, rationales)


def in_threads(calls):
  """Runs calls at once; their results in order."""
  with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
    return [future.result() for future in [pool.submit(c) for c in calls]]


def wait_until(condition):
  """Waits for the server; if it never comes, pytest's timeout ends the test."""
  while not condition():
    time.sleep(0.005)


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


def test_a_full_queue_is_503_and_what_was_let_in_is_answered():
  gate = Gate()
  with serving_stub.Stub(gate, max_queue=4, max_inputs=4) as stub:
    first = threading.Thread(target=lambda: stub.ask({'input': '0'}))
    first.start()
    assert gate.entered.wait(300)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      waiting = pool.submit(stub.ask, {'inputs': ['1', '2', '3']})
      wait_until(lambda: stub.count('dsbs_queue_inputs') == 3)
      status, headers, body = stub.send(
        'POST', '/v1/answers', {'inputs': ['4', '5']}
      )
      assert status == 503 and int(headers['Retry-After']) >= 1
      assert json.loads(body)['error']['code'] == 'queue_full'
      assert stub.send('GET', '/healthz')[0] == 200  # busy, not unwell
      gate.open.set()
      assert waiting.result()[0] == 200
    first.join()
    assert stub.ask({'inputs': ['4', '5']})[0] == 200
  assert ['4', '5'] in gate.seen


def test_the_loop_answers_while_the_model_computes():
  gate = Gate()
  with serving_stub.Stub(gate) as stub:
    thread = threading.Thread(target=lambda: stub.ask({'input': '0'}))
    thread.start()
    assert gate.entered.wait(300)
    assert stub.send('GET', '/healthz')[0] == 200
    assert stub.ask(b'{')[0] == 400
    assert stub.count('dsbs_requests_in_flight') == 1
    gate.open.set()
    thread.join()


def test_a_request_that_takes_too_long_is_504_and_its_inputs_are_dropped():
  gate = Gate()
  with serving_stub.Stub(gate, request_timeout=20.0) as stub:

    def num_submitted():
      return sum(map(len, gate.seen)) + stub.count('dsbs_queue_inputs')

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
      calls = [pool.submit(stub.ask, {'input': str(n)}) for n in range(3)]
      wait_until(lambda: gate.entered.is_set() and num_submitted() == 3)
      stub.skip(21)
      for call in calls:
        status, body = call.result()
        assert (status, body['error']['code']) == (504, 'timeout')
    gate.open.set()
    wait_until(lambda: stub.count('dsbs_dropped_inputs_total') == 3)
    assert stub.ask({'input': 'next'})[0] == 200
  assert gate.seen[-1] == ['next']


HALF_A_REQUEST = (
  b'POST /v1/answers HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n'
  b'Content-Type: application/json\r\n\r\n{"input"'
)


def test_a_body_that_does_not_arrive_is_408():
  with serving_stub.Stub() as stub:
    with socket.create_connection(('127.0.0.1', stub.port)) as slow:
      slow.sendall(HALF_A_REQUEST)
      wait_until(lambda: stub.count('dsbs_requests_in_flight') == 1)
      stub.skip(31)
      response = http.client.HTTPResponse(slow)
      response.begin()
      assert response.status == 408
      assert b'body did not arrive' in response.read()
    assert stub.ask({'input': 'next'})[0] == 200


def test_a_refusal_can_be_read_after_the_rest_was_written():
  with (
    serving_stub.Stub() as stub,
    socket.create_connection(('127.0.0.1', stub.port)) as slow,
  ):
    slow.sendall(HALF_A_REQUEST)
    wait_until(lambda: stub.count('dsbs_requests_in_flight') == 1)
    stub.skip(31)
    assert slow.recv(1, socket.MSG_PEEK)  # it is refused, and writes on
    for piece in (b':', b' ', b'"a"}  '):
      stub.skip(15)
      stub.count('dsbs_ready')  # what the clock started is done
      slow.sendall(piece)
    response = http.client.HTTPResponse(slow)
    response.begin()
    assert response.status == 408 and response.read()


def test_half_sent_bodies_take_no_place_in_the_queue():
  with contextlib.ExitStack() as stack:
    stub = stack.enter_context(serving_stub.Stub(max_queue=2, max_inputs=2))
    for number in range(1, 4):
      address = ('127.0.0.1', stub.port)
      slow = stack.enter_context(socket.create_connection(address))
      slow.sendall(HALF_A_REQUEST)
      wait_until(lambda n=number: stub.count('dsbs_requests_in_flight') == n)
    assert stub.ask({'inputs': ['a', 'b']})[0] == 200


def test_half_sent_heads_end_after_a_while():
  with (
    serving_stub.Stub() as stub,
    socket.create_connection(('127.0.0.1', stub.port)) as slow,
  ):
    slow.sendall(b'POST /v1/answers HTTP/1.1\r\nHost:')
    assert stub.ask({'input': 'a'})[0] == 200
    stub.skip(76)
    slow.settimeout(300)
    assert slow.recv(1) == b''


def test_beyond_the_bound_connections_wait_and_places_go_round():
  with contextlib.ExitStack() as stack:
    stub = stack.enter_context(serving_stub.Stub(max_connections=2))
    first, second, third = (
      stack.enter_context(stub.connect()) for _ in range(3)
    )

    def health(connection):
      connection.request('GET', '/healthz')
      response = connection.getresponse()
      assert response.status == 200 and response.read()
      return response.headers.get('Connection')

    assert [health(first), health(second)] == [None, None]
    third.request('GET', '/healthz')
    wait_until(lambda: stub.service.crowded)
    assert health(first) == 'close'
    assert third.getresponse().status == 200


def test_without_descriptors_the_server_waits_and_recovers(caplog):
  limits = resource.getrlimit(resource.RLIMIT_NOFILE)
  with serving_stub.Stub() as stub, socket.socket() as client:
    free = [os.dup(client.fileno())]
    try:
      resource.setrlimit(resource.RLIMIT_NOFILE, (free[0] + 2, limits[1]))
      with contextlib.suppress(OSError):
        while True:
          free.append(os.dup(client.fileno()))
      client.connect(('127.0.0.1', stub.port))
      wait_until(lambda: stub.service.crowded)
    finally:
      resource.setrlimit(resource.RLIMIT_NOFILE, limits)
      for descriptor in free:
        os.close(descriptor)
    stub.skip(1.1)
    client.sendall(b'GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n')
    assert b' 200 ' in client.recv(1000)
  said = [one for one in caplog.records if 'can be accepted' in one.message]
  assert 1 <= len(said) < 10  # one a second


def test_inputs_of_a_client_that_left_are_not_computed():
  gate = Gate()
  with serving_stub.Stub(gate, max_queue=2, max_inputs=2) as stub:
    thread = threading.Thread(target=lambda: stub.ask({'input': '0'}))
    thread.start()
    assert gate.entered.wait(300)
    with stub.connect() as connection:
      connection.request(
        'POST',
        '/v1/answers',
        b'{"inputs": ["gone 1", "gone 2"]}',
        {'Content-Type': 'application/json'},
      )
      wait_until(lambda: stub.count('dsbs_queue_inputs') == 2)
    wait_until(lambda: stub.count('dsbs_errors_total{code="client_left"}'))
    num_waiting = stub.count('dsbs_queue_inputs')
    gate.open.set()
    thread.join()
    assert num_waiting == 0  # while the model was busy
    assert stub.ask({'input': 'next'})[0] == 200
    assert stub.count('dsbs_dropped_inputs_total') == 2
  assert gate.seen == [['0'], ['next']]


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
    slow.sendall(HALF_A_REQUEST)
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


@hypothesis.settings(max_examples=100, deadline=None, database=None)
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
