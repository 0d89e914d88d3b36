# SPDX-License-Identifier: Apache-2.0
"""Small made-up runs, in the folders that real ones leave."""

import json
import os
import signal

import pytest

# Every test session loads this file: what imports JAX is imported where used.
from dsbs_jax.data import benchmark
from dsbs_jax.runs import run_names

HOSTILE = (
  '</script><script>document.title="pwned"</script>',
  '<!--<script>',
  '<img src=x onerror=document.title="pwned">',
  '"\'&amp;&lt;`${x}`{{style}}',
  'nul \x00 and bell \x07',
  'right \u202eto left\u202c and \u2066isolate\u2069',
  'lone \ud800 surrogate',
  'line \u2028 and \u2029 separators',
)

CONFIG = """\
# Macros:
# ==============================================================================
DATA_DIR = {data_dir!r}
EMB_DIM = {emb_dim}
EVAL_SPLITS = ('validation', 'test')
HEAD_DIM = 8
INITIAL_CHECKPOINT_PATH = {initial_checkpoint!r}
LAYOUT = @layouts.Packed
LOGITS_VIA_EMBEDDING = False
MIXTURE_OR_TASK_NAME = \\
    {task!r}
MLP_ACTIVATIONS = ('gelu', 'linear')
MLP_DIM = 32
NUM_DECODER_LAYERS = 1
NUM_ENCODER_LAYERS = 1
NUM_HEADS = 2
SEED = {seed}
TRAIN_STEPS = {train_steps}
VOCAB_SIZE = 64

# Parameters for train_config.TrainConfig:
# ==============================================================================
train_config.TrainConfig.seed = %SEED
"""


class RunMaker:
  """Writes run folders below one folder."""

  def __init__(self, folder):
    self.folder = folder

  def __call__(
    self,
    *,
    validation=(10.0, 20.0),
    test=(11.0, 21.0),
    train_steps=None,
    saved=True,
    data_dir=None,
    emb_dim=16,
    initial_checkpoint=None,
    predictions=(),
    name=None,
    **where,
  ):
    """Makes a run that was evaluated every 10 steps.

    Args:
      validation: accuracies, one per evaluation.
      test: the same on test.
      train_steps: steps of the whole run; default: those that were evaluated.
      saved: whether the last step has a checkpoint.
      data_dir: prepared data.
      emb_dim: size of the model.
      initial_checkpoint: what the run started from.
      predictions: lines (dicts), written for every evaluation of test.
      name: the folder's name; default: the coordinates' name.
      **where: coordinates.

    Returns:
      The folder.
    """
    point = run_names.Coordinates(
      **{'benchmark': 'cqa', 'method': 'gt_dsbs', 'model': 'tiny', **where}
    )
    path = self.folder / (name or point.name)
    path.mkdir(parents=True)
    steps = [10 * (i + 1) for i in range(max(len(validation), len(test)))]
    (path / 'config.gin').write_text(
      CONFIG.format(
        data_dir=str(data_dir) if data_dir else None,
        emb_dim=emb_dim,
        initial_checkpoint=initial_checkpoint and str(initial_checkpoint),
        task=point.task,
        seed=point.seed,
        train_steps=train_steps or steps[-1],
      )
    )
    lines = []
    for i, step in enumerate(steps):
      losses = {'loss': 2 / step, 'label/loss': 1 / step}
      if point.method.endswith('_dsbs'):
        losses['rationale/loss'] = 3 / step
      lines.append({'step': step, 'split': 'train', **losses})
      for split, scores in (('validation', validation), ('test', test)):
        if i < len(scores):
          lines.append({'step': step, 'split': split, 'accuracy': scores[i]})
      self._predict(path, point, step, predictions)
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (path / 'metrics.jsonl').write_text(text)
    if saved:
      (path / f'checkpoint_{steps[-1]}').mkdir()
    return path

  @staticmethod
  def line(index, *, target='yes', prediction='yes', text='question'):
    """A line of a predictions file."""
    return {
      'index': index,
      'id': f'test-{index}',
      'input': f'[label] {text} {index}',
      'target': target,
      'prediction': prediction,
    }

  def _predict(self, path, point, step, predictions):
    if not predictions:
      return
    folder = path / 'predictions'
    folder.mkdir(exist_ok=True)
    task = point.task.replace('_dsbs', '_label')
    (folder / f'{task}-test-{step:06}.jsonl').write_text(
      ''.join(json.dumps(line) + '\n' for line in predictions)
    )


class Teacher:
  """Prepared data that lies in memory."""

  splits = ('train', 'validation', 'test')
  metadata = {
    'fraction': 1.0,
    'splits': {'test': {'rows': 3, 'counts': {'accuracy': 77.25}}},
  }

  def __init__(self, examples_of_test):
    self._examples = examples_of_test

  def num_examples(self, split):
    return {'train': 1234}.get(split, len(self._examples))

  def examples(self, split):
    assert split == 'test'
    return iter(self._examples)


@pytest.fixture
def teach(monkeypatch):
  """Makes every run find prepared data with these examples of test."""

  def teach(*examples):
    prepared = Teacher(examples)
    monkeypatch.setattr(
      'dsbs_jax.runs.run_folder.prepared', lambda name, data_dir: prepared
    )

  return teach


@pytest.fixture
def make_run(tmp_path):
  """Makes run folders below tmp_path / 'runs'."""
  return RunMaker(tmp_path / 'runs')


@pytest.fixture
def hostile_runs(make_run, teach):
  """Runs whose every text is hostile; the texts are in `.texts`."""
  lines = [
    make_run.line(i, target=text, prediction=text, text=text)
    for i, text in enumerate(HOSTILE)
  ]
  teach(
    *(
      benchmark.Example(
        *(i, f'test-{i}', f'{text} {i}', text, text, text, 'parsed')
      )
      for i, text in enumerate(HOSTILE)
    )
  )
  for name in ('<script>alert(1)<', '"><img src=x onerror=x>', 'a&b'):
    make_run(name=name, predictions=lines)
  make_run.texts = list(HOSTILE)
  return make_run


@pytest.fixture(scope='session')
def small_data(tmp_path_factory):
  """Prepared rows of ours, for runs of `small`."""
  from tests import small_runs

  return small_runs.prepare(tmp_path_factory.mktemp('prepared'))


@pytest.fixture(scope='session')
def settings(small_data):
  """Makes settings of small runs, through the real gin files."""
  from tests import small_runs

  def make(model_dir, *bindings):
    return small_runs.settings(model_dir, small_data, *bindings)

  return make


@pytest.fixture(scope='session')
def unbroken(settings, tmp_path_factory):
  """A run of 12 steps that nothing happened to, saved at 6 and 12."""
  from dsbs_jax.training import loop

  run = settings(tmp_path_factory.mktemp('runs') / 'unbroken')
  assert loop.train(run) == 0
  return run


@pytest.fixture
def stop_after(monkeypatch):
  """Sends this process SIGTERM while a run takes a step, counted from 1."""
  from dsbs_jax.data.batching import loader

  def stop_after(step):
    give = loader.BatchIterator.__next__

    def give_and_stop(self):
      batch = give(self)
      if self.get_state()['next_step'] == step:
        os.kill(os.getpid(), signal.SIGTERM)
      return batch

    monkeypatch.setattr(loader.BatchIterator, '__next__', give_and_stop)

  return stop_after
