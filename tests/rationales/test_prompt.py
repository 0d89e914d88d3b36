# SPDX-License-Identifier: Apache-2.0
"""Prompts: layout, balance, and exemplars that are in no data set."""

import codecs
import collections
import dataclasses
import json
import math
import re

import pytest

from dsbs_jax import contract
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import metrics, parsing, register
from dsbs_jax.data.source import sources
from rationales import prompt
from tests.rationales import sums

NAMES = ('anli1', 'asdiv', 'cqa', 'esnli', 'svamp')
NLI = ('anli1', 'esnli')


def _load(name):
  return prompt.load(prompt.FOLDER / f'{name}.json')


def _json(name):
  return json.loads((prompt.FOLDER / f'{name}.json').read_text())


def _benchmark(name):
  with register.without_seqio():
    return benchmark_lib.find(name)


def test_there_is_a_prompt_for_every_benchmark_of_the_paper():
  found = {path.stem for path in prompt.FOLDER.glob('*.json')}
  assert found == {*NAMES, 'student'}


@pytest.mark.parametrize('name', NAMES)
def test_every_exemplar_is_read_back_by_the_benchmarks_parser(name):
  shown, parse = _load(name), _benchmark(name).parse
  for exemplar in shown.exemplars:
    expected = parsing.Parsed(exemplar.rationale, exemplar.label)
    answer = shown.exemplar_answer(exemplar)
    assert parse(answer) == expected
    # As a model without a stop sequence would go on.
    assert parse(answer + shown.stop[0] + ' and so on') == expected


@pytest.mark.parametrize('name', NAMES)
def test_exemplars_are_enough_balanced_and_of_known_origin(name):
  shown = _load(name)
  groups = collections.Counter(e.group for e in shown.exemplars)
  assert len(shown.exemplars) >= (9 if name in NLI else 8)
  assert len(set(groups.values())) == 1, groups
  if name in NLI:
    assert set(groups) == set(_benchmark(name).labels)
  record = json.loads((prompt.FOLDER / f'{name}.json').read_text())
  assert 'invented' in record['provenance'] and record['license']


@pytest.mark.parametrize('name', ['asdiv', 'svamp'])
def test_exemplars_calculate_correctly(name):
  for exemplar in _load(name).exemplars:
    said = re.search(r'= (\d+)\.$', exemplar.rationale)
    assert metrics.value(exemplar.label) == float(said[1]), exemplar


def test_choices_of_an_exemplar_carry_their_letters():
  for exemplar in _load('cqa').exemplars:
    letter, text = re.fullmatch(r'\((.)\) (.*)', exemplar.answer).groups()
    choices = exemplar.input['choices']
    assert choices['abcde'.index(letter)] == text == exemplar.label
    assert exemplar.group == letter and len(set(choices)) == 5


@pytest.mark.parametrize(
  'name, splits',
  [
    ('anli1', ['validation']),
    ('cqa', ['train', 'test']),
    ('esnli', ['validation']),
    ('svamp', ['train', 'test']),
    ('asdiv', []),
  ],
)
def test_no_exemplar_is_in_the_data(name, splits, shared_dir):
  """Nor is any part of one: premise, hypothesis, question, choices, story."""
  exemplars = set()
  for exemplar in _load(name).exemplars:
    exemplars |= _parts(exemplar.input)
  # A word problem of one benchmark must not be in the other one's data.
  others = {'asdiv': [('svamp', 'train'), ('svamp', 'test')]}
  rows = [(name, split) for split in splits] + others.get(name, [])
  seen = 0
  for owner, split in rows:
    found = sources.read_rows(
      _benchmark(owner), shared_dir / 'data' / 'datasets', split
    )
    for row in found:
      seen += 1
      assert not exemplars & _parts(row.fields), row.place
      assert not exemplars & _parts(row.input), row.place
  assert seen >= 1000


def _parts(value) -> set[str]:
  """The texts of an input without case, blanks and punctuation."""
  if isinstance(value, dict):
    names = ('question', 'choices', 'premise', 'hypothesis', 'input', 'Body')
    found = [value[name] for name in names if name in value]
  else:
    found = [value, *value.split('\n')]
  texts = [' '.join(t) if isinstance(t, list) else t for t in found]
  return {re.sub(r'\W+', '', text.lower()) for text in texts}


def test_both_forms_say_the_same(tmp_path):
  shown = prompt.load(sums.write(tmp_path, 0) / 'sums_prompt.json')
  row = {'q': 'What is 4 + 4?'}
  assert prompt.completion_text(prompt.select(shown, 0, 0), row) == (
    'Add.\n\nQ: What is 4 + 4?\nA:'
  )
  text = prompt.completion_text(shown, row)
  assert text == (
    'Add.\n\n'
    'Q: What is 1 + 2?\nA: 1 and 2 make 3. The answer is 3.\n\n'
    'Q: What is 2 + 5?\nA: 2 and 5 make 7. The answer is 7.\n\n'
    'Q: What is 900 + 50?\nA: 900 and 50 make 950. The answer is 950.\n\n'
    'Q: What is 4 + 4?\nA:'
  )
  turns = prompt.chat_messages(shown, row)
  roles = [turn['role'] for turn in turns]
  assert roles == ['system', *['user', 'assistant'] * 3, 'user']
  contents = [turn['content'] for turn in turns]
  rebuilt = contents[0] + '\n\n'
  for question, answer in zip(contents[1:-1:2], contents[2::2], strict=True):
    rebuilt += f'{question}\nA: {answer}\n\n'
  assert rebuilt + contents[-1] + '\nA:' == text


