# SPDX-License-Identifier: Apache-2.0
"""The completions file: nothing lost, nothing torn, one writer."""

import errno
import json
import os
import pathlib
import shutil

import hypothesis
import pytest
from hypothesis import strategies

from dsbs_jax import contract
from rationales.record import completions_file, costs, ledger

SETTINGS = {'model': 'a', 'temperature': 0.0}


def _line(number):
  return {
    'kind': completions_file.LOST,
    'id': str(number),
    'reason': 'é"\n\ud800',
  }


def _fill(path, num_lines=5):
  with ledger.Ledger(path) as file:
    file.append(ledger.header(SETTINGS))
    for number in range(num_lines):
      file.append(_line(number))
  return path.read_bytes()


def _ids(path):
  found = [record for _, record in completions_file.scan(path)]
  return [r['id'] for r in found if r['kind'] == completions_file.LOST]


@hypothesis.given(strategies.data())
@hypothesis.settings(max_examples=30)
def test_a_file_cut_anywhere_goes_on(tmp_path_factory, data):
  path = tmp_path_factory.getbasetemp() / 'ledger.jsonl'
  path.unlink(missing_ok=True)
  whole = _fill(path)
  end = data.draw(strategies.integers(0, len(whole)))
  path.write_bytes(whole[:end])
  with ledger.Ledger(path) as file:
    file.append(_line('new'))
  complete = whole[:end].count(b'\n')
  if end and whole[end - 1 : end] == b'}':
    complete += 1  # only the newline was missing
  expected = [str(n) for n in range(max(complete - 1, 0))]
  assert _ids(path) == [*expected, 'new']
  assert path.read_bytes().endswith(b'\n')


def test_a_torn_line_longer_than_a_read_is_cut_off(tmp_path):
  path = tmp_path / 'out.jsonl'
  whole = _fill(path)
  path.write_bytes(whole + b'{"kind": "' + b'x' * 200_000)
  with ledger.Ledger(path) as file:
    assert file.repaired == 200_010
  assert path.read_bytes() == whole


def test_a_foreign_file_is_left_alone(tmp_path):
  path = tmp_path / 'rows.json'
  for content in (b'[{"q": 1}]', b'{"kind": "hea', b'{"q": 1}\n{"q"'):
    path.write_bytes(content)
    if b'"q"' in content:
      with pytest.raises(contract.UserError, match='is no completions file'):
        ledger.Ledger(path)
      assert path.read_bytes() == content
    else:  # the torn beginning of one of ours
      ledger.Ledger(path).close()
      assert path.read_bytes() == b''


def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path):
  path = tmp_path / 'out.jsonl'
  first = ledger.Ledger(path)
  with pytest.raises(contract.UserError, match='written by another process'):
    ledger.Ledger(path)
  first.close()
  ledger.Ledger(path).close()


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
  path = tmp_path / 'out.jsonl'
  _fill(path)
  before = path.read_bytes()
  real, calls = os.write, []

  def write(descriptor, data):
    calls.append(len(data))
    if len(calls) > 1:
      raise OSError(errno.ENOSPC, 'No space left on device')
    return real(descriptor, data[:7])

  with ledger.Ledger(path) as file:
    monkeypatch.setattr(os, 'write', write)
    with pytest.raises(contract.UserError, match="out.jsonl': No space"):
      file.append(_line(1))
    monkeypatch.undo()
    assert path.read_bytes() == before
    file.append(_line('after'))
  assert _ids(path)[-1] == 'after'


def _replace(path):
  (path.parent / 'other').write_text('other')
  (path.parent / 'other').rename(path)


@pytest.mark.parametrize(
  'take_away',
  [
    pathlib.Path.unlink,
    _replace,
    lambda path: path.rename(path.with_name('moved')),
    lambda path: shutil.rmtree(path.parent),
  ],
)
def test_a_file_that_is_taken_away_is_noticed_and_rescued(tmp_path, take_away):
  path = tmp_path / 'folder' / 'out.jsonl'
  whole = _fill(path)
  file = ledger.Ledger(path)
  file.check()
  take_away(path)
  with pytest.raises(contract.UserError, match='out.jsonl was removed'):
    file.check()
  with pytest.raises(contract.UserError, match=r'is in .*\.rescued-'):
    file.close()
  (rescued,) = path.parent.glob('*.rescued-*')
  assert rescued.read_bytes() == whole


def test_a_file_that_is_cut_is_noticed(tmp_path):
  path = tmp_path / 'out.jsonl'
  _fill(path)
  with pytest.raises(contract.UserError, match='out.jsonl was .* cut'):
    with ledger.Ledger(path) as file:
      os.truncate(path, 9)
      file.check()


def test_what_is_no_regular_file_is_refused(tmp_path):
  os.mkfifo(tmp_path / 'out.jsonl')
  with pytest.raises(contract.UserError, match='out.jsonl is no regular file'):
    ledger.Ledger(tmp_path / 'out.jsonl')


def test_lines_of_one_append_are_one_write(tmp_path, monkeypatch):
  real, sizes = os.write, []

  def write(descriptor, data):
    sizes.append(len(data))
    return real(descriptor, data)

  with ledger.Ledger(tmp_path / 'out.jsonl') as file:
    monkeypatch.setattr(os, 'write', write)
    file.append(*map(_line, range(3)))
  assert len(sizes) == 1


def test_sync_reaches_the_disk_only_when_there_is_something(
  tmp_path, monkeypatch
):
  synced = []
  monkeypatch.setattr(os, 'fsync', synced.append)
  with ledger.Ledger(tmp_path / 'out.jsonl') as file:
    file.sync()
    assert not synced
    file.append(_line(1))
    file.sync()
    file.sync()
    assert len(synced) == 1
    file.append(_line(2))
  assert len(synced) == 2


def test_lines_are_ascii_json_with_a_time(tmp_path):
  path = tmp_path / 'out.jsonl'
  _fill(path)
  last = json.loads(path.read_text(encoding='ascii').splitlines()[-1])
  assert last['reason'] == 'é"\n\ud800'
  assert last['time'].endswith('Z') and last['time'] > '2020'


def test_other_settings_are_refused_with_the_difference(tmp_path):
  path = tmp_path / 'out.jsonl'
  ledger.check_settings(path, SETTINGS, dict(SETTINGS))
  with pytest.raises(contract.UserError) as caught:
    ledger.check_settings(path, SETTINGS, {'model': 'b', 'stop': ['x']})
  message = str(caught.value)
  assert "model: 'a' in the file, 'b' now" in message
  assert 'temperature: 0.0 in the file, None now' in message
  assert "stop: None in the file, ['x'] now" in message
  assert '--out' in message and '--force' in message


def test_a_later_format_is_refused(tmp_path):
  path = tmp_path / 'out.jsonl'
  prices = costs.Prices()
  tracker = costs.CostTracker(prices, max_tokens=9, answer_bytes=9)
  line = ledger.header(SETTINGS)
  path.write_text(json.dumps(line) + '\n')
  assert ledger.read(path, tracker).settings == SETTINGS
  path.write_text(json.dumps(line | {'format': 2}) + '\n')
  with pytest.raises(contract.UserError, match='has the format 2, expected 1'):
    ledger.read(path, tracker)


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(contract.UserError, match='cannot be written'):
    ledger.Ledger(tmp_path / 'file' / 'out.jsonl')
