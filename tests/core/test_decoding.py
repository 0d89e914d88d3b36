# SPDX-License-Identifier: Apache-2.0
"""Decoding against recorded outputs and full forward passes."""

import functools
import itertools

import jax
import numpy as np
import pytest

from dsbs_jax.core import beams, decoding
from dsbs_jax.interop.hf import hf_checkpoint
from tests import models
from tests.core import tiny_decoder
from tests.recordings import hf_folders

pytestmark = pytest.mark.usefixtures('strict_promotion')


def _slow_greedy(next_log_probs, length):
  tokens = ()
  while len(tokens) < length and 1 not in tokens:
    tokens += (int(np.argmax(next_log_probs[tokens])),)
  return tokens


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_greedy_equals_the_argmax_of_full_forward_passes(seed):
  params = tiny_decoder.params(seed=seed)
  tables = tiny_decoder.next_log_probs(params, 4)
  tokens = np.asarray(
    tiny_decoder.greedy(tiny_decoder.TINY, 4)(params, tiny_decoder.ROWS)
  )
  for row, table in enumerate(tables):
    expected = _slow_greedy(table, 4)
    assert tiny_decoder.strip(tokens[row]) == expected
    assert not tokens[row, len(expected) :].any()


@pytest.mark.parametrize('vocab_size', [128, 384, 400])
def test_argmax_is_the_lowest_id_of_the_highest_score(vocab_size):
  random = np.random.RandomState(0)
  logits = random.randint(-3, 4, (64, vocab_size)).astype(np.float32)
  logits[0] = -np.inf
  for form in (decoding.argmax_for_cpu, decoding.plain_argmax, decoding.argmax):
    found = jax.jit(form)(logits)
    np.testing.assert_array_equal(found, np.argmax(logits, axis=-1))
    assert found.dtype == np.int32


def test_logits_that_are_not_finite_leave_no_answer():
  """One bad column of the head is enough; rows of padding do not matter."""
  params = tiny_decoder.params()
  head = params['decoder']['logits_dense']['kernel']
  rows = tiny_decoder.ROWS['encoder_input_tokens'].copy()
  rows[1] = 0
  rows = {'encoder_input_tokens': rows}
  options = np.array([[[3, 1], [0, 0]]] * 3, np.int32)
  score = models.jit(
    lambda params: decoding.score_options(
      params, tiny_decoder.TINY, rows, options_tokens=options
    )
  )
  for value in (np.nan, np.inf):
    head[:, 4] = value
    tokens = tiny_decoder.greedy(tiny_decoder.TINY, 4)(params, rows)
    nothing = decoding.NOT_FINITE
    np.testing.assert_array_equal(tokens[:, 0], [nothing, 0, nothing])
    assert not np.any(tokens[:, 1:])
    search = tiny_decoder.beams(tiny_decoder.TINY, 2, 4, None)
    broken = np.isnan(search(params, rows)[1]).any(axis=1)
    np.testing.assert_array_equal(broken, [True, False, True])
    scores = np.asarray(score(params))
    assert np.isnan(scores[:, 0]).all() and np.isneginf(scores[:, 1]).all()


def test_greedy_ends_a_row_behind_the_stop_tokens():
  params, config = tiny_decoder.params(seed=1), tiny_decoder.TINY
  decode = models.jit(
    functools.partial(decoding.greedy, max_decode_len=4),
    static_argnums=1,
  )
  whole = np.asarray(decode(params, config, tiny_decoder.ROWS))
  row = int(np.argmax((whole > 1).sum(axis=1)))
  free = tiny_decoder.strip(whole[row])
  assert len(free) >= 3
  for length in (1, 2, 3):
    for end in range(length, len(free) + 1):
      stop = tuple(free[end - length : end])
      found = np.asarray(decode(params, config, tiny_decoder.ROWS, stop=stop))[
        row
      ]
      cut = next(
        i for i in range(length, 5) if tuple(free[i - length : i]) == stop
      )
      assert found.tolist() == [*free[:cut], *[0] * (4 - cut)]
  unseen = np.asarray(decode(params, config, tiny_decoder.ROWS, stop=(2,) * 9))
  np.testing.assert_array_equal(unseen, whole)


def test_decoding_stops_when_all_rows_have_ended(monkeypatch):
  tiny_decoder.replace_end_logit(monkeypatch, 30.0)
  steps = tiny_decoder.count_steps(monkeypatch)
  params = tiny_decoder.params()
  # A row of padding has nothing to say and must hold nobody up.
  rows = jax.tree.map(
    lambda *leaf: np.concatenate(leaf), tiny_decoder.ROWS, tiny_decoder.NO_ROW
  )
  tokens = tiny_decoder.greedy.__wrapped__(tiny_decoder.TINY, 20)(params, rows)
  jax.effects_barrier()
  assert len(steps) == 1
  np.testing.assert_array_equal(tokens[:, 0], [1, 1, 1, 0])
  assert not np.any(tokens[:, 1:])
  steps.clear()
  tokens, scores = tiny_decoder.beams.__wrapped__(
    tiny_decoder.TINY, 2, 20, None
  )(params, rows)
  jax.effects_barrier()
  # The end at once; the end after one token; and, T5X's bound being generous
  # to long outputs, one step more.
  assert len(steps) == 3
  assert [tiny_decoder.strip(beam) for beam in tokens[0]][0] == (1,)
  assert (
    not np.any(tokens[3]) and (np.asarray(scores[3]) == beams.NEG_INF).all()
  )


