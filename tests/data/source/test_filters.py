# SPDX-License-Identifier: Apache-2.0
"""Filters keep what they promise and count what they drop."""

import math

import numpy as np
import pytest

from dsbs_jax.data.source import completions, filters, sources
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
  kept = load(*filters.KEEP['parsed'])
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


def several(folder, labels, **more):
  """The first training row, whose samples have these labels."""
  source = toy.source(folder)
  lines = [toy.said(0, label, sample=s) for s, label in enumerate(labels)]
  lines += [toy.said(i, 'yes') for i in (1, 2, 3)]
  toy.write_lines(source / 'llm/train.jsonl', lines)
  found = sources.Examples(toy.BENCHMARK, source, split='train', **more)
  return {e.index: e for e in found}.get(0), found.counts.dropped


@pytest.mark.parametrize(
  ('labels', 'keep', 'kept'),
  [
    (('yes', 'no', 'oops', 'yes'), 'all', (0, 1, 2, 3)),
    (('yes', 'no', 'oops', 'yes'), 'parsed', (0, 1, 3)),
    (('yes', 'no', 'oops', 'yes'), 'correct', (0, 3)),
    (('yes', 'no', 'oops', 'yes', 'yes'), 'majority', (0, 3, 4)),
    (('yes', 'no', 'oops', 'yes'), 'consistent', (0, 2, 3)),
    (('yes', 'no'), 'correct', ()),
  ],
)
def test_of_several_rationales_those_stay_that_a_rule_keeps(
  tmp_path, labels, keep, kept
):
  row, _ = several(tmp_path, labels, rules=filters.KEEP[keep])
  texts = [rationale.text for rationale in row.rationales]
  assert texts == [f'It is 0 for sample {s}.' for s in kept]
  assert row.rationale == 'It is 0 for sample 0.'


def test_corrupted_labels_among_several_are_dropped_or_repaired(tmp_path):
  labels = ('Yes', 'no', 'oops', 'yes')
  row, dropped = several(tmp_path, labels, rules=filters.CLEAN['drop'])
  assert row is None and dropped == {'outside_labels': 1}
  row, dropped = several(tmp_path, labels, rules=filters.CLEAN['repair'])
  assert [(r.label, r.agrees, r.gt) for r in row.rationales] == [
    ('yes', True, 'for'),
    ('no', False, 'against'),
    ('yes', True, 'for'),
  ]
  assert (row.llm_label, row.status, dropped) == ('yes', 'repaired', {})


def test_a_label_that_is_repaired_to_the_wrong_one_argues_for_itself(tmp_path):
  source = toy.source(tmp_path)
  argued = {'kind': 'counterfactual', 'hint': 'no'}
  lines = [toy.said(0, 'No'), toy.said(0, 'no', **argued)]
  lines += [toy.said(i, 'yes') for i in (1, 2, 3)]
  toy.write_lines(source / 'llm/train.jsonl', lines)
  for clean, kept in (
    ('none', ('no', 'It is 0 for sample 0.')),
    ('repair', ()),
  ):
    rules = filters.CLEAN[clean]
    found = sources.Examples(toy.BENCHMARK, source, split='train', rules=rules)
    assert next(iter(found)).counterfactual == kept


def test_consistent_drops_what_argues_for_another_label(tmp_path):
  rules = filters.KEEP['consistent']
  row, dropped = several(tmp_path, ('no', 'no'), rules=rules)
  # Rows 1 and 3 have the label no, and a completion that says yes.
  assert row is None and dropped == {'argues_for_another_label': 3}
  row, dropped = several(tmp_path, ('no', 'no', 'yes'), rules=rules)
  assert (row.rationale, row.llm_label) == ('It is 0 for sample 2.', 'yes')
  assert (row.status, row.correct, row.rationales) == ('parsed', True, ())
  row, dropped = several(tmp_path, ('oops',), rules=rules)
  assert row.llm_label == 'oops', 'nothing says that it argues for another'
  assert dropped == {'argues_for_another_label': 2}


def test_a_rationale_that_takes_the_place_of_another_has_no_verdict_of_it(
  tmp_path,
):
  source = toy.source(tmp_path)
  probs = [['no', math.log(0.9), {'no': math.log(0.9), 'yes': math.log(0.1)}]]
  first = toy.said(0, 'no', logprobs=probs)
  about = completions.digest(first['text'])
  lines = [first, toy.said(0, 'no', sample=1), toy.said(0, 'yes', sample=2)]
  lines.append(toy.said(0, '') | {'kind': 'verdict', 'text': 'no'})
  lines[-1]['about'] = about
  toy.write_lines(source / 'llm/train.jsonl', lines)
  for keep, notes in (('all', ('no', (0.1, 0.9))), ('consistent', ('', ()))):
    found = sources.Examples(
      toy.BENCHMARK, source, split='train', rules=filters.KEEP[keep]
    )
    row = next(iter(found))
    assert row.verdict == notes[0]
    np.testing.assert_allclose(row.label_probs, notes[1])


def test_consistent_drops_rows_without_a_rationale(tmp_path):
  source = toy.source(tmp_path)
  toy.write_lines(
    source / 'llm/train.jsonl', [{'id': 'r0', 'text': 'The answer is yes.'}]
  )
  found = sources.Examples(
    toy.BENCHMARK, source, split='train', rules=filters.KEEP['consistent']
  )
  assert list(found) == []
  assert found.counts.dropped == {'no_completion': 3, 'blank_rationale': 1}
