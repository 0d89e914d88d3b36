# SPDX-License-Identifier: Apache-2.0
"""Filters keep what they promise and count what they drop."""

import pytest

from dsbs_jax.data.source import filters, sources
from tasks import cqa, esnli
from tests.data import toy


def test_defaults_filter_nothing_and_test_is_never_filtered():
  rules = (*filters.CLEAN['drop'], *filters.KEEP['correct'])
  for benchmark, split, status, correct in (
    (cqa.BENCHMARK, 'test', 'parsed', False),
    (esnli.BENCHMARK, 'validation', 'outside_labels', False),
  ):
    plain = list(sources.Examples(benchmark, toy.ARCHIVE, split=split))
    assert (plain[1].status, plain[1].correct) == (status, correct)
    assert plain == list(
      sources.Examples(benchmark, toy.ARCHIVE, split=split, rules=rules)
    )
  found = sources.Examples(esnli.BENCHMARK, toy.ARCHIVE, split='train').counts
  assert (found.kept, found.rows, found.dropped) == (6, 6, {})


def test_filters_keep_and_say_what_they_dropped():
  def load(*rules):
    return sources.Examples(
      esnli.BENCHMARK, toy.ARCHIVE, split='train', rules=rules
    )

  faithful = list(load())
  assert toy.statuses(faithful) == [
    'parsed',
    'outside_labels',
    'outside_labels',
    'parsed',
    'no_marker',
    'parsed',
  ]
  assert [e.llm_label for e in faithful[1:3]] == ['entailment\n\nPre', 'neut']
  assert faithful[4].rationale == 'A cat sits there.\nAnswer'
  kept = load(filters.parsed)
  assert [e.index for e in kept] == [0, 3, 5]
  assert kept.counts.dropped == {'outside_labels': 2, 'no_marker': 1}
  assert [e.index for e in load(*filters.CLEAN['drop'])] == [0, 3, 5]
  repaired = list(load(*filters.CLEAN['repair'], *filters.KEEP['correct']))
  assert [e.index for e in repaired] == [0, 1, 2, 3, 5]
  assert [e.llm_label for e in repaired[1:3]] == ['entailment', 'neutral']
  assert toy.statuses(repaired)[1:3] == ['repaired', 'repaired']
  wrong = sources.Examples(cqa.BENCHMARK, toy.ARCHIVE, split='train').counts
  assert wrong.usable - wrong.usable_correct > 0


@pytest.mark.parametrize(
  'label, expected',
  [
    ('neutral\n\nPre', 'neutral'),
    ('entail', 'entailment'),
    ('Contradiction.', 'contradiction'),
    ('contradiction.\n\nPremis', 'contradiction'),
    ('neutrality', None),
    ('analogy', None),
    ('na', None),
    ('N/A', None),
    ('en', None),
  ],
)
def test_repair_of_closed_labels(label, expected):
  assert filters.repaired(esnli.BENCHMARK, {}, label) == expected


@pytest.mark.parametrize(
  'label, expected',
  [
    ('michigan', 'Michigan'),
    ('d.c', 'd.c.'),
    ('lake or', None),
    ('lak', None),
  ],
)
def test_repair_of_choices(label, expected):
  row = {'choices': ['Michigan', 'd.c.', 'lake', 'lake', 'sea']}
  assert filters.repaired(cqa.BENCHMARK, row, label) == expected