def test_options_are_scored_by_the_sum_over_their_own_tokens():
  params = tiny_decoder.params(seed=1)
  options = np.array(
    [
      [[2, 3, 1], [4, 1, 0], [0, 0, 0]],
      [[4, 1, 0], [5, 5, 1], [2, 1, 0]],
      [[1, 0, 0], [2, 3, 1], [4, 1, 0]],
    ],
    np.int32,
  )
  score = models.jit(
    lambda options: decoding.score_options(
      params, tiny_decoder.TINY, tiny_decoder.ROWS, options_tokens=options
    )
  )
  found = np.asarray(score(options))
  tables = tiny_decoder.next_log_probs(params, 4)
  for row, column in itertools.product(range(3), range(3)):
    output = tiny_decoder.strip(options[row, column])
    expected = sum(
      tables[row][output[:t]][output[t]] for t in range(len(output))
    )
    if not any(output):
      expected = -np.inf
    assert found[row, column] == pytest.approx(expected, rel=1e-5)
  np.testing.assert_allclose(score(options[:, ::-1])[:, ::-1], found, rtol=1e-5)


def test_impossible_requests_are_refused():
  params, one = tiny_decoder.params(), {'max_decode_len': 3}
  packed = tiny_decoder.ROWS | {
    'encoder_segment_ids': np.ones((3, 6), np.int32)
  }
  with pytest.raises(ValueError, match='one example per row'):
    decoding.greedy(params, tiny_decoder.TINY, packed, **one)
  with pytest.raises(ValueError, match='max_decode_len is 0'):
    decoding.greedy(
      params, tiny_decoder.TINY, tiny_decoder.ROWS, max_decode_len=0
    )
  with pytest.raises(ValueError, match='num_beams is 0'):
    decoding.beam_search(
      params, tiny_decoder.TINY, tiny_decoder.ROWS, num_beams=0, **one
    )
  with pytest.raises(ValueError, match='alpha is -1'):
    decoding.BrevityPenalty(-1.0)


def _check_recorded(params, config, recorded, prefix):
  inputs = recorded[f'{prefix}_input_ids']
  inputs = np.pad(inputs, ((0, 0), (0, 64 - inputs.shape[1])))
  rows = {'encoder_input_tokens': inputs}
  expected = recorded[f'{prefix}_greedy_ids'][:, 1:]  # without the start
  tokens = tiny_decoder.greedy(config, 32)(params, rows)
  np.testing.assert_array_equal(tokens, expected)
  search = tiny_decoder.beams(config, 4, 32, decoding.LengthPenalty(1.0))
  tokens, scores = search(params, rows)
  np.testing.assert_array_equal(
    tokens, recorded[f'{prefix}_beam4_ids'][:, :, 1:]
  )
  np.testing.assert_allclose(
    scores, recorded[f'{prefix}_beam4_scores'], rtol=0, atol=1e-5
  )
  logits = np.asarray(_logits_function(config)(params, rows, expected))
  ended = np.cumsum(expected == 1, axis=1) - (expected == 1) > 0
  top1 = recorded[f'{prefix}_greedy_top1_logit']
  np.testing.assert_allclose(
    logits.max(axis=-1)[~ended], top1[~ended], rtol=0, atol=2e-5
  )


@functools.cache
def _logits_function(config):
  return models.jit(
    lambda params, rows, targets: tiny_decoder.teacher_forced(
      params, config, rows, targets
    )
  )


def test_outputs_equal_those_of_hugging_face(recorded_model):
  config = hf_checkpoint.config_from_hf(recorded_model)
  params = hf_checkpoint.load_params(recorded_model, config)
  recorded = np.load(recorded_model / 'forward.npz')
  sets = [name for name in recorded if name.endswith('_greedy_ids')]
  assert sets
  for name in sets:
    prefix = name.removesuffix('_greedy_ids')
    _check_recorded(params, config, recorded, prefix)


@pytest.mark.parametrize('benchmark', ['cqa', 'svamp'])
def test_outputs_of_trained_models_equal_those_of_hugging_face(
  shared_dir, benchmark, tmp_path
):
  original = shared_dir / 'golden' / 'original'
  folder = hf_folders.with_weights(
    tmp_path,
    config=original / 'hf_t5_tiny' / 'config.json',
    weights=original / 'final_weights' / f'{benchmark}_lr1e-3.safetensors',
  )
  config = hf_checkpoint.config_from_hf(folder)
  params = hf_checkpoint.load_params(folder, config)
  recorded = np.load(original / 'generation_trained.npz')
  for task in ('predict', 'explain'):
    _check_recorded(params, config, recorded, f'{benchmark}_{task}')
