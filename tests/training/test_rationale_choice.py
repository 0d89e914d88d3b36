# SPDX-License-Identifier: Apache-2.0
"""A run that draws a rationale per visit ends alike wherever it was broken."""

import json

import pytest

from dsbs_jax import contract
from dsbs_jax.preparing import prepare as prepare_lib
from dsbs_jax.runs import metrics_log
from dsbs_jax.runtime import signals
from dsbs_jax.training import loop
from tests import small_runs

ALL = "RATIONALE_CHOICE = 'all'"


@pytest.fixture(scope='module')
def several(tmp_path_factory):
  """SVAMP's few rows, of which each has three rationales.

  They are as long as other runs' are, which have traced steps of such batches.
  """
  folder = tmp_path_factory.mktemp('several')
  source = small_runs.REPOSITORY / 'tests/data/fixtures/archive'
  rows = (source / 'svamp/svamp_train.json').read_text().splitlines()
  said = [
    {
      'id': f'train-{i}',
      'sample': sample,
      'text': f'{"So " * (14 + sample)}it is so. The answer is'
      f' {json.loads(row)["label"]}.',
    }
    for i, row in enumerate(rows)
    for sample in range(3)
  ]
  file = folder / 'train.jsonl'
  file.write_text(''.join(json.dumps(line) + '\n' for line in said))
  prepare_lib.prepare(
    prepare_lib.PrepareConfig(
      benchmark='svamp',
      source=str(source),
      completions=str(file),
      data_dir=str(folder / 'data'),
    )
  )
  return str(folder / 'data')


@pytest.fixture(scope='module')
def unbroken(several, tmp_path_factory):
  run = small_runs.settings(
    tmp_path_factory.mktemp('runs') / 'all', several, ALL
  )
  assert loop.train(run) == 0
  return run


def test_a_stopped_run_draws_on_as_an_unbroken_one(
  several, unbroken, tmp_path, stop_after
):
  run = small_runs.settings(tmp_path, several, ALL)
  stop_after(5)  # in its second epoch of three steps
  assert loop.train(run) == signals.INTERRUPTED_STATUS
  assert loop.train(run) == 0
  small_runs.assert_same_run(run, unbroken)


@pytest.mark.long
def test_the_default_is_another_run_of_the_same_labels_and_order(
  several, unbroken, tmp_path
):
  first = small_runs.settings(tmp_path, several)
  assert first.rationale_choice == 'first'
  assert loop.train(first) == 0
  one, other = (
    [json.loads(line) for line in small_runs.lines(run).splitlines()]
    for run in (first, unbroken)
  )
  counts = [
    {(line['step'], line['label/tokens']) for line in lines if 'loss' in line}
    for lines in (one, other)
  ]
  assert counts[0] == counts[1]
  assert small_runs.lines(first) != small_runs.lines(unbroken)


@pytest.mark.parametrize('rule', ['first', 'shortest'])
def test_resuming_with_another_rule_is_refused(several, unbroken, rule):
  changed = small_runs.settings(
    unbroken.model_dir, several, f"RATIONALE_CHOICE = '{rule}'"
  )
  with pytest.raises(
    contract.UserError, match='other settings: rationale_choice'
  ):
    loop.train(changed)


def test_a_wrong_rule_and_data_with_one_each_end_before_training(
  settings, several, tmp_path
):
  with pytest.raises(contract.UserError, match="'best', expected one of first"):
    small_runs.settings(tmp_path, several, "RATIONALE_CHOICE = 'best'")
  one_each = settings(tmp_path, ALL)
  with pytest.raises(contract.UserError, match='one rationale per row'):
    loop.train(one_each)
  assert not list(tmp_path.glob(f'{metrics_log.METRICS_FILE}*'))
