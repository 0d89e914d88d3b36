# SPDX-License-Identifier: Apache-2.0
"""A Gemma's cached decoder answers as transformers' and as whole rows do."""

import dataclasses

import numpy as np
import pytest
import scipy.special

from dsbs_jax.core import decoding
from tests import models
from tests.core.gemma import recorded_gemma

GEMMA3 = recorded_gemma.GEMMA3
INPUTS, TARGETS = GEMMA3.forward['inputs'], GEMMA3.forward['targets']
ROWS = {'encoder_input_tokens': INPUTS.astype(np.int32)}
LENGTH = GEMMA3.forward['greedy'].shape[1]


def _decode(function, recorded, config=None, rows=ROWS, **options):
  config = config or recorded.config
  params = recorded.params(config.scan_layers)
  program = models.jit(lambda p, r: function(p, config, r, **options))
  return program(params, rows)


@recorded_gemma.both
@pytest.mark.parametrize('scan_layers', [False, True], ids=['loop', 'scan'])
def test_greedy_answers_are_those_of_transformers(recorded, scan_layers):
  config = dataclasses.replace(recorded.config, scan_layers=scan_layers)
  found = _decode(decoding.greedy, recorded, config, max_decode_len=LENGTH)
  np.testing.assert_array_equal(found, recorded.forward['greedy'])


@recorded_gemma.both
def test_a_row_of_padding_answers_nothing_and_changes_no_other(recorded):
  rows = {
    'encoder_input_tokens': np.pad(ROWS['encoder_input_tokens'], 1)[:, 1:]
  }
  found = _decode(decoding.greedy, recorded, rows=rows, max_decode_len=LENGTH)
  np.testing.assert_array_equal(found[1:-1], recorded.forward['greedy'])
  assert not np.any(found[0]) and not np.any(found[-1])


@recorded_gemma.both
def test_one_beam_is_greedy_and_the_best_of_three_is_no_worse(recorded):
  def best(num_beams):
    beams, scores = _decode(
      decoding.beam_search,
      recorded,
      num_beams=num_beams,
      max_decode_len=LENGTH,
      rules=decoding.BrevityPenalty(alpha=0.0),
    )
    return np.asarray(beams[:, 0]), np.asarray(scores[:, 0])

  greedy, score = best(1)
  np.testing.assert_array_equal(greedy, recorded.forward['greedy'])
  beams, better = best(3)
  assert np.all(better >= score - 1e-5)
  # Each score is what the whole row gives: the caches were reordered rightly.
  rows = recorded_gemma.padded(INPUTS, beams)
  logits = recorded_gemma.apply(recorded.config, recorded.params(), rows)
  log_probs = scipy.special.log_softmax(logits, axis=-1)
  picked = np.take_along_axis(log_probs, beams[:, :, None], -1)[..., 0]
  expected = np.where(beams > 0, picked, 0.0).sum(axis=1)
  np.testing.assert_allclose(better, expected, rtol=0, atol=1e-4)


@recorded_gemma.both
@pytest.mark.parametrize('scan_layers', [False, True], ids=['loop', 'scan'])
def test_options_have_the_probabilities_of_whole_rows(recorded, scan_layers):
  config = dataclasses.replace(recorded.config, scan_layers=scan_layers)
  options = np.stack([TARGETS, np.roll(TARGETS, 1, axis=0)], axis=1)
  params = recorded.params(scan_layers)
  score = models.jit(
    lambda params, options: decoding.score_options(
      params, config, ROWS, options_tokens=options
    )
  )
  found = np.asarray(score(params, options.astype(np.int32)))
  log_probs = scipy.special.log_softmax(recorded.forward['logits'], axis=-1)
  picked = np.take_along_axis(log_probs, TARGETS[:, :, None], -1)[..., 0]
  expected = np.where(TARGETS > 0, picked, 0.0).sum(axis=1)
  np.testing.assert_allclose(found[:, 0], expected, rtol=0, atol=1e-4)
  other = np.asarray(score(params, options[:, ::-1].astype(np.int32)))
  np.testing.assert_allclose(found[:, 1], other[:, 0], rtol=0, atol=1e-4)


def test_cached_prefix_lm_is_that_of_whole_rows():
  recorded = GEMMA3
  config = dataclasses.replace(recorded.config, prefix_lm=True)
  found = np.asarray(
    _decode(decoding.greedy, recorded, config, max_decode_len=LENGTH)
  )
  rows = recorded_gemma.padded(INPUTS, found)
  logits = recorded_gemma.apply(config, recorded.params(), rows)
  np.testing.assert_array_equal(logits.argmax(-1)[found > 0], found[found > 0])
  assert not np.array_equal(found, recorded.forward['greedy'])


def test_packed_rows_are_refused():
  rows = recorded_gemma.packed(INPUTS, TARGETS)
  with pytest.raises(ValueError, match='one example per row'):
    _decode(decoding.greedy, GEMMA3, rows=rows, max_decode_len=LENGTH)
