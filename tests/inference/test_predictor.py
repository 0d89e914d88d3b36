# SPDX-License-Identifier: Apache-2.0
"""Labels and probabilities are those of the whole network, row by row."""

import jax
import numpy as np
import pytest

from dsbs_jax import contract
from dsbs_jax.core import network, partitioning
from dsbs_jax.data import task_forms
from dsbs_jax.inference import input_lines, length_buckets, predictor
from dsbs_jax.inference.backends import decode_functions
from tests.inference import small_student

BYTES, MODEL = small_student.BYTES, small_student.MODEL
NLI = ('entailment', 'neutral', 'contradiction')
ROWS_OF_FOUR = length_buckets.LengthBuckets(4)
TEXTS = [f'{"very " * (i % 3)}odd {i}?' for i in range(7)]


@pytest.fixture(scope='module')
def params():
  return small_student.params()


@pytest.fixture(scope='module')
def slow(params):
  """log p of each next token, by the whole network: one row, no cache."""
  apply = jax.jit(lambda params, rows: network.apply(params, MODEL, rows))

  def log_probs(text, ids):
    source, inputs, targets = (np.zeros((1, n), np.int32) for n in (64, 24, 24))
    encoded = [*BYTES.encode(text), contract.EOS_ID]
    source[0, : len(encoded)] = encoded
    inputs[0, 1 : len(ids) + 1] = ids
    targets[0, : len(ids) + 1] = 1  # only tells what is real
    logits = apply(
      params,
      {
        'encoder_input_tokens': source,
        'decoder_input_tokens': inputs,
        'decoder_target_tokens': targets,
      },
    )
    logits = np.asarray(logits, np.float64)[0, : len(ids) + 1]
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

  return log_probs


def slow_log_prob(slow, text, ids):
  scores = slow(text, ids)
  return sum(scores[i, token] for i, token in enumerate(ids))


def slow_greedy(slow, text, length):
  ids = []
  while len(ids) < length and contract.EOS_ID not in ids:
    ids.append(int(np.argmax(slow(text, ids)[-1])))
  return ids


@pytest.fixture
def ask(params):
  """Answers texts, in their order."""

  def ask(
    texts,
    *,
    task='svamp_gt_label',
    choices=(),
    shapes=ROWS_OF_FOUR,
    max_logits=decode_functions.MAX_LOGITS,
    **options,
  ):
    mesh = partitioning.make_mesh(None)
    config = predictor.PredictorConfig(
      task=task,
      model=MODEL,
      prefixes=task_forms.prefixes('paper'),
      **{'max_decode_len': 4, **options},
    )
    student = predictor.Predictor(
      config,
      decode_functions.DecodeFns(
        MODEL,
        params,
        mesh=mesh,
        max_decode_len=config.max_decode_len,
        max_rationale_len=config.max_rationale_len,
        num_beams=config.num_beams,
        max_logits=max_logits,
      ),
      vocabulary=BYTES,
      shapes=shapes,
    )
    inputs = [input_lines.ModelInput(text, choices) for text in texts]
    return student.predict(inputs)

  return ask


@pytest.fixture
def say(monkeypatch):
  """Makes the student generate given ids, others for rationales of 9."""

  def say(ids, rationale=()):
    def jit_decode(*_, max_decode_len, **__):
      chosen = rationale if max_decode_len == 9 else ids
      return lambda *_: np.tile([chosen], (4, 1))

    monkeypatch.setattr(decode_functions, 'jit_decode', jit_decode)

  return say


def slow_shares(slow, text):
  scores = np.array(
    [
      slow_log_prob(slow, f'[label] {text}', [*BYTES.encode(name), 1])
      for name in NLI
    ]
  )
  shares = np.exp(scores - scores.max())
  return shares / shares.sum()


def test_a_free_label_and_a_rationale(ask, slow):
  answers = ask(TEXTS, rationales=True, max_rationale_len=6)
  assert len({answer.probability for answer in answers}) == len(TEXTS)
  for text, answer in list(zip(TEXTS, answers, strict=True))[4:6]:
    ids = slow_greedy(slow, f'[label] {text}', 4)
    assert answer.label == BYTES.decode(ids)
    expected = np.exp(slow_log_prob(slow, f'[label] {text}', ids))
    assert answer.probability == pytest.approx(expected, rel=1e-4)
    ids = slow_greedy(slow, f'[rationale] {text}', 6)
    assert answer.rationale == BYTES.decode(ids)


def test_a_scored_label_is_the_likeliest_and_normalised(ask, slow):
  answers = ask(TEXTS, labels=NLI, score_labels=True)
  for text, answer in zip(TEXTS, answers, strict=True):
    shares = slow_shares(slow, text)
    assert answer.label == NLI[int(np.argmax(shares))]
    assert answer.probability == pytest.approx(shares.max(), rel=1e-4)
    assert answer.rationale is None


@pytest.mark.parametrize('closed', ['labels', 'choices'])
def test_a_generated_label_has_its_share_of_the_closed_set(
  ask, slow, say, closed
):
  say([*BYTES.encode('entailment'), 1])
  answers = ask(TEXTS[:3], **{closed: NLI})
  for text, answer in zip(TEXTS, answers, strict=False):
    share = slow_shares(slow, text)[0]
    assert 0 < share < 1
    assert answer.label == 'entailment'
    assert answer.probability == pytest.approx(share, rel=1e-3)


