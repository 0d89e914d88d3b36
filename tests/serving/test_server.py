# SPDX-License-Identifier: Apache-2.0
"""A server answers as `infer` does, and loses nothing when it is stopped."""

import collections
import concurrent.futures
import contextlib
import functools
import http.client
import json
import os
import pathlib
import queue
import re
import signal
import socket
import threading
import urllib.error
import urllib.parse

import pytest

from dsbs_jax.inference import infer_file, predictor, student
from dsbs_jax.runtime.configuration import gin_config
from dsbs_jax.serving import batcher, sockets, warmup
from dsbs_jax.serving import server as server_lib
from tests.inference import small_student
from tests.serving import serving_process, serving_stub

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# 49 to 64 tokens: one length of the server's, and the same one of infer's.
TEXTS = [f'{"very " * 9}odd {i}?' for i in range(8)]
SHAPES = {
  'BATCH_SIZES': (1, 4),
  'INPUT_LENGTHS': (64,),
  'RATIONALES': True,
  'BACKEND': 'jax',
  'REQUEST_TIMEOUT': 600.0,
  'DRAIN_TIMEOUT': 600.0,
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('student')
  small_student.write(folder / 'run')
  return folder


def process(folder, log, **macros):
  return serving_process.Process(
    *(log, 'models/nano', 'benchmarks/parcels'),
    CHECKPOINT_PATH=str(folder / 'run'),
    **{**small_student.MACROS, **SHAPES, **macros},
  )


@pytest.fixture
def start(folder, tmp_path):
  """Starts a server."""
  return functools.partial(process, folder, tmp_path / 'log')


@pytest.fixture(scope='module')
def server(folder):
  """The server of two tests, of which the second one stops it."""
  with pytest.MonkeyPatch.context() as patched:
    patched.setenv('JAX_LOG_COMPILES', '1')  # also what the cache holds
    started = process(folder, folder / 'log')
  with started:
    started.wait()
    yield started


def inferred(folder, tmp_path):
  """What infer answers to the texts."""
  (tmp_path / 'input').write_text(''.join(f'{text}\n' for text in TEXTS))
  macros = small_student.MACROS | {
    'CHECKPOINT_PATH': str(folder / 'run'),
    'INPUT': str(tmp_path / 'input'),
    'OUTPUT': str(tmp_path / 'output'),
    'RATIONALES': True,
    'BACKEND': 'jax',
    'EVAL_BATCH_SIZE': 4,
    'CHUNK_SIZE': 8,
  }
  run = gin_config.build(
    infer_file.InferConfig,
    gin_files=[
      'gin/infer.gin',
      'gin/models/nano.gin',
      'gin/benchmarks/parcels.gin',
    ],
    gin_bindings=[f'{name} = {value!r}' for name, value in macros.items()],
    search_paths=[str(REPOSITORY)],
  )
  assert infer_file.infer(run) == 0
  lines = (tmp_path / 'output').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_a_server_answers_as_infer_does_and_never_compiles_again(
  server, folder, tmp_path
):
  assert re.search(r'ready after [\d.]+ s, 6 programs', server.log)
  compiled = server.log.count('Compiling')
  assert compiled >= 6
  status, body = server.post('/v1/answers', {'inputs': TEXTS})
  assert status == 200
  together = body['answers']
  for answer, expected in zip(
    together, inferred(folder, tmp_path), strict=True
  ):
    assert answer['label'] == expected['label']
    assert answer['rationale'] == expected['rationale']
    assert answer['probability'] == pytest.approx(
      expected['probability'], rel=1e-5
    )
  # One at a time, the same: shapes and neighbours decide nothing.
  for text, expected in zip(TEXTS[:3], together, strict=False):
    (alone,) = server.post('/v1/answers', {'input': text})[1]['answers']
    assert alone['label'] == expected['label']
    assert alone['rationale'] == expected['rationale']
    assert alone['probability'] == pytest.approx(
      expected['probability'], rel=1e-4
    )
  status, body = server.post(
    '/v1/completions', {'model': 'parcels_gt_dsbs', 'prompt': TEXTS[0]}
  )
  assert status == 200
  rationale, label = together[0]['rationale'], together[0]['label']
  expected = f'{rationale} So the answer is {label}.'
  assert body['choices'][0]['text'] == expected
  assert server.log.count('Compiling') == compiled


def test_a_server_of_ctranslate2_answers_as_the_built_in_one_would(
  start, folder, tmp_path
):
  pytest.importorskip('ctranslate2', reason='extra ct2')
  with start(BACKEND='ct2') as server:
    server.wait()
    assert 'backend: CTranslate2' in server.log
    assert re.search(r'ready after [\d.]+ s\n', server.log)  # no programs
    status, body = server.post('/v1/answers', {'inputs': TEXTS})
    assert status == 200
    for answer, expected in zip(
      body['answers'], inferred(folder, tmp_path), strict=True
    ):
      assert answer['label'] == expected['label']
      assert answer['rationale'] == expected['rationale']
      assert answer['probability'] == pytest.approx(
        expected['probability'], rel=1e-5
      )
    assert server.stop(signal.SIGINT) == 0


class Client(threading.Thread):
  """Asks, one connection per request, until nobody listens any more."""

  def __init__(self, address, number, answered):
    super().__init__()
    parts = urllib.parse.urlsplit(address)
    self.address, self.number = (parts.hostname, parts.port), number
    self.endings, self.answered = [], answered

  def run(self):
    while 'refused' not in self.endings:
      text = f'{TEXTS[len(self.endings) % 8][5:]} {self.number}'
      self.endings.append(self.ask(text))
      if self.endings[-1] == 'answered':
        self.answered.release()

  def ask(self, text):
    connection = http.client.HTTPConnection(*self.address, timeout=300)
    try:
      connection.connect()
    except ConnectionRefusedError:
      return 'refused'
    with connection.sock:
      try:
        connection.request(
          'POST',
          '/v1/answers',
          json.dumps({'input': text}).encode(),
          {'Content-Type': 'application/json', 'Connection': 'close'},
        )
        response = connection.getresponse()
      except http.client.RemoteDisconnected:
        raise
      except (ConnectionResetError, BrokenPipeError):
        return 'reset'
      body = json.loads(response.read())
    if response.status == 200:
      assert len(body['answers']) == 1
      return 'answered'
    assert response.status == 503, body
    return body['error']['code']


def posts_answered(server):
  """How many POST requests it has answered so far."""
  status = r'^dsbs_requests_total\{route="/v1.*status="200"\} (\S+)$'
  counts = re.findall(status, server.get('/metrics')[1].decode(), re.MULTILINE)
  return int(sum(map(float, counts)))


def test_nothing_that_was_accepted_is_lost_at_sigterm_under_load(server):
  answered = threading.Semaphore(0)
  before = posts_answered(server)
  clients = [Client(server.address(), number, answered) for number in range(12)]
  for client in clients:
    client.start()
  for _ in range(3 * len(clients)):
    assert answered.acquire(timeout=300)
  assert server.stop() == 0
  for client in clients:
    client.join(300)
    assert not client.is_alive()
  counts = collections.Counter(e for client in clients for e in client.endings)
  assert counts['refused'] == len(clients)
  # The kernel may reset a connection that it took in as the socket closed; no
  # other was cut off, though some may have been told that the server stops.
  assert set(counts) <= {'answered', 'stopping', 'reset', 'refused'}
  for client in clients:
    if 'reset' in client.endings:
      assert client.endings[-2:] == ['reset', 'refused']
      assert client.endings.count('reset') == 1
  num_answered, left = re.search(
    r'(\d[\d,]*) requests answered, (\d+) not', server.log
  ).groups()
  assert int(num_answered.replace(',', '')) == before + counts['answered']
  assert left == '0'


def test_the_second_signal_ends_the_process_at_once(start):
  with start(BATCH_SIZES=(1,), RATIONALES=False) as server:
    server.wait()
    address = urllib.parse.urlsplit(server.address())
    with socket.create_connection((address.hostname, address.port)) as slow:
      slow.sendall(serving_stub.HALF_A_REQUEST)
      in_flight = b'dsbs_requests_in_flight 1.0'
      server.wait_until(lambda: in_flight in server.get('/metrics')[1])
      server.process.send_signal(signal.SIGTERM)
      # It says so and goes on: the rest of the request may still come.
      server.wait_until(lambda: 'SIGTERM: answering' in server.log)
      assert server.stop() == -signal.SIGTERM


def test_a_signal_during_the_warm_up_ends_it(start):
  # More shapes than it can compile before it is asked.
  shapes = {'BATCH_SIZES': tuple(range(1, 17)), 'MAX_RATIONALE_LEN': 64}
  with start(INPUT_LENGTHS=tuple(range(64, 577, 8)), **shapes) as server:
    assert server.get('/healthz')[0] == 503
    status, body = server.post('/v1/answers', {'input': 'a'})
    assert (status, body['error']['code']) == (503, 'starting')
    assert server.stop() == 0
    with pytest.raises(urllib.error.URLError):
      server.get('/healthz')


def settings(folder, *files, **macros):
  macros = {
    **small_student.MACROS,
    **SHAPES,
    'CHECKPOINT_PATH': str(folder),
    **macros,
  }
  return gin_config.build(
    server_lib.ServeConfig,
    gin_files=['gin/serve.gin', 'gin/models/nano.gin', *files],
    gin_bindings=[f'{name} = {value!r}' for name, value in macros.items()],
    search_paths=[str(REPOSITORY)],
  )


@pytest.fixture
def held(tmp_path, monkeypatch):
  """A server in this thread, whose student is held by a gate: how to start it,
  the gate, and where the server listens."""
  gate, listeners = serving_stub.Gate(), queue.Queue()

  def load(config, *, shapes):
    loaded = predictor.Predictor(
      *(config.predictor_config(), None),
      vocabulary=small_student.BYTES,
      shapes=shapes,
    )
    monkeypatch.setattr(loaded, 'predict', gate)
    return student.LoadedStudent(loaded, None, {})

  def listen(host, port, listen=sockets.listen):
    found = listen(host, port)
    listeners.put(found)
    return found

  def serve(drain_timeout):
    return server_lib.serve(
      settings(
        *(tmp_path, 'gin/benchmarks/parcels.gin'),
        PORT=0,
        DRAIN_TIMEOUT=drain_timeout,
      )
    )

  monkeypatch.setattr(student, 'load_student', load)
  monkeypatch.setattr(warmup, 'calls', lambda *_: [])
  monkeypatch.setattr(sockets, 'listen', listen)
  numbers = signal.SIGTERM, signal.SIGINT
  before = [signal.getsignal(number) for number in numbers]
  yield serve, gate, lambda: listeners.get(timeout=300).getsockname()
  gate.open.set()
  for number, handler in zip(numbers, before, strict=True):
    signal.signal(number, handler)


def ask(address):
  """Asks a server as soon as it is ready: the status, 0 where it hung up."""
  data = b'{"input": "a"}'
  url = 'http://{}:{}'.format(*address)
  serving_stub.wait_until(
    lambda: serving_process.send(f'{url}/healthz')[0] == 200
  )
  try:
    return serving_process.send(f'{url}/v1/answers', data)[0]
  except (ConnectionError, urllib.error.URLError):
    return 0


def test_an_answer_that_takes_long_is_waited_for(held, capsys):
  serve, gate, listening = held

  def clients():
    address = listening()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      asked = pool.submit(ask, address)
      assert gate.entered.wait(300)
      with contextlib.closing(
        http.client.HTTPConnection(*address, timeout=300)
      ) as kept:

        def health():
          kept.request('GET', '/healthz')
          return kept.getresponse().read()

        assert b'ready' in health()
        os.kill(os.getpid(), signal.SIGTERM)
        try:
          serving_stub.wait_until(lambda: b'stopping' in health())
        finally:
          gate.open.set()
      return asked.result()

  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    status = pool.submit(clients)
    assert serve(600.0) == 0
    assert status.result() == 200
  assert '1 requests answered, 0 not' in capsys.readouterr().err


def test_milliseconds_of_waiting_become_seconds(held, monkeypatch):
  serve, gate, listening = held
  gate.open.set()
  waits = []

  class Batcher(batcher.Batcher):
    def __init__(self, *given, max_wait, **options):
      waits.append(max_wait)
      super().__init__(*given, max_wait=max_wait, **options)

  def client():
    status = ask(listening())
    os.kill(os.getpid(), signal.SIGTERM)
    return status

  monkeypatch.setattr(batcher, 'Batcher', Batcher)
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    status = pool.submit(client)
    assert serve(600.0) == 0
    assert status.result() == 200
  assert waits == [0.002]  # MAX_WAIT_MS of gin/serve.gin


def test_a_drain_that_is_too_short_is_counted_and_ends_in_status_1(
  held, capsys
):
  serve, gate, listening = held

  def refused(address):
    with socket.socket() as client:
      return client.connect_ex(address) != 0

  def client():
    address = listening()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      asked = pool.submit(ask, address)
      assert gate.entered.wait(300)
      os.kill(os.getpid(), signal.SIGTERM)
      serving_stub.wait_until(lambda: refused(address))
      return asked.result()

  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    status = pool.submit(client)
    assert serve(0.0) == 1
    assert status.result() == 0
  assert '0 requests answered, 1 not' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('macros', 'reason'),
  [
    ({'BATCH_SIZES': (4, 1)}, 'batch_sizes is'),
    ({'INPUT_LENGTHS': ()}, 'input_lengths is'),
    ({'MAX_INPUTS': 300}, 'MAX_INPUTS is 300'),
    ({'MAX_QUEUE': 0}, 'max_queue is 0'),
    ({'MAX_WAIT_MS': -1.0}, 'max_wait_ms is -1'),
    ({'REQUEST_TIMEOUT': 0.0}, 'request_timeout is 0'),
    ({'PORT': 70000}, 'port is 70000'),
    ({'BENCHMARK': 'cqa'}, 'MAX_CHOICES is 0'),
    ({'MIXTURE_OR_TASK_NAME': 'parcels_rationale'}, 'no label'),
    ({'MIXTURE_OR_TASK_NAME': 'parcels_gt_finetune'}, 'teaches none'),
  ],
)
def test_impossible_settings_are_refused(tmp_path, macros, reason):
  with pytest.raises(ValueError, match=reason):
    settings(tmp_path, **{'MIXTURE_OR_TASK_NAME': 'parcels_gt_dsbs', **macros})


