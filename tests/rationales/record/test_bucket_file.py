# SPDX-License-Identifier: Apache-2.0
"""A completions file in a bucket loses no answer that was paid for."""

import fsspec
import pytest

from dsbs_jax import contract
from dsbs_jax.data.remote import object_store
from rationales.record import bucket_file, ledger

OUT = 'memory://ours/answers/train.jsonl'
HEADER = ledger.header({})


@pytest.fixture(autouse=True)
def store(monkeypatch, tmp_path):
  monkeypatch.setenv('DSBS_CACHE', str(tmp_path / 'here'))
  fsspec.filesystem('memory').store.clear()
  yield
  fsspec.filesystem('memory').store.clear()


def _append(path, *texts):
  with ledger.Ledger(path) as file:
    if not path.stat().st_size:
      file.append(HEADER)
    for text in texts:
      file.append({'kind': 'answer', 'text': text})


def test_answers_are_uploaded_at_the_end_and_the_lock_goes():
  for number in (1, 2):
    with bucket_file.local(OUT) as path:
      _append(path, f'answer {number}')
    assert object_store.read(OUT) == path.read_bytes()
  assert object_store.read(OUT).count(b'\n') == 3
  assert object_store.names('memory://ours/answers') == ['train.jsonl']


def test_what_a_kill_kept_here_is_uploaded_by_the_next_run(capsys):
  with bucket_file.local(OUT) as path:
    _append(path, 'one')
  _append(path, 'two')  # and killed before it was uploaded
  with bucket_file.local(OUT):
    assert b'two' in object_store.read(OUT)
  assert 'bytes of it were not uploaded yet' in capsys.readouterr().err


def test_another_machine_goes_on_from_the_bucket(monkeypatch, tmp_path):
  with bucket_file.local(OUT) as path:
    _append(path, 'one')
    path.with_name(f'{path.name}.batch-1.calls').write_text('asked')
  monkeypatch.setenv('DSBS_CACHE', str(tmp_path / 'there'))
  with bucket_file.local(OUT) as other:
    assert other != path and other.read_bytes() == path.read_bytes()
    beside = other.with_name(f'{other.name}.batch-1.calls')
    assert beside.read_text() == 'asked'
    _append(other, 'two')
  monkeypatch.setenv('DSBS_CACHE', str(tmp_path / 'here'))
  _append(path, 'three')  # here and there went on apart
  with (
    pytest.raises(contract.UserError, match='hold different answers'),
    bucket_file.local(OUT),
  ):
    pass


def test_one_that_was_removed_from_the_bucket_is_begun_anew():
  with bucket_file.local(OUT) as path:
    _append(path, 'one')
  object_store.remove(OUT)
  with bucket_file.local(OUT) as path:
    assert not path.exists()
  assert b'one' in path.with_name('train.jsonl.removed').read_bytes()


def test_an_upload_that_fails_says_where_the_answers_are(monkeypatch):
  def refuse(paths, urls):
    raise object_store.StoreError('refused.')

  with (
    pytest.raises(contract.UserError, match='refused. All answers are in .*'),
    bucket_file.local(OUT) as path,
  ):
    monkeypatch.setattr(object_store, 'put', refuse)
    _append(path, 'one')
  assert b'one' in path.read_bytes()


def test_it_is_uploaded_while_it_grows(monkeypatch):
  monkeypatch.setattr(bucket_file, 'UPLOAD_SECONDS', 0.01)
  with bucket_file.local(OUT) as path:
    _append(path, 'one')
    size = path.stat().st_size
    while object_store.find(OUT).get(OUT, {}).get('size') != size:
      pass  # the timeout of tests ends it


def test_a_local_file_is_itself(tmp_path):
  with bucket_file.local(str(tmp_path / 'a.jsonl')) as path:
    assert path == tmp_path / 'a.jsonl'
