# SPDX-License-Identifier: Apache-2.0
"""Templates put cells into texts, and run nothing."""

import datetime
import math

import pytest

from dsbs_jax import contract
from dsbs_jax.data import columns

ROW = {
  'q': 'Why?',
  'My column': '{q}',
  'n': 5,
  'f': 0.5,
  'yes': True,
  'none': None,
  'nan': math.nan,
  'list': ['oven', 3],
  'deep': {'text': 'x', 'more': {'y': 'z'}},
  'a.b': 'dotted',
}


@pytest.mark.parametrize(
  'template, text',
  [
    ('{q}', 'Why?'),
    (r'{q}\n{n}\t{f}\\', 'Why?\n5\t0.5\\'),
    ('{My column} {{q}}', '{q} {q}'),  # what a cell holds is not read again
    ('{q}</s>{q}', 'Why?</s>Why?'),
    ('{yes}|{none}|{nan}', 'true||'),
    ('{list}', '(a) oven\n(b) 3'),
    ('{deep.text} {deep.more.y} {a.b}', 'x z dotted'),
    (r'\d{n}', r'\d5'),
  ],
)
def test_cells_read_as_the_table_says(template, text):
  columns.names(template)
  assert columns.fill(template, ROW, lists=True) == text


def test_templates_reach_nothing_but_columns():
  for template in ('{q.__class__}', '{q!r}', '{q:>10}', '{0}', '{}'):
    with pytest.raises((KeyError, contract.UserError)):
      columns.names(template)
      columns.fill(template, ROW)
  with pytest.raises(KeyError, match='quesion; did you mean question'):
    columns.fill('{quesion}', {'question': 'x'})


@pytest.mark.parametrize('value', [{'x': 1}, datetime.date(2026, 1, 1), b'x'])
def test_other_cells_are_errors(value):
  with pytest.raises(
    ValueError, match=f"cell of 'c' is a {type(value).__name__}"
  ):
    columns.fill('{c}', {'c': value}, lists=True)
  with pytest.raises(ValueError, match="cell of 'list' is a list"):
    columns.fill('{list}', ROW)


@pytest.mark.parametrize('template', ['{q', 'q}', '{a{b}}', '{}'])
def test_stray_braces_are_errors(template):
  with pytest.raises(contract.UserError, match='alone at position'):
    columns.names(template)
