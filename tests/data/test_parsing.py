# SPDX-License-Identifier: Apache-2.0
"""Parsers never raise, and give what the original code trains on."""

import collections
import json

import hypothesis
import hypothesis.strategies as st
import pytest

from dsbs_jax.data import parsing
from tasks import anli1, asdiv, cqa, esnli, svamp

MODULES = {'cqa': cqa, 'svamp': svamp, 'anli1': anli1, 'esnli': esnli}
PARSERS = {
  f'{name}.{teacher}': module.BENCHMARK.parser(teacher)
  for name, module in MODULES.items()
  for teacher in ('palm', 'gpt-neox')
}
PARSERS['declared'] = parsing.after_answer('The answer is {label}.')
PARSERS['declared.labels'] = parsing.after_answer(
  'So the answer is {label}.', labels=('neutral', '5', '-1')
)
PIECES = (
  'So the answer is',
  'The answer is',
  'Answer:',
  'Answer: ',
  'Q:',
  'Premise:',
  'Premise',
  '(a)',
  '(',
  ')',
  '.',
  ' ',
  '\n',
  '\x00',
  '\ud800',
  'neutral',
  '5 + 3',
)
# Real markers in any order, between pieces of any text at all.
texts = st.lists(
  st.one_of(st.sampled_from(PIECES), st.text(st.characters(codec=None)))
).map(''.join)


def both(result):
  return result.rationale, result.label


def test_every_golden_completion_is_read_as_the_original_reads_it(shared_dir):
  cases = [
    json.loads(line)
    for line in (shared_dir / 'golden/parse.jsonl').read_text().splitlines()
  ]
  assert len(cases) == 151
  for case in cases:
    result = MODULES[case['benchmark']].parse(case['raw_output'])
    expected = case['rationale'], case['llm_label']
    assert both(result) == expected, (case['benchmark'], case['index'])
    usable = all(text.strip() for text in expected)
    assert isinstance(result, parsing.Parsed) == usable, case
  seen = collections.Counter(case['benchmark'] for case in cases)
  assert set(seen) == set(MODULES)


@pytest.mark.parametrize('name', PARSERS)
@hypothesis.given(text=texts)
@hypothesis.settings(max_examples=150)
def test_no_text_makes_a_parser_raise(name, text):
  result = PARSERS[name](text)
  assert isinstance(result.rationale, str) and isinstance(result.label, str)
  visible = bool(result.rationale.strip() and result.label.strip())
  assert isinstance(result, parsing.Parsed) == visible


@pytest.mark.parametrize(
  'text, reason, expected',
  [
    ('Milk is cold. So the answer is (b) fridge.', None, ('Milk is cold.', 'fridge')),
    ('A. So the answer is (a) x or (c) y.', None, ('A.', 'x or')),
    ('A. So the answer is (e) washington d.c.', None, ('A.', 'washington d.c')),
    ('A. So the answer is (a) wait...', None, ('A.', 'wait..')),
    ('A. So the answer is one of these.', 'no_label', ('A.', ' ')),
    ('A. So the answer is (a) .', 'blank_label', ('A.', '')),
    ('A. So the answer is (a)  (b) y.', 'blank_label', ('A.', ' ')),
    ('No marker.', 'no_marker', (' ', ' ')),
    ('A So the answer is So the answer is (a) b.', 'two_markers', (' ', ' ')),
    ('So the answer is (a) b.', 'blank_rationale', ('', 'b')),
    ('A.\n\nQ: So the answer is (a) b.', 'no_marker', (' ', ' ')),
  ],
)  # fmt: skip
def test_cqa_edges(text, reason, expected):
  result = cqa.parse(text)
  assert both(result) == expected
  assert getattr(result, 'reason', None) == reason


@pytest.mark.parametrize(
  'text, reason, expected',
  [
    ('R. The answer is (16 * 17) * 4.', None, ('R.', '(16 * 17)')),
    ('R. The answer is (8 / 4) and (6 / 4).', None, ('R.', '(8 / 4) and (6 / 4)')),
    ('R. The answer is ((415 - 309) - (41', None, ('R.', '((415 - 309)')),
    ('R. The answer is 5.', 'no_label', ('R.', ' ')),
    ('R. The answer is\n(1)\n(2)', None, ('R.', '(1)')),
    ('R.', 'no_marker', (' ', ' ')),
  ],
)  # fmt: skip
def test_svamp_edges(text, reason, expected):
  result = svamp.parse(text)
  assert both(result) == expected
  assert getattr(result, 'reason', None) == reason
  assert asdiv.BENCHMARK.parse is svamp.parse


@pytest.mark.parametrize(
  'text, reason, expected',
  [
    ('R. So the answer is neutral.', None, ('R.', 'neutral')),
    ('R. So the answer is neutral', None, ('R.', 'neutra')),
    ('R. So the answer is  no. Then\n\nPremise: x', None, ('R.', 'no. The')),
    ('R. so the answer is neutral.', 'no_marker', ('', '')),
    ('R. So the answer is .', 'blank_label', ('R.', '')),
  ],
)
def test_anli_edges(text, reason, expected):
  result = anli1.parse(text)
  assert both(result) == expected
  assert getattr(result, 'reason', None) == reason


