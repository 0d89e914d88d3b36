# SPDX-License-Identifier: Apache-2.0
"""A run, broken anywhere, ends where an unbroken one ends, bit for bit."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from dsbs_jax import contract
from dsbs_jax.core import partitioning
from dsbs_jax.data.batching import row_shapes
from dsbs_jax.data.prepared import dataset_writer, store
from dsbs_jax.inference import evaluate_checkpoint
from dsbs_jax.runs import checkpoints, run_folder
from dsbs_jax.runtime import folder_lock, signals
from dsbs_jax.training import loop, lowered_step, session, train_config
from tests import small_runs
from tests.data import small_prepared


def test_both_terms_fall_and_everything_is_written(unbroken):
  lines = [json.loads(line) for line in small_runs.lines(unbroken).splitlines()]
  train = [line for line in lines if line['split'] == 'train']
  assert [line['step'] for line in train] == [4, 6, 8, 12]
  for term in ('label/loss', 'rationale/loss', 'loss'):
    assert train[-1][term] < train[0][term]
  assert train[-1]['learning_rate'] == pytest.approx(1e-2 / 12)
  for line in train:
    relative = line['update_norm'] / line['param_norm']
    assert line['relative_update'] == pytest.approx(relative, rel=1e-2)
  evaluated = {
    (line['step'], line['split']) for line in lines if 'accuracy' in line
  }
  assert evaluated == {
    (step, split) for step in (6, 12) for split in ('validation', 'test')
  }
  folder = pathlib.Path(unbroken.model_dir)
  predictions = folder / 'predictions/svamp_gt_label-test-000012.jsonl'
  rows = [json.loads(line) for line in predictions.read_text().splitlines()]
  assert [row['index'] for row in rows] == [0, 1]
  assert list(folder.glob('events.out.tfevents*'))


def test_times_of_a_run_are_kept_apart(unbroken):
  text = pathlib.Path(unbroken.model_dir, 'timing.jsonl').read_text()
  entries = [json.loads(line) for line in text.splitlines()]
  rates = [e for e in entries if 'tokens_per_second' in e]
  assert [entry['step'] for entry in rates] == [4, 6, 8, 12]
  assert all(entry['data_seconds_per_step'] > 0 for entry in rates)
  pauses = [e for e in entries if 'evaluation_seconds' in e]
  assert [entry['step'] for entry in pauses] == [6, 12]
  assert all(entry['save_seconds'] > 0 for entry in pauses)


def test_chosen_steps_are_profiled(settings, tmp_path, stop_after):
  run = settings(tmp_path, 'PROFILE_STEPS = (2, 3)', 'EVAL_SPLITS = ()')
  stop_after(4)
  assert loop.train(run) == signals.INTERRUPTED_STATUS
  (trace,) = tmp_path.glob('plugins/profile/*/*.xplane.pb')
  events = [
    event
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes
    for line in plane.lines
    for event in line.events
    if event.name == 'train'
  ]
  steps = [dict(event.stats)['step_num'] for event in events]
  assert steps == [2, 3]


@pytest.mark.parametrize('steps', ['(3, 2)', '(0, 1)', '7', '(1, 2, 3)'])
def test_steps_of_a_profile_are_checked(settings, tmp_path, steps):
  with pytest.raises(ValueError, match='first and the last step'):
    settings(tmp_path, f'PROFILE_STEPS = {steps}')


@pytest.mark.parametrize(
  'stop_at',
  [
    3,
    pytest.param(6, marks=pytest.mark.long),
    pytest.param(7, marks=pytest.mark.long),
  ],
)
def test_a_stopped_run_ends_bit_for_bit_as_an_unbroken_one(
  unbroken, settings, tmp_path, stop_after, stop_at
):
  run = settings(tmp_path)
  stop_after(stop_at)
  assert loop.train(run) == signals.INTERRUPTED_STATUS
  assert checkpoints.Checkpoints(run.model_dir).latest_step() == stop_at
  assert loop.train(run) == 0
  small_runs.assert_same_run(run, unbroken)


@pytest.mark.long
def test_masks_of_the_devices_generator_are_resumed_bit_for_bit(
  settings, tmp_path, stop_after
):
  with jax.default_prng_impl('rbg'):
    whole, broken = (settings(tmp_path / name) for name in ('a', 'b'))
    assert loop.train(whole) == 0
    stop_after(3)
    assert loop.train(broken) == signals.INTERRUPTED_STATUS
    assert loop.train(broken) == 0
    small_runs.assert_same_run(broken, whole)
  usual = settings(tmp_path / 'c', 'TRAIN_STEPS = 1')
  assert loop.train(usual) == 0
  first = [
    json.loads(small_runs.lines(run).splitlines()[0]) for run in (whole, usual)
  ]
  assert first[0]['loss'] != first[1]['loss']


def test_a_finished_run_has_nothing_to_do(unbroken):
  before = small_runs.lines(unbroken)
  assert loop.train(unbroken, config_text='# other free settings') == 0
  assert small_runs.lines(unbroken) == before
  assert not pathlib.Path(unbroken.model_dir, 'config.gin').exists()


@pytest.mark.parametrize(
  ('binding', 'named'),
  [
    ('EMB_DIM = 32', 'model'),
    ('ALPHA = 0.9', 'objective'),
    ('SEED = 1', 'seed'),
  ],
)
def test_resuming_with_another_run_is_refused(
  unbroken, settings, binding, named
):
  changed = settings(unbroken.model_dir, binding)
  with pytest.raises(ValueError, match=f'other settings: {named}'):
    loop.train(changed)


@pytest.mark.long
def test_training_longer_at_a_constant_rate_is_training_at_once(
  settings, tmp_path
):
  constant = 'SCHEDULE = @optimizer.constant', 'EVAL_SPLITS = ()'
  runs = {}
  for name, lengths in (('parts', (6, 12)), ('whole', (12,))):
    for steps in lengths:
      runs[name] = settings(
        tmp_path / name, *constant, f'TRAIN_STEPS = {steps}'
      )
      assert loop.train(runs[name]) == 0
  small_runs.assert_same_run(*runs.values())


@pytest.mark.parametrize(
  ('steps', 'message'),
  [
    (24, 'other settings: train_steps: 12 -> 24'),
    (6, 'TRAIN_STEPS is 6, but .* holds a run of 12 steps'),
  ],
)
def test_a_finished_run_of_falling_rates_has_its_length(
  unbroken, settings, steps, message
):
  other = settings(unbroken.model_dir, f'TRAIN_STEPS = {steps}')
  with pytest.raises(ValueError, match=message):
    loop.train(other)


def test_a_vocabulary_larger_than_the_model_is_refused(settings, tmp_path):
  with pytest.raises(ValueError, match='VOCAB_SIZE'):
    loop.train(settings(tmp_path, 'VOCAB_SIZE = 128'))


def test_a_run_starts_from_another_run(unbroken, settings, tmp_path):
  path = f"INITIAL_CHECKPOINT_PATH = '{unbroken.model_dir}'"
  mesh = partitioning.make_mesh(None)
  begun = session.open_session(settings(tmp_path, path), mesh, config_text=None)
  assert begun.first_step == 0
  jax.tree.map(
    np.testing.assert_array_equal,
    begun.state.params,
    small_runs.params(unbroken, 12),
  )


@pytest.mark.long
def test_a_step_at_rate_0_is_the_run_that_it_starts_from(
  unbroken, settings, tmp_path
):
  path = f"INITIAL_CHECKPOINT_PATH = '{unbroken.model_dir}'"
  run = settings(tmp_path, path, 'LEARNING_RATE = 0.0', 'TRAIN_STEPS = 1')
  assert loop.train(run) == 0
  jax.tree.map(
    np.testing.assert_array_equal,
    small_runs.params(run, 1),
    small_runs.params(unbroken, 12),
  )


def test_a_run_does_not_start_from_another_vocabulary(
  unbroken, settings, tmp_path
):
  path = f"INITIAL_CHECKPOINT_PATH = '{unbroken.model_dir}'"
  with pytest.raises(ValueError, match='was trained with vocabulary'):
    loop.train(settings(tmp_path, path, "VOCABULARY = 'bytes:99'"))


def _evaluation(unbroken, out, **changed):
  given = {
    'checkpoint_path': unbroken.model_dir,
    'mixture_or_task_name': 'svamp_gt_dsbs',
    'step': 'latest',
    'output_dir': str(out),
    'data_dir': unbroken.data_dir,
    'vocabulary': 'bytes',
    'prefixes': None,
    'model': unbroken.model,
    'eval_splits': ('validation', 'test'),
    'eval_batch_size': 3,
    'max_decode_len': 8,
    'num_beams': 1,
    'score_labels': False,
    'mesh': None,
    'sharding_rules': unbroken.sharding_rules,
  }
  return evaluate_checkpoint.EvalConfig(**given | changed)


def test_the_checkpoint_scores_as_in_training(unbroken, tmp_path):
  run = _evaluation(unbroken, tmp_path)
  lock = folder_lock.FolderLock(
    f'{unbroken.model_dir}/{run_folder.LOCK_FILE}', doing='trained', remedy=''
  )
  with folder_lock.hold(lock):  # as while it is trained: to read is allowed
    evaluate_checkpoint.evaluate(run)
  name = 'predictions/svamp_gt_label-test-000012.jsonl'
  trained = pathlib.Path(unbroken.model_dir, name).read_text()
  assert (tmp_path / name).read_text() == trained


def test_predictions_on_other_inputs_are_not_replaced(unbroken, tmp_path):
  folder = tmp_path / 'predictions'
  folder.mkdir()
  file = folder / 'svamp_gt_label-test-000012.jsonl'
  own = pathlib.Path(unbroken.model_dir, 'predictions', file.name).read_text()
  file.write_text(own)
  run = _evaluation(unbroken, tmp_path, eval_splits=('test',))
  evaluate_checkpoint.evaluate(run)  # the same may be evaluated again
  other = own.replace('"input": "[label] ', '"input": "[label] Other ', 1)
  file.write_text(other)
  with pytest.raises(contract.UserError, match='would be lost. Give --out='):
    evaluate_checkpoint.evaluate(run)
  assert file.read_text() == other


def test_other_decoding_leaves_the_predictions_of_a_run_alone(
  unbroken, tmp_path
):
  run = _evaluation(unbroken, tmp_path, num_beams=2, eval_splits=('test',))
  evaluate_checkpoint.evaluate(run)
  (written,) = (tmp_path / 'predictions').iterdir()
  assert written.name == 'svamp_gt_label-test-000012-beams2.jsonl'
  (line,) = (tmp_path / 'eval.jsonl').read_text().splitlines()
  assert json.loads(line)['num_beams'] == 2


@pytest.mark.parametrize(
  'task',
  [
    'svamp_gt_single',
    pytest.param('svamp_llm_finetune', marks=pytest.mark.long),
    pytest.param('svamp_gt_answer_first', marks=pytest.mark.long),
  ],
)
def test_the_baselines_train(settings, tmp_path, capsys, task):
  run = settings(
    tmp_path,
    f"MIXTURE_OR_TASK_NAME = '{task}'",
    *('TRAIN_STEPS = 4', 'LEARNING_RATE = 1e-4', "EVAL_SPLITS = ('test',)"),
  )
  assert loop.train(run) == 0
  assert 'but the parameters are random' in capsys.readouterr().err
  last = json.loads(small_runs.lines(run).splitlines()[-1])
  assert (last['step'], last['split']) == (4, 'test')
  assert 'rationale/loss' not in small_runs.lines(run)
  first = json.loads(small_runs.lines(run).splitlines()[0])
  assert first['loss'] == pytest.approx(first['label/loss'], rel=0.05)


@pytest.mark.long
def test_the_mutual_information_term_is_trained_where_it_can_be(
  settings, tmp_path
):
  tied = 'MI_WEIGHT = 0.1'
  run = settings(tmp_path, tied, 'TRAIN_STEPS = 4', 'EVAL_SPLITS = ()')
  assert loop.train(run) == 0
  (line,) = (json.loads(line) for line in small_runs.lines(run).splitlines())
  terms = (line['label/loss'] + line['rationale/loss']) / 2
  assert line['loss'] == pytest.approx(
    terms + 0.1 * line['mutual_information'], rel=0.05
  )
  one_term = settings(
    tmp_path, tied, "MIXTURE_OR_TASK_NAME = 'svamp_gt_finetune'"
  )
  assert not train_config.objective_of(one_term).mi_weight
  for other in ('PAIRED = False', 'CHUNK_TOKENS = 8'):
    with pytest.raises(ValueError, match='a _dsbs mixture, pairs and no chun'):
      settings(tmp_path, tied, other)


@pytest.mark.parametrize(
  'layout', ['Packed', pytest.param('Padded', marks=pytest.mark.long)]
)
def test_verdicts_are_trained_beside_labels_and_rationales(
  settings, tmp_path, unbroken, layout
):
  plain = (
    f'LAYOUT = @layouts.{layout}',
    'TRAIN_STEPS = 4',  # the plain run is one program with the next test's
    'LOG_PERIOD = 1',
    'EVAL_SPLITS = ()',
    'DROPOUT_RATE = 0.0',
  )
  weighted = *plain, 'VERDICT_WEIGHT = 0.25'
  with pytest.raises(ValueError, match='no verdicts of an LLM'):
    loop.train(settings(tmp_path / 'refused', *weighted))
  rows = store.read('svamp', unbroken.data_dir).examples('train')
  data_dir = tmp_path / 'data'
  small_prepared.write_judged(data_dir, list(rows), name='svamp')
  lines = []
  for bindings in (plain, weighted):
    run = small_runs.settings(tmp_path / bindings[-1], data_dir, *bindings)
    assert loop.train(run) == 0
    lines.append(json.loads(small_runs.lines(run).splitlines()[0]))
  without, line = lines
  assert 'verdict/loss' not in without and 0 < line['verdict/tokens'] < 16
  expected = (line['label/loss'] + line['rationale/loss']) / 2
  expected += 0.25 * line['verdict/loss']
  assert line['loss'] == pytest.approx(expected, rel=1e-5)
  for term in ('label/loss', 'rationale/loss'):  # of step 1: the same start
    assert line[term] == pytest.approx(without[term], rel=1e-5)


def test_verdicts_go_with_no_other_further_term(settings, tmp_path):
  weights = 'VERDICT_WEIGHT = 0.1', 'MI_WEIGHT = 0.1'
  with pytest.raises(ValueError, match='and no other further term'):
    settings(tmp_path, *weights)


@pytest.mark.parametrize(
  'layout', ['Packed', pytest.param('Padded', marks=pytest.mark.long)]
)
def test_a_run_with_a_schedule_of_alpha_is_resumed_bit_for_bit(
  settings, tmp_path, stop_after, layout
):
  bindings = (
    'ALPHA_SCHEDULE = tscl',  # as on the command line, without quotes
    f'LAYOUT = @layouts.{layout}',
    'TRAIN_STEPS = 6',
    'LOG_PERIOD = 1',
    'EVAL_SPLITS = ()',
    'DROPOUT_RATE = 0.0',
  )
  whole, broken = (settings(tmp_path / n, *bindings) for n in ('a', 'b'))
  assert loop.train(whole) == 0
  stop_after(3)
  assert loop.train(broken) == signals.INTERRUPTED_STATUS
  assert loop.train(broken) == 0
  assert small_runs.lines(whole) == small_runs.lines(broken)
  found = list(map(json.loads, small_runs.lines(whole).splitlines()))
  assert [line['alpha'] for line in found] == [1.0, 1.0, 0.5, 0.5, 0.0, 0.0]
  for line in found:
    alpha = line['alpha']
    expected = alpha * line['label/loss'] + (1 - alpha) * line['rationale/loss']
    assert line['loss'] == pytest.approx(expected, rel=1e-5)
  # Thirds of a longer run are others.
  longer = settings(tmp_path / 'b', *bindings, 'TRAIN_STEPS = 9')
  with pytest.raises(ValueError, match='other settings'):
    loop.train(longer)


@pytest.mark.parametrize(
  'layout', ['Padded', pytest.param('Bucketed', marks=pytest.mark.long)]
)
def test_layouts_give_the_same_losses(settings, tmp_path, layout):
  """Dropout draws other masks in other shapes, so it is off."""
  lines = []
  for name in ('Packed', layout):
    run = settings(
      tmp_path / name,
      f'LAYOUT = @layouts.{name}',
      'DROPOUT_RATE = 0.0',
      'TRAIN_STEPS = 4',
      'LOG_PERIOD = 1',
      'EVAL_SPLITS = ()',
    )
    assert loop.train(run) == 0
    lines.append(map(json.loads, small_runs.lines(run).splitlines()))
  for step, (packed, other) in enumerate(zip(*lines, strict=True), start=1):
    assert packed['step'] == other['step'] == step
    for key in ('label/loss', 'rationale/loss', 'grad_norm'):
      assert packed[key] == pytest.approx(other[key], rel=1e-5)
  assert step == 4


@pytest.mark.long
def test_runs_that_differ_in_their_seed_share_one_program(settings, tmp_path):
  """Within a process tests/training/test_shared_programs.py says so."""
  mesh = partitioning.make_mesh('1x1', devices=jax.devices()[:1])
  views = {'label': row_shapes.Shape(4, 16, 8)}
  texts = set()
  for seed in (0, 1):
    run = settings(tmp_path / str(seed), f'SEED = {seed}', 'DROPOUT_RATE = 0.1')
    texts.add(lowered_step.lower_train_step(run, mesh, views).as_text())
  assert len(texts) == 1


def test_soft_labels_are_trained_beside_hard_ones(tmp_path):
  """Half of the examples have one; the others learn from labels alone."""
  data_dir, folder = tmp_path / 'data', tmp_path / 'run'
  examples = [
    dataclasses.replace(
      example,
      gt_label=('first', 'second')[number % 2],
      label_probs=() if number % 2 else (0.75, 0.25),
    )
    for number, example in enumerate(small_prepared.examples('train', number=8))
  ]
  bindings = (
    "MIXTURE_OR_TASK_NAME = 'parcels_gt_dsbs'",
    'TRAIN_STEPS = 1',
    'LOG_PERIOD = 1',
    'BATCH_SIZE = 8',
    'MICROBATCHES = 2',
    'EVAL_SPLITS = ()',
    'DROPOUT_RATE = 0.0',
  )
  weight = 'SOFT_LABEL_WEIGHT = 0.5'

  def prepare(examples):
    dataset_writer.write(
      'parcels',
      {'train': examples},
      data_dir=data_dir,
      about={'source': 'invented'},
      overwrite=True,
    )

  prepare([dataclasses.replace(e, label_probs=()) for e in examples])
  run = small_runs.settings(folder, data_dir, *bindings, weight)
  with pytest.raises(ValueError, match='none of the 8 examples .* --logprobs'):
    loop.train(run)
  prepare(examples)
  assert loop.train(run) == 0
  (line,) = (json.loads(line) for line in small_runs.lines(run).splitlines())
  # One place per label: 'first' and 'second' part at once.
  assert line['soft_labels/tokens'] == 4
  expected = (line['label/loss'] + line['rationale/loss']) / 2
  expected += 0.5 * line['soft_labels/loss']
  assert line['loss'] == pytest.approx(expected, rel=1e-5)
  # A random student knows neither of the two, of 384 tokens.
  entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
  assert line['soft_labels/loss'] == pytest.approx(
    np.log(384) - entropy, abs=1.5
  )
  with pytest.raises(ValueError, match='and PAIRED False, expected'):
    small_runs.settings(folder, data_dir, *bindings, weight, 'PAIRED = False')
