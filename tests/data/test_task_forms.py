# SPDX-License-Identifier: Apache-2.0
"""Each form of task reads and writes what the paper's does."""

import pytest

from dsbs_jax import contract
from dsbs_jax.data import task_forms
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.preparing import vocabulary_training


def test_prefixes_of_the_paper_and_of_its_code():
  assert task_forms.prefixes('paper').of('label') == '[label] '
  assert task_forms.prefixes('code').of('rationale') == 'explain: '
  assert task_forms.prefixes('code').of('finetune') == ''
  assert task_forms.prefixes('paper').of('single') == ''
  with pytest.raises(ValueError, match="prefixes is 'mine', expected paper"):
    task_forms.prefixes('mine')


def test_llm_labels_are_for_training_only():
  name = contract.parse_task_name('cqa_llm_label')
  assert task_forms.label_source(name, 'train') == 'llm'
  assert task_forms.label_source(name, 'validation') == 'gt'
  assert task_forms.label_source(name, 'test') == 'gt'
  gold = contract.parse_task_name('cqa_gt_single')
  assert task_forms.label_source(gold, 'train') == 'gt'


def test_single_answers_are_read_back_from_targets():
  vocabulary = vocabularies.load('bytes')

  def read(text):
    return task_forms.answer('cqa_gt_single', text, vocabulary=vocabulary)

  written = task_forms.target(
    'single', label='( 1 + 2 )', rationale='So [label] x'
  )
  assert read(written) == '( 1 + 2 )'
  assert read('no marker at all') == ''
  assert read(task_forms.target('single', label='', rationale='why')) == ''
  kept = ' as it is [label] '
  assert task_forms.answer('cqa_gt_label', kept, vocabulary=vocabulary) == kept


def test_an_answer_that_comes_first_is_read_back_from_targets():
  vocabulary = vocabularies.load('bytes')

  def read(text):
    return task_forms.answer('cqa_gt_answer_first', text, vocabulary=vocabulary)

  why = 'So [rationale] x [label] y'
  written = task_forms.target('answer_first', label='( 1 + 2 )', rationale=why)
  assert written == '( 1 + 2 ) [rationale] So [rationale] x [label] y'
  assert read(written) == '( 1 + 2 )'
  assert read('no marker at all') == 'no marker at all'
  assert (
    read(task_forms.target('answer_first', label='', rationale='why')) == ''
  )


def test_the_marker_behind_an_answer_has_ids_of_its_own():
  """Decoding stops at these ids, whatever the answer before them is."""
  texts = ['( 8 - 3 ) [rationale] He ate 3 of 8.', 'a dog', 'why not'] * 9
  model = vocabulary_training.train(texts, size=60, required='[]')
  trained = vocabularies.SentencePieceVocabulary(model, extra_ids=0)
  for vocabulary in (trained, vocabularies.load('bytes')):
    marker = vocabulary.encode(' [rationale]')
    for label in ('( 8 - 3 )', 'dog.', 'a'):
      target = task_forms.target(
        'answer_first', label=label, rationale='He ate.'
      )
      ids, said = vocabulary.encode(target), vocabulary.encode(label)
      assert ids[: len(said) + len(marker)] == said + marker


def test_single_works_where_brackets_are_unknown():
  model = vocabulary_training.train(
    ['label a why b cd'] * 20, size=30, required=''
  )
  vocabulary = vocabularies.SentencePieceVocabulary(model, extra_ids=0)
  target = task_forms.target('single', label='cd', rationale='why')
  ids = vocabulary.encode(target)
  assert 2 in ids  # the brackets
  text = vocabulary.decode_with_unknown(ids)
  assert task_forms.answer('x_gt_single', text, vocabulary=vocabulary) == 'cd'
  for form in ('single', 'label'):
    said = ids if form == 'single' else [2, *vocabulary.encode('cd'), 2, 1]
    name = f'x_gt_{form}'
    assert task_forms.decode_answer(name, said, vocabulary=vocabulary) == 'cd'


@pytest.mark.parametrize(
  'form', ['finetune', 'label', 'single', 'answer_first']
)
def test_the_label_is_read_back_from_a_target(form):
  target = task_forms.target(form, label='a b', rationale='so c')
  assert task_forms.label_of(form, target) == 'a b'
