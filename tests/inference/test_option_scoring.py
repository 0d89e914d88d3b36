# SPDX-License-Identifier: Apache-2.0
"""Evaluation can choose among an example's own labels; so it says."""

import json
import pathlib

import jax
import numpy as np
import pytest

from dsbs_jax.core import network, partitioning
from dsbs_jax.data.prepared import store, tokens
from dsbs_jax.inference import evaluator as evaluator_lib
from dsbs_jax.inference import option_scoring
from dsbs_jax.inference.backends import decode_functions
from dsbs_jax.preparing import prepare
from tests.data import small_prepared
from tests.inference import small_student

BYTES, MODEL = small_student.BYTES, small_student.MODEL
ARCHIVE = pathlib.Path(__file__).parents[1] / 'data/fixtures/archive'


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('prepared'))
  for name in ('cqa', 'esnli'):
    prepare.prepare(
      prepare.PrepareConfig(
        benchmark=name, source=str(ARCHIVE), data_dir=folder
      )
    )
  return tokens.Source(folder, 'bytes')


@pytest.fixture(scope='module')
def params():
  return small_student.params()


def make_evaluator(source, task, **options):
  mesh = partitioning.make_mesh(None)
  return evaluator_lib.Evaluator(
    evaluator_lib.evaluated_task(task),
    MODEL,
    splits=('test',),
    **{'batch_size': 2, 'score_labels': True, **options},
    source=source,
    mesh=mesh,
  )


@jax.jit
def _logits(params, rows):
  return network.apply(params, MODEL, rows)


def slow_choice(params, text, labels, *, end):
  """The likeliest label, one whole forward pass for each."""
  scores = []
  for label in labels:
    ids = [*BYTES.encode(label), *end]
    source, inputs, targets = (
      np.zeros((1, n), np.int32) for n in (512, 64, 64)
    )
    encoded = [*BYTES.encode(text), 1]
    source[0, : len(encoded)] = encoded
    inputs[0, 1 : len(ids)] = ids[:-1]
    targets[0, : len(ids)] = ids
    rows = {
      'encoder_input_tokens': source,
      'decoder_input_tokens': inputs,
      'decoder_target_tokens': targets,
    }
    logits = np.asarray(_logits(params, rows), np.float64)[0, : len(ids)]
    total = np.log(np.exp(logits).sum(axis=1))
    scores.append(sum(logits[range(len(ids)), ids] - total))
  return labels[int(np.argmax(scores))]


def test_choices_are_kept_in_prepared_data(source):
  prepared = store.read('cqa', source.data_dir)
  for split in prepared.splits:
    for example in prepared.examples(split):
      assert len(example.options) == 5
      for choice in example.options:
        assert f') {choice}' in example.input
  esnli = store.read('esnli', source.data_dir)
  assert {example.options for example in esnli.examples('test')} == {()}


@pytest.mark.parametrize(
  ('task', 'prefix', 'end'),
  [
    ('cqa_gt_dsbs', '[label] ', [1]),
    pytest.param(
      'cqa_gt_answer_first',
      '',
      BYTES.encode(' [rationale]'),
      marks=pytest.mark.long,
    ),
    pytest.param('esnli_gt_finetune', '', [1], marks=pytest.mark.long),
  ],
)
def test_the_likeliest_label_of_each_example_is_chosen(
  source, params, task, prefix, end
):
  evaluator = make_evaluator(source, task)
  predictions = evaluator.predict(params, 'test')
  name = task.split('_')[0]
  examples = list(store.read(name, source.data_dir).examples('test'))
  labels = ['entailment', 'neutral', 'contradiction']
  assert predictions == [
    slow_choice(
      params,
      prefix + example.input,
      list(example.options) or labels,
      end=end,
    )
    for example in examples
  ]
  assert 0 <= evaluator.score('test', predictions)['accuracy'] <= 100


def test_chosen_answers_do_not_replace_generated_ones(source, params, tmp_path):
  evaluator = make_evaluator(source, 'cqa_gt_finetune')
  path = evaluator.write(tmp_path, 7, 'test', evaluator.predict(params, 'test'))
  assert path.name == 'cqa_gt_finetune-test-000007-chosen.jsonl'
  line = json.loads(path.read_text().splitlines()[0])
  assert line['prediction'] in line['input']


def test_few_rows_at_once_choose_the_same(source, params):
  evaluator = make_evaluator(source, 'cqa_gt_label', batch_size=8)
  mesh = partitioning.make_mesh(None)
  chosen = option_scoring.rank_classify(
    decode_functions.jit_score(MODEL, mesh),
    params,
    tokens.load('cqa_gt_label', 'test', source),
    labels=option_scoring.label_options('cqa_gt_label', 'test', source),
    form='label',
    vocab_size=MODEL.vocab_size,
    mesh=mesh,
    batch_size=8,
    max_logits=1,
  )
  assert chosen == evaluator.predict(params, 'test')


def test_what_has_no_given_labels_is_refused(source, tmp_path):
  with pytest.raises(ValueError, match='writes a rationale before its label'):
    make_evaluator(source, 'cqa_gt_single')
  small_prepared.write(tmp_path)  # cqa without choices
  old = tokens.Source(str(tmp_path), 'bytes')
  with pytest.raises(ValueError, match='without its choices .* --overwrite'):
    make_evaluator(old, 'cqa_gt_label')
  with pytest.raises(ValueError, match="'svamp' has no closed set of labels"):
    small_prepared.write(tmp_path, name='svamp')
    make_evaluator(old, 'svamp_gt_label')
