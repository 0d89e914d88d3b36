# SPDX-License-Identifier: Apache-2.0
"""Runs of a model that trains in seconds, through the real gin files."""

import functools
import pathlib
import socket

import jax
import numpy as np

from dsbs_jax.inference.backends import decode_functions
from dsbs_jax.interop import read_checkpoint
from dsbs_jax.preparing import prepare as prepare_lib
from dsbs_jax.runs import metrics_log, tensorboard
from dsbs_jax.runtime.configuration import gin_config
from dsbs_jax.training import step_functions, train_config

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
_HELD = []  # sockets
FILES = ['gin/train.gin', 'gin/models/tiny.gin', 'gin/benchmarks/svamp.gin']
BINDINGS = (
  "VOCABULARY = 'bytes'",
  'VOCAB_SIZE = 384',
  'EMB_DIM = 16',
  'HEAD_DIM = 4',
  'MLP_DIM = 32',
  'NUM_ENCODER_LAYERS = 1',
  'NUM_DECODER_LAYERS = 1',
  'BATCH_SIZE = 4',
  'TRAIN_STEPS = 12',
  'EVAL_PERIOD = 6',
  'LOG_PERIOD = 4',
  'EVAL_BATCH_SIZE = 2',
  'MAX_DECODE_LEN = 8',
  'LEARNING_RATE = 1e-2',
)

# Tests have more kinds of runs than a sweep. What one of them has traced, the
# others find, whichever were between them.
_KINDS = 32
for module, name in (
  (decode_functions, 'decode_program'),
  (decode_functions, 'score_program'),
  (step_functions, '_init_state'),
  (step_functions, '_merge'),
  (step_functions, '_state'),
  (step_functions, '_train_step'),
):
  make = getattr(module, name).__wrapped__
  setattr(module, name, functools.lru_cache(_KINDS)(make))


def coordinator_address() -> str:
  """An address for a coordinator; no other program is given its port."""
  held = socket.socket()
  held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as gRPC does
  held.bind(('127.0.0.1', 0))
  _HELD.append(held)
  return '{}:{}'.format(*held.getsockname())


def prepare(data_dir) -> str:
  """Prepares a few rows of ours as SVAMP."""
  prepare_lib.prepare(
    prepare_lib.PrepareConfig(
      benchmark='svamp',
      source=str(REPOSITORY / 'tests/data/fixtures/archive'),
      data_dir=str(data_dir),
    )
  )
  return str(data_dir)


def settings(model_dir, data_dir, *bindings) -> train_config.TrainConfig:
  """The settings of one run."""
  folders = (f"MODEL_DIR = '{model_dir}'", f"DATA_DIR = '{data_dir}'")
  return gin_config.build(
    train_config.TrainConfig,
    gin_files=FILES,
    gin_bindings=[*folders, *BINDINGS, *bindings],
    search_paths=[str(REPOSITORY)],
  )


def command(model_dir, data_dir, *bindings) -> list[str]:
  """The same run as a command, without the interpreter."""
  folders = (f"MODEL_DIR = '{model_dir}'", f"DATA_DIR = '{data_dir}'")
  return [
    '-m',
    'dsbs_jax.train',
    *(f'--gin_file={file}' for file in FILES),
    *(f'--gin.{text}' for text in (*folders, *BINDINGS, *bindings)),
  ]


def params(run, step):
  """The parameters of a run's checkpoint."""
  return read_checkpoint.load_params(
    f'{run.model_dir}/checkpoint_{step}', run.model
  )


def lines(run) -> str:
  """A run's metrics.jsonl."""
  return (pathlib.Path(run.model_dir) / metrics_log.METRICS_FILE).read_text()


def points(model_dir) -> list[tuple[int, str]]:
  """Step and tag of all in TensorBoard's files that is not a rate."""
  found = tensorboard.read(pathlib.Path(model_dir))
  return sorted(point for point in found if tensorboard.RATES not in point[1])


def assert_same_run(run, other):
  """Asserts that two runs of 12 steps ended alike, bit for bit."""
  jax.tree.map(
    np.testing.assert_array_equal, params(run, 12), params(other, 12)
  )
  assert lines(run) == lines(other)
  assert points(run.model_dir) == points(other.model_dir)
