# SPDX-License-Identifier: Apache-2.0
"""Writes a prompt file from labelled rows; rationales are left to the user."""

import itertools
import json
import pathlib
from collections.abc import Iterable
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import parsing
from dsbs_jax.data.source import rows as rows_lib
from rationales import prompt_checks

NUM_EXEMPLARS = 3
_SEARCHED_ROWS = 1000
# Layouts of an answer, of which the first that the parser reads is taken.
_LAYOUTS = (
  '{rationale} The answer is {answer}.',
  '{rationale} So the answer is {answer}.',
  '{rationale}\nAnswer: {answer}',
)


def write(
  path: pathlib.Path,
  benchmark: benchmark_lib.Benchmark,
  rows: Iterable[rows_lib.Row],
) -> str:
  """Writes a prompt with three exemplars, of different labels where possible.

  Returns:
    What to do next, for the user.

  Raises:
    contract.UserError: the file exists, or fewer than three rows have a label.
  """
  chosen = _choose(itertools.islice(rows, _SEARCHED_ROWS))
  if len(chosen) < NUM_EXEMPLARS:
    raise contract.UserError(
      f'{len(chosen)} of the first {_SEARCHED_ROWS:,} rows have a label,'
      f' expected {NUM_EXEMPLARS} for a prompt. Give a --source or --split with'
      ' labelled rows.'
    )
  text = json.dumps(_prompt(benchmark, chosen), indent=2, ensure_ascii=False)
  try:
    with path.open('x', encoding='utf-8') as file:
      file.write(text + '\n')
  except FileExistsError:
    raise contract.UserError(
      f'{path} exists, expected a new file for --write_prompt. Give another'
      ' name, or remove it.'
    ) from None
  return (
    f'{path} has an exemplar for each of {", ".join(r.place for r in chosen)}.'
    f' Replace each {prompt_checks.TODO} by your own words, then look at the'
    f' prompts with --prompt={path} --preview=3.'
  )


def _choose(rows: Iterable[rows_lib.Row]) -> list[rows_lib.Row]:
  """Rows with a label: first one of each label, then the earliest."""
  labelled = [row for row in rows if row.gt_label.strip()]
  first = {row.gt_label: row for row in reversed(labelled)}
  distinct = sorted(first.values(), key=lambda row: row.index)
  others = [row for row in labelled if row not in distinct]
  return (distinct + others)[:NUM_EXEMPLARS]


def _prompt(
  benchmark: benchmark_lib.Benchmark, rows: list[rows_lib.Row]
) -> dict[str, Any]:
  todo = prompt_checks.TODO
  labels = f', one of {", ".join(benchmark.labels)}' if benchmark.labels else ''
  return {
    'benchmark': benchmark.name,
    'provenance': 'exemplars from the training rows; rationales by ',
    'instruction': f'{todo}: what is to be done. First give the reason in one'
    f' or two sentences, then the label{labels}, as in the examples.',
    'question': 'Q: {rendered}',
    'hint': '\nHint: the correct answer is {label}.',
    'cue': '\nA:',
    'answer': _layout(benchmark, rows[0].gt_label),
    'stop': ['\n\nQ:'],
    'exemplars': [
      {
        'group': row.gt_label,
        'input': row.input,
        'rationale': f'{todo}: why the label is right.',
        'label': row.gt_label,
      }
      for row in rows
    ],
  }


def _layout(benchmark: benchmark_lib.Benchmark, label: str) -> str:
  """How an answer must read for the benchmark's parser to find the label."""
  own = (benchmark.completion or '').replace('{label}', '{answer}')
  own = own.replace('{', '{{').replace('}', '}}')  # as in a JSON answer
  for field in ('{rationale}', '{answer}'):
    own = own.replace(f'{{{field}}}', field)
  for layout in filter(None, (own, *_LAYOUTS)):
    outcome = benchmark.parse(layout.format(rationale='Because.', answer=label))
    if isinstance(outcome, parsing.Parsed) and outcome.label == label:
      return layout
  return f'{{rationale}} {prompt_checks.TODO} {{answer}}'
