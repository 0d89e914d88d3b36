# SPDX-License-Identifier: Apache-2.0
"""A task's prepared examples -> its token arrays, a chunk at a time."""

import itertools
import sys
import time
from collections.abc import Sequence

import numpy as np

from dsbs_jax import contract
from dsbs_jax.data import benchmark, task_forms
from dsbs_jax.data.prepared import ragged, store
from dsbs_jax.data.vocabulary import vocabularies

TEXTS = ('example_id', 'input', 'target', 'answer')
FIELDS = ('inputs', 'targets', *TEXTS)
# And where some targets are only read, the task id of each, 0 for those.
TASK_IDS = 'task_ids'

_SECONDS_BETWEEN_LINES = 5.0
_CHUNK = 4096


def tokenise(
  prepared: store.Prepared,
  name: contract.TaskName,
  split: str,
  *,
  vocabulary: vocabularies.Vocabulary,
  prefix: str,
) -> tuple[list[int], dict[str, list[ragged.Ragged]]]:
  """The arrays of a task's split, from its prepared examples.

  Returns:
    Positions in the original file, and the columns `FIELDS` in pieces; with
    counterfactuals also `TASK_IDS`.
  """
  llm = task_forms.label_source(name, split) == 'llm'
  index, columns = [], {field: [] for field in FIELDS}
  told = time.monotonic()
  examples = prepared.examples(split)
  while batch := list(itertools.islice(examples, _CHUNK)):
    labels = [e.llm_label if llm else e.gt_label for e in batch]
    added = _columns(batch, labels, name.form, vocabulary, prefix)
    for field, column in added.items():
      columns.setdefault(field, []).append(column)
    index += [e.index for e in batch]
    if time.monotonic() - told > _SECONDS_BETWEEN_LINES:
      told = time.monotonic()
      done, total = len(index), prepared.num_examples(split)
      line = f'tokenising {name} {split}: {done:,} of {total:,}'
      print(line, file=sys.stderr, flush=True)
  return index, columns


def _columns(
  batch: Sequence[benchmark.Example],
  labels: Sequence[str],
  form: str,
  vocabulary: vocabularies.Vocabulary,
  prefix: str,
) -> dict[str, ragged.Ragged]:
  """The columns of some examples, whose labels are those that the task uses."""
  inputs = [task_forms.source(form, e, prefix=prefix) for e in batch]
  targets = [
    task_forms.target(
      form,
      label=label,
      rationale=e.rationale,
      verdict=e.verdict,
      counterfactual=e.counterfactual,
    )
    for e, label in zip(batch, labels, strict=True)
  ]
  answers = targets if form in contract.WITHOUT_LABEL else labels
  answers = [vocabulary.decode(i) for i in vocabulary.encode_all(answers)]
  ids = vocabulary.encode_inputs(inputs), vocabulary.encode_targets(targets)
  if form in task_forms.OPTIONAL:  # a row without one has no token
    ids = [
      [row if text else [] for text, row in zip(inputs, side, strict=True)]
      for side in ids
    ]
  columns = {
    'inputs': ragged.pack(ids[0], np.int32),
    'targets': ragged.pack(ids[1], np.int32),
    'example_id': ragged.pack_texts([e.example_id for e in batch]),
    'input': ragged.pack_texts(inputs),
    'target': ragged.pack_texts(targets),
    'answer': ragged.pack_texts(answers),
  }
  if form == 'counterfactual':
    read = [task_forms.read_only(e.counterfactual).rstrip() for e in batch]
    pairs = zip(ids[1], vocabulary.encode_all(read), strict=True)
    found = [_task_ids(*pair, contract.COUNTERFACTUAL_ID) for pair in pairs]
    columns[TASK_IDS] = ragged.pack(found, np.int32)
  return columns


def _task_ids(
  target: Sequence[int], read: Sequence[int], term: int
) -> np.ndarray:
  """The term of each target, 0 for those at the start that are only read.

  A token across the boundary, as some vocabularies have, is trained on.
  """
  both = min(len(target), len(read))
  differs = np.flatnonzero(np.array(target[:both]) != np.array(read[:both]))
  start = differs[0] if len(differs) else both
  return np.where(np.arange(len(target)) < start, 0, term)
