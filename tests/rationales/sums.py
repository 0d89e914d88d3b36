# SPDX-License-Identifier: Apache-2.0
"""A benchmark of our own for the tests: sums, with rows that cannot be mixed up.

Record: {'q': 'What is 12 + 91?', 'a': '103'}; every row has another q. The
server of `loopback` gets some sums wrong and some unreadable, by the last
digit of the first number, so that every count can be computed.
"""

import dataclasses
import json
import pathlib
import re

from dsbs_jax.data import benchmark, metrics, parsing

WRONG_DIGIT, UNREADABLE_DIGIT = 3, 7
# Samples 1, 2 and 3 get these sums wrong, all in the same way.
MISLED_DIGIT = 9

_NUMBERS = re.compile(r'What is (\d+) \+ (\d+)\?')

BENCHMARK = benchmark.Benchmark(
  name='sums',
  splits={'train': 'sums_train.json'},
  render=lambda row: row['q'],
  label=lambda row: row['a'],
  parse=parsing.after_marker('The answer is', label=r'(\d+)\.'),
  metric=metrics.exact_match,
)

PROMPT = {
  'benchmark': 'sums',
  'provenance': 'written for the tests',
  'instruction': 'Add.',
  'question': 'Q: {q}',
  'hint': '\nHint: it is {label}.',
  'cue': '\nA:',
  'answer': '{rationale} The answer is {answer}.',
  'stop': ['\n\nQ:'],
  'exemplars': [
    {
      'group': group,
      'input': {'q': f'What is {a} + {b}?'},
      'rationale': f'{a} and {b} make {a + b}.',
      'label': str(a + b),
    }
    for group, a, b in [('small', 1, 2), ('small', 2, 5), ('large', 900, 50)]
  ],
}


def row(index: int) -> dict[str, str]:
  """The row of this index."""
  a, b = index, 7 * index % 1000
  return {'q': f'What is {a} + {b}?', 'a': str(a + b)}


def closed(*labels: str) -> benchmark.Benchmark:
  """The benchmark with a closed set of labels."""
  return dataclasses.replace(BENCHMARK, labels=labels)


def write(folder: pathlib.Path, num_rows: int) -> pathlib.Path:
  """Writes rows and prompt; returns the folder."""
  with (folder / 'sums_train.json').open('w', encoding='utf-8') as file:
    file.writelines(json.dumps(row(i)) + '\n' for i in range(num_rows))
  (folder / 'sums_prompt.json').write_text(json.dumps(PROMPT))
  return folder


def answer(question: str, sample: int) -> str:
  """What the tests' LLM answers to a prompt's last question."""
  match = _NUMBERS.search(question)
  if match is None:
    return f'I do not know this one: {question}'
  a, b = int(match[1]), int(match[2])
  said = f'Take {sample}: {a} and {b} are added.'
  if a % 10 == UNREADABLE_DIGIT:
    return f'{said} Nobody can tell.'
  misled = a % 10 == MISLED_DIGIT and sample in (1, 2, 3)
  wrong = (a % 10 == WRONG_DIGIT or misled) and 'Hint' not in question
  return f'{said} The answer is {a + b + wrong}.'


# The same sums as multiple choice: right, or up to three more.
CHOICES = dataclasses.replace(
  BENCHMARK,
  name='sum_choices',
  options=lambda row: [str(int(row['a']) + more) for more in range(4)],
)

benchmark.add(BENCHMARK)
benchmark.add(CHOICES)
