# SPDX-License-Identifier: Apache-2.0
"""T5X's own programs with our gin files, on real CommonsenseQA, tiny model.

Every test here takes minutes: `pytest -m long tests/t5x`.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import types

import numpy as np
import pytest

from dsbs_jax.interop import t5x_read_checkpoint

pytestmark = pytest.mark.long

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
STEPS = 50
PERIOD = 25
# t5x.train that is killed before the first step after its first checkpoint.
KILLED = f"""
import os, runpy, signal
from t5x import trainer
train = trainer.BaseTrainer.train
def train_or_die(self, batches, num_steps, start_step):
  if start_step >= {PERIOD}:
    os.kill(os.getpid(), signal.SIGKILL)
  return train(self, batches, num_steps, start_step)
trainer.BaseTrainer.train = train_or_die
runpy.run_module('t5x.train', run_name='__main__', alter_sys=True)
"""
GIN = ('gin/models/tiny.gin', 'gin/benchmarks/cqa.gin')


def command(program, engine, bindings):
  values = [f'--gin.{name}={value!r}' for name, value in bindings.items()]
  return [
    sys.executable,
    '-c' if '\n' in program else '-m',
    program,
    '--gin_search_paths=.',
    *(f'--gin_file={file}' for file in (engine, *GIN)),
    *values,
  ]


def start(program, engine, bindings, log):
  return subprocess.Popen(
    command(program, engine, bindings),
    cwd=REPOSITORY,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '3'},
    stdout=log.open('w'),
    stderr=subprocess.STDOUT,
  )


def run(program, engine, bindings, log):
  status = start(program, engine, bindings, log).wait()
  assert status == 0, log.read_text()[-3000:]


@pytest.fixture(scope='module')
def shared(cqa):
  """Bindings that every program gets."""
  return {
    'DATA_DIR': cqa.data_dir,
    'VOCABULARY': cqa.vocabulary,
    'VOCAB_SIZE': 4224,
  }


def training(model_dir):
  return {
    'MODEL_DIR': str(model_dir),
    'TRAIN_STEPS': STEPS,
    'EVAL_PERIOD': PERIOD,
    'LOG_PERIOD': 5,
    'BATCH_SIZE': 16,
    'LEARNING_RATE': 3e-3,
  }


@pytest.fixture(scope='module')
def trained(shared, tmp_path_factory):
  """A run of t5x.train, never interrupted."""
  folder = tmp_path_factory.mktemp('t5x')
  bindings = shared | training(folder / 'run') | {'EVAL_STEPS': 2}
  run('t5x.train', 'gin/t5x/train.gin', bindings, folder / 'train.log')
  return types.SimpleNamespace(folder=folder / 'run', bindings=bindings)


def parameters(checkpoint):
  config = t5x_read_checkpoint.infer_config(str(checkpoint))
  tree = t5x_read_checkpoint.load_params(str(checkpoint), config)
  from flax import traverse_util

  return traverse_util.flatten_dict(tree, sep='/')


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def scalars(folder):
  """TensorBoard tag -> {step: value}."""
  from tensorboard.backend.event_processing import event_accumulator

  events = event_accumulator.EventAccumulator(
    str(folder), size_guidance={'tensors': 0}
  )
  events.Reload()
  return {
    tag: {
      event.step: float(
        np.frombuffer(event.tensor_proto.tensor_content, np.float32)[0]
      )
      if event.tensor_proto.tensor_content
      else float(event.tensor_proto.float_val[0])
      for event in events.Tensors(tag)
      if event.tensor_proto.dtype == 1
    }
    for tag in events.Tags()['tensors']
  }


def test_the_files_of_a_run(trained):
  """What T5X's users look for, and both terms falling."""
  names = {path.name for path in trained.folder.iterdir()}
  assert {
    'config.gin',
    'model-info.txt',
    'train',
    'training_eval',
    'inference_eval',
    f'checkpoint_{STEPS}',
  } <= names
  metrics = lines(
    trained.folder / 'inference_eval' / 'cqa_gt_label-metrics.jsonl'
  )
  assert [line['step'] for line in metrics] == [PERIOD, STEPS]
  assert all('accuracy' in line for line in metrics)
  train = scalars(trained.folder / 'train')
  for term in ('label', 'rationale'):
    losses = train[f'{term}/loss']
    assert sorted(losses) == list(range(5, STEPS + 1, 5))
    assert losses[STEPS] < losses[5] - 1
    assert f'{term}/accuracy' in train
    assert f'{term}/target_tokens' in train
  evaluated = scalars(trained.folder / 'training_eval' / 'cqa_rationale')
  assert 0 < evaluated['rationale/loss'][STEPS] < 8


