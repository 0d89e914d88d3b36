# SPDX-License-Identifier: Apache-2.0
"""Targets of all rationales that a rule leaves of each row, as ids, cached.

They lie in the token cache beside the tokens of their task, under a key of
their own: inputs and labels are the task's, only the targets are more.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from dsbs_jax import contract
from dsbs_jax.data import benchmark, task_forms
from dsbs_jax.data.prepared import (
  array_folder,
  ragged,
  rationale_rules,
  store,
  tokens,
)
from dsbs_jax.data.vocabulary import vocabularies

# Forms whose targets hold a rationale.
FORMS = ('rationale', *task_forms.MARKERS)
_CHUNK = 4096


def load(
  task: tokens.Tokens, source: tokens.Source, *, rule: str, label_source: str
) -> tokens.Tokens:
  """A task's tokens with what its visits choose from.

  Args:
    task: the tokens, of a form in `FORMS`.
    rule: of `rationale_rules`; with FIRST the tokens stay as they are.
    label_source: 'gt' or 'llm', for a rule that looks at the target.

  Raises:
    UserError: no row has several rationales.
  """
  name = contract.parse_task_name(task.name)
  if rule == rationale_rules.FIRST or name.form not in FORMS:
    return task
  prepared = store.read(name.benchmark, source.data_dir)
  several = prepared.rationales(task.split)
  head = next(several)  # an error at once where there are none
  several = itertools.chain([head], several)
  folder = tokens.cache_folder(
    name,
    task.split,
    source,
    examples=prepared.fingerprint(task.split),
    rationales=[
      rule,
      label_source,
      prepared.rationales_fingerprint(task.split),
    ],
  )
  if not folder.is_dir():
    chosen = _chosen(prepared, several, task.split, (rule, label_source))
    counts, columns = _tokenise(chosen, name, task.vocabulary)
    array_folder.write(folder, counts, columns)
  found, counts = array_folder.opened(folder, ('targets', 'target', 'empty'))
  choices = rationale_rules.Choices(
    rule=rule,
    fingerprint=prepared.rationales_fingerprint(task.split),
    targets=found['targets'],
    counts=counts,
    texts=found['target'],
    num_empty=len(found['empty'].flat),
  )
  return dataclasses.replace(task, choices=choices)


def _chosen(
  prepared: store.Prepared,
  several: Iterator[tuple[int, tuple[benchmark.Rationale, ...]]],
  split: str,
  how: tuple[str, str],
) -> Iterator[tuple[benchmark.Example, list[str], bool]]:
  """Each example, its rationales to choose from, whether a rule left none."""
  place, rationales = next(several)
  for position, example in enumerate(prepared.examples(split)):
    if position != place:
      yield example, [example.rationale], False
      continue
    rule, label_source = how
    kept = rationale_rules.RULES[rule](rationales, label_source)
    texts = [rationales[number].text for number in kept]
    yield example, texts or [example.rationale], not texts
    place, rationales = next(several, (-1, ()))
  # Read to the end, where its digest is compared.
  assert next(several, None) is None, place


def _tokenise(
  chosen: Iterator[tuple[benchmark.Example, list[str], bool]],
  name: contract.TaskName,
  vocabulary: vocabularies.Vocabulary,
) -> tuple[list[int], dict[str, list[ragged.Ragged]]]:
  """How many each row has, and the columns in pieces."""
  llm = name.label_source == 'llm'
  counts, empty = [], []
  columns = {'targets': [], 'target': []}
  while batch := list(itertools.islice(chosen, _CHUNK)):
    texts = []
    for example, rationales, left_none in batch:
      if left_none:
        empty.append(len(counts))
      counts.append(len(rationales))
      label = example.llm_label if llm else example.gt_label
      texts += [
        task_forms.target(name.form, label=label, rationale=rationale)
        for rationale in rationales
      ]
    columns['targets'].append(
      ragged.pack(vocabulary.encode_targets(texts), np.int32)
    )
    columns['target'].append(ragged.pack_texts(texts))
  columns['empty'] = [ragged.pack([empty], np.int64)]
  return counts, columns
