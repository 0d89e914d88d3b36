# SPDX-License-Identifier: Apache-2.0
"""A run with LoRA: what it saves, how it resumes, who can read it."""

import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath
from flax import traverse_util

from dsbs_jax.core import partitioning
from dsbs_jax.core.layers import parameter_tree
from dsbs_jax.exporting import export, hf_folder, model_card
from dsbs_jax.inference import evaluate_checkpoint, evaluator
from dsbs_jax.interop import read_checkpoint, t5x_read_checkpoint, t5x_storage
from dsbs_jax.runs import checkpoint_folders, checkpoints
from dsbs_jax.runtime import signals
from dsbs_jax.training import loop, step_functions
from tests import models, small_runs

RANK, ALPHA = 2, 8.0
BINDINGS = (
  "MIXTURE_OR_TASK_NAME = 'svamp_gt_finetune'",  # one view to compile
  f'LORA_RANK = {RANK}',
  f'LORA_ALPHA = {ALPHA}',
  "LORA_TARGETS = ('.*attention/(query|value)/kernel', '.*/wo/kernel')",
  "LORA_BASE_DTYPE = 'bfloat16'",
)


@pytest.fixture(scope='module')
def begun(unbroken):
  """The parameters that the run starts from: those of another run."""
  return f'{unbroken.model_dir}/checkpoint_12'


@pytest.fixture(scope='module')
def make(settings, begun):
  start = f"INITIAL_CHECKPOINT_PATH = '{begun}'"
  return lambda folder, *more: settings(folder, *BINDINGS, start, *more)


@pytest.fixture(scope='module')
def trained(make, tmp_path_factory):
  run = make(tmp_path_factory.mktemp('runs') / 'lora')
  assert loop.train(run) == 0
  return run


KILLED = """
import os, signal
from dsbs_jax import train
from dsbs_jax.data.batching import loader
from dsbs_jax.runtime import command
give = loader.BatchIterator.__next__
def give_or_die(self):
  if self.get_state()['next_step'] == 8:
    os.kill(os.getpid(), signal.SIGKILL)
  return give(self)
loader.BatchIterator.__next__ = give_or_die
command.run(train.main)
"""


def state_of(run, step=12):
  mesh = partitioning.make_mesh('1x1', devices=jax.devices()[:1])
  like = step_functions.state(run, mesh).like
  return checkpoints.Checkpoints(run.model_dir).restore(step, like)


def test_a_checkpoint_is_read_as_a_plain_network(trained, begun):
  """W + (alpha / r) A B at the targets, and all else as it was, rounded."""
  state, _ = state_of(trained)
  start = models.flat(read_checkpoint.load_params(begun, trained.model))
  rounded = parameter_tree.round_large(
    traverse_util.unflatten_dict(start, sep='/'), trained.lora.base_dtype
  )
  rounded, adapters = models.flat(rounded), models.flat(state.params)
  models.assert_equal(
    state.frozen, traverse_util.unflatten_dict(rounded, sep='/')
  )
  found = models.flat(small_runs.params(trained, 12))
  targets = {path[:-7] + '/kernel' for path in adapters}
  assert len(targets) == 8 and all(leaf.any() for leaf in adapters.values())
  for path, leaf in found.items():
    expected = np.float64(rounded[path])
    if path in targets:
      layer = path.removesuffix('/kernel')
      a, b = (np.float64(adapters[f'{layer}/lora_{x}']) for x in 'ab')
      expected = expected + ALPHA / RANK * a @ b
      assert (leaf != rounded[path]).any(), path
    np.testing.assert_allclose(leaf, expected, rtol=1e-6, atol=1e-7)
  inferred = t5x_read_checkpoint.infer_config(
    f'{trained.model_dir}/checkpoint_12'
  )
  assert inferred.emb_dim == trained.model.emb_dim


