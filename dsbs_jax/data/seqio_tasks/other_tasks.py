# SPDX-License-Identifier: Apache-2.0
"""(TF) Tokens of any other task or mixture that is registered with seqio.

They are read through seqio once per run and kept in memory: what such a task
is made of cannot be known, so neither can it when a copy on disk is stale.
"""

import difflib

import numpy as np
import seqio
import tensorflow as tf
from absl import logging

from dsbs_jax import contract
from dsbs_jax.data import register, task_modules
from dsbs_jax.data.prepared import ragged, tokens
from dsbs_jax.data.seqio_tasks import features, providers


def load(
  name: str, split: str, source: tokens.Source
) -> tuple[list[tokens.Tokens], list[float]]:
  """The tasks of a seqio task or mixture, and their rates.

  Args:
    name: a name in seqio's registries.
    split: the split; tasks without it are left out, as seqio does.
    source: where the tasks of this project among them read from.

  Returns:
    Tokens and mixing rate of each task. A task with the feature
    `targets_task_ids` says itself which term each target token is in; any
    other's targets count as labels.

  Raises:
    UserError: seqio does not know the name, or no task has the split.
  """
  register.build()
  try:
    provider = seqio.get_mixture_or_task(name)
  except ValueError as error:
    task_modules.import_ours()  # so that their names can be guessed
    register.build()
    known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    near = difflib.get_close_matches(str(name), sorted(known), n=3)
    hint = f' Did you mean {" or ".join(near)}?' if near else ''
    raise contract.UserError(
      f'{name!r} is neither a name of this project (BENCHMARK_gt_dsbs and the'
      f' like) nor registered with seqio.{hint} Correct MIXTURE_OR_TASK_NAME,'
      ' or import the module that registers it.'
    ) from error
  found = {
    task: tokens.splits(task.name, source) if _is_ours(task) else task.splits
    for task in seqio.get_subtasks(provider)
  }
  tasks = [task for task, splits in found.items() if split in splits]
  if not tasks:
    known = sorted({s for splits in found.values() for s in splits})
    raise contract.UserError(
      f'no task of {name!r} has a split {split!r}, expected one of'
      f' {", ".join(known)}.'
    )
  mixed = isinstance(provider, seqio.Mixture)
  rates = [provider.get_rate(task) if mixed else 1.0 for task in tasks]
  return [
    tokens.load(task.name, split, source)
    if _is_ours(task)
    else _read(task, split)
    for task in tasks
  ], rates


def _is_ours(task: seqio.Task) -> bool:
  return isinstance(task.source, providers.PreparedSource)


def _read(task: seqio.Task, split: str) -> tokens.Tokens:
  """Runs a task's own preprocessing over a split."""
  logging.info('Reading %s %s through seqio', task.name, split)
  for side in ('inputs', 'targets'):
    if side not in task.output_features:
      raise contract.UserError(
        f'seqio task {task.name!r} has the features'
        f' {sorted(task.output_features)}, expected inputs and targets.'
      )
  dataset = task.get_dataset(None, split, shuffle=False)
  examples = list(dataset.as_numpy_iterator())
  if not examples:
    raise contract.UserError(
      f'seqio task {task.name!r} has no {split} examples.'
    )
  vocabulary = task.output_features['targets'].vocabulary
  targets = ragged.pack([e['targets'] for e in examples], np.int32)
  answers = [_text(e, 'targets', vocabulary) for e in examples]
  texts = {
    'example_id': list(map(str, range(len(examples)))),
    'input': [
      _text(e, 'inputs', task.output_features['inputs'].vocabulary)
      for e in examples
    ],
    'target': answers,
    'answer': answers,
  }
  term, task_ids = contract.LABEL_ID, None
  if features.TASK_IDS in examples[0]:
    term, task_ids = None, _task_ids(task.name, examples)
  return tokens.Tokens(
    name=task.name,
    split=split,
    inputs=ragged.pack([e['inputs'] for e in examples], np.int32),
    targets=targets,
    index=np.arange(len(examples)),
    term=term,
    task_ids=task_ids,
    texts={f: ragged.pack_texts(values) for f, values in texts.items()},
    vocabulary=vocabulary,
  )


def _task_ids(name: str, examples: list[dict]) -> ragged.Ragged:
  """The term of each target token, as the task says it."""
  known = [0, *contract.TASK_IDS.values()]
  for number, example in enumerate(examples):
    ids, targets = example[features.TASK_IDS], example['targets']
    if len(ids) != len(targets):
      raise contract.UserError(
        f'seqio task {name!r} has {len(ids)} {features.TASK_IDS} for'
        f' {len(targets)} targets in example {number}, expected one for each.'
        ' Make them behind append_eos.'
      )
    if others := sorted({*ids.tolist()} - {*known}):
      raise contract.UserError(
        f'seqio task {name!r} has {features.TASK_IDS} {others} in example'
        f' {number}, expected some of {known}: 0 or values of'
        ' contract.TASK_IDS.'
      )
  return ragged.pack([e[features.TASK_IDS] for e in examples], np.int32)


def _text(example, side: str, vocabulary: seqio.Vocabulary) -> str:
  """A side's text: as it was, if the task kept it, else decoded."""
  kept = example.get(f'{side}_pretokenized')
  if not isinstance(kept, bytes):
    kept = vocabulary.decode(example[side].tolist())
  return tf.compat.as_text(kept)
