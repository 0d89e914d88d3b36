# SPDX-License-Identifier: Apache-2.0
"""(TF) A prepared example -> ids, as seqio preprocessors.

These are the tf.data twins of `task_forms` and `tokens`, for T5X and other
users of seqio; a test holds the two to the same ids.
"""

import functools
from collections.abc import Callable

import seqio
import tensorflow as tf

from dsbs_jax import contract
from dsbs_jax.data import task_forms
from dsbs_jax.data.vocabulary import vocabularies

Preprocessor = Callable[..., tf.data.Dataset]


def texts(
  name: contract.TaskName, prefixes: Callable[[], task_forms.Prefixes]
) -> Preprocessor:
  """Chooses prefix, label and target of a task.

  Returns:
    A preprocessor that adds inputs and targets to prepared examples, whose
    `is_train` says which label an `_llm_` task takes.
  """

  def choose(example, prefix: str):
    label = example['gt_label']
    if name.label_source == 'llm':
      label = tf.where(example['is_train'], example['llm_label'], label)
    target = {
      'rationale': example['rationale'],
      'verdict': example['verdict'],
      'single': tf.strings.join(
        [example['rationale'], task_forms.MARKERS['single'], label], ' '
      ),
      'answer_first': tf.strings.join(
        [label, task_forms.MARKERS['answer_first'], example['rationale']], ' '
      ),
    }.get(name.form, label)
    kept = {key: example[key] for key in ('index', 'example_id')}
    inputs = tf.strings.join([prefix, example['input']])
    if name.form == 'verdict':
      inputs = tf.strings.join([inputs, example['rationale']], ' ')
    return kept | {
      'inputs': inputs,
      'targets': target,
      'label': target if name.form in contract.WITHOUT_LABEL else label,
    }

  def preprocess(dataset: tf.data.Dataset) -> tf.data.Dataset:
    prefix = prefixes().of(name.form)
    if name.form == 'verdict':  # a row without one has no such example
      dataset = dataset.filter(lambda example: example['verdict'] != '')
    return dataset.map(
      functools.partial(choose, prefix=prefix), tf.data.AUTOTUNE
    )

  return preprocess


def tokenize(
  dataset: tf.data.Dataset, output_features: dict[str, seqio.Feature]
) -> tf.data.Dataset:
  """Texts of inputs and targets -> ids; `</s>` inside a text is EOS_ID.

  Args:
    dataset: examples with the texts 'inputs' and 'targets'.
    output_features: the vocabulary of each of the two.

  Returns:
    The same examples with int32 ids, without an end id, and the texts as
    'inputs_pretokenized' and 'targets_pretokenized'.
  """

  def encode(text: tf.Tensor, vocabulary: seqio.Vocabulary) -> tf.Tensor:
    pieces = tf.strings.split(text, vocabularies.EOS_TEXT)
    ids = _encode_pieces(pieces, vocabulary)
    end = tf.fill([tf.shape(pieces)[0], 1], contract.EOS_ID)
    return tf.concat([ids, end], axis=1).flat_values[:-1]

  def convert(example):
    done = dict(example)
    for side in ('inputs', 'targets'):
      done[f'{side}_pretokenized'] = example[side]
      done[side] = encode(example[side], output_features[side].vocabulary)
    return done

  return dataset.map(convert, tf.data.AUTOTUNE)


def _encode_pieces(
  pieces: tf.Tensor, vocabulary: seqio.Vocabulary
) -> tf.RaggedTensor:
  """Ids of each of several texts."""
  resolved = getattr(vocabulary, 'resolve', lambda: vocabulary)()
  if isinstance(resolved, seqio.SentencePieceVocabulary):
    return resolved.encode_tf(pieces)  # takes a vector, unlike bytes
  signature = tf.RaggedTensorSpec([None], tf.int32)
  return tf.map_fn(resolved.encode_tf, pieces, fn_output_signature=signature)


def task_ids(term: int) -> Preprocessor:
  """Gives every target token the id of the objective's term it is in."""

  def mark(example):
    ids = tf.fill(tf.shape(example['targets']), tf.constant(term, tf.int32))
    return example | {'targets_task_ids': ids}

  return lambda dataset: dataset.map(mark, tf.data.AUTOTUNE)
