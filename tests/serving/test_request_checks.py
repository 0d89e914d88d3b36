# SPDX-License-Identifier: Apache-2.0
"""Rows of a benchmark are read as in files, and checked before they queue."""

import json

import pytest

from dsbs_jax.data import register, task_forms
from dsbs_jax.inference import length_buckets, predictor
from dsbs_jax.serving import errors, request_checks
from tests.data import toy
from tests.inference import small_student

ROWS = [
  json.loads(line)
  for line in (toy.ARCHIVE / 'cqa/cqa_test.json').read_text().splitlines()
]


def reader(
  *, choices=5, choice_tokens=40, needs_choices=False, rationales=True
):
  settings = predictor.PredictorConfig(
    task='cqa_gt_label',
    model=small_student.MODEL,
    prefixes=task_forms.prefixes('paper'),
  )
  return request_checks.RequestReader(
    predictor.Predictor(
      settings,
      None,
      vocabulary=small_student.BYTES,
      shapes=length_buckets.LengthBuckets(8),
    ),
    small_student.BYTES,
    max_inputs=8,
    max_input_tokens=512,
    max_choices=choices,
    max_choice_tokens=choice_tokens,
    rationales=rationales,
    benchmark=register.benchmark('cqa'),
    needs_choices=needs_choices,
  )


def test_rows_are_rendered_with_their_choices():
  checked, rationales = reader().read({'inputs': [*ROWS[:3], 'a text']})
  assert rationales
  *rows, text = [one.input for one in checked]
  for row, found in zip(ROWS, rows, strict=False):
    assert found.text == register.benchmark('cqa').render(row)
    assert found.choices == tuple(row['choices'])
  assert (text.text, text.choices) == ('a text', ())
  prefix = len('[label] ')
  assert checked[-1].num_tokens == prefix + len('a text') + 1


@pytest.mark.parametrize(
  ('options', 'item', 'words'),
  [
    ({}, {'question': 'no choices?'}, 'no field'),
    ({}, ROWS[0] | {'question': 7}, 'inputs\\[0\\] cannot be read'),
    ({}, ROWS[0] | {'question': 'a\0'}, 'NUL'),
    ({}, ROWS[0] | {'choices': list('abcd')}, '4 choices'),
    ({}, 7, 'JSON int'),
    ({'choices': 4}, ROWS[0], '5 choices, expected at most 4'),
    ({'choice_tokens': 1}, ROWS[0], 'expected at most 1'),
    ({'needs_choices': True}, 'a text', 'has no choices'),
  ],
)
def test_rows_that_cannot_be_answered_are_refused(options, item, words):
  with pytest.raises(errors.APIError, match=words) as refused:
    reader(**options).read({'inputs': [item]})
  assert (refused.value.status, refused.value.param) == (400, 'inputs[0]')


def test_rationales_of_a_student_that_gives_none_are_refused():
  without = reader(rationales=False)
  for body in ({}, {'rationales': False}):
    assert not without.read({'input': 'a text', **body})[1]
  with pytest.raises(errors.APIError, match='start the server with --rat'):
    without.read({'input': 'a text', 'rationales': True})
