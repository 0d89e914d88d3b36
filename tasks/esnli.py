# SPDX-License-Identifier: Apache-2.0
"""e-SNLI: does a premise entail a hypothesis, contradict it, or neither?

Record: {'premise': 'A boy sleeps.', 'hypothesis': 'A boy is awake.',
         'label': 2, 'explanation_1': '...'}
Input:  'A boy sleeps.</s>A boy is awake.', where </s> becomes the EOS id
Label:  'contradiction' (0 entailment, 1 neutral, 2 contradiction)
"""

from dsbs_jax.data import benchmark, metrics, parsing, register

LABELS = ('entailment', 'neutral', 'contradiction')


def render(row: benchmark.Row) -> str:
  """Premise and hypothesis, without blanks around what joins them."""
  return f'{row["premise"]}</s>{row["hypothesis"]}'


def label(row: benchmark.Row) -> str:
  """The name of the class."""
  number = row['label']
  if number not in (0, 1, 2):
    raise ValueError(f'the label is {number!r}, expected 0, 1 or 2')
  return LABELS[number]


def parse(text: str) -> parsing.Parsed | parsing.Unparsed:
  """Reads `rationale\\nAnswer: label`, as the original code.

  The rationale ends at `Answer:`, but the label begins after `Answer: `: a
  completion cut between the two has a rationale and no label.
  """
  rationale = text.split('Answer:')[0].rstrip()
  pieces = text.split('Answer: ')
  if len(pieces) < 2:
    reason = parsing.NO_LABEL if 'Answer:' in text else parsing.NO_MARKER
    return parsing.Unparsed(reason, rationale, ' ')
  return parsing.outcome(rationale, pieces[1].split('Premise')[0].rstrip())


BENCHMARK = benchmark.Benchmark(
  name='esnli',
  splits={
    'train': 'esnli_train.json',
    'validation': 'esnli_valid.json',
    'test': 'esnli_test.json',
  },
  render=render,
  label=label,
  parse=parse,
  metric=metrics.exact_match,
  labels=LABELS,
  parsers={'gpt-neox': lambda text: parse(text.lstrip())},
  completion='{rationale}\nAnswer: {label}',
)

register.register(BENCHMARK)
