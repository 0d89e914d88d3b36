# SPDX-License-Identifier: Apache-2.0
"""(TF) The seqio tasks of a benchmark, over its prepared dataset.

Task names and what they train on: see `register`. Three seqio pieces are our
own. `Mixture` keeps each target token's task. `PreparedSource` reads the
array_record files, which TFDS itself gives to tf.data no more.
`LazyVocabulary` stands for whatever vocabulary is set when a task is used,
because tasks are made when their module is imported.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from dsbs_jax import contract
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import task_forms
from dsbs_jax.data.prepared import fingerprints, store, tokens
from dsbs_jax.data.seqio_tasks import features, preprocessors
from dsbs_jax.data.vocabulary import vocabularies, vocabulary_files

_SHUFFLE_BUFFER = 10_000  # on top of the source's own shuffle of everything


# Says where tasks read from at the moment of use: `register.source`, which
# takes a data_dir that the caller knows better.
SourceFn = Callable[..., tokens.Source]


def add(benchmark: benchmark_lib.Benchmark, source_fn: SourceFn) -> None:
  """Adds a benchmark's tasks and mixtures to seqio's registries."""
  name = benchmark.name
  for form in ('rationale', 'verdict'):
    _add_task(benchmark, contract.TaskName(name, None, form), source_fn)
  for source in contract.LABEL_SOURCES:
    for form in ('finetune', 'label', *task_forms.MARKERS):
      _add_task(benchmark, contract.TaskName(name, source, form), source_fn)
    seqio.MixtureRegistry.add(
      f'{name}_{source}_dsbs',
      [f'{name}_{source}_label', f'{name}_rationale'],
      default_rate=1.0,
      mixture_cls=Mixture,
    )


def _add_task(
  benchmark: benchmark_lib.Benchmark,
  name: contract.TaskName,
  source_fn: SourceFn,
) -> None:
  feature = seqio.Feature(LazyVocabulary(source_fn), add_eos=True)
  # Rationales and verdicts are read, not scored.
  scored = name.form not in contract.WITHOUT_LABEL
  seqio.TaskRegistry.add(
    str(name),
    source=PreparedSource(benchmark, name, source_fn),
    preprocessors=[
      preprocessors.texts(
        name, lambda: task_forms.prefixes(_source(source_fn).prefixes)
      ),
      preprocessors.tokenize,
      seqio.CacheDatasetPlaceholder(),
      seqio.preprocessors.append_eos_after_trim,
      preprocessors.task_ids(contract.term_of(name.form)),
    ],
    output_features={'inputs': feature, 'targets': feature},
    postprocess_fn=functools.partial(_postprocess, str(name), source_fn),
    metric_fns=[benchmark.metric] if scored else [],
    shuffle_buffer_size=_SHUFFLE_BUFFER,
  )


def _source(source_fn: SourceFn) -> tokens.Source:
  """The source, in the folder that T5X's --tfds_data_dir gave to seqio."""
  return source_fn(data_dir=seqio.LazyTfdsLoader().data_dir)


def _postprocess(
  name: str,
  source_fn: SourceFn,
  text: str,
  *,
  example=None,
  is_target: bool = False,
) -> str:
  """What the metric compares: see `answer` and `round_trip` of `task_forms`."""
  vocabulary = vocabularies.load(source_fn().vocabulary)
  if not is_target:
    return task_forms.answer(name, text, vocabulary=vocabulary)
  label = example['label']
  label = label.decode() if isinstance(label, bytes) else str(label)
  return task_forms.round_trip(label, vocabulary=vocabulary)


class Mixture(seqio.Mixture):
  """A mixture whose examples keep the task id of each target token.

  The ids are no output feature of the tasks: seqio's evaluator would hand
  their length to the plain feature converter, which knows nothing of them. For
  a mixture of your own: `seqio.MixtureRegistry.add(..., mixture_cls=Mixture)`.
  """

  def get_task_dataset(self, task, output_feature_keys, *args, **kwargs):
    """As seqio's, with one more feature kept."""
    kept = set(output_feature_keys) | {features.TASK_IDS}
    return super().get_task_dataset(task, kept, *args, **kwargs)