@pytest.mark.parametrize('nothing', [None, math.nan])
def test_a_missing_value_of_a_row_is_nothing(tmp_path, nothing):
  shown = prompt.load(sums.write(tmp_path, 0) / 'sums_prompt.json')
  shown = dataclasses.replace(shown, question='Q: {q}{context}')
  exemplar = dataclasses.replace(
    shown.exemplars[0], input={'q': '1?', 'context': nothing}
  )
  shown = dataclasses.replace(shown, exemplars=(exemplar,))
  text = prompt.completion_text(shown, {'q': '2?', 'context': nothing})
  broken = prompt.completion_text(shown, {'q': '2?', 'context': '\ud83d'})
  assert broken.endswith('Q: 2?\ufffd\nA:') and prompt.text_hash(broken)
  assert 'Q: 1?\nA: ' in text and text.endswith('Q: 2?\nA:')


def test_an_exemplar_s_label_reads_as_a_row_s(tmp_path):
  path = sums.write(tmp_path, 0) / 'sums_prompt.json'
  exemplar = sums.PROMPT['exemplars'][0] | {'label': True}
  path.write_text(json.dumps(sums.PROMPT | {'exemplars': [exemplar]}))
  (found,) = prompt.load(path).exemplars
  assert found.label == found.answer == 'true'


def test_a_hint_tells_the_label_of_the_row_and_of_every_exemplar(tmp_path):
  shown = prompt.load(sums.write(tmp_path, 0) / 'sums_prompt.json')
  row = {'q': 'What is 4 + 4?'}
  text = prompt.completion_text(shown, row, hint='8')
  assert text.endswith('Q: What is 4 + 4?\nHint: it is 8.\nA:')
  assert text.count('\nHint: it is') == 4
  assert 'Hint' not in prompt.completion_text(shown, row)


def test_a_selection_is_balanced_and_reproducible():
  shown = _load('esnli')
  for count in range(len(shown.exemplars) + 1):
    selected = prompt.select(shown, count, 5)
    groups = collections.Counter(e.group for e in selected.exemplars)
    assert sum(groups.values()) == count
    assert not groups or max(groups.values()) - min(groups.values()) <= 1
    assert selected == prompt.select(shown, count, 5)
  seeds = {prompt.select(shown, 3, seed).fingerprint for seed in range(20)}
  assert len(seeds) > 10
  with pytest.raises(contract.UserError, match='--exemplars is 10'):
    prompt.select(shown, 10, 0)


@pytest.mark.parametrize(
  'text, words',
  [
    ('{', 'is not JSON'),
    ('[]', 'None as "instruction", expected a JSON object'),
    ('{"instruction": "x", "question": 5}', '5 as "question"'),
    *(
      (
        json.dumps(_json('svamp') | {'stop': ['Q:', stop]}),
        f'{stop!r} in "stop"',
      )
      for stop in (5, None, '')
    ),
  ],
)
def test_a_broken_prompt_file_is_named(tmp_path, text, words):
  path = tmp_path / 'p.json'
  path.write_text(text)
  with pytest.raises(contract.UserError, match=words) as caught:
    prompt.load(path)
  assert str(path) in str(caught.value)


@pytest.mark.parametrize(
  'change, words',
  [
    ({}, "'q'.*names among a"),
    ({'question': '{'}, 'The template .*Single'),
    ({'question': '{q.b}'}, "no attribute 'b'"),
    ({'answer': '{why}'}, "'why'.*names among answer, group"),
    ({'hint': '{right}'}, "'right'.*names among label"),
  ],
)
def test_a_template_that_cannot_be_filled_is_named(tmp_path, change, words):
  shown = prompt.load(sums.write(tmp_path, 0) / 'sums_prompt.json')
  shown = dataclasses.replace(shown, **change)
  with pytest.raises(contract.UserError, match=words):
    row = {'a': '1'} if 'hint' not in change else {'q': '1'}
    prompt.completion_text(shown, row, hint='1')


@pytest.mark.parametrize('exemplar', [5, {}, {'input': 5}])
def test_a_broken_exemplar_is_named(tmp_path, exemplar):
  path = sums.write(tmp_path, 0) / 'sums_prompt.json'
  path.write_text(json.dumps(sums.PROMPT | {'exemplars': [exemplar]}))
  with pytest.raises(contract.UserError, match=f'{path}, exemplar 1 has no'):
    prompt.load(path)


def test_a_byte_order_mark_before_a_prompt_is_read_over(tmp_path):
  path = tmp_path / 'prompt.json'
  path.write_bytes(codecs.BOM_UTF8 + json.dumps(sums.PROMPT).encode())
  assert prompt.load(path).instruction == 'Add.'
