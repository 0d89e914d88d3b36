# SPDX-License-Identifier: Apache-2.0
"""A toy benchmark in the user's layout, and the small archive fixture."""

import json
import pathlib

from dsbs_jax.data import benchmark, metrics, parsing

ARCHIVE = pathlib.Path(__file__).parent / 'fixtures' / 'archive'

BENCHMARK = benchmark.Benchmark(
  name='toy',
  splits={'train': 'train.jsonl', 'test': 'test.jsonl'},
  render=lambda row: row['q'],
  label=lambda row: row['a'],
  parse=parsing.after_marker('The answer is', label=r'(\S+)\.'),
  metric=metrics.exact_match,
  labels=('yes', 'no'),
  example_id=lambda row: row['id'],
)

# A whole file of one row, and of its completion.
ROW = b'{"id": "r0", "q": "?", "a": "yes"}\n'
SAID = b'{"id": "r0", "text": "So. The answer is yes."}\n'


def write_lines(path, values):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(value) + '\n' for value in values))


def write(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)


def source(folder, *, num_rows=4):
  """A source whose row i is answered 'yes' for even i."""
  rows = [
    {'id': f'r{i}', 'q': f'is {i} even?', 'a': 'no' if i % 2 else 'yes'}
    for i in range(num_rows)
  ]
  write_lines(folder / 'train.jsonl', rows)
  write_lines(folder / 'test.jsonl', rows[:1])
  return folder


def said(i, label, *, sample=0, **more):
  """A completion of row i."""
  text = f'It is {i} for sample {sample}. The answer is {label}.'
  return {'id': f'r{i}', 'sample': sample, 'text': text, **more}


def statuses(examples):
  return [example.status for example in examples]
