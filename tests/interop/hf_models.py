# SPDX-License-Identifier: Apache-2.0
"""A small T5 1.1, random parameters, and the tensors of a folder."""

import jax
import numpy as np
import safetensors.numpy

from dsbs_jax.core import network
from tests import models

GATED = models.t5(
  vocab_size=60,
  emb_dim=8,
  head_dim=6,
  mlp_dim=16,
  num_encoder_layers=2,
  num_decoder_layers=3,
  num_buckets=16,
  max_distance=40,
)


def params(config, seed=0):
  """Normal float32 parameters, large enough that every layer matters."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: rng.normal(scale=0.3, size=leaf.shape).astype(np.float32),
    network.param_shapes(config),
  )


def tensors(folder):
  """Name -> array, as the folder holds them."""
  return safetensors.numpy.load_file(folder / 'model.safetensors')
