# SPDX-License-Identifier: Apache-2.0
"""A student to export: a run with a vocabulary of its own, loud parameters."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece

from dsbs_jax.core import steps
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.runs import checkpoints
from tests import models

MODEL = models.t5(vocab_size=80, head_dim=4, num_encoder_layers=2)
TEXTS = [
  'the lazy fox jumps',
  'fox </s> fox <extra_id_3> dog',
  'the quick brown dog jumps over the lazy fox',
  'zebra? \u00e9 & 12',
  '',
]
HOSTILE = '<script>alert(1)</script>|`x`\n# *not* a [title](x) &amp; \u202e'
# The project may be installed beside jax; here it is as if it were not.
WITHOUT_PROJECT = (
  "import runpy, sys; sys.modules['dsbs_jax'] = None;"
  " sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.fixture(scope='module')
def vocabulary(tmp_path_factory):
  folder = tmp_path_factory.mktemp('vocabulary')
  (folder / 'text.txt').write_text(
    'the quick brown fox jumps over the lazy dog [label] ?!:\n' * 20
  )
  sentencepiece.SentencePieceTrainer.train(
    input=str(folder / 'text.txt'),
    model_prefix=str(folder / 'pieces'),
    vocab_size=60,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  return f'{folder / "pieces.model"}:10'


@pytest.fixture(scope='module')
def params():
  """Random, but loud enough to say different things to different inputs."""
  random = models.init(jax.random.key(1), MODEL)
  return jax.tree.map(lambda leaf: np.float32(1.3) * np.asarray(leaf), random)


@pytest.fixture(scope='module')
def run(tmp_path_factory, vocabulary, params):
  """A run's folder at step 7, with the files that training leaves."""
  folder = tmp_path_factory.mktemp('runs') / 'student'
  saved = checkpoints.Checkpoints(folder)
  saved.save(
    steps.TrainState(step=jnp.int32(7), params=params, opt_state={}),
    position={},
    run={
      'model': dataclasses.asdict(MODEL),
      'objective': {'alpha': 0.25},
      'task': 'svamp_llm_dsbs',
      'prefixes': 'paper',
      'optimizer': {'name': 'adamw_hf', 'beta1': 0.9, 'weight_decay': 0.1},
      'learning_rate': 5e-5,
      'data': 'gone',
      'vocabulary': vocabularies.load(vocabulary).fingerprint,
    },
  )
  saved.close()
  (folder / 'config.gin').write_text(
    f"VOCABULARY = '{vocabulary}'\nTRAIN_STEPS = 9\nDATA_DIR = None\n"
    'MAX_DECODE_LEN = 9\n'
    'INITIAL_CHECKPOINT_PATH = ' + repr(HOSTILE) + '\n'
  )
  lines = [
    {'step': 3, 'split': 'validation', 'accuracy': 55.5},
    {'step': 7, 'split': 'validation', 'accuracy': 44.25},
    {'step': 7, 'split': 'test', 'accuracy': 43.0, HOSTILE: 1.0},
    {'step': 9, 'split': 'validation', 'accuracy': 33.0},
  ]
  (folder / 'metrics.jsonl').write_text(
    ''.join(json.dumps(line) + '\n' for line in lines)
  )
  return folder


def run_alone(folder, *arguments):
  """Runs an exported folder where the project cannot be imported."""
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      WITHOUT_PROJECT,
      str(folder / 'run.py'),
      *arguments,
    ],
    input=''.join(f'{text}\n' for text in TEXTS),
    env={k: v for k, v in os.environ.items() if k != 'PYTHONPATH'},
    cwd=folder,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout.splitlines()
