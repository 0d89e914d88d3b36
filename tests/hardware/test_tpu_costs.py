# SPDX-License-Identifier: Apache-2.0
"""What a TPU's program of the train step does, by its compiler's own count.

No TPU is needed. T5 base with two layers per stack trains data-parallel on four
chips of v5e, each with 64 pairs of CommonsenseQA, as one chip packs them:

  python -m pytest -m long -s tests/hardware/test_tpu_costs.py
"""

import functools
import math
import pathlib
import re
from typing import NamedTuple

import jax
import pytest

from dsbs_jax.core import network, partitioning
from dsbs_jax.hardware import batch_shapes, memory, tpu_compiler
from dsbs_jax.runtime import accelerators, gin_config
from dsbs_jax.training import step_functions, train_config

pytestmark = [
  pytest.mark.long,
  pytest.mark.skipif(
    not tpu_compiler.is_installed(),
    reason="libtpu is not installed: pip install -e '.[tpu]'",
  ),
]
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
CHIPS = 4
LAYERS = 2
# Of an array in bfloat16, in float32.
HALF, FULL = 2, 4


class Step(NamedTuple):
  """A compiled step, and what it was compiled from."""

  run: train_config.TrainConfig
  shapes: batch_shapes.Views  # of one chip
  text: str
  bytes_accessed: float


@functools.cache
def step(*bindings):
  """The train step of one chip's share, compiled for all of them."""
  run = gin_config.build(
    train_config.TrainConfig,
    gin_files=['gin/train.gin', 'gin/plan.gin', 'gin/models/base.gin'],
    gin_bindings=[
      f'NUM_ENCODER_LAYERS = {LAYERS}',
      f'NUM_DECODER_LAYERS = {LAYERS}',
      'SCAN_LAYERS = False',
      *bindings,
    ],
    search_paths=[str(REPOSITORY)],
  )
  alone = batch_shapes.typical(run, multiple=1)
  shapes = {
    view: shape._replace(
      rows=CHIPS * shape.rows,
      input_slots=CHIPS * shape.input_slots,
      target_slots=CHIPS * shape.target_slots,
    )
    for view, shape in alone.items()
  }
  mesh = memory.mesh_of(accelerators.device('v5e'), f'{CHIPS}x1')
  compiled = step_functions.lower_train_step(run, mesh, shapes).compile()
  costs = compiled.cost_analysis()
  return Step(run, alone, compiled.as_text(), costs['bytes accessed'])


def instructions(text):
  """(result, operation, its operands' shapes) of every instruction."""
  for line in text.splitlines():
    found = re.match(r'\s*(?:ROOT )?%?[\w.-]+ = (.+?) ([\w-]+)\((.*)', line)
    if found:
      yield found.groups()


def hand_count(config, shapes):
  """Bytes that a step has to read and write on one chip, by part.

  An array is written once by what makes it, and read once by each product,
  softmax, norm or gather that takes it. Other work on single entries, such as
  residual sums, dropout and casts, happens in passing.
  """
  # Both views are one row group, see `joined_views`.
  rows = sum(shape.rows for shape in shapes.values())
  inputs = max(shape.inputs for shape in shapes.values())
  targets = max(shape.targets for shape in shapes.values())
  sources = sum(shape.tokens[0] for shape in shapes.values())
  outputs = sum(shape.tokens[1] for shape in shapes.values())
  width, features = config.num_heads * config.head_dim, config.mlp_dim

  def product(tokens, before, after):
    """Forward x -> y; backward y' -> x' and x, y' -> the kernel's gradient."""
    activations = tokens * (3 * before + 3 * after)
    kernel = before * after  # read as bfloat16 twice, its gradient written
    return HALF * (activations + 2 * kernel) + FULL * kernel

  def norm(tokens):
    return HALF * tokens * config.emb_dim * 5

  def mlp(tokens):
    gate = HALF * tokens * features * 8  # a, b -> gelu(a) b, and back
    return (
      norm(tokens)
      + 2 * product(tokens, config.emb_dim, features)
      + gate
      + product(tokens, features, config.emb_dim)
    )

  def attention(queries, length, keys, key_length):
    """Projections of `queries` and `keys` tokens, rows of these lengths."""
    projections = 2 * product(queries, config.emb_dim, width)
    projections += 2 * product(keys, config.emb_dim, width)
    # Query and context are moved between tokens and rows; so are key and value.
    moved = 4 * HALF * width * (queries + rows * length)
    moved += 4 * HALF * width * (keys + rows * key_length)
    products = HALF * rows * width * (6 * length + 6 * key_length)
    scores = rows * config.num_heads * length * key_length
    return (
      norm(queries)
      + projections
      + moved
      + products
      + scores
      * (
        # Scores, softmax, probabilities; their gradients.
        (FULL + FULL + HALF + HALF) + (HALF + 2 * FULL + 4 * HALF)
      )
    )

  encoder = attention(sources, inputs, sources, inputs) + mlp(sources)
  decoder = (
    attention(outputs, targets, outputs, targets)
    + attention(outputs, targets, sources, inputs)
    + mlp(outputs)
  )
  logits = outputs * config.vocab_size
  sizes = jax.tree.leaves(network.param_shapes(config))
  params = sum(math.prod(leaf.shape) for leaf in sizes)
  kernels = sum(math.prod(leaf.shape) for leaf in sizes if leaf.ndim == 2)
  return {
    # Parameter, gradient, both moments; all but the gradient are written.
    'optimizer': FULL * params * (4 + 3),
    'norm of the gradient': FULL * params,
    'all-reduce': FULL * params * 2,
    'casts': (FULL + HALF) * (kernels - config.vocab_size * config.emb_dim),
    'encoder': config.num_encoder_layers * encoder + norm(sources),
    'decoder': config.num_decoder_layers * decoder + norm(outputs),
    'logits': product(outputs, config.emb_dim, config.vocab_size)
    # In float32; the loss reads them twice, its gradient once.
    + logits * ((FULL - HALF) + 2 * FULL + FULL),
    'embeddings': FULL * config.vocab_size * config.emb_dim
    + (sources + outputs) * config.emb_dim * (3 * FULL + HALF),
  }
