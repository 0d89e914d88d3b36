# SPDX-License-Identifier: Apache-2.0
"""float32 is float32 in every product of every program, on GPU and TPU too."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from dsbs_jax import contract
from dsbs_jax.core import (
  decoding,
  matmul_precision,
  network,
  objective,
  optimizer,
  steps,
)
from tests.core import test_steps, tiny_t5

# Both forms of what platforms compute differently.
pytestmark = pytest.mark.parametrize('traced_for', [None], indirect=True)
SIZE = {'vocab_size': 50, 'num_encoder_layers': 1, 'num_decoder_layers': 1}


def gated(dtype, **changes):
  return dataclasses.replace(tiny_t5.GATED, dtype=dtype, **SIZE, **changes)


def tied(dtype):
  return dataclasses.replace(tiny_t5.TIED, dtype=dtype, **SIZE)


def train_step(config, **options):
  """(function, shapes of its arguments) of a step on a paired batch."""
  adam = optimizer.adamw_hf(optimizer.constant(0.1), weight_decay=0.1)
  batch = test_steps.make_batch()
  for rows in batch.values():
    rows['decoder_pair_ids'] = rows['decoder_task_ids']
  step = steps.make_train_step(
    config,
    objective.Distillation(mi_weight=options.pop('mi_weight', 0.0)),
    adam,
    run_key=jax.random.key(0),
    **options,
  )
  state = jax.eval_shape(
    lambda key: steps.init_state(key, config, adam), jax.random.key(0)
  )
  return step, state, jax.eval_shape(lambda: batch)


def decode(config, function, **arguments):
  """The same of a function of decoding."""
  rows = {'encoder_input_tokens': jax.ShapeDtypeStruct((2, 6), jnp.int32)}
  return (
    lambda params, rows: function(params, config, rows, **arguments),
    network.param_shapes(config),
    rows,
  )


PROGRAMS = {
  'tied, in chunks': lambda dtype: train_step(tied(dtype), chunk_tokens=8),
  'scanned, in microbatches': lambda dtype: train_step(
    gated(dtype, scan_layers=True, remat='full'),
    num_microbatches=2,
  ),
  'all terms': lambda dtype: train_step(
    gated(dtype), mi_weight=0.1, num_pairs=8
  ),
  'greedy': lambda dtype: decode(
    gated(dtype), decoding.greedy, max_decode_len=4
  ),
  'beams': lambda dtype: decode(
    tied(dtype), decoding.beam_search, num_beams=2, max_decode_len=4
  ),
  'options': lambda dtype: decode(
    gated(dtype),
    decoding.score_options,
    options_tokens=jnp.ones([2, 3, 4], jnp.int32),
  ),
}


def products(name, dtype, *platforms):
  """The lines of all products in the program for these platforms."""
  function, *shapes = PROGRAMS[name](dtype)
  traced = jax.jit(function).trace(*shapes)
  text = traced.lower(lowering_platforms=platforms).as_text()
  assert 'stablehlo.convolution' not in text
  return [line for line in text.splitlines() if 'stablehlo.dot' in line]


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(
      name, marks=[pytest.mark.long] * (name == 'scanned, in microbatches')
    )
    for name in PROGRAMS
  ],
)
def test_products_of_float32_are_float32_in_precision_too(name):
  found = products(name, 'float32', 'cuda', 'tpu')
  assert len(found) >= 10
  assert not [line for line in found if '[HIGHEST, HIGHEST]' not in line]


@pytest.mark.parametrize('place', ['setting', 'variable', 'both'])
def test_who_chooses_a_precision_gets_it(place, monkeypatch):
  if place != 'setting':
    monkeypatch.setenv('JAX_DEFAULT_MATMUL_PRECISION', 'tensorfloat32')
  matmul_precision.use(None if place == 'variable' else 'tensorfloat32')
  try:
    found = products('options', 'float32', 'cuda')
  finally:
    monkeypatch.undo()
    matmul_precision.use(None)
  assert found and not [line for line in found if 'HIGHEST' in line]


def test_two_precisions_are_refused(monkeypatch):
  monkeypatch.setenv('JAX_DEFAULT_MATMUL_PRECISION', 'bfloat16')
  with pytest.raises(contract.UserError, match="'float32', but .* 'bfloat16'"):
    matmul_precision.use('float32')


def test_precisions_are_those_of_jax():
  for name in matmul_precision.NAMES:
    with jax.default_matmul_precision(name):
      assert jax.config.jax_default_matmul_precision == name


# Logits are computed once per pass, and twice in a gradient.
@pytest.mark.parametrize(
  ('name', 'num_attentions', 'num_logits'),
  [('all terms', 9, 3 + 2 * 2), ('greedy', 3, 1), ('options', 3, 1)],
)
def test_of_bfloat16_activations_scores_and_logits_are_float32(
  name, num_attentions, num_logits
):
  found = products(name, 'bfloat16', 'tpu')
  # Of float32 factors, such as sums by a product with ones.
  wide = [line for line in found if 'bf16' not in line]
  assert all('[HIGHEST, HIGHEST]' in line for line in wide)
  # Added up in float32 are the scores, which go into the softmax as they are,
  # the logits and their gradients, and nothing else.
  pattern = r'bf16>, \S+bf16>\) -> \S+xf32>'
  summed = [line for line in found if re.search(pattern, line)]
  assert len(summed) == num_attentions + num_logits
  of_logits = [line for line in summed if re.search(r'\b50x|x50x', line)]
  assert len(of_logits) == num_logits