class PreparedSource(seqio.DataSource):
  """A benchmark's prepared dataset as a seqio data source.

  Its examples have the prepared fields and `is_train`, by which tasks with
  LLM labels fall back to human ones outside of train.
  """

  def __init__(
    self,
    benchmark: benchmark_lib.Benchmark,
    task: contract.TaskName,
    source_fn: SourceFn,
  ):
    super().__init__(splits=benchmark.split_names())
    self._name, self._task = benchmark.name, task
    self._source_fn = source_fn

  @property
  def splits(self) -> Sequence[str]:
    return self._prepared().splits

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return True

  def list_shards(self, split: str) -> Sequence[str]:
    return [f'{store.dataset_name(self._name)}-{split}']

  def num_input_examples(self, split: str) -> int:
    return self._prepared().num_examples(split)

  def get_dataset(
    self,
    split: str = 'train',
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    *,
    sequence_length: Mapping[str, int] | None = None,
    use_cached: bool = False,
    num_epochs: int | None = 1,
  ) -> tf.data.Dataset:
    """One epoch of a split, or every n-th example of it for a shard.

    Arguments as in seqio; those behind `shard_info` are not used. tf.data can
    save and restore the reading position.
    """
    del sequence_length, use_cached, num_epochs
    prepared = self._prepared()
    if split == 'train':
      prepared.check_targets(self._task)
    columns = _columns(
      prepared.name,
      str(prepared.data_dir),
      split,
      fingerprint=prepared.fingerprint(split),
    )
    order = tf.data.Dataset.range(prepared.num_examples(split))
    if shard_info is not None:  # first: without a seed, each draws its own
      order = order.shard(shard_info.num_shards, shard_info.index)
    if shuffle:
      order = order.shuffle(prepared.num_examples(split), seed=seed)
    is_train = tf.constant(split == 'train')

    def read(position):
      example = {
        key: tf.gather(column, position) for key, column in columns.items()
      }
      return example | {'is_train': is_train}

    return order.map(read, tf.data.AUTOTUNE)

  def _prepared(self) -> store.Prepared:
    return store.read(self._name, _source(self._source_fn).data_dir)


@functools.lru_cache(maxsize=8)
def _columns(
  name: str, data_dir: str, split: str, *, fingerprint: str
) -> dict[str, tf.Tensor]:
  """All examples of a split, one tensor per field."""
  del fingerprint  # part of the cache's key: a dataset may be prepared anew
  examples = list(store.read(name, data_dir).examples(split))
  columns = {
    field: tf.constant([getattr(example, field) for example in examples])
    for field in (*fingerprints.TEXT_FIELDS, fingerprints.VERDICT)
  }
  index = np.array([example.index for example in examples], np.int64)
  return columns | {'index': tf.constant(index)}


def _resolved(name: str) -> property:
  """What the vocabulary that is set at the moment has under this name."""
  return property(lambda self: getattr(self.resolve(), name))


class LazyVocabulary(seqio.Vocabulary):
  """The vocabulary that is set at the moment of use.

  All instances are equal; one is also equal to the seqio vocabulary that it
  stands for, however that was made.
  """

  def __init__(self, source_fn: SourceFn):
    super().__init__()
    self._source_fn = source_fn

  def resolve(self) -> seqio.Vocabulary:
    """The seqio vocabulary of the current setting."""
    return _seqio_vocabulary(self._source_fn().vocabulary)

  bos_id = _resolved('bos_id')
  eos_id = _resolved('eos_id')
  unk_id = _resolved('unk_id')
  extra_ids = _resolved('extra_ids')
  vocab_size = _resolved('vocab_size')
  _base_vocab_size = _resolved('_base_vocab_size')
  _encode = _resolved('_encode')
  _encode_tf = _resolved('_encode_tf')
  _decode_tf = _resolved('_decode_tf')

  def _decode(self, ids):
    # As the built-in engine decodes: without extra ids.
    ours = vocabularies.load(self._source_fn().vocabulary)
    return ours.decode_with_unknown(ids)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, LazyVocabulary) or self.resolve() == other

  def __hash__(self) -> int:
    return hash(LazyVocabulary)

  def __str__(self) -> str:
    return f'LazyVocabulary({self._source_fn().vocabulary})'


@functools.cache
def _seqio_vocabulary(spec: str) -> seqio.Vocabulary:
  parsed = vocabulary_files.resolve(spec)
  if parsed.path == vocabulary_files.BYTES:
    return seqio.ByteVocabulary(parsed.extra_ids)
  if parsed.path.endswith('.json'):
    raise contract.UserError(
      f'vocabulary {spec!r} is a tokenizer.json, which seqio and T5X cannot'
      ' read. Give a SentencePiece file.'
    )
  return seqio.SentencePieceVocabulary(parsed.path, parsed.extra_ids)
