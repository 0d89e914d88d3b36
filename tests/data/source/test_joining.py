# SPDX-License-Identifier: Apache-2.0
"""Several completions of a row become one answer."""

from dsbs_jax.data import parsing
from dsbs_jax.data.source import filters, joining, sources
from tasks import svamp
from tests.data import toy


def test_majority_of_samples_labels_and_its_first_explains(tmp_path):
  source = toy.source(tmp_path)
  labels = {0: ('no', 'yes', 'yes'), 1: ('no', 'yes'), 2: ('?', 'no', 'oops')}
  lines = [
    toy.said(i, label, sample=s)
    for i, row in labels.items()
    for s, label in enumerate(row)
  ]
  lines.append({'id': 'r3', 'sample': 0, 'text': 'nothing'})
  toy.write_lines(source / 'llm/train.jsonl', reversed(lines))
  found = list(sources.Examples(toy.BENCHMARK, source, split='train'))
  assert found[0].rationale == 'It is 0 for sample 1.'
  assert (found[0].llm_label, found[0].votes, found[0].samples) == ('yes', 2, 3)
  assert (found[1].llm_label, found[1].votes) == ('no', 1), 'first of a tie'
  assert toy.statuses(found)[2:] == ['outside_labels', 'no_marker']
  kept = sources.Examples(
    toy.BENCHMARK, source, split='train', rules=filters.KEEP['majority']
  )
  assert [e.index for e in kept] == [0]
  assert kept.counts.dropped == {
    'no_majority': 1,
    'outside_labels': 1,
    'no_marker': 1,
  }


def test_samples_that_do_not_parse_have_no_vote(tmp_path):
  source = toy.source(tmp_path)
  lines = [
    {'id': 'r0', 'sample': 0, 'text': 'nothing'},
    toy.said(0, 'no', sample=1),
    toy.said(0, 'yes', sample=2),
    toy.said(0, 'yes', sample=3),
  ]
  toy.write_lines(source / 'llm/train.jsonl', lines)
  found = next(iter(sources.Examples(toy.BENCHMARK, source, split='train')))
  assert found.rationale == 'It is 0 for sample 2.'
  assert (found.llm_label, found.votes, found.samples) == ('yes', 2, 4)


def test_equal_values_vote_together(tmp_path):
  rows = [{'input': 'pears?', 'label': '5'}] * 2
  toy.write_lines(tmp_path / 'svamp/svamp_train.json', rows)
  answers = ('(4 + 2)', '(2 + 3)', '(1 + 4)')
  toy.write_lines(
    tmp_path / 'svamp/llm/train.jsonl',
    [
      {
        'id': f'train-{i}',
        'sample': s,
        'text': f'S{s}. The answer is {a}.',
      }
      for i in range(2)
      for s, a in enumerate(answers)
    ],
  )
  for example in sources.Examples(svamp.BENCHMARK, tmp_path, split='train'):
    assert (example.llm_label, example.rationale) == ('(2 + 3)', 'S1.')
    assert (example.votes, example.correct) == (2, True)


def test_labels_without_a_value_do_not_vote_together():
  said = [parsing.Parsed('r', label) for label in ('42', '5 or 6', '?', '(42)')]
  found, votes = joining.majority_vote(svamp.BENCHMARK, said[:3])
  assert (found.label, votes) == ('42', 1)
  assert joining.majority_vote(svamp.BENCHMARK, said[1:3])[0].label == '5 or 6'
  assert joining.majority_vote(svamp.BENCHMARK, said)[1] == 2


def test_rationalizations_are_used_only_when_asked_for(tmp_path):
  source = toy.source(tmp_path)
  hint = {'kind': 'rationalization', 'hint': 'no'}
  lines = [
    toy.said(0, 'yes'),
    toy.said(1, 'yes'),
    {**toy.said(1, 'no'), **hint, 'text': 'Because. The answer is no.'},
    toy.said(2, 'yes'),
    toy.said(3, 'yes'),
    {**toy.said(3, 'yes'), **hint},
  ]
  toy.write_lines(source / 'llm/train.jsonl', lines)
  plain = list(sources.Examples(toy.BENCHMARK, source, split='train'))
  assert [e.llm_label for e in plain] == ['yes'] * 4
  examples = sources.Examples(
    toy.BENCHMARK, source, split='train', rationalized=True
  )
  better = list(examples)
  assert toy.statuses(better) == ['parsed', 'rationalized', 'parsed', 'parsed']
  assert (better[1].rationale, better[1].llm_label) == ('Because.', 'no')
  assert examples.counts.accuracy == 50.0, 'hinted answers are not counted'


def test_all_samples_with_both_texts_stay_and_the_answer_is_as_ever(tmp_path):
  source = toy.source(tmp_path)
  lines = [
    toy.said(0, 'no'),
    toy.said(0, 'yes', sample=1),
    {**toy.said(0, 'yes', sample=2), 'text': 'So it is yes.'},
    toy.said(0, 'maybe', sample=3),
    toy.said(0, 'yes', sample=4),
    toy.said(1, 'no'),
    {'id': 'r1', 'sample': 1, 'text': 'nothing'},
    *({'id': 'r2', 'sample': s, 'text': 'nothing'} for s in range(3)),
  ]
  toy.write_lines(source / 'llm/train.jsonl', lines)
  found = sources.Examples(toy.BENCHMARK, source, split='train')
  first, *others = found
  assert [(r.label, r.agrees, r.gt, r.llm) for r in first.rationales] == [
    ('no', False, 'against', 'against'),
    ('yes', True, 'for', 'for'),
    ('maybe', False, 'unclear', 'unclear'),
    ('yes', True, 'for', 'for'),
  ]
  assert [r.text for r in first.rationales] == [
    f'It is 0 for sample {s}.' for s in (0, 1, 3, 4)
  ]
  assert (first.llm_label, first.rationale) == ('yes', 'It is 0 for sample 1.')
  assert [example.rationales for example in others] == [(), (), ()]
  assert found.counts.rationales == 4


def test_right_rationalizations_are_what_their_row_chooses_from(tmp_path):
  source = toy.source(tmp_path)
  hint = {'kind': 'rationalization', 'hint': 'yes'}
  lines = [toy.said(0, 'no', sample=s) for s in range(2)]
  lines += [
    {**toy.said(0, label, sample=s), **hint}
    for s, label in enumerate(('no', 'yes', 'yes'))
  ]
  toy.write_lines(source / 'llm/train.jsonl', lines)
  found = sources.Examples(
    toy.BENCHMARK, source, split='train', rationalized=True
  )
  row = next(iter(found))
  assert (row.status, row.llm_label) == ('rationalized', 'yes')
  assert [r.text for r in row.rationales] == [
    'It is 0 for sample 1.',
    'It is 0 for sample 2.',
  ]
  assert all(r.agrees and r.gt == 'for' for r in row.rationales)
