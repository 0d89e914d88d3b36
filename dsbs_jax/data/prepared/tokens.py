# SPDX-License-Identifier: Apache-2.0
"""Tokens of a task's split: written once, then memory-mapped, no TensorFlow.

`load('cqa_gt_label', 'train', source)` looks in the token cache for arrays
made from the same examples, vocabulary, prefix and form; where there are
none, it reads the prepared examples and writes them, whole or not at all, with
their digests, which are compared each time they are opened.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

import numpy as np
from absl import logging

from dsbs_jax import contract
from dsbs_jax.data import task_forms
from dsbs_jax.data.prepared import (
  array_folder,
  ragged,
  rationale_rules,
  store,
  tokenising,
)
from dsbs_jax.data.remote import object_cache, object_store
from dsbs_jax.data.vocabulary import vocabularies, vocabulary_files

_FORMAT = 2


@dataclasses.dataclass(frozen=True)
class Source:
  """Which examples are read, and as which ids.

  Attributes:
    data_dir: the folder that `prepare` wrote to.
    vocabulary: a vocabulary spec (see `vocabulary_files`).
    prefixes: 'paper' or 'code' (see `task_forms`).
    cache_dir: folder of the token cache; None is `data_dir/tokens`, or
      `tokens` in the cache of buckets.
  """

  data_dir: str
  vocabulary: str
  prefixes: str = 'paper'
  cache_dir: str | None = None

  def __post_init__(self):
    task_forms.prefixes(self.prefixes)
    vocabulary_files.parse_spec(self.vocabulary)

  @property
  def cache(self) -> pathlib.Path:
    """Folder of the token cache; of data in a bucket, one on this machine."""
    if not self.cache_dir and object_store.is_bucket(self.data_dir):
      return object_cache.folder() / 'tokens'
    return pathlib.Path(self.cache_dir or os.path.join(self.data_dir, 'tokens'))


@dataclasses.dataclass(frozen=True)
class Tokens:
  """A task's split as ids, in the order of the prepared examples.

  Attributes:
    inputs: encoder ids of each example, with what its vocabulary ends them by.
    targets: decoder ids of each example, EOS_ID last.
    index: [N] int64, position in the original file.
    term: the task id of every target token that is trained on, or None where
      `task_ids` tells.
    task_ids: the task id of each target token, where they differ; 0 where it
      is only read.
    texts: one Ragged of UTF-8 bytes for each of example_id, input, target
      (as prepared) and answer (what the metric compares with: the label,
      passed through the vocabulary).
    choices: where visits choose among several rationales, what they choose
      from; None where each row has one target.
  """

  name: str
  split: str
  inputs: ragged.Ragged
  targets: ragged.Ragged
  index: np.ndarray
  term: int | None
  task_ids: ragged.Ragged | None
  texts: dict[str, ragged.Ragged]
  vocabulary: vocabularies.Vocabulary
  choices: rationale_rules.Choices | None = None

  def __len__(self) -> int:
    return len(self.inputs)

  def example_id(self, position: int) -> str:
    """The row's own id."""
    return self._text('example_id', position)

  def input_text(self, position: int) -> str:
    """The encoder's text, with the prefix."""
    return self._text('input', position)

  @property
  def num_targets(self) -> int:
    """Number of targets: one per example, or all to choose from."""
    return len(self.targets if self.choices is None else self.choices.targets)

  def target_text(self, position: int, target: int | None = None) -> str:
    """The decoder's text, as prepared.

    Args:
      target: which of all targets, where the example has several.
    """
    if self.choices is None or target is None:
      return self._text('target', position)
    return self.choices.text(target)

  def label_text(self, position: int) -> str:
    """The label in the decoder's text, as prepared."""
    form = contract.parse_task_name(self.name).form
    return task_forms.label_of(form, self._text('target', position))

  def answer(self, position: int) -> str:
    """The text that a prediction is compared with."""
    return self._text('answer', position)

  def _text(self, field: str, position: int) -> str:
    return self.texts[field][position].tobytes().decode()


def load(name: str, split: str, source: Source) -> Tokens:
  """Memory-maps a task's tokens, writing them first where they are not cached.

  Raises:
    UserError: the name is no task's, the split is not prepared, or most of
      its training targets are empty.
  """
  parsed = contract.parse_task_name(name)
  if parsed.form == 'dsbs':
    raise contract.UserError(
      f'{name!r} is a mixture, expected one task. Its tasks are'
      f' {parsed.benchmark}_{parsed.label_source}_label and'
      f' {parsed.benchmark}_rationale.'
    )
  prepared = store.read(parsed.benchmark, source.data_dir)
  if split == 'train':
    prepared.check_targets(parsed)
  fingerprint = prepared.fingerprint(split)
  vocabulary = vocabularies.load(source.vocabulary)
  folder = cache_folder(parsed, split, source, examples=fingerprint)
  if not folder.is_dir():
    logging.info('Tokenising %s %s into %s', name, split, folder)
    prefix = task_forms.prefixes(source.prefixes).of(parsed.form)
    arrays = tokenising.tokenise(
      prepared, parsed, split, vocabulary=vocabulary, prefix=prefix
    )
    array_folder.write(folder, *arrays)
  more = (tokenising.TASK_IDS,) if parsed.form == 'counterfactual' else ()
  columns, index = array_folder.opened(folder, (*tokenising.FIELDS, *more))
  return Tokens(
    name=name,
    split=split,
    inputs=columns['inputs'],
    targets=columns['targets'],
    index=index,
    term=contract.term_of(parsed.form),
    task_ids=columns.get(tokenising.TASK_IDS),
    texts={field: columns[field] for field in tokenising.TEXTS},
    vocabulary=vocabulary,
  )


def splits(name: str, source: Source) -> tuple[str, ...]:
  """The prepared splits of a task or mixture; UserError where it has none."""
  parsed = contract.parse_task_name(name)
  return store.read(parsed.benchmark, source.data_dir).splits


def cache_folder(
  name: contract.TaskName,
  split: str,
  source: Source,
  *,
  examples: str,
  **more: Any,
) -> pathlib.Path:
  """A folder whose name changes with all that decides the arrays."""
  label = task_forms.label_source(name, split) if name.label_source else ''
  vocabulary = vocabularies.load(source.vocabulary)
  decisive = {
    'format': _FORMAT,
    'examples': examples,
    'vocabulary': vocabulary.fingerprint,
    'prefix': task_forms.prefixes(source.prefixes).of(name.form),
    'marker': task_forms.MARKERS.get(name.form, task_forms.SINGLE_MARKER),
    'label': label,
    **more,
  }
  digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode())
  parts = (name.benchmark, label, name.form, split, digest.hexdigest()[:16])
  return source.cache / '-'.join(part for part in parts if part)
