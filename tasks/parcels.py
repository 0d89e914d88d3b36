# SPDX-License-Identifier: Apache-2.0
"""Parcels, the bundled synthetic benchmark: which of two is heavier?

Record: {'id': 'train-0', 'first': 'lamp', 'second': 'drum',
         'heavier': 'first'}
Input:  'lamp or drum?'
Label:  'first' or 'second'

Rows and completions are made by examples/parcels/generate.py; no LLM wrote
them.
"""

from dsbs_jax.data import benchmark, metrics, parsing, register

BENCHMARK = benchmark.Benchmark(
  name='parcels',
  splits={split: f'{split}.jsonl' for split in ('train', 'validation', 'test')},
  render=lambda row: f'{row["first"]} or {row["second"]}?',
  label=lambda row: row['heavier'],
  parse=parsing.after_marker('So the answer is', label=r'(\w+)\.'),
  metric=metrics.exact_match,
  labels=('first', 'second'),
  example_id=lambda row: row['id'],
  completion='{rationale} So the answer is {label}.',
)

register.register(BENCHMARK)
