# SPDX-License-Identifier: Apache-2.0
"""The index of a completions file against a dictionary of it."""

import json

import hypothesis
import pytest
from hypothesis import strategies

from rationales import records

SLOTS = strategies.builds(
  records.Slot,
  strategies.sampled_from(records.ANSWERS),
  strategies.text(max_size=3),
  strategies.integers(0, 3),
)

HEADER = '{"kind": "header", "settings": {}}'


def _record(slot, number):
  return {
    'kind': slot.kind,
    'id': slot.example_id,
    'sample': slot.sample,
    'text': f'text {number}',
    'prompt_hash': f'{number:016x}',
  }


def _write(path, found):
  path.write_text(''.join(json.dumps(line) + '\n' for line in found))


def _index(path):
  index = records.Index()
  for offset, record in records.scan(path):
    index.add(offset, record)
  return index.freeze()


@hypothesis.given(strategies.lists(SLOTS), strategies.lists(SLOTS))
@hypothesis.settings(deadline=None)
def test_the_index_finds_what_a_dictionary_finds(tmp_path_factory, put, asked):
  path = tmp_path_factory.mktemp('records') / 'out.jsonl'
  lines = [_record(slot, number) for number, slot in enumerate(put)]
  _write(
    path, [{'kind': 'header', 'settings': {}}, *lines, {'kind': 'someday'}]
  )
  expected = {}
  for slot, line in zip(put, lines, strict=True):
    expected.setdefault(slot, line)  # the first one wins
  index = _index(path)
  assert len(index) == len(expected)
  assert index.duplicates == len(put) - len(expected)
  with path.open('rb') as file:
    for slot in [*put, *asked]:
      assert (slot in index) == (slot in expected)
      assert index.read(slot, file) == expected.get(slot)
      line = expected.get(slot)
      assert index.prompt_hash(slot) == (line and line['prompt_hash'])


def test_a_torn_last_line_ends_the_scan(tmp_path):
  path = tmp_path / 'out.jsonl'
  _write(path, [{'kind': 'header', 'settings': {}}])
  with path.open('a') as file:
    file.write('{"kind": "compl')
  assert [record for _, record in records.scan(path)] == [
    {'kind': 'header', 'settings': {}}
  ]


@pytest.mark.parametrize('line', ['nonsense', '{"id": 1}', '[1]', ''])
def test_a_broken_line_is_named(tmp_path, line):
  path = tmp_path / 'out.jsonl'
  path.write_text(f'{HEADER}\n{line}\n{HEADER}\n')
  with pytest.raises(ValueError, match=f'{path}:2 is'):
    list(records.scan(path))


def test_a_completion_without_text_is_named(tmp_path):
  path = tmp_path / 'out.jsonl'
  path.write_text('{"kind": "completion", "text": null}\n')
  with pytest.raises(ValueError, match=f'{path}:1 is a completion without'):
    list(records.scan(path))


def test_slots_have_keys_of_their_own():
  keys = {records.Slot('completion', f'train-{n}', 0).key for n in range(10**5)}
  other = {records.Slot('completion', f'train-{n}', 1).key for n in range(10)}
  hinted = records.Slot('rationalization', 'train-0', 0).key
  assert len(keys) == 10**5
  assert not keys & other and hinted not in keys


@pytest.mark.parametrize(
  'change, fault',
  [
    ({'id': 7}, 'id is 7'),
    ({'sample': None}, 'sample is None'),
    ({'prompt_hash': '-ff'}, "prompt_hash is '-ff'"),
    ({'prompt_hash': 'f' * 17}, 'prompt_hash is'),
    ({'usage': {'prompt_tokens': 1e999}}, 'usage is'),
    ({'kind': 'batch'}, 'number is None'),
    ({'kind': 'header'}, 'settings is None'),
  ],
)
def test_an_edited_line_is_named_with_what_is_wrong(tmp_path, change, fault):
  path = tmp_path / 'out.jsonl'
  slot = records.Slot(records.COMPLETION, 'r0', 0)
  _write(path, [_record(slot, 1), _record(slot, 2) | change])
  with pytest.raises(ValueError, match=f'{path}:2 is a .* whose {fault}'):
    list(records.scan(path))


def test_nesting_without_end_is_a_broken_line(tmp_path):
  path = tmp_path / 'out.jsonl'
  path.write_text('[' * 100_000 + '\n' + HEADER + '\n')
  with pytest.raises(ValueError, match=f'{path}:1 is'):
    list(records.scan(path))
