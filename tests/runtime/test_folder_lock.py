# SPDX-License-Identifier: Apache-2.0
"""One writer per folder, and nobody who is dead keeps others out."""

import datetime
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import fsspec
import pytest

from dsbs_jax import contract
from dsbs_jax.data.remote import object_store
from dsbs_jax.runtime import files, folder_lock, progress

# Holds a lock until it is told to end; SIGTERM ends it as it ends a run.
PROGRAM = """
import sys
from dsbs_jax.runtime import folder_lock
lock = folder_lock.FolderLock(sys.argv[1], doing='trained', remedy='go away')
with folder_lock.hold(lock):
  print('held', flush=True)
  if sys.stdin.readline() == 'fail\\n':
    raise RuntimeError('a bug')
"""


def _lock(path):
  return folder_lock.FolderLock(path, doing='trained', remedy='go away')


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'run' / 'train.lock'


@pytest.fixture
def other(path):
  """A process that holds the lock."""
  process = subprocess.Popen(
    [sys.executable, '-c', PROGRAM, str(path)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'held\n'
  yield process
  process.kill()
  process.communicate()


def _count_reads(monkeypatch, path, number):
  """An event that is set once a file was read so many times."""
  read, done, seen = pathlib.Path.read_text, threading.Event(), []

  def watched(self, *arguments, **options):
    if self == path:
      seen.append(self)
      if len(seen) >= number:
        done.set()
    return read(self, *arguments, **options)

  monkeypatch.setattr(pathlib.Path, 'read_text', watched)
  return done


def _rewritten(path, **facts):
  """Lets a lock file say something else."""
  text = {**json.loads(path.read_text()), **facts}
  path.write_text(json.dumps(text))


def test_the_second_is_refused_with_the_name_of_the_first(path, other):
  with pytest.raises(contract.UserError) as refused:
    _lock(path).acquire()
  message = str(refused.value)
  since = json.loads(path.read_text())['since']
  who = f'process {other.pid} on {socket.gethostname()} since {since}'
  assert f'{path.parent} is being trained by {who}' in message
  assert 'Wait until it has ended, stop it, or go away.' in message
  assert folder_lock.holder(path) == who
  other.communicate('end\n')
  assert folder_lock.holder(path) is None
  with folder_lock.hold(_lock(path)):
    assert f'process {os.getpid()} on' in folder_lock.holder(path)
    with pytest.raises(contract.UserError, match=f'process {os.getpid()} on'):
      _lock(path).acquire()
  assert not list(path.parent.iterdir())


@pytest.mark.parametrize('reaped', [True, False])
def test_a_killed_process_keeps_nobody_out(path, other, reaped, capsys):
  other.kill()
  if reaped:
    other.wait()
  else:  # its parent has not asked for its status: a zombie
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
  assert path.exists()
  assert folder_lock.holder(path) is None
  with folder_lock.hold(_lock(path)):
    said = capsys.readouterr().err
    assert f'was left by process {other.pid} on' in said


def test_another_process_with_the_number_of_the_dead_keeps_nobody_out(
  path, other
):
  _rewritten(path, started='1')
  with folder_lock.hold(_lock(path)) as lock:
    lock.check()


@pytest.mark.parametrize(
  ('send', 'status'),
  [
    (lambda process: process.communicate('end\n'), 0),
    (lambda process: process.communicate('fail\n'), 1),
    (lambda p: p.send_signal(signal.SIGTERM), os.EX_TEMPFAIL),
    (lambda p: p.send_signal(signal.SIGINT), -signal.SIGINT),
  ],
)
def test_every_end_but_a_kill_releases(path, other, send, status):
  send(other)
  assert other.wait() == status
  assert not path.exists()


def _touched(path, seconds_ago):
  now = time.time()
  os.utime(path, (now - seconds_ago, now - seconds_ago))


def test_another_host_is_believed_while_its_lock_is_touched(path, other):
  """As seen from a container or a machine that shares the folder."""
  _rewritten(path, place='another boot', host='far')
  other.kill()
  _touched(path, folder_lock.STALE_SECONDS / 2)
  with pytest.raises(
    contract.UserError, match='on far since .* wait 120 s for'
  ):
    _lock(path).acquire()
  for seconds in (1, -1):  # by a clock that is late, or early
    _touched(path, seconds * 2 * folder_lock.STALE_SECONDS)
    assert folder_lock.holder(path) is None
  with folder_lock.hold(_lock(path)) as lock:
    lock.check()


def test_whoever_holds_a_lock_touches_it(path, monkeypatch):
  monkeypatch.setattr(folder_lock, 'BEAT_SECONDS', 0.01)
  with folder_lock.hold(_lock(path)):
    _touched(path, 1000)
    assert _count_reads(monkeypatch, path, 2).wait(300)  # a beat has ended
    assert path.stat().st_mtime > time.time() - 500
    text = path.read_text().replace(' ', '')
    path.write_text(text)  # of another process: left alone from the next beat
    assert _count_reads(monkeypatch, path, 2).wait(300)
    _touched(path, 1000)
    assert _count_reads(monkeypatch, path, 2).wait(300)
    assert path.stat().st_mtime < time.time() - 500
  assert path.read_text() == text


def test_a_torn_file_is_believed_for_as_long(path, monkeypatch):
  monkeypatch.setattr(folder_lock, '_HALF_WRITTEN_SECONDS', 0.0)
  path.parent.mkdir()
  path.write_text('{"host": "he')
  with pytest.raises(contract.UserError, match='has not said its name'):
    _lock(path).acquire()
  _touched(path, 2 * folder_lock.STALE_SECONDS)
  with folder_lock.hold(_lock(path)) as lock:
    lock.check()


def test_a_reader_that_was_stopped_looks_again(path, monkeypatch):
  now, read = [0.0], pathlib.Path.read_text

  def stopped(self):
    text = read(self)
    now[0] += 1000
    self.write_bytes(FAR)  # meanwhile
    return text

  path.parent.mkdir()
  path.write_text('')
  monkeypatch.setattr(pathlib.Path, 'read_text', stopped)
  monkeypatch.setattr(folder_lock.time, 'monotonic', lambda: now[0])
  assert folder_lock.holder(path) == 'process 1 on far since May'


def test_of_many_that_take_over_one_does(path, other):
  other.kill()
  other.wait()
  locks = [_lock(path) for _ in range(16)]
  start, refused = threading.Barrier(len(locks)), []

  def acquire(lock):
    start.wait()
    try:
      lock.acquire()
    except contract.UserError:
      refused.append(lock)

  threads = [threading.Thread(target=acquire, args=(x,)) for x in locks]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  (winner,) = set(locks) - set(refused)
  winner.check()
  winner.release()
  assert not list(path.parent.iterdir())


def test_a_lock_that_was_just_taken_over_is_left_alone(
  path, other, monkeypatch
):
  """One process reads a dead lock; before it removes it, another is faster."""
  other.kill()
  other.wait()

  def meanwhile(line):
    assert line.endswith('taken over')
    _rewritten(path, token='of the one that was faster', place='x', host='far')

  monkeypatch.setattr(progress, 'say', meanwhile)
  with pytest.raises(contract.UserError, match='by process .* on far since'):
    _lock(path).acquire()
  assert json.loads(path.read_text())['token'] == 'of the one that was faster'


def test_a_lock_that_was_lost_is_noticed(path):
  with folder_lock.hold(_lock(path)) as lock:
    lock.check()
    text = path.read_text()
    path.unlink()
    with pytest.raises(
      files.NotWritten, match='train.lock is gone: its folder'
    ):
      lock.check()
    path.write_text(text)
    lock.check()
    _rewritten(path, token='other', pid=7, host='far')
    with pytest.raises(
      files.NotWritten, match='process 7 on far .* taken over'
    ):
      lock.check()
  assert json.loads(path.read_text())['host'] == 'far'


@pytest.fixture
def bucket(monkeypatch):
  """A lock in a bucket that lies in memory."""
  monkeypatch.setattr(folder_lock.time, 'sleep', lambda seconds: None)
  store = fsspec.filesystem('memory')
  store.store.clear()
  yield 'memory://ours/run/train.lock'
  store.store.clear()


def _aged(bucket, seconds):
  """Lets an object be older than it is."""
  found = fsspec.filesystem('memory').store[bucket.removeprefix('memory:/')]
  found.modified -= datetime.timedelta(seconds=seconds)


FAR = b'{"pid": 1, "host": "far", "since": "May", "place": "x", "token": ""}'


def test_a_bucket_is_locked_too(bucket):
  with folder_lock.hold(_lock(bucket)) as lock:
    lock.check()
    with pytest.raises(
      contract.UserError, match='run is being trained by proc'
    ):
      _lock(bucket).acquire()
    object_store.write(bucket, FAR)
    with pytest.raises(files.NotWritten, match='process 1 on far since May'):
      lock.check()
  assert object_store.read(bucket) == FAR  # another's is left alone
  with pytest.raises(contract.UserError, match='process 1 on far since May'):
    _lock(bucket).acquire()
  _aged(bucket, 1000)
  with folder_lock.hold(_lock(bucket)) as lock:
    lock.check()
  with pytest.raises(FileNotFoundError):
    object_store.read(bucket)


def test_of_two_that_write_into_a_bucket_at_once_one_goes_on(bucket):
  with folder_lock.hold(_lock(bucket)) as first:
    held = object_store.read(bucket)
    with pytest.raises(contract.UserError, match='is being trained by process'):
      _lock(bucket).acquire()
    assert object_store.read(bucket) == held
    first.check()


def test_of_two_that_take_over_in_a_bucket_at_once_one_goes_on(
  bucket, monkeypatch
):
  object_store.write(bucket, FAR)
  _aged(bucket, 1000)
  first, second = _lock(bucket), _lock(bucket)

  def meanwhile(seconds):
    assert seconds == folder_lock.SETTLE_SECONDS
    monkeypatch.setattr(folder_lock.time, 'sleep', lambda seconds: None)
    # The second had looked before the first took over.
    object_store.remove(bucket)
    second.acquire()

  monkeypatch.setattr(folder_lock.time, 'sleep', meanwhile)
  with pytest.raises(contract.UserError, match='is being trained by process'):
    first.acquire()
  second.check()
  second.release()


def test_an_answer_that_is_lost_is_no_other_process(bucket, monkeypatch):
  lock, create = _lock(bucket), object_store.create

  def twice(url, content):
    create(url, content)  # its answer does not come: it is asked again
    return create(url, content)

  monkeypatch.setattr(object_store, 'create', twice)
  with folder_lock.hold(lock):
    lock.check()


def test_without_room_or_rights_the_file_is_named(path):
  path.parent.mkdir()
  path.parent.joinpath('a').write_text('')
  lock = _lock(pathlib.Path(f'{path.parent}/a/train.lock'))
  with pytest.raises(files.NotWritten, match="run/a': .*xpected a fold"):
    lock.acquire()