@pytest.mark.parametrize(
  ('macros', 'reason'),
  [
    ({'COMPLETION': '{rationale} {label}'}, 'COMPLETION'),
    ({'HOST': 'no such host'}, 'cannot be listened at'),
    ({}, 'checkpoint'),
  ],
)
def test_a_server_that_cannot_start_says_why(tmp_path, macros, reason):
  run = settings(
    tmp_path / 'none', 'gin/benchmarks/parcels.gin', **{'PORT': 0, **macros}
  )
  with pytest.raises(ValueError, match=reason):
    server_lib.serve(run)


def test_a_port_that_is_taken_is_named(tmp_path):
  with socket.create_server(('127.0.0.1', 0)) as taken:
    port = taken.getsockname()[1]
    run = settings(tmp_path, 'gin/benchmarks/parcels.gin', PORT=port)
    with pytest.raises(ValueError, match=f'PORT {port} cannot be'):
      server_lib.serve(run)


def test_shared_macros_have_the_defaults_of_inference():
  def macros(name):
    text = (REPOSITORY / 'gin' / name).read_text()
    return dict(re.findall(r'^([A-Z][A-Z_]*) = (.*)$', text, re.MULTILINE))

  ours, theirs = macros('serve.gin'), macros('infer.gin')
  shared = set(ours) & set(theirs)
  assert len(shared) > 12
  assert {key: ours[key] for key in shared} == {
    key: theirs[key] for key in shared
  }
  assert ours['HOST'] == "'127.0.0.1'"
