# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint carries, and what may change when a run goes on."""

import dataclasses
import json
import pathlib
import types

import jax
import pytest

from dsbs_jax.core import matmul_precision, objective
from dsbs_jax.data import register
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.interop import read_checkpoint
from dsbs_jax.preparing import prepare
from dsbs_jax.runs import checkpoint_folders
from dsbs_jax.training import loop, resume_check
from tests import small_runs


@pytest.fixture(scope='module')
def finished(settings, tmp_path_factory):
  """The folder of a run of 12 steps."""
  folder = tmp_path_factory.mktemp('runs') / 'finished'
  assert loop.train(settings(folder), config_text='# every setting\n') == 0
  return folder


def test_a_checkpoint_says_what_it_was_made_of(finished):
  facts = read_checkpoint.run_metadata(str(finished / 'checkpoint_12'))
  assert facts['config'] == '# every setting\n'
  assert facts['vocabulary'] == vocabularies.load('bytes').fingerprint
  assert set(facts['versions']) >= {'jax', 'flax', 'orbax-checkpoint'}
  assert facts['data'] and facts['seed'] == 0
  text = (finished / 'checkpoint_12/position/metadata').read_text()
  position = json.loads(text)
  assert position['loader']['next_step'] == 12


@pytest.mark.parametrize(
  'bindings',
  [
    ('EVAL_BATCH_SIZE = 1', 'MAX_DECODE_LEN = 4'),
    ('LOG_PERIOD = 1', 'EVAL_PERIOD = 1'),
    ('KEEP_CHECKPOINTS = 5', 'MAX_NONFINITE_STEPS = 2'),
    ('LAYOUT = @layouts.Padded', 'MICROBATCHES = 2'),
  ],
)
def test_what_changes_no_parameter_may_change(settings, finished, bindings):
  assert loop.train(settings(finished, *bindings)) == 0


@pytest.mark.parametrize(
  ('binding', 'named'),
  [
    ('EMB_DIM = 32', 'model.emb_dim: 16 -> 32. Restore'),
    ("VOCABULARY = 'bytes:90'", 'vocabulary: .* -> '),
    ('BATCH_SIZE = 3', 'batch_size: 4 -> 3'),
    ("MIXTURE_OR_TASK_NAME = 'svamp_llm_dsbs'", 'task: .*gt_dsbs.*llm_dsbs'),
    ('CLIP_NORM = 0.5', 'clip_norm: 1.0 -> 0.5. Restore'),
    ('LEARNING_RATE = 1e-3', 'learning_rate: 0.01 -> 0.001'),
    (
      'OPTIMIZER = @optimizer.adamw',
      "optimizer.name: 'adamw_hf' -> 'adamw'. Restore",
    ),
    (
      'optimizer.adamw_hf.weight_decay = 0.1',
      'optimizer.weight_decay: 0.0 -> 0.1. Restore',
    ),
    ('TRAIN_STEPS = 13', 'train_steps: 12 -> 13. Restore'),
    ("INITIAL_CHECKPOINT_PATH = 'x'", "initial_checkpoint_path: None -> 'x'"),
    ("PREFIXES = 'code'", 'prefixes: '),
  ],
)
def test_what_makes_another_run_is_refused(settings, finished, binding, named):
  changed = settings(finished, binding)
  with pytest.raises(ValueError, match=f'other settings: {named}'):
    loop.train(changed)


def test_cutting_texts_at_another_length_makes_another_run(settings, finished):
  cut = 'layouts.Packed.truncate = True'
  lengths = "TASK_FEATURE_LENGTHS = {'inputs': 40, 'targets': %d}"
  eight, seven = (settings(finished, cut, lengths % n) for n in (8, 7))
  with pytest.raises(ValueError, match='cut_at.inputs: None -> 40'):
    loop.train(eight)
  bytes_ = vocabularies.load('bytes')
  facts, other, whole = (
    resume_check.run_fingerprint(
      run, register.source(data_dir=run.data_dir, vocabulary='bytes'), bytes_
    )
    for run in (eight, seven, settings(finished))
  )
  resume_check.check(facts, facts, eight, step=1)
  with pytest.raises(ValueError, match='settings: cut_at.targets: 8 -> 7'):
    resume_check.check(facts, other, seven, step=1)
  with pytest.raises(ValueError, match='cut_at.inputs: 40 -> None'):
    resume_check.check(facts, whole, eight, step=1)


