# SPDX-License-Identifier: Apache-2.0
"""What a TPU's program of the train step does, by its compiler's own count.

No TPU is needed. T5 base with two layers per stack trains data-parallel on four
chips of v5e, each with 64 pairs of CommonsenseQA, as one chip packs them:

  python -m pytest -m long -s tests/hardware/test_tpu_costs.py
"""

import collections
import functools
import math
import pathlib
import re
from typing import NamedTuple

import jax
import pytest

from dsbs_jax.core import network
from dsbs_jax.hardware import batch_shapes, memory, tpu_compiler
from dsbs_jax.runtime import device_specs
from dsbs_jax.runtime.configuration import gin_config
from dsbs_jax.training import lowered_step, train_config

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
  mesh = memory.mesh_of(device_specs.device('v5e'), f'{CHIPS}x1')
  compiled = lowered_step.lower_train_step(run, mesh, shapes).compile()
  costs = compiled.cost_analysis()
  return Step(run, alone, compiled.as_text(), costs['bytes accessed'])


class Instruction(NamedTuple):
  """One of a program's, at its top level or within a fusion."""

  result: str  # shapes with layouts
  operation: str
  operands: tuple[str, ...]  # their results


def instructions(text):
  """All instructions of a program, or of a part of it."""
  found = []
  for line in text.splitlines():
    match = _INSTRUCTION.match(line)
    if match:
      name, result, operation, given = match.groups()
      found.append((name, result, operation, _NAME.findall(given)))
  results = {name: result for name, result, *_ in found}
  return [
    Instruction(result, operation, tuple(results.get(n, '') for n in names))
    for _, result, operation, names in found
  ]


_INSTRUCTION = re.compile(
  r'\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*?)\)(?:, |$)'
)
_NAME = re.compile(r'%([\w.-]+)')
_ARRAY = re.compile(r'(\w+)\[([\d,]*)\](\{[^}]*\})?')
_ITEM_BYTES = {'pred': 1, 'bf16': 2, 'f32': 4, 's32': 4, 'u32': 4}
# Of names, not of what is in memory.
_FREE = {
  *('parameter', 'tuple', 'get-tuple-element', 'bitcast', 'constant'),
  *('copy-done', 'slice-done', 'all-reduce-done'),
}


def arrays(shapes):
  """(entries, bytes, whether they are in the chip's own memory) of each."""
  for kind, dims, layout in _ARRAY.findall(shapes):
    entries = math.prod(map(int, dims.split(','))) if dims else 1
    yield entries, entries * _ITEM_BYTES.get(kind, 0), 'S(1)' in (layout or '')


def hbm_bytes(text):
  """Bytes that a program reads and writes outside of the chip, by operation.

  A fusion that reads a slice counts for the whole array. What is copied between
  both memories, beside the program, counts once.
  """
  totals = collections.Counter()
  for one in instructions(text[text.index('\nENTRY') :]):
    if one.operation in _FREE:
      continue
    if one.operation == 'copy-start':  # (there, here, ..)
      totals['copies'] += next(arrays(one.result))[1]
    elif one.operation == 'slice-start':  # ((here), there, ..)
      totals['copies'] += list(arrays(one.result))[1][1]
    else:
      for shapes in (one.result, *one.operands):
        totals[one.operation] += sum(
          size for _, size, inside in arrays(shapes) if not inside
        )
  return totals


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


def as_large_as_logits(shapes, found):
  outputs = sum(shape.tokens[1] for shape in found.shapes.values())
  count = outputs * found.run.model.vocab_size
  return any(entries >= count for entries, *_ in arrays(shapes))


def test_logits_are_neither_gathered_nor_moved():
  found = step()
  seen = [
    one
    for one in instructions(found.text)
    if any(as_large_as_logits(x, found) for x in (one.result, *one.operands))
  ]
  operations = {one.operation for one in seen}
  assert 'exponential' in operations  # they are there
  assert not operations & {
    *('gather', 'scatter', 'transpose', 'copy', 'copy-start', 'slice-start'),
    *('all-gather', 'all-to-all', 'all-reduce', 'sort'),
  }


def test_every_gradient_is_summed_over_the_chips_once():
  """In how many operations is the compiler's choice: it took three."""
  found = step()
  whole = instructions(found.text)
  entry = instructions(found.text[found.text.index('\nENTRY') :])
  talk = {'all-reduce', 'all-reduce-start', 'reduce-scatter', 'all-gather'}
  assert not [one for one in whole if one.operation in talk - {'all-reduce'}]
  sums = [one for one in entry if one.operation == 'all-reduce']
  assert len(sums) == len([x for x in whole if x.operation == 'all-reduce'])
  summed = [
    sum(size for entries, size, _ in arrays(one.result) if entries > 1)
    for one in sums
  ]
  print(f'all-reduces: {[f"{size / 1e6:.0f} MB" for size in summed]}')
  sizes = jax.tree.leaves(network.param_shapes(found.run.model))
  assert sum(summed) == FULL * sum(math.prod(leaf.shape) for leaf in sizes)
  assert len([size for size in summed if size]) <= 3


def test_bytes_are_near_what_must_be_read_and_written():
  found = step()
  parts = hand_count(found.run.model, found.shapes)
  total = sum(parts.values())
  for name, number in parts.items():
    print(f'{name}: {number / 1e9:.2f} GB')
  moved = sum(hbm_bytes(found.text).values())
  print(
    f'{moved / 1e9:.2f} GB outside of the chip, by hand {total / 1e9:.2f};'
    f" the compiler's count of both memories: {found.bytes_accessed / 1e9:.2f}"
  )
  assert 0.5 * total < moved <= 1.3 * total
