# SPDX-License-Identifier: Apache-2.0
"""Decoding against recorded outputs, full forward passes and brute force."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsbs_jax.core import beams, cache, decoding, network
from dsbs_jax.interop import hf_checkpoint

TINY = network.T5Config(
  vocab_size=7,
  emb_dim=8,
  num_heads=2,
  head_dim=4,
  mlp_dim=16,
  num_encoder_layers=1,
  num_decoder_layers=2,
  num_buckets=8,
  max_distance=12,
)
ROWS = {
  'encoder_input_tokens': np.array(
    [[3, 4, 5, 6, 2, 1], [2, 2, 1, 0, 0, 0], [6, 5, 1, 0, 0, 0]], np.int32
  )
}
NO_ROW = {'encoder_input_tokens': np.zeros((1, 6), np.int32)}
# Compiling takes most of the time of these tests.
_jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


@pytest.fixture(autouse=True)
def strict_promotion():
  with jax.numpy_dtype_promotion('strict'):
    yield


def _params(config=TINY, seed=0):
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    if path[-1].key == 'scale':
      return np.ones(leaf.shape, np.float32)
    std = 1.0 if path[-1].key != 'kernel' else leaf.shape[-2] ** -0.5
    return rng.normal(scale=std, size=leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, network.param_shapes(config))


@functools.cache
def _greedy(config, max_decode_len):
  return _jit(
    lambda params, rows: decoding.greedy(
      params, config, rows, max_decode_len=max_decode_len
    )
  )


@functools.cache
def _beams(config, num_beams, max_decode_len, rules):
  return _jit(
    lambda params, rows: decoding.beam_search(
      params,
      config,
      rows,
      num_beams=num_beams,
      max_decode_len=max_decode_len,
      rules=rules,
    )
  )


def _teacher_forced(params, config, rows, targets):
  """Logits at every position of given outputs [B, T], which may hold 0s."""
  return network.apply(
    params,
    config,
    {
      'encoder_input_tokens': rows['encoder_input_tokens'],
      'decoder_input_tokens': jnp.pad(targets[:, :-1], ((0, 0), (1, 0))),
      # Of the targets the network reads only which are padding: none.
      'decoder_target_tokens': jnp.ones_like(targets),
    },
  )


@functools.cache
def _all_log_probs_function(config):
  @_jit
  def log_probs(params, rows, targets):
    num_rows, num_targets = len(rows['encoder_input_tokens']), len(targets)
    repeated = {
      name: jnp.repeat(leaf, num_targets, axis=0) for name, leaf in rows.items()
    }
    targets = jnp.tile(targets, (num_rows, 1))
    logits = _teacher_forced(params, config, repeated, targets)
    return jax.nn.log_softmax(logits).reshape(num_rows, num_targets, -1, 7)

  return log_probs


def _next_log_probs(params, length):
  """Per row, beginning of an output -> log p of each next token."""
  outputs = list(itertools.product(range(7), repeat=length - 1))
  targets = np.array([(*output, 1) for output in outputs], np.int32)
  log_probs = np.asarray(_all_log_probs_function(TINY)(params, ROWS, targets))
  return [
    {
      output[:t]: row[number, t]
      for number, output in enumerate(outputs)
      for t in range(length)
    }
    for row in log_probs
  ]


def _slow_greedy(next_log_probs, length):
  tokens = ()
  while len(tokens) < length and 1 not in tokens:
    tokens += (int(np.argmax(next_log_probs[tokens])),)
  return tokens


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


def _strip(tokens):
  """An output up to its end token, or whole."""
  tokens = tuple(int(token) for token in tokens)
  return tokens[: tokens.index(1) + 1] if 1 in tokens else tokens


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_greedy_equals_the_argmax_of_full_forward_passes(seed):
  params = _params(seed=seed)
  tables = _next_log_probs(params, 4)
  tokens = np.asarray(_greedy(TINY, 4)(params, ROWS))
  for row, table in enumerate(tables):
    expected = _slow_greedy(table, 4)
    assert _strip(tokens[row]) == expected
    assert not tokens[row, len(expected) :].any()


@pytest.mark.parametrize(
  'rules', [decoding.BrevityPenalty(0.6), decoding.LengthPenalty(1.0)]
)
@pytest.mark.parametrize('seed', [0, 1, 2, 3])
def test_beams_equal_a_slow_search(rules, seed):
  params = _params(seed=seed)
  tables = _next_log_probs(params, 4)
  tokens, scores = _beams(TINY, 3, 4, rules)(params, ROWS)
  for row, table in enumerate(tables):
    expected = _slow_beams(table, 4, 3, rules)
    found = [_strip(beam) for beam in tokens[row]][: len(expected)]
    assert found == [beam for _, beam in expected]
    np.testing.assert_allclose(
      scores[row, : len(expected)],
      [score for score, _ in expected],
      rtol=1e-5,
      atol=1e-5,
    )
    assert (np.asarray(scores[row, len(expected) :]) == beams.NEVER).all()


def test_enough_beams_find_the_best_of_all_outputs():
  # 2 * 130 candidates are more than the 6 * 6 * 7 outputs of three tokens.
  params, rules = _params(seed=5), decoding.BrevityPenalty(0.6)
  tables = _next_log_probs(params, 3)
  tokens, scores = _beams(TINY, 130, 3, rules)(params, ROWS)
  for row, table in enumerate(tables):
    ended = []
    for length in (1, 2, 3):
      for start in itertools.product((0, 2, 3, 4, 5, 6), repeat=length - 1):
        output = (*start, 1)
        total = sum(table[output[:t]][output[t]] for t in range(length))
        ended.append((total / ((5 + length) / 6) ** 0.6, output))
    ended.sort(reverse=True)
    assert len(ended) == 43
    found = [_strip(beam) for beam in tokens[row]]
    assert found[:43] == [output for _, output in ended]
    assert not np.any(tokens[row, 43:])
    np.testing.assert_allclose(
      scores[row, :43], [score for score, _ in ended], rtol=1e-5
    )


def _replace_end_logit(monkeypatch, value):
  original = network.logits

  def logits(params, config, hidden):
    found = original(params, config, hidden)
    return jnp.where(jnp.arange(found.shape[-1]) == 1, value, found)

  monkeypatch.setattr(network, 'logits', logits)


def _count_steps(monkeypatch):
  steps, original = [], cache.step

  def step(*args, **options):
    jax.debug.callback(lambda: steps.append(1))
    return original(*args, **options)

  monkeypatch.setattr(cache, 'step', step)
  return steps


def test_live_beams_are_returned_where_nothing_ended(monkeypatch):
  _replace_end_logit(monkeypatch, -1e6)
  params = _params()
  search = _beams.__wrapped__(TINY, 2, 3, None)
  tokens, scores = search(params, ROWS)
  assert not (np.asarray(tokens) == 1).any()

  @_jit
  def log_probs_of(tokens):
    return jax.nn.log_softmax(_teacher_forced(params, TINY, ROWS, tokens))

  for beam in (0, 1):
    log_probs = log_probs_of(tokens[:, beam])
    picked = np.take_along_axis(log_probs, tokens[:, beam, :, None], axis=-1)
    np.testing.assert_allclose(scores[:, beam], picked.sum((1, 2)), rtol=1e-5)
  assert (scores[:, 0] > scores[:, 1]).all()


def test_decoding_stops_when_all_rows_have_ended(monkeypatch):
  _replace_end_logit(monkeypatch, 30.0)
  steps = _count_steps(monkeypatch)
  params = _params()
  # A row of padding has nothing to say and must hold nobody up.
  rows = jax.tree.map(lambda *leaf: np.concatenate(leaf), ROWS, NO_ROW)
  tokens = _greedy.__wrapped__(TINY, 20)(params, rows)
  jax.effects_barrier()
  assert len(steps) == 1
  np.testing.assert_array_equal(tokens[:, 0], [1, 1, 1, 0])
  assert not np.any(tokens[:, 1:])
  steps.clear()
  tokens, scores = _beams.__wrapped__(TINY, 2, 20, None)(params, rows)
  jax.effects_barrier()
  # The end at once; the end after one token; and, T5X's bound being generous
  # to long outputs, one step more.
  assert len(steps) == 3
  assert [_strip(beam) for beam in tokens[0]][0] == (1,)
  assert not np.any(tokens[3]) and (np.asarray(scores[3]) == beams.NEVER).all()


def test_scanned_layers_decode_the_same():
  params = _params(seed=2)
  scanned = dataclasses.replace(TINY, scan_layers=True)
  stacked = network.stack_layers(params, TINY)
  rules = decoding.BrevityPenalty(0.6)
  np.testing.assert_array_equal(
    _greedy(scanned, 4)(stacked, ROWS), _greedy(TINY, 4)(params, ROWS)
  )
  tokens, scores = _beams(scanned, 3, 4, rules)(stacked, ROWS)
  expected_tokens, expected = _beams(TINY, 3, 4, rules)(params, ROWS)
  np.testing.assert_array_equal(tokens, expected_tokens)
  np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_bfloat16_decodes_valid_outputs():
  narrow = dataclasses.replace(TINY, dtype='bfloat16')
  tokens, scores = _beams(narrow, 2, 4, None)(_params(), ROWS)
  assert scores.dtype == jnp.float32 and np.isfinite(scores).all()
  assert np.asarray(tokens).min() >= 0 and np.asarray(tokens).max() < 7


def test_options_are_scored_by_the_sum_over_their_own_tokens():
  params = _params(seed=1)
  options = np.array(
    [
      [[2, 3, 1], [4, 1, 0], [0, 0, 0]],
      [[4, 1, 0], [5, 5, 1], [2, 1, 0]],
      [[1, 0, 0], [2, 3, 1], [4, 1, 0]],
    ],
    np.int32,
  )
  score = _jit(
    lambda options: decoding.score_options(
      params, TINY, ROWS, options_tokens=options
    )
  )
  found = np.asarray(score(options))
  tables = _next_log_probs(params, 4)
  for row, column in itertools.product(range(3), range(3)):
    output = _strip(options[row, column])
    expected = sum(
      tables[row][output[:t]][output[t]] for t in range(len(output))
    )
    if not any(output):
      expected = -np.inf
    assert found[row, column] == pytest.approx(expected, rel=1e-5)
  np.testing.assert_allclose(score(options[:, ::-1])[:, ::-1], found, rtol=1e-5)


def test_impossible_requests_are_refused():
  params, one = _params(), {'max_decode_len': 3}
  packed = ROWS | {'encoder_segment_ids': np.ones((3, 6), np.int32)}
  with pytest.raises(ValueError, match='one example per row'):
    decoding.greedy(params, TINY, packed, **one)
  with pytest.raises(ValueError, match='max_decode_len is 0'):
    decoding.greedy(params, TINY, ROWS, max_decode_len=0)
  with pytest.raises(ValueError, match='num_beams is 0'):
    decoding.beam_search(params, TINY, ROWS, num_beams=0, **one)
  with pytest.raises(ValueError, match='alpha is -1'):
    decoding.BrevityPenalty(-1.0)


def _check_recorded(params, config, recorded, prefix):
  inputs = recorded[f'{prefix}_input_ids']
  inputs = np.pad(inputs, ((0, 0), (0, 64 - inputs.shape[1])))
  rows = {'encoder_input_tokens': inputs}
  expected = recorded[f'{prefix}_greedy_ids'][:, 1:]  # without the start
  tokens = _greedy(config, 32)(params, rows)
  np.testing.assert_array_equal(tokens, expected)
  search = _beams(config, 4, 32, decoding.LengthPenalty(1.0))
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
  return _jit(
    lambda params, rows, targets: _teacher_forced(params, config, rows, targets)
  )


@pytest.mark.parametrize('name', ['hf_t5_tiny', 'hf_t5_tied'])
def test_outputs_of_random_models_equal_those_of_hugging_face(shared_dir, name):
  folder = shared_dir / 'golden' / 'original' / name
  config = hf_checkpoint.config_from_hf(folder)
  params = hf_checkpoint.load_params(folder, config)
  _check_recorded(params, config, np.load(folder / 'forward.npz'), 'gen')


@pytest.mark.parametrize('benchmark', ['cqa', 'svamp'])
def test_outputs_of_trained_models_equal_those_of_hugging_face(
  shared_dir, benchmark, tmp_path
):
  folder = shared_dir / 'golden' / 'original'
  weights = folder / 'final_weights' / f'{benchmark}_lr1e-3.safetensors'
  (tmp_path / 'config.json').write_text(
    (folder / 'hf_t5_tiny' / 'config.json').read_text()
  )
  (tmp_path / 'model.safetensors').symlink_to(weights)
  config = hf_checkpoint.config_from_hf(tmp_path)
  params = hf_checkpoint.load_params(tmp_path, config)
  recorded = np.load(folder / 'generation_trained.npz')
  for task in ('predict', 'explain'):
    _check_recorded(params, config, recorded, f'{benchmark}_{task}')