def test_another_precision_makes_another_run(settings, finished, request):
  request.addfinalizer(lambda: matmul_precision.use(None))
  changed = settings(finished, "MATMUL_PRECISION = 'tensorfloat32'")
  with pytest.raises(ValueError, match="matmul_precision: None -> 'tensorf"):
    loop.train(changed)
  assert loop.train(settings(finished)) == 0  # in this process, as it was


def test_another_generator_of_masks_makes_another_run(settings, finished):
  with jax.default_prng_impl('rbg'):
    with pytest.raises(ValueError, match="prng_impl: 'threefry2x32' -> 'rbg'"):
      loop.train(settings(finished))


def test_a_fact_that_the_checkpoint_does_not_state_is_another_run():
  now = {'model': {'emb_dim': 8, 'relpos_bias_per_layer': False}, 'seed': 0}
  run = types.SimpleNamespace(model_dir='runs/x', train_steps=7)
  resume_check.check(now | {'versions': {'jax': '1'}}, now, run, step=1)
  for older, match in (
    ({'model': {'emb_dim': 8}, 'seed': 0}, 'per_layer: None -> False'),
    ({'model': now['model']}, 'seed: None -> 0'),
  ):
    with pytest.raises(ValueError, match=match):
      resume_check.check(older, now, run, step=1)


def test_another_argument_of_an_optimizer_or_a_term_makes_another_run():
  run = types.SimpleNamespace(model_dir='runs/x', train_steps=7)
  older = {'optimizer': {'name': 'adamw', 'weight_decay': 0.0}}
  changed = {'optimizer': {'name': 'adamw', 'weight_decay': 0.1}}
  with pytest.raises(ValueError, match='optimizer.weight_decay: 0.0 -> 0.1'):
    resume_check.check(older, changed, run, step=1)
  now = objective.Distillation(alpha=0.3)
  older = {'objective': vars(now)}
  resume_check.check(older, {'objective': vars(now)}, run, step=1)
  for field, value in (
    ('alpha_schedule', 'tscl'),
    ('verdict_weight', 0.1),
    ('soft_label_weight', 0.1),
    ('soft_label_temperature', 2.0),
  ):
    changed = dataclasses.replace(now, **{field: value})
    with pytest.raises(ValueError, match=f'objective.{field}: '):
      resume_check.check(older, {'objective': vars(changed)}, run, step=1)


def test_other_data_is_refused(finished, tmp_path):
  fewer = prepare.PrepareConfig(
    benchmark='svamp',
    source=str(small_runs.REPOSITORY / 'tests/data/fixtures/archive'),
    data_dir=str(tmp_path),
    fraction=0.5,
  )
  prepare.prepare(fewer)
  with pytest.raises(ValueError, match='other settings: data: .* -> '):
    loop.train(small_runs.settings(finished, tmp_path))


def test_the_newest_and_the_best_stay(settings, tmp_path):
  run = settings(tmp_path, 'EVAL_PERIOD = 3', 'KEEP_CHECKPOINTS = 2')
  assert loop.train(run) == 0
  kept = {int(path.name[11:]) for path in tmp_path.glob('checkpoint_*')}
  _, best = checkpoint_folders.find_checkpoint(str(tmp_path), 'best')
  assert kept == {9, 12, best}
  # Nothing is left of the others.
  folders = {p.name for p in pathlib.Path(tmp_path).iterdir() if p.is_dir()}
  assert folders == {f'checkpoint_{step}' for step in kept} | {'predictions'}
