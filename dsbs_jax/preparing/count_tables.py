# SPDX-License-Identifier: Apache-2.0
"""What `prepare` prints: how many rows and completions, how many tokens."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import rich.progress
import rich.table

from dsbs_jax import contract
from dsbs_jax.data import benchmark, conclusions, register, task_forms
from dsbs_jax.data.prepared import store
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.runtime import terminal_text

FIELDS = ('input', 'gt_label', 'llm_label', 'rationale')
_COUNTED = (
  'rows',
  'completions',
  'usable',
  'blank_rationales',
  'blank_labels',
  'outside_labels',
)
_ARGUES = {
  conclusions.FOR: 'rationale argues for label',
  conclusions.AGAINST: 'rationale argues for another',
  conclusions.UNCLEAR: 'rationale cannot be told',
}
_QUANTILES = (0.5, 0.95, 0.99)
_CHUNK = 2048


def counts(prepared: store.Prepared) -> rich.table.Table:
  """Counts of every split, and of train's whole file where it was divided."""
  columns: dict[str, Mapping[str, Any]] = {}
  for split in prepared.splits:
    about = prepared.metadata['splits'][split]
    if split == 'train' and about['file_counts'] != about['counts']:
      columns['train file'] = about['file_counts']
    columns[split] = about['counts']
  table = rich.table.Table(title=f'{prepared.name}: rows and completions')
  table.add_column('')
  for column in columns:
    table.add_column(column, justify='right')

  def has(key: str) -> bool:
    return any(c[key] for c in columns.values())

  def add(name: str, value: Callable[[Mapping[str, Any]], str]) -> None:
    table.add_row(name, *map(value, columns.values()))

  def add_each(key: str, title: Callable[[str], str], names=None) -> None:
    """A row for each name that a count of `key` is kept of."""
    found = (name for c in columns.values() for name in c[key])
    for name in dict.fromkeys(found) if names is None else names:
      add(title(name), lambda c, n=name: f'{c[key].get(n, 0):,}')

  for key in _COUNTED:
    add(key.replace('_', ' '), lambda c, key=key: f'{c[key]:,}')
  add_each('models', _model_title)
  add_each('statuses', '  {}'.format)
  if has('torn'):
    add('cut last lines', lambda c: f'{c["torn"]:,}')
  for key in ('accuracy', 'usable_accuracy'):
    add(
      f'LLM label {key.replace("_", " ")} %',
      lambda c, key=key: '-' if c[key] is None else f'{c[key]:.2f}',
    )
  if has('argues'):
    add_each('argues', _ARGUES.get, _ARGUES)
    add('argues for another label %', _percent_against)
  if has('rationales'):
    add('rationales to choose from', lambda c: f'{c["rationales"]:,}')
  if has('soft_labels'):
    add('soft labels', lambda c: f'{c["soft_labels"]:,}')
    add('hard labels alone', lambda c: f'{c["answered"] - c["soft_labels"]:,}')
  if has('counterfactuals_asked'):
    add(
      'rationales for a wrong label',
      lambda c: f'{c["counterfactuals"]:,} of {c["counterfactuals_asked"]:,}',
    )
  add_each('verdicts', 'verdicts: {}'.format)
  for reason in dict.fromkeys(
    r for c in columns.values() for r in c['dropped']
  ):
    add(
      f'dropped: {reason}',
      lambda c, r=reason: f'{c["dropped"].get(r, 0):,}' if c['kept'] else '-',
    )
  add('examples written', lambda c: f'{c["kept"]:,}' if c['kept'] else '-')
  return table


def _model_title(model: str) -> str:
  return f'completions of {terminal_text.visible(model) or "an unnamed model"}'


def _percent_against(counts: Mapping[str, Any]) -> str:
  """Share of rationales that argue for another label than the human one."""
  found = counts['argues']
  total = sum(found.values())
  against = found.get(conclusions.AGAINST, 0)
  return f'{100 * against / total:.2f}' if total else '-'


def lengths(
  prepared: store.Prepared,
  spec: str | None,
  *,
  progress: rich.progress.Progress,
) -> rich.table.Table:
  """Lengths of every field, in tokens where a vocabulary can be had.

  Args:
    spec: a vocabulary spec; None takes the configured one.

  Returns:
    Mean, quantiles and maximum per split and field; tokens include the end
    id, and in inputs the label task's prefix.
  """
  source = register.source(data_dir=str(prepared.data_dir), vocabulary=spec)
  prefix = task_forms.prefixes(source.prefixes).label
  try:
    vocabulary = vocabularies.load(source.vocabulary)
  except contract.UserError as error:
    if spec is not None:
      raise
    progress.console.print(f'{error} Lengths are counted in words.')
    vocabulary = None
  unit = 'words' if vocabulary is None else f'tokens of {source.vocabulary}'
  table = rich.table.Table(title=f'{prepared.name}: lengths in {unit}')
  table.add_column('split')
  table.add_column('field')
  for column in ('mean', *(f'{100 * q:.0f} %' for q in _QUANTILES), 'max'):
    table.add_column(column, justify='right')
  for split in prepared.splits:
    examples = progress.track(
      prepared.examples(split), description=f'lengths {split}'
    )
    for field, found in _measure(examples, vocabulary, prefix).items():
      quantiles = np.quantile(found, _QUANTILES)
      table.add_row(
        split,
        field,
        f'{found.mean():.2f}',
        *(f'{quantile:.0f}' for quantile in quantiles),
        f'{found.max()}',
      )
  return table


def _measure(
  examples: Iterable[benchmark.Example],
  vocabulary: vocabularies.Vocabulary | None,
  prefix: str,
) -> dict[str, np.ndarray]:
  found: dict[str, list[int]] = {field: [] for field in FIELDS}
  examples = iter(examples)
  while chunk := list(itertools.islice(examples, _CHUNK)):
    for field in FIELDS:
      before = prefix if field == 'input' else ''
      texts = [before + getattr(example, field) for example in chunk]
      if vocabulary is None:
        found[field] += [len(text.split()) for text in texts]
      else:
        found[field] += [1 + len(ids) for ids in vocabulary.encode_all(texts)]
  return {field: np.array(lengths) for field, lengths in found.items()}
