# SPDX-License-Identifier: Apache-2.0
"""ASDiv, which the paper adds to SVAMP's training data without its labels.

Record: {'Body': 'Ida has 8 pears and eats 3.',
         'Question': 'How many are left?',
         'Formula': '8-3=5', 'Answer': '5 (pears)'}
Input:  'Ida has 8 pears and eats 3.\\nHow many are left?'
Label:  '5', the first word of the answer: a number, where SVAMP has an equation

Two benchmarks: `asdiv` alone, and `svamp_asdiv`, whose train is SVAMP's 800
problems followed by ASDiv's and whose test is SVAMP's. A tenth of train
validates (3,105 problems are cut into 2,794 and 311).
"""

import dataclasses

from dsbs_jax.data import benchmark, register

from . import svamp


def label(row: benchmark.Row) -> str:
  """The number that the answer begins with."""
  return row['Answer'].split(' ')[0]


def _label_both(row: benchmark.Row) -> str:
  return label(row) if 'Formula' in row else svamp.label(row)


BENCHMARK = dataclasses.replace(
  svamp.BENCHMARK,
  name='asdiv',
  splits={'train': 'asdiv_train.json', 'test': 'asdiv_test.json'},
  label=label,
  fallbacks={},
  completion='{rationale} The answer is ({label}).',
)

AUGMENTED = dataclasses.replace(
  BENCHMARK,
  name='svamp_asdiv',
  splits={
    'train': ('svamp_train.json', 'asdiv_train.json'),
    'test': 'svamp_test.json',
  },
  label=_label_both,
  completion=svamp.BENCHMARK.completion,
)

register.register(BENCHMARK)
register.register(AUGMENTED)
