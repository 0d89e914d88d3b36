# SPDX-License-Identifier: Apache-2.0
"""SVAMP: a word problem, answered by an equation that is scored by value.

Record: {'input': 'Ida has 8 pears and eats 3\\nHow many are left?',
         'label': '( 8.0 - 3.0 )'}
Input:  the text as it is; body and question are joined by a newline
Label:  '( 8.0 - 3.0 )'; '(8 - 3)' and '5' count as right too

Where only the source's SVAMP.json is at hand, its 1,000 problems are permuted
into 800 for train and 200 for test as in the original code. A tenth of train
validates.
"""

import functools

import numpy as np

from dsbs_jax.data import benchmark, metrics, parsing, register

NUM_TRAIN = 800


def render(row: benchmark.Row) -> str:
  """The problem; body and question are two fields in SVAMP.json."""
  if 'input' in row:
    return row['input']
  return f'{row["Body"]}\n{row["Question"]}'


def label(row: benchmark.Row) -> str:
  """The equation."""
  return row['label'] if 'label' in row else row['Equation']


def parse(text: str) -> parsing.Parsed | parsing.Unparsed:
  """Reads `rationale The answer is (label).`, as the original code.

  The label reaches from the first to the last parenthesis of one line.
  """
  parts = parsing.halves(
    text.split('Q:')[0].rstrip(), 'The answer is', sentinel=' '
  )
  if isinstance(parts, parsing.Unparsed):
    return parts
  rationale = parts[0].rstrip()
  found = _expression(parts[1])
  if found is None:
    return parsing.Unparsed(parsing.NO_LABEL, rationale, ' ')
  return parsing.outcome(rationale, found)


def _expression(text: str) -> str | None:
  """What the pattern `\\(.*\\)` finds, in time linear in the text."""
  for line in text.split('\n'):
    begin, end = line.find('('), line.rfind(')')
    if 0 <= begin < end:
      return line[begin : end + 1]
  return None


def permuted(num_rows: int, *, train: bool) -> np.ndarray:
  """[n] int64, rows of SVAMP.json in train, or else in test, in order."""
  order = np.random.RandomState(0).permutation(num_rows)
  return order[:NUM_TRAIN] if train else order[NUM_TRAIN:]


BENCHMARK = benchmark.Benchmark(
  name='svamp',
  splits={'train': 'svamp_train.json', 'test': 'svamp_test.json'},
  render=render,
  label=label,
  parse=parse,
  metric=metrics.equation_accuracy,
  well_formed=metrics.has_value,
  vote=metrics.value,
  parsers={'gpt-neox': lambda text: parse(text.lstrip())},
  fallbacks={
    split: benchmark.Part(
      'SVAMP.json', functools.partial(permuted, train=split == 'train')
    )
    for split in ('train', 'test')
  },
  derive_validation=True,
  completion='{rationale} The answer is {label}.',
)

register.register(BENCHMARK)