def test_a_text_outside_of_the_closed_set_has_probability_0(ask, say):
  say([*BYTES.encode('maybe'), 1])
  (answer,) = ask(TEXTS[:1], labels=NLI)
  assert (answer.label, answer.probability) == ('maybe', 0.0)


def test_a_single_label_is_scored_after_its_rationale(ask, slow, say):
  ids = [*BYTES.encode('It is 3. [label] 3'), 1]
  say(ids)
  single = {'task': 'svamp_gt_single', 'rationales': True}
  (answer,) = ask(['2 and 1?'], **single)
  assert (answer.label, answer.rationale) == ('3', 'It is 3.')
  whole, stem = (
    slow_log_prob(slow, '2 and 1?', part) for part in (ids, ids[:-3])
  )
  expected = np.exp(whole - stem)
  assert answer.probability == pytest.approx(expected, rel=1e-4)
  (scored,) = ask(['2 and 1?'], **single, labels=('3', '4'))
  four = slow_log_prob(
    slow, '2 and 1?', [*BYTES.encode('It is 3. [label] 4'), 1]
  )
  expected = 1 / (1 + np.exp(four - whole))
  assert scored.probability == pytest.approx(expected, rel=1e-3)


def test_an_answer_that_comes_first_is_scored_up_to_its_marker(ask, slow, say):
  label = BYTES.encode('3 [rationale]')
  say([*label, *BYTES.encode(' It is 3.'), 1])
  first = {'task': 'svamp_gt_answer_first', 'rationales': True}
  (answer,) = ask(['2 and 1?'], **first)
  assert (answer.label, answer.rationale) == ('3', 'It is 3.')
  three = slow_log_prob(slow, '2 and 1?', label)
  assert answer.probability == pytest.approx(np.exp(three), rel=1e-4)
  (scored,) = ask(['2 and 1?'], **first, labels=('3', '4'))
  four = slow_log_prob(slow, '2 and 1?', BYTES.encode('4 [rationale]'))
  expected = 1 / (1 + np.exp(four - three))
  assert scored.probability == pytest.approx(expected, rel=1e-3)
  for said, cut in ((label, False), (label[:-1], True)):
    say(said)
    (answer,) = ask(['2 and 1?'], task='svamp_gt_answer_first')
    assert (answer.cut, answer.rationale) == (cut, None)


@pytest.mark.parametrize(
  ('label_ends', 'rationale_ends'),
  [(True, True), (True, False), (False, True), (False, False)],
)
def test_an_answer_is_cut_if_either_part_is(
  ask, say, label_ends, rationale_ends
):
  end = {True: [contract.EOS_ID], False: []}
  say(
    BYTES.encode('3') + end[label_ends],
    BYTES.encode('so') + end[rationale_ends],
  )
  (answer,) = ask(['2 and 1?'], rationales=True, max_rationale_len=9)
  assert (answer.label, answer.rationale) == ('3', 'so')
  assert answer.cut == (not (label_ends and rationale_ends))


def test_beams_give_labels_too(ask):
  one, two = ask(TEXTS[:1])[0], ask(TEXTS[:1], num_beams=2)[0]
  assert 0 < one.probability <= 1 and 0 < two.probability <= 1


def test_scores_that_do_not_fit_are_computed_in_parts(params, monkeypatch):
  shapes, jit_score = {}, decode_functions.jit_score

  def counted(*args):
    score = jit_score(*args)

    def run(params, tokens, options):
      shapes[options.shape] = len(tokens)
      return score(params, tokens, options)

    return run

  monkeypatch.setattr(decode_functions, 'jit_score', counted)
  random = np.random.default_rng(0)
  tokens = random.integers(3, 90, (5, 8)).astype(np.int32)
  options = random.integers(3, 90, (5, 3, 4)).astype(np.int32)
  pair = 4 * MODEL.vocab_size
  scores = {}
  # Odd numbers of rows, and rows whose options do not fit: few shapes.
  for fitting, expected in {
    15: [(5, 3, 4)],
    7: [(2, 3, 4), (1, 3, 4)],
    2: [(1, 2, 4), (1, 1, 4)],
    0: [(1, 1, 4)],
  }.items():
    shapes.clear()
    scores[fitting] = decode_functions.DecodeFns(
      MODEL,
      params,
      mesh=partitioning.make_mesh('1x1', devices=jax.devices()[:1]),
      max_decode_len=4,
      max_rationale_len=4,
      max_logits=fitting * pair,
    ).score_options(tokens, options)
    np.testing.assert_allclose(scores[fitting], scores[15], rtol=1e-4)
    assert shapes == {shape: shape[0] for shape in expected}


def test_the_shapes_of_batches_decide_no_answer(ask):
  shapes = length_buckets.CompiledShapes((2, 3), (48, 64), (24,), (5,))
  options = {'choices': NLI, 'score_labels': True}
  for one, other in zip(
    ask(TEXTS, **options), ask(TEXTS, shapes=shapes, **options), strict=True
  ):
    assert one.label == other.label
    assert one.probability == pytest.approx(other.probability, rel=1e-4)
