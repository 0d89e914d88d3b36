# SPDX-License-Identifier: Apache-2.0
"""A run's name tells where it stands, both ways."""

import pytest

from dsbs_jax.runs import run_names


def _point(**changed):
  given = {
    'benchmark': 'svamp_asdiv',
    'method': 'llm_dsbs',
    'model': 't5_1_0_base',
    'fraction': 0.001,
    'seed': 3,
  }
  return run_names.Coordinates(**{**given, **changed})


@pytest.mark.parametrize(
  'point',
  [
    _point(),
    _point(fraction=1.0),
    _point(fraction=0.00001),
    _point(setting=('ALPHA=0.3',)),
    _point(setting=('ALPHA=0.3', 'LEARNING_RATE=5e-5')),
    _point(benchmark='cqa', method='gt_single'),
    _point(
      setting=('LEARNING_RATE=5e-5', 'optimizer.linear_decay.warmup_steps=20')
    ),
  ],
)
def test_a_name_reads_back_as_its_point(point):
  assert run_names.parse(point.name) == point


def test_a_name_is_what_the_documentation_says():
  point = run_names.Coordinates(
    benchmark='cqa', method='gt_dsbs', model='tiny', fraction=0.25
  )
  assert point.name == 'cqa_gt_dsbs-tiny-f0.25-s0'
  assert point.task == 'cqa_gt_dsbs'


@pytest.mark.parametrize(
  ('number', 'text'),
  [(50.0, '50'), (100, '100'), (1.0, '1'), (12.5, '12.5'), (1e-5, '0.00001')],
)
def test_numbers_are_written_without_exponent_and_without_loss(number, text):
  assert run_names.decimal_text(number) == text


def test_values_with_quotes_and_slashes_stay_in_one_folder():
  name = _point(setting=("VOCABULARY='/data/x y.model'",)).name
  assert name.endswith('-VOCABULARY=data_x_y.model')


@pytest.mark.parametrize(
  'name',
  [
    'run1',
    'cqa_gt_dsbs',
    'cqa_gt_dsbs-tiny-f2-s0',
    'cqa_rationale-tiny-f1-s0',
    'cqa_gt_dsbs-tiny-f0.5.1-s0',
  ],
)
def test_other_names_are_nobodys(name):
  assert run_names.parse(name) is None


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'method': 'dsbs'}, "method is 'dsbs', expected one of gt_finetune"),
    ({'fraction': 0.0}, 'fraction is 0.0'),
    ({'model': 'a-b'}, 'Rename its gin file'),
    ({'seed': -1}, 'seed is -1'),
  ],
)
def test_wrong_points_are_errors(changed, message):
  with pytest.raises(ValueError, match=message):
    _point(**changed)
