# SPDX-License-Identifier: Apache-2.0
"""The index of a completions file against a dictionary of it."""

import json

import hypothesis
import pytest
from hypothesis import strategies

from dsbs_jax import contract
from rationales.record import completions_file

KEYS = strategies.builds(
  completions_file.SampleKey,
  strategies.sampled_from(completions_file.ANSWERS),
  strategies.text(max_size=3),
  strategies.integers(0, 3),
)
HEADER = {'kind': 'header', 'settings': {}}


def _record(key, number):
  return {
    'kind': key.kind,
    'id': key.example_id,
    'sample': key.sample,
    'text': f'text {number}',
    'prompt_hash': f'{number:016x}',
  }


def _write(path, found):
  path.write_text(''.join(json.dumps(line) + '\n' for line in found))


def _scan(path):
  return [record for _, record in completions_file.scan(path)]


@hypothesis.given(
  strategies.lists(strategies.tuples(KEYS, strategies.booleans()), max_size=9),
  strategies.lists(KEYS, max_size=9),
)
@hypothesis.settings(max_examples=50)
def test_the_index_finds_what_a_dictionary_finds(tmp_path_factory, put, asked):
  path = tmp_path_factory.getbasetemp() / 'index.jsonl'
  retries = [retry for _, retry in put]
  put = [key for key, _ in put]
  lines = [
    _record(key, number) | ({'retry': True} if retry else {})
    for number, (key, retry) in enumerate(zip(put, retries, strict=True))
  ]
  _write(path, [HEADER, *lines, {'kind': 'of a later version'}])
  expected = {}
  for key, line in zip(put, lines, strict=True):
    if 'retry' in line:
      expected[key] = line
    expected.setdefault(key, line)  # else the first one counts
  index = completions_file.Index(path)
  for offset, record in completions_file.scan(path):
    index.add(offset, record)
  index.freeze()
  assert len(index) == len(expected)
  for key in [*put, *asked]:
    assert (key in index) == (key in expected)
    assert index.read(key) == expected.get(key)
    line = expected.get(key)
    assert index.prompt_hash(key) == (line and line['prompt_hash'])


def test_a_torn_last_line_ends_the_scan(tmp_path):
  path = tmp_path / 'out.jsonl'
  path.write_text(json.dumps(HEADER) + '\n{"kind": "compl')
  assert _scan(path) == [HEADER]


@pytest.mark.parametrize(
  'line', ['nonsense', '{"id": 1}', '[1]', '', '[' * 100_000]
)
def test_a_broken_line_is_named(tmp_path, line):
  path = tmp_path / 'out.jsonl'
  path.write_text(f'{json.dumps(HEADER)}\n{line}\n{json.dumps(HEADER)}\n')
  with pytest.raises(contract.UserError, match=f'{path}:2 is'):
    _scan(path)


def test_keys_have_hashes_of_their_own():
  keys = {
    completions_file.SampleKey(kind, f'train-{number}', sample).hash64
    for kind in completions_file.ANSWERS
    for number in range(2000)
    for sample in range(2)
  }
  assert len(keys) == len(completions_file.ANSWERS) * 2000 * 2


@pytest.mark.parametrize(
  'change, problem',
  [
    ({'id': 7}, 'id is 7'),
    ({'text': None}, 'text is None'),
    ({'sample': None}, 'sample is None'),
    ({'prompt_hash': '-ff'}, "prompt_hash is '-ff'"),
    ({'prompt_hash': 'f' * 17}, 'prompt_hash is'),
    ({'usage': {'prompt_tokens': 1e999}}, 'usage is'),
    ({'kind': 'batch'}, 'number is None'),
    ({'kind': 'header'}, 'settings is None'),
  ],
)
def test_an_edited_line_is_named_with_what_is_wrong(tmp_path, change, problem):
  path = tmp_path / 'out.jsonl'
  key = completions_file.SampleKey(completions_file.COMPLETION, 'r0', 0)
  _write(path, [_record(key, 1), _record(key, 2) | change])
  message = f'{path}:2 is a .* whose {problem}'
  with pytest.raises(contract.UserError, match=message):
    _scan(path)
