# SPDX-License-Identifier: Apache-2.0
"""Counterfactuals and contrast in whole runs: logged, refused, and resumed."""

import dataclasses
import json

import pytest

from dsbs_jax.data import register
from dsbs_jax.data.prepared import store
from dsbs_jax.runtime import signals
from dsbs_jax.training import loop, session, train_config
from tests import small_runs
from tests.data import small_prepared

SHORT = (
  'TRAIN_STEPS = 4',
  'LOG_PERIOD = 1',
  'EVAL_PERIOD = 4',
  'EVAL_SPLITS = ()',
  'DROPOUT_RATE = 0.0',
)
COUNTERFACTUAL = 'COUNTERFACTUAL_WEIGHT = 0.5'
CONTRAST = 'CONTRAST_WEIGHT = 0.25'
SINGLE = 'MIXTURE_OR_TASK_NAME = svamp_gt_single'


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """A few rows of ours, two of three with a counterfactual."""
  folder = tmp_path_factory.mktemp('data')
  plain = small_runs.prepare(folder / 'plain')
  rows = list(store.read('svamp', plain).examples('train'))
  small_prepared.write_judged(folder / 'judged', rows, name='svamp')
  return folder


@pytest.fixture
def run_of(data_dir, tmp_path):
  def run_of(name, *bindings, data='judged'):
    folders = tmp_path / name, data_dir / data
    return small_runs.settings(*folders, *SHORT, *bindings)

  return run_of


def lines_of(run):
  assert loop.train(run) == 0
  return list(map(json.loads, small_runs.lines(run).splitlines()))


@pytest.mark.long
def test_the_loss_is_the_same_in_any_layout(run_of):
  """Packed rows in two microbatches learn as padded ones in one."""
  packed, padded = (
    lines_of(run_of(name, COUNTERFACTUAL, CONTRAST, *more))
    for name, *more in (
      ('packed', 'MICROBATCHES = 2', 'CHUNK_TOKENS = 32'),
      ('padded', 'LAYOUT = @layouts.Padded'),
    )
  )
  for one, other in zip(packed, padded, strict=True):
    for key in ('loss', 'counterfactual/loss', 'contrast/loss', 'grad_norm'):
      assert one[key] == pytest.approx(other[key], rel=5e-5)


@pytest.mark.long
def test_a_single_task_trains_on_labels_and_counterfactuals(run_of):
  """The sum is tests/core/test_objective.py's, the batches are the next's."""
  for line in lines_of(run_of('single', COUNTERFACTUAL, SINGLE)):
    assert line['counterfactual/tokens'] > 0
    expected = line['label/loss'] + 0.5 * line['counterfactual/loss']
    assert line['loss'] == pytest.approx(expected, rel=1e-5)


def test_a_single_task_with_counterfactuals_is_that_of_scott(run_of):
  run = run_of('single', COUNTERFACTUAL, SINGLE)
  found = train_config.objective_of(run)
  assert (found.alpha, found.counterfactual_weight) == (1.0, 0.5)
  source = register.source(data_dir=run.data_dir, vocabulary='bytes')
  batch = next(session.open_data(run, source, row_multiple=1).iterate())
  assert set(batch) == {'label', 'counterfactual'}
  assert (batch['counterfactual']['decoder_loss_weights'] > 0).any()
  for task, weight in (('gt_finetune', 0.0), ('counterfactual', 1.0)):
    other = dataclasses.replace(run, mixture_or_task_name=f'svamp_{task}')
    found = train_config.objective_of(other)
    assert found.counterfactual_weight == weight and not found.contrast_weight


def test_a_stopped_run_goes_on_as_an_unbroken_one(run_of, stop_after):
  whole, broken = (run_of(name, COUNTERFACTUAL, CONTRAST) for name in 'ab')
  lines = lines_of(whole)
  for line in lines:
    expected = (line['label/loss'] + line['rationale/loss']) / 2
    expected += 0.5 * line['counterfactual/loss']
    expected += 0.25 * line['contrast/loss']
    assert line['loss'] == pytest.approx(expected, rel=1e-5)
    assert 0 < line['contrast/tokens'] < 4 and 'contrast/accuracy' in line
  # The pairs of a batch are its rows with a rationale for a wrong label.
  assert len({line['contrast/tokens'] for line in lines}) > 1
  stop_after(2)
  assert loop.train(broken) == signals.INTERRUPTED_STATUS
  assert loop.train(broken) == 0
  assert small_runs.lines(whole) == small_runs.lines(broken)
  with pytest.raises(ValueError, match='objective.counterfactual_weight'):
    loop.train(run_of('b', 'COUNTERFACTUAL_WEIGHT = 0.4', CONTRAST))
  with pytest.raises(ValueError, match='objective.contrast_margin'):
    loop.train(run_of('b', COUNTERFACTUAL, CONTRAST, 'CONTRAST_MARGIN = 2.0'))


def test_what_has_no_counterfactuals_is_refused(run_of):
  with pytest.raises(ValueError, match='COUNTERFACTUAL_WEIGHT is 0.5 with'):
    run_of('tied', COUNTERFACTUAL, 'MI_WEIGHT = 0.1')
  with pytest.raises(ValueError, match='no rationales of an LLM for wrong'):
    loop.train(run_of('plain', COUNTERFACTUAL, data='plain'))
  with pytest.raises(ValueError, match='no rationales of an LLM for wrong'):
    loop.train(run_of('plain', CONTRAST, data='plain'))
  with pytest.raises(ValueError, match='with PAIRED False, expected pairs'):
    run_of('sampled', CONTRAST, 'PAIRED = False')
  with pytest.raises(ValueError, match='is svamp_contrast, expected a task'):
    run_of('alone', 'MIXTURE_OR_TASK_NAME = svamp_contrast')
