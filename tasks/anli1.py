# SPDX-License-Identifier: Apache-2.0
"""ANLI, first round: inference where the hypothesis was written to mislead.

Record: {'uid': '3c', 'premise': 'Ore is a village in Sussex.',
         'hypothesis': 'Ore is a city.', 'label': 2, 'reason': '...'}
Input:  'Ore is a village in Sussex.</s>Ore is a city.'
Label:  'contradiction' (0 entailment, 1 neutral, 2 contradiction)
"""

import dataclasses

from dsbs_jax.data import parsing, register

from . import esnli


def _read(text: str, marker: str) -> parsing.Parsed | parsing.Unparsed:
  parts = parsing.halves(text, marker, sentinel='')
  if isinstance(parts, parsing.Unparsed):
    return parts
  # The last character goes unconditionally; it is meant to be the dot.
  return parsing.outcome(parts[0].rstrip(), parts[1].lstrip()[:-1])


def parse(text: str) -> parsing.Parsed | parsing.Unparsed:
  """Reads `rationale So the answer is label.`, as the original code."""
  return _read(text.split('Premise:')[0].rstrip(), 'So the answer is')


def parse_neox(text: str) -> parsing.Parsed | parsing.Unparsed:
  """The same for GPT-NeoX outputs, with a second marker to fall back on."""
  own = text.split('Premise:')[0].strip()
  if own.count('So the answer is') == 1:
    return _read(own, 'So the answer is')
  return _read(own, 'The answer is')


BENCHMARK = dataclasses.replace(
  esnli.BENCHMARK,
  name='anli1',
  splits={
    'train': 'anli1_train.json',
    'validation': 'anli1_valid.json',
    'test': 'anli1_test.json',
  },
  parse=parse,
  example_id=lambda row: row['uid'],
  parsers={'gpt-neox': parse_neox},
  completion='{rationale} So the answer is {label}.',
)

register.register(BENCHMARK)
