# SPDX-License-Identifier: Apache-2.0
"""The network against recorded models and against a T5 in plain NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsbs_jax.core import network
from dsbs_jax.core.t5 import network as t5_network
from dsbs_jax.interop.hf import hf_checkpoint
from tests import models
from tests.core import tiny_t5
from tests.core.t5 import slow_t5

pytestmark = pytest.mark.usefixtures('strict_promotion')


@pytest.mark.parametrize(
  'config',
  [tiny_t5.GATED, tiny_t5.TIED, tiny_t5.PER_LAYER],
  ids=['gated', 'tied', 'per_layer'],
)
def test_padded_and_packed_rows_equal_examples_on_their_own(config):
  params, examples = tiny_t5.params(config), tiny_t5.examples()
  slow = slow_t5.SlowT5(params, config)
  padded = tiny_t5.apply(params, config, tiny_t5.padded(examples))
  packed = tiny_t5.apply(params, config, tiny_t5.packed(examples))
  start = 0
  for row, (source, target) in enumerate(examples):
    expected, length = slow(source, target), len(target)
    close = {'rtol': 1e-5, 'atol': 1e-5}
    np.testing.assert_allclose(padded[row, :length], expected, **close)
    np.testing.assert_allclose(
      packed[0, start : start + length], expected, **close
    )
    start += length


def _compare_with_recorded(case, encoded, hidden, logits):
  labels, logits = case['labels'], np.asarray(logits)
  real, source = labels >= 0, case['attention_mask'] > 0
  top8 = np.argsort(-logits, axis=-1, kind='stable')[..., :8]
  np.testing.assert_array_equal(top8[real], case['top8_ids'][real])
  targets = np.maximum(labels, 0)[..., None]
  logsumexp = np.log(np.exp(np.float64(logits)).sum(axis=-1))
  token_loss = logsumexp - np.take_along_axis(logits, targets, -1)[..., 0]
  for found, name, where in (
    (encoded, 'encoder_last_hidden', source),
    (hidden, 'decoder_last_hidden', real),
    (np.take_along_axis(logits, top8, -1), 'top8_logits', real),
    (logsumexp, 'logsumexp', real),
    (token_loss, 'token_loss', real),
    (logits, 'logits', real),
  ):
    if name in case:
      found, expected = np.asarray(found)[where], case[name][where]
      np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
  assert token_loss[real].mean() == pytest.approx(case['loss'], rel=1e-6)


def test_forward_passes_equal_those_of_hugging_face(recorded_model):
  config = hf_checkpoint.config_from_hf(recorded_model)
  params = hf_checkpoint.load_params(recorded_model, config)
  recorded = np.load(recorded_model / 'forward.npz')

  @models.jit
  def forward(params, rows):
    encoded = t5_network.encode(params, config, rows)
    hidden = t5_network.decode(params, config, encoded, rows=rows)
    return encoded, hidden, network.logits(params, config, hidden)

  cases = [
    {
      key.removeprefix(f'{size}_'): recorded[key]
      for key in recorded
      if key.startswith(f'{size}_')
    }
    for size in ('small', 'large', 'long')
  ]

  def widened(case, key):
    shape = np.max([one[key].shape for one in cases], axis=0)
    widths = [(0, more) for more in shape - case[key].shape]
    return np.pad(np.maximum(case[key], 0), widths)

  for case in cases:
    # One shape for all cases, so that it is compiled once.
    encoded, hidden, logits = forward(
      params,
      {
        'encoder_input_tokens': widened(case, 'input_ids'),
        'decoder_input_tokens': widened(case, 'decoder_input_ids'),
        'decoder_target_tokens': widened(case, 'labels'),
      },
    )
    rows, num_inputs = case['input_ids'].shape
    num_targets = case['labels'].shape[1]
    _compare_with_recorded(
      case,
      encoded[:rows, :num_inputs],
      hidden[:rows, :num_targets],
      logits[:rows, :num_targets],
    )


def test_padding_rows_are_inert_for_loss_and_gradients():
  """The sums over two examples are those of each beside padding rows."""
  params, (first, second, _) = tiny_t5.params(tiny_t5.GATED), tiny_t5.examples()
  nothing = ([], [])
  both, one, other = (
    tiny_t5.value_and_grad(params, tiny_t5.GATED, tiny_t5.padded(examples))
    for examples in (
      [first, second, nothing],
      [first, nothing, nothing],
      [nothing, second, nothing],
    )
  )
  added = jax.tree.map(np.add, one, other)
  tiny_t5.assert_trees_close(both, added, rtol=1e-4, atol=1e-5)


def test_rows_do_not_see_one_another():
  params, rows = (
    tiny_t5.params(tiny_t5.GATED),
    tiny_t5.padded(tiny_t5.examples()),
  )
  turned = {name: leaf[::-1] for name, leaf in rows.items()}
  np.testing.assert_allclose(
    tiny_t5.apply(params, tiny_t5.GATED, turned)[::-1],
    tiny_t5.apply(params, tiny_t5.GATED, rows),
    rtol=1e-5,
    atol=1e-5,
  )


def test_the_wrong_layout_of_layers_is_named():
  rows = tiny_t5.padded(tiny_t5.examples())
  stacked = network.stack_layers(tiny_t5.params(tiny_t5.GATED), tiny_t5.GATED)
  with pytest.raises(ValueError, match=r'layers.*unstack_layers'):
    network.apply(stacked, tiny_t5.GATED, rows)


def test_bfloat16_is_near_float32_and_logits_stay_float32():
  narrow = dataclasses.replace(tiny_t5.GATED, dtype='bfloat16')
  params, rows = (
    tiny_t5.params(tiny_t5.GATED),
    tiny_t5.padded(tiny_t5.examples()),
  )
  (loss, gradient), (exact, _) = (
    tiny_t5.value_and_grad(params, config, rows)
    for config in (narrow, tiny_t5.GATED)
  )
  assert abs(loss / exact - 1) < 0.03
  for leaf in jax.tree.leaves(gradient):
    assert leaf.dtype == jnp.float32 and np.isfinite(leaf).all()
  hidden, logits = jax.eval_shape(
    lambda: (
      network.hidden(params, narrow, rows),
      network.apply(params, narrow, rows),
    )
  )
  assert hidden.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
