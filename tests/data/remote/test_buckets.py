# SPDX-License-Identifier: Apache-2.0
"""Copies of what lies in a bucket, and what is uploaded when.

The bucket lies in memory; tests/buckets has servers.
"""

import os
import pathlib
import subprocess
import sys

import fsspec
import pytest

from dsbs_jax import contract
from dsbs_jax.data.remote import buckets, object_store

URL = 'memory://ours/run'


@pytest.fixture(autouse=True)
def store(monkeypatch, tmp_path):
  """An empty store, and a process that has just begun."""
  monkeypatch.setenv('DSBS_CACHE', str(tmp_path / 'cache'))
  found = fsspec.filesystem('memory')
  found.store.clear()
  _forget()
  yield found
  found.store.clear()
  _forget()


def _forget():
  buckets._root.cache_clear()
  buckets._known.clear()
  buckets._versions.clear()


@pytest.fixture
def calls(monkeypatch):
  """What the store is asked for: (method, URLs)."""
  seen = []

  def watch(name):
    original = getattr(object_store, name)

    def call(*given):
      urls = given[1] if name == 'put' else given[0]
      urls = [urls] if isinstance(urls, str) else urls
      seen.append((name, [url.removeprefix(f'{URL}/') for url in urls]))
      return original(*given)

    monkeypatch.setattr(object_store, name, call)

  for name in ('get', 'put', 'delete', 'write', 'remove'):
    watch(name)
  return seen


def _write(folder, **files):
  for name, text in files.items():
    path = folder / name.replace('__', '/').replace('_json', '.json')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _checkpoint(folder, number, text='arrays'):
  place = folder / f'checkpoint_{number}'
  _write(place, state__d=text, state___METADATA='{}', checksums_json=text)
  return place


def test_what_changed_is_uploaded_and_what_is_gone_is_deleted(calls):
  folder = buckets.fetch(URL)
  assert not folder.exists()
  _write(folder, a='1', b='1', train='1')
  (folder / 'half.tmp').write_text('')
  (folder / 'train.lock').write_text('mine')
  buckets.push(folder)
  assert calls == [('put', ['a', 'b', 'train'])]
  _write(folder, a='22')
  (folder / 'b').unlink()
  calls.clear()
  changed, gone = buckets.changes(folder)
  buckets.push(folder, changed, gone)
  assert calls == [('put', ['a']), ('delete', ['b'])]
  assert sorted(object_store.find(URL)) == [f'{URL}/a', f'{URL}/train']
  assert object_store.read(f'{URL}/a') == b'22'


def test_a_lock_that_was_fetched_is_not_deleted_with_what_is_gone():
  object_store.write(f'{URL}/train.lock', b'theirs')
  folder = buckets.fetch(URL)
  (folder / 'train.lock').unlink()
  assert buckets.changes(folder) == ([], [])


def test_a_checkpoint_is_marked_until_it_is_whole_and_while_it_goes(calls):
  folder = buckets.local_path(URL)
  _checkpoint(folder, 3)
  buckets.push(folder)
  marker = 'checkpoint_3.incomplete'
  parts = ['checkpoint_3/state/_METADATA', 'checkpoint_3/state/d']
  assert calls == [
    ('write', [marker]),
    ('put', parts),
    ('put', ['checkpoint_3/checksums.json']),
    ('remove', [marker]),
  ]
  calls.clear()  # what is added to one that is whole: its list comes last
  _write(folder / 'checkpoint_3', metrics__metrics='9', checksums_json='new')
  buckets.push(folder)
  assert calls == [
    ('put', ['checkpoint_3/metrics/metrics']),
    ('put', ['checkpoint_3/checksums.json']),
  ]
  calls.clear()
  for path in sorted((folder / 'checkpoint_3').rglob('*'), reverse=True):
    path.unlink() if path.is_file() else path.rmdir()
  buckets.push(folder, *buckets.changes(folder))
  assert [name for name, _ in calls] == ['write', 'delete', 'remove']
  assert not object_store.find(URL)


@pytest.mark.parametrize('url', [URL, f'{URL}/checkpoint_3'])
def test_what_is_not_whole_is_not_fetched(url):
  _checkpoint(buckets.local_path(URL), 3)
  buckets.push(buckets.local_path(URL))
  object_store.write(f'{URL}/checkpoint_3.incomplete', b'')
  object_store.write(f'{URL}/checkpoint_30/a', b'')
  _forget()
  folder = buckets.fetch(url)
  there = [path.name for path in folder.rglob('*') if path.is_file()]
  assert there == ([] if 'point' in url else ['a'])
  assert buckets.remove_incomplete(URL) == [f'{URL}/checkpoint_3']
  assert list(object_store.find(URL)) == [f'{URL}/checkpoint_30/a']


