# SPDX-License-Identifier: Apache-2.0
"""A run that is planned in a second, and shapes of its batches."""

import pathlib

from dsbs_jax.data.batching import row_shapes
from dsbs_jax.runtime.configuration import gin_config
from dsbs_jax.training import train_config

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
VIEWS = {
  'label': row_shapes.Shape(8, 32, 16),
  'rationale': row_shapes.Shape(8, 32, 32),
}
SMALL = (
  "ACTIVATION_DTYPE = 'float32'",
  'DROPOUT_RATE = 0.0',
  'NUM_ENCODER_LAYERS = 2',
  'NUM_DECODER_LAYERS = 2',
  'VOCAB_SIZE = 1024',
  'EMB_DIM = 64',
  'NUM_HEADS = 2',
  'HEAD_DIM = 32',
  'MLP_DIM = 128',
)


def build(model='nano', *, bindings=()):
  """The settings of a training command with `gin/plan.gin`."""
  return gin_config.build(
    train_config.TrainConfig,
    gin_files=['gin/train.gin', 'gin/plan.gin', f'gin/models/{model}.gin'],
    gin_bindings=bindings,
    search_paths=[str(REPOSITORY)],
  )
