# SPDX-License-Identifier: Apache-2.0
"""Alternatives of an LLM's tokens -> a distribution over labels -> targets."""

import math

import numpy as np
import pytest

from dsbs_jax.data import parsing, soft_labels

NLI = 'entailment', 'neutral', 'contradiction'


def tokens(*steps):
  """('a', {'a': 0.5, ...}) -> tokens with log probabilities."""
  return [
    (said, math.log(odds[said]), {t: math.log(p) for t, p in odds.items()})
    for said, odds in steps
  ]


def test_labels_that_part_at_once_have_the_probabilities_of_that_token():
  said = tokens(
    (' neutral', {' neutral': 0.6, ' ent': 0.3, ' Contra': 0.05, ' The': 0.05}),
  )
  found = soft_labels.distribution(said, 'neutral', NLI)
  np.testing.assert_allclose(found, np.array([0.3, 0.6, 0.05]) / 0.95)


def test_labels_that_part_later_share_what_is_before():
  labels = 'not sure', 'not at all', 'yes'
  said = tokens(
    ('not', {'not': 0.8, 'yes': 0.15, 'n': 0.04}),
    (' at', {' at': 0.7, ' sure': 0.2}),
    (' all', {' all': 0.9, ' once': 0.1}),  # decided by then
  )
  found = soft_labels.distribution(said, 'not at all', labels)
  # 'n' may become either of two.
  mass = np.array([0.8 * 0.2 + 0.02, 0.8 * 0.7 + 0.02, 0.15])
  np.testing.assert_allclose(found, mass / mass.sum())


def test_a_label_that_begins_another_is_told_apart():
  said = tokens(
    ('no', {'no': 0.9, 'note': 0.1}), ('.', {'.': 0.5, ' one': 0.5})
  )
  found = soft_labels.distribution(said, 'no', ('no', 'no one', 'yes'))
  np.testing.assert_allclose(found, [0.5, 0.5, 0.0])


@pytest.mark.parametrize('answer', ['maybe', ''])
def test_an_answer_that_is_no_label_has_no_soft_label(answer):
  said = tokens(('maybe', {'maybe': 0.9, 'neutral': 0.1}))
  assert soft_labels.distribution(said, answer, NLI) is None
  assert soft_labels.distribution(said, 'neutral', NLI) is None, 'edited'


@pytest.mark.parametrize('others', [{}, {'yes': -0.1}])
def test_without_alternatives_there_is_no_soft_label(others):
  said = [('yes', -0.1, others), ('.', -0.1, {})]
  assert soft_labels.distribution(said, 'yes', ('yes', 'no')) is None


@pytest.mark.parametrize(
  ('pieces', 'kept'),
  [
    (('It', ' is', ' so', '.', ' So', ' neutral', '.'), [' neutral']),
    (('It is', ' so.', ' So', ' neu', 'tral.'), [' neu', 'tral.']),
    (('<think>', 'neutral?</think>', 'It is so. So neutral', '.'), None),
    (('It', ' was', ' neutral'), None),
  ],
)
def test_the_tokens_of_the_answer_are_found_by_their_texts(pieces, kept):
  text = 'It is so. So neutral.'
  said = [(piece, -0.5, {piece: -0.5}) for piece in pieces]
  parse = parsing.after_marker('So', label='[a-z]+')
  found = soft_labels.at_answer(text, said, parse)
  expected = kept and [[piece, -0.5, {piece: -0.5}] for piece in kept]
  assert found == expected


@pytest.mark.parametrize(
  ('pieces', 'place'),
  [
    (('Is it so? yes', ', and', ' so. The answer is', ' Yes', '.'), 3),
    (('Well. The answer is', ' yes', '. It says so', ' yes', 'terday.'), 1),
    (('Yes. The answer is', ' no', '. I k', 'no', 'w.'), 1),
  ],
)
def test_the_answer_is_where_the_parser_finds_it(pieces, place):
  said = [(piece, -0.5, {piece: -0.5}) for piece in pieces]
  parse = parsing.after_answer('The answer is {label}.', labels=('yes', 'no'))
  found = soft_labels.at_answer(''.join(pieces), said, parse)
  assert found == [[pieces[place], -0.5, {pieces[place]: -0.5}]]


LABEL_IDS = (5, 7, 1), (5, 8, 1), (6, 1), (5, 1)


def slow_targets(target, probs, temperature):
  """Place -> {token: probability}, one label at a time."""
  found = []
  for place in range(len(target)):
    mass = {}
    for ids, prob in zip(LABEL_IDS, probs, strict=True):
      if ids[:place] == target[:place] and len(ids) > place:
        value = prob ** (1 / temperature)
        mass[ids[place]] = mass.get(ids[place], 0.0) + value
    total = sum(mass.values())
    parted = len(mass) > 1 and total > 0
    found.append({k: v / total for k, v in mass.items()} if parted else {})
  return found


@pytest.mark.parametrize('temperature', [1.0, 2.5])
@pytest.mark.parametrize('target', LABEL_IDS)
@pytest.mark.parametrize('probs', [(0.4, 0.3, 0.2, 0.1), (0.0, 0.0, 1.0, 0.0)])
def test_soft_targets_equal_the_slow_reference(temperature, target, probs):
  made = soft_labels.soft_targets(
    [(9, 1), target, target],
    [probs, (), probs],
    LABEL_IDS,
    temperature=temperature,
  )
  assert made.num_examples == 1  # no label of the set, no probabilities
  length = len(target)
  for example in (0, 1):
    _, none = made.at(np.full(length, example), np.arange(length))
    assert not none.any()
  ids, found = made.at(np.full(length, 2), np.arange(length))
  for place, expected in enumerate(slow_targets(target, probs, temperature)):
    ours = {
      int(token): float(p)
      for token, p in zip(ids[place], found[place], strict=True)
      if p
    }
    expected = {token: p for token, p in expected.items() if p}
    assert ours == pytest.approx(expected, rel=1e-6)