def test_a_killed_run_resumes_exactly(trained, shared, tmp_path):
  bindings = trained.bindings | {'MODEL_DIR': str(tmp_path / 'run')}
  engine = 'gin/t5x/train.gin'
  log = tmp_path / 'killed.log'
  status = start(KILLED, engine, bindings, log).wait()
  assert status == -signal.SIGKILL, log.read_text()[-2000:]
  assert (tmp_path / 'run' / f'checkpoint_{PERIOD}').is_dir()
  assert not (tmp_path / 'run' / f'checkpoint_{STEPS}').exists()
  run('t5x.train', engine, bindings, tmp_path / 'resumed.log')
  straight = parameters(trained.folder / f'checkpoint_{STEPS}')
  resumed = parameters(tmp_path / 'run' / f'checkpoint_{STEPS}')
  for name, array in straight.items():
    np.testing.assert_array_equal(array, resumed[name], err_msg=name)


def evaluate_t5x(checkpoint, shared, folder):
  """t5x.eval: predictions in order of the test split, and the accuracy."""
  bindings = shared | {
    'CHECKPOINT_PATH': str(checkpoint),
    'EVAL_OUTPUT_DIR': str(folder),
  }
  run('t5x.eval', 'gin/t5x/eval.gin', bindings, folder.parent / 'eval.log')
  results = folder / 'inference_eval'
  examples = lines(next(results.glob('cqa_gt_label-0*.jsonl')))
  metrics = lines(results / 'cqa_gt_label-metrics.jsonl')
  return [e['prediction'] for e in examples], metrics[-1]['accuracy']


def evaluate_ours(checkpoint, shared, folder):
  """The same by dsbs_jax.eval."""
  bindings = shared | {
    'CHECKPOINT_PATH': str(checkpoint),
    'EVAL_OUTPUT_DIR': str(folder),
    'EVAL_SPLITS': ('test',),
  }
  run('dsbs_jax.eval', 'gin/eval.gin', bindings, folder.parent / 'ours.log')
  examples = lines(next(folder.glob('predictions/*test*.jsonl')))
  scores = lines(folder / 'eval.jsonl')
  return [e['prediction'] for e in examples], scores[-1]['accuracy']


def assert_same(ours, theirs):
  (predictions, accuracy), (their_predictions, their_accuracy) = ours, theirs
  assert len(predictions) == 1221
  assert predictions == their_predictions
  assert accuracy == pytest.approx(their_accuracy, abs=1e-6)
  print(f'{len(set(predictions))} different outputs, accuracy {accuracy}')


def test_trained_there_evaluated_here(trained, shared, tmp_path):
  checkpoint = trained.folder / f'checkpoint_{STEPS}'
  assert_same(
    evaluate_ours(checkpoint, shared, tmp_path / 'ours'),
    evaluate_t5x(checkpoint, shared, tmp_path / 't5x'),
  )


def test_trained_here_evaluated_there(shared, tmp_path):
  """And the built-in engine started from what T5X trained, by its path."""
  bindings = shared | training(tmp_path / 'run') | {'EVAL_SPLITS': ()}
  run('dsbs_jax.train', 'gin/train.gin', bindings, tmp_path / 'train.log')
  checkpoint = tmp_path / 'run' / f'checkpoint_{STEPS}'
  assert_same(
    evaluate_ours(checkpoint, shared, tmp_path / 'ours'),
    evaluate_t5x(checkpoint, shared, tmp_path / 't5x'),
  )


def test_infer(trained, shared, tmp_path):
  for mode, field in (('predict', 'prediction'), ('score', 'score')):
    bindings = shared | {
      'CHECKPOINT_PATH': str(trained.folder / f'checkpoint_{STEPS}'),
      'INFER_OUTPUT_DIR': str(tmp_path / mode),
      'MIXTURE_OR_TASK_NAME': 'cqa_gt_label',
      'MODE': mode,
    }
    run('t5x.infer', 'gin/t5x/infer.gin', bindings, tmp_path / f'{mode}.log')
    written = lines(
      tmp_path / mode / f'cqa_gt_label-{mode}.jsonl-00000-of-00001'
    )
    assert len(written) == 1221
    assert all(field in line for line in written)
  assert all(line['score'] < 0 for line in written)


def test_initial_checkpoints_of_every_format(trained, shared, tmp_path):
  """T5X starts from its own, from Hugging Face and from ours: step 0, alike."""
  from dsbs_jax.exporting import export, hf_folder

  source = export.ExportConfig(
    model_dir=str(trained.folder / f'checkpoint_{STEPS}'),
    out=str(tmp_path / 'hf'),
  )
  hf_folder.to_hugging_face(source)
  started = {}
  for name, path in (
    ('t5x', trained.folder),
    ('hf', tmp_path / 'hf'),
  ):
    bindings = shared | training(tmp_path / name)
    bindings |= {
      'TRAIN_STEPS': 2,
      'EVAL_PERIOD': 2,
      'EVAL_STEPS': 1,
      'INITIAL_CHECKPOINT_PATH': str(path),
    }
    log = tmp_path / f'{name}.log'
    run('t5x.train', 'gin/t5x/train.gin', bindings, log)
    started[name] = parameters(tmp_path / name / 'checkpoint_2')
  before = parameters(trained.folder / f'checkpoint_{STEPS}')
  for name, array in started['t5x'].items():
    np.testing.assert_array_equal(array, started['hf'][name], err_msg=name)
    assert np.max(np.abs(array - before[name])) < 0.1, name
