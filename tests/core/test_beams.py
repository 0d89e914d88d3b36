# SPDX-License-Identifier: Apache-2.0
"""Beam search against lists in Python and against all outputs there are."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsbs_jax.core import beams, decoding, network
from dsbs_jax.core.t5 import cache
from tests import models
from tests.core import tiny_decoder

pytestmark = pytest.mark.usefixtures('strict_promotion')


def _slow_beams(next_log_probs, length, num_beams, rules):
  """One row's beam search over lists of (score, tokens)."""
  is_t5x = isinstance(rules, decoding.BrevityPenalty)

  def score(log_prob, num_tokens):
    if is_t5x:
      return log_prob / ((5 + num_tokens) / 6) ** rules.alpha
    return log_prob / num_tokens**rules.exponent

  live, finished = [(0.0, ())], []
  for num_tokens in range(1, length + 1):
    candidates = [
      (log_prob + more, (*tokens, token))
      for log_prob, tokens in live
      for token, more in enumerate(next_log_probs[tokens])
    ]
    candidates = sorted(candidates, reverse=True)[: 2 * num_beams]
    for rank, (log_prob, tokens) in enumerate(candidates):
      ended = tokens[-1] == 1
      if not is_t5x:
        ended = rank < num_beams and (ended or num_tokens == length)
      if ended:
        finished.append((score(log_prob, num_tokens), tokens))
    finished = sorted(finished, reverse=True)[:num_beams]
    live = [c for c in candidates if c[1][-1] != 1][:num_beams]
    reachable = score(live[0][0], length + 1 if is_t5x else num_tokens)
    if len(finished) == num_beams and reachable <= finished[-1][0]:
      break
  return finished or live


@pytest.mark.parametrize(
  'rules', [decoding.BrevityPenalty(0.6), decoding.LengthPenalty(1.0)]
)
@pytest.mark.parametrize('seed', [0, 1, 2, 3])
def test_beams_equal_a_slow_search(rules, seed):
  params = tiny_decoder.params(seed=seed)
  tables = tiny_decoder.next_log_probs(params, 4)
  tokens, scores = tiny_decoder.beams(tiny_decoder.TINY, 3, 4, rules)(
    params, tiny_decoder.ROWS
  )
  for row, table in enumerate(tables):
    expected = _slow_beams(table, 4, 3, rules)
    found = [tiny_decoder.strip(beam) for beam in tokens[row]][: len(expected)]
    assert found == [beam for _, beam in expected]
    np.testing.assert_allclose(
      scores[row, : len(expected)],
      [score for score, _ in expected],
      rtol=1e-5,
      atol=1e-5,
    )
    assert (np.asarray(scores[row, len(expected) :]) == beams.NEG_INF).all()


def test_enough_beams_find_the_best_of_all_outputs():
  # 2 * 130 candidates are more than the 6 * 6 * 7 outputs of three tokens.
  params, rules = tiny_decoder.params(seed=5), decoding.BrevityPenalty(0.6)
  tables = tiny_decoder.next_log_probs(params, 3)
  tokens, scores = tiny_decoder.beams(tiny_decoder.TINY, 130, 3, rules)(
    params, tiny_decoder.ROWS
  )
  for row, table in enumerate(tables):
    ended = []
    for length in (1, 2, 3):
      for start in itertools.product((0, 2, 3, 4, 5, 6), repeat=length - 1):
        output = (*start, 1)
        total = sum(table[output[:t]][output[t]] for t in range(length))
        ended.append((total / ((5 + length) / 6) ** 0.6, output))
    ended.sort(reverse=True)
    assert len(ended) == 43
    found = [tiny_decoder.strip(beam) for beam in tokens[row]]
    assert found[:43] == [output for _, output in ended]
    assert not np.any(tokens[row, 43:])
    np.testing.assert_allclose(
      scores[row, :43], [score for score, _ in ended], rtol=1e-5
    )


def test_a_live_beam_that_overtakes_a_finished_one_wins(monkeypatch):
  # After [1], with p = 0.5, the rest goes on as 2 3 4 5 1 with p = 0.45.
  table = np.full((6, 7), -50.0, np.float32)
  table[0, 1:3] = np.log([0.5, 0.45])
  table[np.arange(1, 5), [3, 4, 5, 1]] = 0.0
  decode_step = cache.decode_step

  def step(params, config, prefilled, *, state):
    _, kv_cache = decode_step(params, config, prefilled, state=state)
    return jnp.asarray(table)[state.index][None].repeat(3, axis=0), kv_cache

  monkeypatch.setattr(cache, 'decode_step', step)
  monkeypatch.setattr(network, 'logits', lambda *args: args[-1])
  search = tiny_decoder.beams.__wrapped__(tiny_decoder.TINY, 1, 6, None)
  tokens, scores = search(tiny_decoder.params(), tiny_decoder.ROWS)
  assert {tiny_decoder.strip(row) for row in tokens[:, 0]} == {(2, 3, 4, 5, 1)}
  log_probs = jax.nn.log_softmax(table[0])
  expected = log_probs[2] / ((5 + 5) / 6) ** 0.6
  np.testing.assert_allclose(scores, expected, rtol=1e-5)
  assert expected > log_probs[1]  # / ((5 + 1) / 6) ** 0.6
  assert log_probs[2] < log_probs[1]


def test_live_beams_are_returned_where_nothing_ended(monkeypatch):
  tiny_decoder.replace_end_logit(monkeypatch, -1e6)
  params = tiny_decoder.params()
  search = tiny_decoder.beams.__wrapped__(tiny_decoder.TINY, 2, 3, None)
  tokens, scores = search(params, tiny_decoder.ROWS)
  assert not (np.asarray(tokens) == 1).any()

  @models.jit
  def log_probs_of(tokens):
    return jax.nn.log_softmax(
      tiny_decoder.teacher_forced(
        params, tiny_decoder.TINY, tiny_decoder.ROWS, tokens
      )
    )

  for beam in (0, 1):
    log_probs = log_probs_of(tokens[:, beam])
    picked = np.take_along_axis(log_probs, tokens[:, beam, :, None], axis=-1)
    np.testing.assert_allclose(scores[:, beam], picked.sum((1, 2)), rtol=1e-5)
  assert (scores[:, 0] > scores[:, 1]).all()


def test_scanned_layers_decode_the_same():
  params = tiny_decoder.params(seed=2)
  scanned = dataclasses.replace(tiny_decoder.TINY, scan_layers=True)
  stacked = network.stack_layers(params, tiny_decoder.TINY)
  rules = decoding.BrevityPenalty(0.6)
  np.testing.assert_array_equal(
    tiny_decoder.greedy(scanned, 4)(stacked, tiny_decoder.ROWS),
    tiny_decoder.greedy(tiny_decoder.TINY, 4)(params, tiny_decoder.ROWS),
  )
  tokens, scores = tiny_decoder.beams(scanned, 3, 4, rules)(
    stacked, tiny_decoder.ROWS
  )
  expected_tokens, expected = tiny_decoder.beams(
    tiny_decoder.TINY, 3, 4, rules
  )(params, tiny_decoder.ROWS)
  np.testing.assert_array_equal(tokens, expected_tokens)
  np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_bfloat16_decodes_valid_outputs():
  narrow = dataclasses.replace(tiny_decoder.TINY, dtype='bfloat16')
  tokens, scores = tiny_decoder.beams(narrow, 2, 4, None)(
    tiny_decoder.params(), tiny_decoder.ROWS
  )
  assert scores.dtype == jnp.float32 and np.isfinite(scores).all()
  assert np.asarray(tokens).min() >= 0 and np.asarray(tokens).max() < 7
