# SPDX-License-Identifier: Apache-2.0
"""Every benchmark reads the records that its module shows, and its metric."""

import ast
import re

import pytest

from dsbs_jax.data.source import sources
from tasks import anli1, asdiv, cqa, esnli, svamp
from tests.data import toy

BENCHMARKS = (
  anli1.BENCHMARK,
  asdiv.BENCHMARK,
  asdiv.AUGMENTED,
  cqa.BENCHMARK,
  esnli.BENCHMARK,
  svamp.BENCHMARK,
)
MODULES = (anli1, asdiv, cqa, esnli, svamp)

# A true completion in the form that the paper's prompts ask for.
FORMS = {
  'cqa': '{why} So the answer is (a) {label}.\n\nQ: Where is',
  'svamp': '{why} The answer is {label}.\n\nQ: Max has',
  'anli1': '{why} So the answer is {label}.\n\nPremise: A man',
  'esnli': '{why}\nAnswer: {label}\n\nPremise: A man',
}
FORMS['svamp_asdiv'] = FORMS['asdiv'] = FORMS['svamp']


def form(benchmark, label):
  if benchmark.name in ('svamp', 'asdiv', 'svamp_asdiv') and '(' not in label:
    label = f'({label})'
  return FORMS[benchmark.name].format(why='One sees it.', label=label)


@pytest.mark.parametrize('benchmark', BENCHMARKS, ids=lambda b: b.name)
def test_three_rows_round_trip(benchmark):
  for split in benchmark.splits:
    rows = list(sources.read_rows(benchmark, toy.ARCHIVE, split))[:3]
    assert rows
    for row in rows:
      assert row.input and row.gt_label
      parsed = benchmark.parse(form(benchmark, row.gt_label))
      assert parsed.rationale == 'One sees it.'
      if row.gt_label != '9:1':  # a ratio, which is no arithmetic
        score = benchmark.metric([row.gt_label], [parsed.label])
        assert score == {'accuracy': 100.0}


@pytest.mark.parametrize('module', MODULES, ids=lambda m: m.__name__)
def test_the_record_in_the_docstring_renders_as_it_says(module):
  text = module.__doc__
  record = ast.literal_eval(
    re.search(r'Record: (\{.*?\})\n(?:Input|\S)', text, re.S)[1]
  )
  rendered = module.BENCHMARK.render(record)
  said = re.search(r"Input:  '(.*?)(?: \.\.\.)?'", text)
  if said:
    shown = said[1].replace('\\n', '\n')
    assert rendered.startswith(shown.removesuffix('(b)'))
  label = module.BENCHMARK.label(record)
  assert re.search(r"Label:  '(.*?)'", text)[1] == label


def test_nli_texts_are_joined_by_the_end_of_sequence():
  row = {'premise': 'A.', 'hypothesis': ' B', 'label': 1}
  assert esnli.BENCHMARK.render(row) == 'A.</s> B'
  assert anli1.BENCHMARK.label(row) == 'neutral'
  with pytest.raises(ValueError, match='expected 0, 1 or 2'):
    esnli.BENCHMARK.label({'label': -1})


def test_a_question_with_four_choices_names_its_place(tmp_path):
  row = {'id': 'x', 'question': 'q', 'choices': ['a'] * 4, 'answer': 'a'}
  toy.write_lines(tmp_path / 'cqa_train.json', [row])
  with pytest.raises(ValueError, match='cqa_train.json:1 .*4 choices, expe'):
    list(sources.read_rows(cqa.BENCHMARK, tmp_path, 'train'))


def test_an_answer_that_is_no_choice_names_its_place(tmp_path):
  row = {'id': 'x', 'question': 'q', 'choices': list('abcde'), 'answer': 'f'}
  toy.write_lines(tmp_path / 'cqa_test.json', [row])
  with pytest.raises(ValueError, match="cqa_test.json:1 has the label 'f'"):
    list(sources.read_rows(cqa.BENCHMARK, tmp_path, 'test'))


def test_of_a_label_in_cqa_one_dot_goes_as_in_the_original():
  said = 'It is there. So the answer is (b) washington d.c'
  assert cqa.parse(f'{said}..').label == 'washington d.c.'
  assert cqa.parse(f'{said}.').label == 'washington d.c'


def test_svamp_json_is_permuted_as_in_the_original():
  train, test = (svamp.permuted(1000, train=side) for side in (True, False))
  assert (len(train), len(test)) == (800, 200)
  assert sorted([*train, *test]) == list(range(1000))


def test_the_svamp_parser_leaves_what_it_cannot_score_to_the_metric():
  label = svamp.parse('He made x. The answer is (2 * x).').label
  assert label == '(2 * x)' and not svamp.BENCHMARK.well_formed(label)
