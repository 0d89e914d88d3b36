# SPDX-License-Identifier: Apache-2.0
"""The same parameters in both networks: logits, greedy and beam decodes."""

import functools

import jax
import numpy as np
import pytest

from dsbs_jax import contract
from dsbs_jax.core import beams, decoding, network

VARIANTS = ('gated', 'tied')


def rows(random, *, packed):
  """Rows of two examples each when packed, else of one."""
  sides = {}
  for side, length in (('encoder', 24), ('decoder', 16)):
    tokens = np.zeros((4, length), np.int32)
    segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    for row in range(4):
      start = 0
      for segment in (1, 2) if packed else (1,):
        size = int(random.integers(3, length // 2))
        stop = start + size
        tokens[row, start:stop] = random.integers(3, 380, size)
        tokens[row, stop - 1] = contract.EOS_ID
        segments[row, start:stop] = segment
        positions[row, start:stop] = np.arange(size)
        start = stop
    sides[side] = (tokens, segments, positions)
  targets, segments, _ = sides['decoder']
  shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  inside = np.pad(segments, ((0, 0), (1, 0)))[:, :-1] == segments
  batch = {
    'encoder_input_tokens': sides['encoder'][0],
    'decoder_input_tokens': np.where(inside, shifted, 0),
    'decoder_target_tokens': targets,
  }
  if packed:
    for side, (_, side_segments, side_positions) in sides.items():
      batch[f'{side}_segment_ids'] = side_segments
      batch[f'{side}_positions'] = side_positions
  return batch


@pytest.fixture(scope='module', params=VARIANTS)
def both(request, parts):
  """T5X's model by its decode function, our config, and parameters."""
  model = functools.partial(parts.model, None, variant=request.param)
  config = parts.config(request.param)
  params = jax.jit(lambda key: network.init(key, config))(jax.random.key(3))
  return model, config, params


@pytest.mark.parametrize('packed', [False, True])
def test_logits_agree(both, packed):
  model, config, params = both
  batch = rows(np.random.default_rng(0), packed=packed)
  theirs = jax.jit(model()._compute_logits)(params, batch)
  ours = jax.jit(lambda p, b: network.apply(p, config, b))(params, batch)
  real = batch['decoder_target_tokens'] != 0
  np.testing.assert_allclose(
    np.asarray(ours)[real], np.asarray(theirs)[real], atol=1e-5, rtol=0
  )


def decoding_batch(length):
  batch = rows(np.random.default_rng(1), packed=False)
  return {
    'encoder_input_tokens': batch['encoder_input_tokens'],
    'decoder_input_tokens': np.zeros((4, length), np.int32),
  }


def test_greedy_tokens_agree(both):
  model, config, params = both
  batch = decoding_batch(20)
  theirs = jax.jit(model().predict_batch)(params, batch)
  ours = jax.jit(lambda p, b: decoding.greedy(p, config, b, max_decode_len=20))(
    params, batch
  )
  np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize('num_beams', [1, 4])
def test_beams_and_scores_agree(both, num_beams):
  from t5x import decoding as t5x_decoding

  model, config, params = both
  model = model(decode_fn=t5x_decoding.beam_search)
  batch = decoding_batch(12)

  @jax.jit
  def decode(params, batch):
    return model.predict_batch_with_aux(
      params, batch, num_decodes=num_beams, return_all_decodes=True
    )

  theirs, aux = decode(params, batch)
  tokens, scores = jax.jit(
    lambda p, b: beams.beam_search(
      p, config, b, num_beams=num_beams, max_decode_len=12
    )
  )(params, batch)
  # T5X puts the best last.
  np.testing.assert_allclose(
    np.asarray(scores), np.asarray(aux['scores'])[:, ::-1], atol=1e-4, rtol=0
  )
  np.testing.assert_array_equal(tokens, np.asarray(theirs)[:, ::-1])
