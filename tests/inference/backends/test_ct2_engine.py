# SPDX-License-Identifier: Apache-2.0
"""CTranslate2 answers as the built-in engine, ends and scores included."""

import jax
import numpy as np
import pytest

from dsbs_jax.core import partitioning
from dsbs_jax.inference.backends import ct2_engine, decode_functions
from dsbs_jax.interop import ct2_model
from tests.inference import small_student

pytest.importorskip('ctranslate2', reason='extra ct2')

LENGTHS = {'max_decode_len': 6, 'max_rationale_len': 9}
TEXTS = ('a', 'odd?', 'very odd?', 'the longest of all, by far')
# Of atol: log p of outputs of 6 tokens, about -10.
CLOSE = {'rtol': 1e-5, 'atol': 1e-5}


def loaded(folder, params, *, compute_type='float32', num_threads=1):
  config = small_student.MODEL
  names = [str(token) for token in range(config.vocab_size)]
  ct2_model.save(folder, params, config, tokens=names)
  return ct2_engine.Engine(
    str(folder),
    compute_type=compute_type,
    vocab_size=config.vocab_size,
    num_threads=num_threads,
  )


@pytest.fixture(scope='module')
def engine(tmp_path_factory):
  return loaded(tmp_path_factory.mktemp('model'), small_student.params())


def built_in(**options):
  return decode_functions.DecodeFns(
    small_student.MODEL,
    small_student.params(),
    mesh=partitioning.make_mesh('1x1'),
    **LENGTHS | options,
  )


def padded(texts=TEXTS, rows=4):
  tokens = np.zeros((rows, 32), np.int32)
  for row, text in zip(tokens, texts, strict=False):
    ids = [*small_student.BYTES.encode(text), 1]
    row[: len(ids)] = ids
  return tokens


def test_labels_rationales_and_scores_are_the_same(engine):
  ours, theirs = built_in(), ct2_engine.DecodeFns(engine, **LENGTHS)
  tokens = padded(rows=6)  # two rows of padding
  labels = ours.generate(tokens)
  np.testing.assert_array_equal(theirs.generate(tokens), labels)
  np.testing.assert_array_equal(
    theirs.generate_rationale(tokens), ours.generate_rationale(tokens)
  )
  options = np.zeros((6, 3, 8), np.int32)
  options[:, 0, :6] = labels  # one that was generated
  options[:, 1, :3] = labels[:, :3]  # what it begins with
  options[1:3, 2, :4] = 9, 8, 7, 1
  np.testing.assert_allclose(
    theirs.score_options(tokens, options)[:4],
    ours.score_options(tokens, options)[:4],
    **CLOSE,
  )
  assert (theirs.score_options(tokens, options)[:, 2] == -np.inf).sum() == 4


def test_parts_of_an_int8_batch_are_answered_as_rows_alone(tmp_path):
  """Each thread has a part; ends are told apart by row, whoever computes it."""
  engine = loaded(
    tmp_path,
    small_student.params(),
    compute_type='int8_float32',
    num_threads=3,
  )
  tokens = padded(TEXTS * 2, rows=8)
  whole, scores = engine.generate(tokens, max_decode_len=6)
  for stop in ((), tuple(whole[1, 2:4].tolist())):
    options = {'max_decode_len': 6, 'stop': stop}
    found, _ = engine.generate(tokens, **options)
    alone = [engine.generate(row[None], **options)[0][0] for row in tokens]
    np.testing.assert_array_equal(found, alone)
  np.testing.assert_allclose(
    engine.score_options(tokens, whole[:, None])[:, 0], scores, **CLOSE
  )


def test_what_was_generated_is_not_scored_again(engine, monkeypatch):
  fns, tokens = ct2_engine.DecodeFns(engine, **LENGTHS), padded()
  options = fns.generate(tokens)[:, None]
  expected = built_in().score_options(tokens, options)
  calls = []
  real = engine._translator

  class Counted:
    def score_batch(self, source, *arguments, **options):
      calls.append(len(source))
      return real.score_batch(source, *arguments, **options)

  monkeypatch.setattr(engine, '_translator', Counted())
  np.testing.assert_allclose(
    fns.score_options(tokens, options), expected, **CLOSE
  )
  np.testing.assert_allclose(
    fns.score_options(tokens.copy(), options), expected, **CLOSE
  )  # other inputs, as far as it knows
  two = np.concatenate([options, options[:, :, :3]], axis=2)[:, :, :3]
  both = np.concatenate([np.pad(two, ((0, 0), (0, 0), (0, 3))), options], 1)
  np.testing.assert_allclose(
    fns.score_options(tokens.copy(), both),
    built_in().score_options(tokens, both),
    **CLOSE,
  )
  assert calls == [0, 4, 4]  # a beginning has its score from the whole


def test_an_output_stops_at_what_ends_its_label(engine):
  tokens = padded()
  whole = built_in().generate(tokens)
  stop = tuple(whole[1, 2:4].tolist())
  assert 1 not in stop and 0 not in stop
  found = ct2_engine.DecodeFns(engine, **LENGTHS, stop=stop).generate(tokens)
  np.testing.assert_array_equal(found, built_in(stop=stop).generate(tokens))
  assert found[1].tolist() == [*whole[1, :4].tolist(), 0, 0]


def test_an_output_can_be_empty(tmp_path):
  """CTranslate2 would not let the end come first, and score without it."""
  params = jax.tree.map(np.array, small_student.params())
  kernel = params['decoder']['logits_dense']['kernel']
  kernel[:, 1] = 4 * kernel[:, int(built_in().generate(padded())[0, 0])]
  fns = ct2_engine.DecodeFns(loaded(tmp_path, params), **LENGTHS)
  ours = decode_functions.DecodeFns(
    small_student.MODEL,
    params,
    mesh=partitioning.make_mesh('1x1'),
    **LENGTHS,
  )
  tokens = padded()
  expected = ours.generate(tokens)
  assert expected[0].tolist() == [1, 0, 0, 0, 0, 0]
  np.testing.assert_array_equal(fns.generate(tokens), expected)
  np.testing.assert_allclose(
    fns.score_options(tokens, expected[:, None]),
    ours.score_options(tokens, expected[:, None]),
    **CLOSE,
  )


def test_logits_that_are_not_finite_are_an_error(tmp_path):
  params = jax.tree.map(np.array, small_student.params())
  params['encoder']['encoder_norm']['scale'][3] = np.nan
  fns = ct2_engine.DecodeFns(loaded(tmp_path, params), **LENGTHS)
  for answer in (
    lambda: fns.generate(padded()),
    lambda: fns.generate_rationale(padded()),
    lambda: fns.score_options(padded(), np.full((4, 1, 2), 7)),
  ):
    with pytest.raises(ValueError, match='logits of a batch are not finite'):
      answer()