@pytest.mark.parametrize(
  'text, reason, expected',
  [
    ('R.\nAnswer: neutral\n\nPremise: x', None, ('R.', 'neutral')),
    ('R.\nAnswer: neutral\n\nPre', None, ('R.', 'neutral\n\nPre')),
    ('R.\nAnswer: entail', None, ('R.', 'entail')),
    ('R.\nAnswer:  entail', None, ('R.', ' entail')),
    ('R.\nAnswer', 'no_marker', ('R.\nAnswer', ' ')),
    ('R.\nAnswer:', 'no_label', ('R.', ' ')),
    ('R.\nAnswer: ', 'blank_label', ('R.', '')),
  ],
)
def test_esnli_edges(text, reason, expected):
  result = esnli.parse(text)
  assert both(result) == expected
  assert getattr(result, 'reason', None) == reason


def test_neox_parsers_also_trim_on_the_left():
  assert both(PARSERS['cqa.gpt-neox']('\n A. So the answer is (a) b.')) == (
    'A.',
    'b',
  )
  assert both(cqa.parse('\n A. So the answer is (a) b.')) == ('\n A.', 'b')
  assert both(PARSERS['esnli.gpt-neox'](' R.\nAnswer: x')) == ('R.', 'x')
  assert both(PARSERS['svamp.gpt-neox'](' R. The answer is (1).')) == (
    'R.',
    '(1)',
  )


def test_neox_anli_falls_back_on_the_second_marker():
  assert both(anli1.parse_neox(' R. The answer is neutral.')) == (
    'R.',
    'neutral',
  )
  assert both(anli1.parse('R. The answer is neutral.')) == ('', '')


def test_after_marker_reads_what_a_prompt_asks_for():
  parse = parsing.after_marker(
    'The answer is', label=r'(\S+)\.', until=('Q:', '\n\n')
  )
  assert parse('2 and 2 is 4. The answer is 4.') == parsing.Parsed(
    '2 and 2 is 4.', '4'
  )
  assert parse('R. The answer is 4.\n\nQ: The answer is 5.').label == '4'
  assert parse('R.').reason == 'no_marker'
  assert parse('R. The answer is 4').reason == 'no_label'
  assert parse('The answer is 4.').reason == 'blank_rationale'
  assert parse('R. The answer is The answer is 4.').reason == 'two_markers'


@hypothesis.given(text=texts)
@hypothesis.settings(max_examples=100)
def test_after_marker_never_raises(text):
  parse = parsing.after_marker('The answer is', label=r'(x)?', until=('Q:',))
  assert isinstance(parse(text), parsing.Parsed | parsing.Unparsed)


@pytest.mark.parametrize(
  'said, label',
  [
    ('The answer is yes.', 'yes'),
    ('So the answer is **Yes**.', 'yes'),
    ('The answer is: no, because it rains.', 'no'),
    ('The answer is (a) yes', 'yes'),
    ('The answer is "yes but".', 'yes but'),
    ('The answer is -1.', '-1'),
    ('The answer is 1.', '1'),
    ('The answer is 1.5.', '1.5'),  # none of the set: counted as such
    ('The answer is yesterday.', 'yesterday'),
    ('The answer is US.', 'US'),
    ('The answer is us.', 'us'),
    ('The answer is (B).', '(B)'),
    ('The answer is \u0130yi.', 'iyi'),  # Turkish: two characters in lower case
  ],
)
def test_a_closed_label_is_read_in_any_case_with_anything_behind(said, label):
  labels = ('yes', 'no', 'yes but', '1', '-1', 'US', 'us', '(B)', 'iyi')
  parse = parsing.after_answer('The answer is {label}.', labels=labels)
  found = parse(f'It is so. {said}')
  assert isinstance(found, parsing.Parsed) and found.label == label
  assert found.rationale.startswith('It is so.')


@pytest.mark.parametrize(
  'answer, said, label',
  [
    ('The answer is {label}.', 'The answer is 3.5.', '3.5'),
    ('The answer is {label}.', 'The answer is 3.5. Ask me more!', '3.5'),
    ('The answer is {label}.', 'The answer is\n**a red apple**.\nBye.', 'a red apple'),
    ('The answer is {label}.', 'The answer is (b) fridge.', 'fridge'),
    ('The answer is {label}.', 'The answer is (B).', '(B)'),
    ('#### {label}', '#### 1,200', '1,200'),
    ('#### {label}', '#### 5. Yes', '5. Yes'),
    ('Label: [{label}]', 'label: [x y]', 'x y'),
  ],
)  # fmt: skip
def test_a_free_label_ends_where_the_template_ends(answer, said, label):
  found = parsing.after_answer(answer)(f'It is so. {said}')
  assert found == parsing.Parsed('It is so.', label)


@pytest.mark.parametrize(
  'text, reason',
  [
    ('It is so.', parsing.NO_MARKER),
    ('The answer is a. The answer is b.', parsing.TWO_MARKERS),
    ('It is so. The answer is', parsing.BLANK_LABEL),
    ('It is so. The answer is .', parsing.BLANK_LABEL),
    ('The answer is a.', parsing.BLANK_RATIONALE),
  ],
)
def test_what_lacks_a_part_says_which(text, reason):
  assert parsing.after_answer('The answer is {label}.')(text).reason == reason