def test_its_answers_are_those_of_its_checkpoint_and_of_its_exports(
  trained, tmp_path
):
  hf, t5x = str(tmp_path / 'hf'), str(tmp_path / 't5x')
  run = {'model_dir': trained.model_dir}
  hf_folder.to_hugging_face(export.ExportConfig(out=hf, **run))
  export.to_t5x(export.ExportConfig(out=t5x, **run))
  card = pathlib.Path(hf, model_card.CARD_FILE).read_text()
  assert 'LoRA rank 2, alpha 8' in card
  # Moments of A and B are none of T5X's parameters.
  state = t5x_storage.read_leaves(epath.Path(t5x) / 'checkpoint_0', 'state')
  assert not any('lora' in name for name in state)
  own = pathlib.Path(trained.model_dir) / evaluator.PREDICTIONS
  (during,) = own.glob('*-test-000012.jsonl')
  for number, place in enumerate((trained.model_dir, hf, t5x)):
    models.assert_equal(
      read_checkpoint.load_params(place, trained.model),
      small_runs.params(trained, 12),
    )
    found = evaluate(trained, place, tmp_path / f'scores{number}')
    assert found == during.read_text()


def evaluate(run, path, folder):
  """Predictions of the test split by a checkpoint of any format."""
  evaluate_checkpoint.evaluate(
    evaluate_checkpoint.EvalConfig(
      checkpoint_path=str(path),
      mixture_or_task_name=run.mixture_or_task_name,
      step='latest',
      output_dir=str(folder),
      data_dir=run.data_dir,
      vocabulary=run.vocabulary,
      prefixes=run.prefixes,
      model=run.model,
      eval_splits=('test',),
      eval_batch_size=run.eval_batch_size,
      max_decode_len=run.max_decode_len,
      num_beams=1,
      score_labels=False,
      mesh=None,
      sharding_rules=run.sharding_rules,
    )
  )
  (file,) = folder.rglob('*-test-*.jsonl')
  return file.read_text()


def test_a_run_that_was_stopped_ends_as_one_that_was_not(
  make, trained, tmp_path, stop_after
):
  run = make(tmp_path / 'stopped')
  stop_after(8)
  assert loop.train(run) == signals.INTERRUPTED_STATUS
  assert loop.train(run) == 0
  small_runs.assert_same_run(run, trained)
  (left, here), (right, there) = state_of(run), state_of(trained)
  jax.tree.map(np.testing.assert_array_equal, left, right)
  assert here == there


@pytest.mark.parametrize(
  ('binding', 'named'),
  [
    ('LORA_RANK = 4', 'lora.rank: 2 -> 4'),
    ('LORA_RANK = 0', 'lora.alpha: 8.0 -> None'),
    ("LORA_BASE_DTYPE = 'float32'", "lora.base_dtype: 'bfloat16' -> 'float32'"),
  ],
)
def test_another_lora_makes_another_run(make, trained, binding, named):
  changed = make(trained.model_dir, binding)
  with pytest.raises(ValueError, match=f'other settings: {named}'):
    loop.train(changed)


def test_a_run_without_it_does_not_go_on_with_it(settings, unbroken):
  run = settings(unbroken.model_dir, 'LORA_RANK = 2')
  with pytest.raises(ValueError, match='lora.rank: None -> 2'):
    loop.train(run)


def test_targets_that_are_not_there_are_refused(settings, tmp_path):
  wrong = "LORA_TARGETS = ('.*/qeury/kernel',)"
  with pytest.raises(ValueError, match='LORA_TARGETS has .*matches no kernel'):
    settings(tmp_path, 'LORA_RANK = 2', wrong)


@pytest.mark.long
def test_a_kill_between_two_checkpoints_changes_nothing(
  make, trained, tmp_path
):
  """The process kills itself while it takes step 9; step 6 is saved."""
  run = make(tmp_path / 'killed')
  command = small_runs.command(
    run.model_dir,
    run.data_dir,
    *BINDINGS,
    f"INITIAL_CHECKPOINT_PATH = '{run.initial_checkpoint_path}'",
  )
  done = subprocess.run(
    [sys.executable, '-c', KILLED, *command[2:]],
    cwd=small_runs.REPOSITORY,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert sorted(checkpoint_folders.folders(pathlib.Path(run.model_dir))) == [6]
  assert loop.train(run) == 0
  small_runs.assert_same_run(run, trained)
  (left, here), (right, there) = state_of(run), state_of(trained)
  jax.tree.map(np.testing.assert_array_equal, left, right)
  assert here == there
