# SPDX-License-Identifier: Apache-2.0
"""T5X's own finetune.gin, model and feature converter on our mixture.

It starts from checkpoints that this project wrote, optimizer state included.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from dsbs_jax.core import network
from dsbs_jax.interop import t5x_read_checkpoint, t5x_write_checkpoint
from tests import models

pytestmark = pytest.mark.long

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# T5X's t5_1_1/tiny.gin with the small vocabulary.
CONFIG = network.T5Config(
  vocab_size=4224,
  emb_dim=8,
  num_heads=4,
  head_dim=3,
  mlp_dim=16,
  num_encoder_layers=2,
  num_decoder_layers=2,
)
GIN = """
from __gin__ import dynamic_registration

import tasks.cqa
from dsbs_jax.data import register
from t5x import utils
from t5x.examples.t5 import network

include 't5x/examples/t5/t5_1_1/tiny.gin'
include 't5x/configs/runs/finetune.gin'

VOCABULARY = @register.vocabulary()
MIXTURE_OR_TASK_NAME = 'cqa_gt_dsbs'
TASK_FEATURE_LENGTHS = {'inputs': 96, 'targets': 64}
USE_CACHED_TASKS = False
TRAIN_STEPS_RELATIVE = 4
TRAIN_STEPS = 4
DROPOUT_RATE = 0.1
BATCH_SIZE = 8
EVAL_PERIOD = 4
EVAL_STEPS = 1
EVALUATOR_NUM_EXAMPLES = 16
utils.SaveCheckpointConfig.period = 4
network.T5Config.vocab_size = 4224
network.T5Config.dtype = 'float32'
"""


@pytest.mark.parametrize('legacy', [False, True])
def test_stock_finetuning_from_our_checkpoint(cqa, tmp_path, legacy):
  random = np.random.default_rng(0)
  shapes = network.param_shapes(CONFIG)
  params = jax.tree.map(
    lambda leaf: 0.3 * random.standard_normal(leaf.shape, np.float32), shapes
  )
  initial = t5x_write_checkpoint.save(
    str(tmp_path / 'initial'),
    params,
    CONFIG,
    moments=t5x_write_checkpoint.fresh_moments(shapes),
    legacy=legacy,
  )
  (tmp_path / 'run.gin').write_text(GIN)
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      't5x.train',
      f'--gin_file={tmp_path / "run.gin"}',
      f'--gin.MODEL_DIR={str(tmp_path / "run")!r}',
      f'--gin.INITIAL_CHECKPOINT_PATH={initial!r}',
    ],
    cwd=REPOSITORY,
    env={
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'DSBS_DATA_DIR': cqa.data_dir,
      'DSBS_VOCABULARY': cqa.vocabulary,
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout[-3000:]
  run = tmp_path / 'run'
  assert models.t5x_step(str(run)) == 4
  trained = t5x_read_checkpoint.load_params(str(run), CONFIG)
  moved = [
    float(np.max(np.abs(after - before)))
    for after, before in zip(
      jax.tree.leaves(trained), jax.tree.leaves(params), strict=True
    )
  ]
  assert 0 < max(moved) < 0.5  # Adafactor from fresh moments takes small steps
  metrics = run / 'inference_eval' / 'cqa_gt_label-metrics.jsonl'
  assert 'accuracy' in json.loads(metrics.read_text().splitlines()[-1])
