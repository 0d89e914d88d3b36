# SPDX-License-Identifier: Apache-2.0
"""Both accuracies, and an evaluator that no text can hurt."""

import json
import math
import time

import hypothesis
import hypothesis.strategies as st
import pytest

from dsbs_jax.data import metrics
from tests import arithmetic

HOSTILE = (
  "__import__('os').system('true')",
  '9**9**9',
  '9' * 10_000_000,
  '(' * 100_000 + '1' + ')' * 100_000,
  '(' * 60 + '1' + ')' * 60,
  '-' * 900 + '1',
  '1' + '+1' * 499,
  '1/0',
  '0.0/0',
  '1e999',
  '1e308 * 10',
  '1' * 301,
  '(175, 5)',
  '2 * x',
  'True',
  '1j',
  '1_000',
  '0x10',
  '1 if 1 else 2',
  '[1][0]',
  '1(2)',
  '1 +',
  '',
  ' ',
  'nan',
  'inf',
  '٣',
  '1\x00',
  '\ud800',
  '(8 / 4) and (6 / 4)',
  '((415 - 309)',
  '007',
  '5 // 2',
  '5 % 2',
  '1.2.3',
)


@pytest.mark.parametrize(
  'text, number',
  [
    ('( 84.0 / 2.0 )', 42.0),
    ('(84 / 2)', 42.0),
    ('5', 5.0),
    (' -3 + +4 ', 1.0),
    ('-(2 - 5) * 3', 9.0),
    ('( ( 4.0 - 2.0 ) + 3.0 )', 5.0),
    ('1 - 2 - 3', -4.0),
    ('8 / 4 / 2', 1.0),
    ('2 + 3 * 4', 14.0),
    ('1.5e3', 1500.0),
    ('.5 + 5.', 5.5),
    ('9007199254740993 - 9007199254740992', 1.0),
    ('(1 +\n 2)', 3.0),
  ],
)
def test_arithmetic_has_its_meaning_in_python(text, number):
  assert metrics.value(text) == number == arithmetic.python_value(text)
  assert metrics.has_value(text)


@pytest.mark.parametrize('text', HOSTILE, ids=lambda t: repr(t[:20]))
def test_whatever_else_has_no_value_and_takes_no_time(text):
  begin = time.thread_time()  # of this thread alone, however busy the machine
  number = metrics.value(text)
  assert time.thread_time() - begin < 0.5
  if text == '1' + '+1' * 499:
    assert number == 500.0
  else:
    assert math.isnan(number)


@hypothesis.given(st.text(st.characters(codec=None)))
@hypothesis.settings(max_examples=300)
def test_no_text_raises(text):
  assert isinstance(metrics.value(text), float)


@hypothesis.given(st.text('0123456789.eE+-*/() \t\n', max_size=1200))
@hypothesis.settings(max_examples=500)
def test_no_arithmetic_text_raises_or_differs_from_python(text):
  number = metrics.value(text)
  if not math.isnan(number):
    assert arithmetic.python_value(text) == number


leaves = st.integers(0, 10**6).map(str) | st.floats(
  0, 1e6, allow_subnormal=False
).map(repr)
equations = st.recursive(
  leaves,
  lambda inner: st.tuples(inner, st.sampled_from('+-*/'), inner).map(
    lambda parts: f'( {parts[0]} {parts[1]} {parts[2]} )'
  ),
  max_leaves=12,
)


@hypothesis.given(equations)
@hypothesis.settings(max_examples=300)
def test_values_equal_those_of_python(text):
  try:
    expected = arithmetic.python_value(text)
  except ArithmeticError:
    expected = math.nan
  number = metrics.value(text)
  assert number == expected or (
    math.isnan(number) and not math.isfinite(expected)
  )


def test_equation_accuracy_compares_values_and_nan_equals_nothing():
  targets = ['( 84.0 / 2.0 )', '7', 'x', '( 1.0 / 3.0 )']
  predictions = ['(84 / 2)', '(14, 21)', 'x', '0.333333']
  assert metrics.equation_accuracy(targets, predictions) == {'accuracy': 25.0}


def test_exact_match_strips_nothing():
  targets = ['fridge', 'a', ' ', 'B']
  predictions = ['fridge', 'a ', ' ', 'b']
  assert metrics.exact_match(targets, predictions) == {'accuracy': 50.0}


@pytest.mark.parametrize(
  'metric', [metrics.exact_match, metrics.equation_accuracy]
)
def test_metrics_refuse_sides_that_do_not_match(metric):
  with pytest.raises(ValueError, match='2 targets and 1 predictions'):
    metric(['1', '2'], ['1'])
  with pytest.raises(ValueError, match='at least one'):
    metric([], [])


@pytest.mark.parametrize(
  'name, metric',
  [('cqa', metrics.exact_match), ('svamp', metrics.equation_accuracy)],
)
def test_recorded_pairs_score_as_in_the_original(shared_dir, name, metric):
  path = shared_dir / 'golden/original/eval_reference.json'
  recorded = json.loads(path.read_text())[name]
  pairs = recorded['pairs']
  for pair in pairs:
    hit = metric([pair['label']], [pair['llm_label']])['accuracy'] == 100.0
    assert hit == pair['equal'], pair
  score = metric(
    [pair['label'] for pair in pairs], [pair['llm_label'] for pair in pairs]
  )
  assert score['accuracy'] == pytest.approx(100 * recorded['accuracy_200'])


def test_values_are_those_that_the_original_recorded(shared_dir):
  path = shared_dir / 'golden/original/eval_reference.json'
  recorded = json.loads(path.read_text())['svamp']
  for pair in recorded['pairs']:
    for side in ('label', 'llm_label'):
      number, expected = metrics.value(pair[side]), pair[f'{side}_value']
      if metrics.has_value(pair[side]):
        assert number == expected, pair
      else:
        assert not isinstance(expected, int | float) or ' and ' in pair[side]
  odd = [
    case['text'] for cases in recorded['not_plain'].values() for case in cases
  ]
  assert odd and not any(map(metrics.has_value, odd))