def test_arrays_are_fetched_once_they_are_asked_for(calls):
  _checkpoint(buckets.local_path(URL), 3)
  buckets.push(buckets.local_path(URL))
  _forget()
  calls.clear()
  folder = buckets.fetch(URL, arrays=False)
  place = folder / 'checkpoint_3'
  assert (place / 'state/_METADATA').read_text() == '{}'
  assert not (place / 'state/d').exists()
  buckets.complete(place)
  assert (place / 'state/d').read_text() == 'arrays'
  assert [urls for name, urls in calls if name == 'get'][1:] == [
    ['checkpoint_3/state/d']
  ]


def test_processes_share_a_cache_that_follows_the_store(calls, monkeypatch):
  monkeypatch.setattr(buckets, '_LINKED_BYTES', 3)
  object_store.write(f'{URL}/small', b'1')
  object_store.write(f'{URL}/large', b'12345')
  object_store.write(f'{URL}/metrics.jsonl', b'12345')
  for _ in range(2):  # the second is another process
    folder = buckets.fetch(URL)
    assert (folder / 'large').read_bytes() == b'12345'
    linked = [path.name for path in folder.iterdir() if path.is_symlink()]
    assert linked == ['large']  # what is written to is a copy
    _forget()
  assert [name for name, _ in calls].count('get') == 1
  object_store.write(f'{URL}/large', b'54321')
  folder = buckets.fetch(URL)
  assert (folder / 'large').read_bytes() == b'54321'
  assert [urls for name, urls in calls if name == 'get'][1:] == [['large']]
  (folder / 'small').write_text('own')
  object_store.remove(f'{URL}/large')
  buckets.fetch(URL)
  assert not (folder / 'large').exists()
  assert (folder / 'small').read_text() == 'own'


def test_copies_are_named_by_their_urls():
  folder = buckets.local_path(URL)
  assert buckets.url_of(folder / 'a') == f'{URL}/a'
  assert buckets.url_of('/elsewhere/a') is None
  assert buckets.shown(f'see {folder}/a, /b') == f'see {URL}/a, /b'
  assert object_store.absolute(URL) == URL
  assert object_store.absolute('a') == os.path.abspath('a')


def test_the_copies_of_a_killed_process_are_removed():
  program = (
    'import os, signal; from dsbs_jax.data.remote import buckets;'
    " print(buckets.local_path('memory://a'), flush=True);"
    ' os.kill(os.getpid(), signal.SIGKILL)'
  )
  process = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True
  )
  left = pathlib.Path(process.stdout.strip()).parents[1]
  assert left.is_dir()
  mine = buckets.local_path(URL).parents[2]
  assert mine.is_dir() and not left.exists()


def test_a_missing_package_names_its_extra(monkeypatch):
  monkeypatch.setattr(object_store.importlib.util, 'find_spec', lambda _: None)
  object_store._filesystem.cache_clear()
  with pytest.raises(contract.UserError, match=r"pip install -e '\.\[s3\]'"):
    buckets.fetch('s3://ours/run')


class Unavailable(Exception):
  code = 503


class Refused(Exception):
  code = 403


class TransportError(Exception):
  """As google.auth raises it from an exception of requests."""

  def __init__(self):
    super().__init__('no token')
    self.__cause__ = ConnectionError('broken')
    self.__cause__.response = None


def test_a_store_that_is_unavailable_is_asked_again(store, monkeypatch):
  pauses, now = [], [0.0]

  def sleep(seconds):
    pauses.append(seconds)
    now[0] += seconds

  monkeypatch.setattr(object_store.time, 'sleep', sleep)
  monkeypatch.setattr(object_store.time, 'monotonic', lambda: now[0])
  failures = [Unavailable(), ConnectionResetError(), TimeoutError()]
  failures.append(TransportError())

  def cat_file(key):
    if failures:
      raise failures.pop()
    return b'content'

  monkeypatch.setattr(store, 'cat_file', cat_file)
  monkeypatch.setattr(object_store, '_filesystem', lambda scheme: store)
  assert object_store.read(f'{URL}/a') == b'content'
  assert pauses == [1, 2, 4, 8]
  failures += [Unavailable()] * 1000
  with pytest.raises(object_store.StoreError, match='has not answered for 3'):
    object_store.read(f'{URL}/a')
  assert now[0] < object_store.RETRY_SECONDS + 30
  failures[:] = [Refused('no')]
  pauses.clear()
  with pytest.raises(object_store.StoreError, match=r'refuses \(no\)'):
    object_store.read(f'{URL}/a')
  assert not pauses
