# SPDX-License-Identifier: Apache-2.0
"""A student of random parameters that says different things to each input."""

import jax
import jax.numpy as jnp
import numpy as np

from dsbs_jax.core import network, steps
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.runs import checkpoints
from tests import models

BYTES = vocabularies.load('bytes')
MODEL = network.T5Config(
  vocab_size=384,
  emb_dim=16,
  num_heads=4,
  head_dim=4,
  mlp_dim=32,
  num_encoder_layers=1,
  num_decoder_layers=1,
)
# The same model as gin macros, on top of gin/models/nano.gin.
MACROS = {
  'VOCABULARY': 'bytes',
  'VOCAB_SIZE': 384,
  'EMB_DIM': 16,
  'HEAD_DIM': 4,
  'MLP_DIM': 32,
  'NUM_ENCODER_LAYERS': 1,
  'NUM_DECODER_LAYERS': 1,
  'MAX_DECODE_LEN': 4,
  'MAX_RATIONALE_LEN': 6,
}


def params(model=MODEL):
  """Random parameters, larger than usual."""
  drawn = models.init(jax.random.key(0), model)
  return jax.tree.map(lambda leaf: np.float32(1.2) * np.asarray(leaf), drawn)


def write(folder, run=None, model=MODEL):
  """Writes the student as a run's checkpoint of step 7; `run`: its metadata."""
  saved = checkpoints.Checkpoints(folder)
  saved.save(
    steps.TrainState(step=jnp.int32(7), params=params(model), opt_state={}),
    position={},
    run={'vocabulary': BYTES.fingerprint, **(run or {})},
  )
  saved.close()
