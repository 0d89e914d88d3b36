# SPDX-License-Identifier: Apache-2.0
"""What a rationale argues for is what it says, or the label behind it."""

import collections
import dataclasses

import pytest

from dsbs_jax.data import conclusions
from dsbs_jax.data.source import sources
from tasks import anli1, cqa, esnli, svamp
from tests.data import toy

CHOICES = ('rain forest', 'forest', 'zoo', 'math problem', 'problem')


@pytest.mark.parametrize(
  ('rationale', 'label', 'argued'),
  [
    ('Lemurs live wild. Only a zoo has cages.', 'forest', 'zoo'),
    ('Only ZOOS have cages.', 'zoo', 'zoo'),
    ('Only rain forests are wet.', 'forest', 'rain forest'),
    ('A zoo has cages. Lemurs live in a forest.', 'zoo', 'forest'),
    ('Only this math problem is hard.', 'zoo', 'math problem'),
    ('Both a zoo and a forest have trees.', 'zoo', 'zoo'),
    ('Both a zoo and a forest have trees.', 'zoo or', ''),
    ('Zoology is a word, and deforestation.', 'zoo', 'zoo'),
    ('Nothing is said.', 'Zoo', ''),
    ('Nothing is said.', ' ', ''),
  ],
)
def test_choices_are_read_from_the_last_sentence_that_names_one(
  rationale, label, argued
):
  found = conclusions.conclusion(
    cqa.BENCHMARK, rationale, label=label, options=CHOICES
  )
  assert found == argued


@pytest.mark.parametrize('label', ['A', 'B'])
def test_an_article_names_no_label(label):
  letters = dataclasses.replace(toy.BENCHMARK, labels=('A', 'B', 'C', 'D'))
  found = conclusions.conclusion(
    letters, 'It has wings. So it is a bird.', label=label, options=()
  )
  assert found == label


@pytest.mark.parametrize(
  ('rationale', 'label', 'argues'),
  [
    ('He had 9 - 1 = 8 and lost 3. So 8 - 3 = 5.', '(9 - 1)', 'for'),
    ('So 8 - 3 = 6.', '(8 - 3)', 'for'),
    ('So she has 2 * x = $5.', '(2 * x)', 'for'),
    ('So 1,000 + 200 = 1,200.', '5', 'against'),
    ('He lost 3.', '(8 - 3)', 'for'),
    ('He lost 3.', '(8 - 4)', 'against'),
    ('He lost 3.', '(8 pens)', 'unclear'),
    ('He lost 3.', '', 'unclear'),
  ],
)
def test_numbers_are_read_from_the_last_equation(rationale, label, argues):
  found = conclusions.argues(
    svamp.BENCHMARK, rationale, label=label, options=(), target='( 8.0 - 3.0 )'
  )
  assert found == argues


def test_only_the_end_of_a_rationale_is_searched():
  """A pattern's time may be quadratic in the text, and LLMs run on."""
  run_on = 'A zoo. ' + 'So it goes. ' * 1000
  for rationale, label, argued in (('A zoo.', '', 'zoo'), (run_on, '', '')):
    found = conclusions.conclusion(
      cqa.BENCHMARK, rationale, label=label, options=CHOICES
    )
    assert found == argued


def test_free_text_has_only_the_label_behind_it():
  free = toy.BENCHMARK.__class__(
    name='free',
    splits={'train': 'x'},
    render=str,
    label=str,
    parse=toy.BENCHMARK.parse,
    metric=lambda targets, predictions: {'f1': 0.0},
  )
  assert (
    conclusions.argues(free, 'So yes.', label='no', options=(), target='no')
    == conclusions.FOR
  )


@pytest.mark.parametrize(
  ('task', 'split', 'counts'),
  [  # docs/data.md has these numbers
    (cqa, 'train', (7331, 2095, 315)),
    (cqa, 'test', (955, 237, 29)),
    (svamp, 'train', (590, 198, 1)),
    (svamp, 'test', (143, 54, 1)),
    (anli1, 'validation', (668, 323, 0)),
    (esnli, 'validation', (7200, 2638, 4)),
  ],
)
def test_a_fifth_to_a_third_of_palms_argue_for_another_label(
  shared_dir, task, split, counts
):
  found = sources.Examples(
    task.BENCHMARK, shared_dir / 'data' / 'datasets', split=split
  ).file_counts
  argues = collections.Counter(found.argues)
  assert tuple(argues[v] for v in conclusions.ARGUES) == counts
  assert sum(counts) == found.answered - found.blank_rationales
