# SPDX-License-Identifier: Apache-2.0
"""Labels that a vocabulary cannot tell apart are no right answers."""

import pathlib

import pytest

from dsbs_jax import contract
from dsbs_jax.data import register, task_forms
from dsbs_jax.data.prepared import tokens
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.inference import label_check
from dsbs_jax.preparing import prepare

# 192 pieces: letters, a few digits, no ✓ and no ✗.
_SPEC = str(pathlib.Path(__file__).parents[1] / 'recordings' / 'spiece.model')


def _written(labels):
  vocabulary = vocabularies.load(_SPEC)
  return label_check.same_when_written(
    {x: task_forms.round_trip(x, vocabulary=vocabulary) for x in labels}
  )


def test_labels_that_become_one_text_are_found():
  assert _written(['✓', '✗']) == {'': {'✓', '✗'}}
  assert _written(['x^2', 'x2', 'a']) == {'x2': {'x^2', 'x2'}}


def test_a_label_that_becomes_no_answer_is_found():
  assert _written(['✓', 'a']) == {'': {'✓'}}


def test_blanks_and_forms_of_a_character_make_no_other_label():
  same = {'a b': 'a b', 'a  b': 'a b', 'ａ b': 'a b', '': '', ' ': ''}
  assert label_check.same_when_written(same) == {}


def _splits(tmp_path, labels, *flags, form='finetune'):
  rows = tmp_path / 'ticks.csv'
  lines = [f'what {i},{labels[i % len(labels)]}\n' for i in range(40)]
  rows.write_text('q,a\n' + ''.join(lines), encoding='utf-8')
  data_dir = str(tmp_path / 'data')
  prepare.prepare(
    prepare.PrepareConfig(
      rows=str(rows), input='{q}', label='a', data_dir=data_dir, **dict(flags)
    )
  )
  source = tokens.Source(data_dir, _SPEC)
  known = register.benchmark('ticks', data_dir=data_dir)
  name = f'ticks_gt_{form}'
  return known, {'test': tokens.load(name, 'test', source)}


def test_a_closed_set_that_cannot_be_written_is_an_error(tmp_path):
  labels = ['✓', '✗']
  known, splits = _splits(tmp_path, labels, ('labels', labels))
  with pytest.raises(contract.UserError, match="'✓', '✗' would all be ''"):
    label_check.check(known, splits)


@pytest.mark.parametrize('form', ['finetune', 'single', 'answer_first'])
def test_of_free_labels_it_is_said(tmp_path, capfd, form):
  known, splits = _splits(tmp_path, ['✓', '✗', 'yes'], form=form)
  label_check.check(known, splits)
  said = f'ticks_gt_{form} test: 2 labels of ticks cannot be told from others'
  assert said in capfd.readouterr().err


def test_labels_that_can_be_written_are_none_of_its_business(tmp_path, capfd):
  known, splits = _splits(tmp_path, ['yes', 'no'])
  capfd.readouterr()
  label_check.check(known, splits)
  assert not any(capfd.readouterr())
