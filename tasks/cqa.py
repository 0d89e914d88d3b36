# SPDX-License-Identifier: Apache-2.0
"""CommonsenseQA 1.11: a question with five choices, answered by a text.

Record: {'id': '7f3a', 'question': 'Where do you keep milk cold?',
         'choices': ['oven', 'fridge', 'shelf', 'garden', 'box'],
         'answer': 'fridge'}
Input:  'Where do you keep milk cold?\\nAnswer Choices:\\n(a) oven\\n(b) ...'
Label:  'fridge', the text and not the letter

The test split is the public validation split; a tenth of train validates.
"""

import re

from dsbs_jax.data import benchmark, columns, metrics, parsing, register

_LETTER = re.compile(r'\(.\)')


def render(row: benchmark.Row) -> str:
  """The question and its lettered choices, one per line."""
  choices = row['choices']
  if len(choices) != 5:
    raise ValueError(f'the row has {len(choices)} choices, expected 5')
  lines = [row['question'], 'Answer Choices:', columns.lettered(choices)]
  return '\n'.join(lines)


def parse(text: str) -> parsing.Parsed | parsing.Unparsed:
  """Reads `rationale So the answer is (x) label.`, as the original code.

  The original raises where the marker does not occur exactly once; here that
  is `Unparsed` with the blanks that it uses for everything else.
  """
  parts = parsing.halves(
    text.split('Q:')[0].rstrip(), 'So the answer is', sentinel=' '
  )
  if isinstance(parts, parsing.Unparsed):
    return parts
  rationale = parts[0].rstrip()
  pieces = _LETTER.split(parts[1])
  if len(pieces) < 2:
    return parsing.Unparsed(parsing.NO_LABEL, rationale, ' ')
  label = pieces[1].strip()
  if not label:
    return parsing.Unparsed(parsing.BLANK_LABEL, rationale, ' ')
  # One dot goes, whoever owns it: 'washington d.c.' becomes 'washington d.c'.
  return parsing.outcome(rationale, label.removesuffix('.'))


BENCHMARK = benchmark.Benchmark(
  name='cqa',
  splits={'train': 'cqa_train.json', 'test': 'cqa_test.json'},
  render=render,
  label=lambda row: row['answer'],
  parse=parse,
  metric=metrics.exact_match,
  options=lambda row: row['choices'],
  example_id=lambda row: row['id'],
  parsers={'gpt-neox': lambda text: parse(text.lstrip())},
  derive_validation=True,
  completion='{rationale} So the answer is (x) {label}.',
)

register.register(BENCHMARK)
