# SPDX-License-Identifier: Apache-2.0
"""A server that is busy, with clients that are slow or leave, keeps its bounds."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import resource
import socket
import threading

from tests.serving import serving_stub


def test_a_full_queue_is_503_and_what_was_let_in_is_answered():
  gate = serving_stub.Gate()
  with serving_stub.Stub(gate, max_queue=4, max_inputs=4) as stub:
    first = threading.Thread(target=lambda: stub.ask({'input': '0'}))
    first.start()
    assert gate.entered.wait(300)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      waiting = pool.submit(stub.ask, {'inputs': ['1', '2', '3']})
      serving_stub.wait_until(lambda: stub.count('dsbs_queue_inputs') == 3)
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
  gate = serving_stub.Gate()
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
  gate = serving_stub.Gate()
  with serving_stub.Stub(gate) as stub:

    def num_submitted():
      return sum(map(len, gate.seen)) + stub.count('dsbs_queue_inputs')

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
      calls = [pool.submit(stub.ask, {'input': str(n)}) for n in range(3)]
      serving_stub.wait_until(
        lambda: gate.entered.is_set() and num_submitted() == 3
      )
      stub.skip(601)
      for call in calls:
        status, body = call.result()
        assert (status, body['error']['code']) == (504, 'timeout')
    gate.open.set()
    serving_stub.wait_until(
      lambda: stub.count('dsbs_dropped_inputs_total') == 3
    )
    assert stub.ask({'input': 'next'})[0] == 200
  assert gate.seen[-1] == ['next']


def test_a_body_that_does_not_arrive_is_408():
  with serving_stub.Stub() as stub:
    with socket.create_connection(('127.0.0.1', stub.port)) as slow:
      slow.sendall(serving_stub.HALF_A_REQUEST)
      serving_stub.wait_until(
        lambda: stub.count('dsbs_requests_in_flight') == 1
      )
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
    slow.sendall(serving_stub.HALF_A_REQUEST)
    serving_stub.wait_until(lambda: stub.count('dsbs_requests_in_flight') == 1)
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
      slow.sendall(serving_stub.HALF_A_REQUEST)
      serving_stub.wait_until(
        lambda n=number: stub.count('dsbs_requests_in_flight') == n
      )
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
    serving_stub.wait_until(lambda: stub.service.crowded)
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
      serving_stub.wait_until(lambda: stub.service.crowded)
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
  gate = serving_stub.Gate()
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
      serving_stub.wait_until(lambda: stub.count('dsbs_queue_inputs') == 2)
    serving_stub.wait_until(
      lambda: stub.count('dsbs_errors_total{code="client_left"}')
    )
    num_waiting = stub.count('dsbs_queue_inputs')
    gate.open.set()
    thread.join()
    assert num_waiting == 0  # while the model was busy
    assert stub.ask({'input': 'next'})[0] == 200
    assert stub.count('dsbs_dropped_inputs_total') == 2
  assert gate.seen == [['0'], ['next']]
