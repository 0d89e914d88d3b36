# SPDX-License-Identifier: Apache-2.0
"""Texts made of a row's columns: '{premise}</s>{hypothesis}'.

A template names columns in braces; it calls nothing and reads no attributes.
`\\n`, `\\t` and `\\\\` stand for a line end, a tab and a backslash, `{{` and
`}}` for braces. What a cell reads as:

  text           itself
  whole number   its digits; other numbers as Python writes them
  true, false    as JSON writes them
  None, NaN      '', as in CSV
  list of these  lettered lines: '(a) oven', '(b) fridge'

Anything else, such as a date or an object, is an error.
"""

import difflib
import math
import re
import string
from collections.abc import Mapping
from typing import Any

from dsbs_jax import contract

_PART = re.compile(r'\{\{|\}\}|\{([^{}]+)\}|[{}]|\\[nt\\]')
_LITERALS = {'{{': '{', '}}': '}', r'\n': '\n', r'\t': '\t', r'\\': '\\'}


def names(template: str) -> list[str]:
  """A template's columns, in order; UserError for a brace without its other."""
  found = []
  for match in _PART.finditer(template):
    if match[0] in ('{', '}'):
      raise contract.UserError(
        f'the template {template!r} has {match[0]!r} alone at position'
        f' {match.start()}, expected column names in braces, such as'
        " '{question}'. Braces themselves are written twice."
      )
    if match[1]:
      found.append(match[1])
  return found


def fill(template: str, row: Mapping[str, Any], *, lists: bool = False) -> str:
  """The text that a template gives for a row; errors as `cell` and `text`."""

  def part(match: re.Match) -> str:
    if not match[1]:
      return _LITERALS[match[0]]
    value = cell(row, match[1])
    if lists and isinstance(value, list | tuple):
      return lettered([text(v, match[1]) for v in value])
    return text(value, match[1])

  return _PART.sub(part, template)


def cell(row: Mapping[str, Any], column: str) -> Any:
  """A cell, else KeyError; 'a.text' is also the `text` of an object `a`."""
  if column in row:
    return row[column]
  first, dot, rest = column.partition('.')
  if dot and isinstance(row.get(first), Mapping):
    return cell(row[first], rest)
  near = difflib.get_close_matches(column, map(str, row), n=1)
  raise KeyError(f'{column}; did you mean {near[0]}?' if near else column)


def text(value: Any, column: str) -> str:
  """How a cell reads; ValueError if it is no text, number, bool or None."""
  match value:
    case str():
      return value
    case None:
      return ''
    case bool():
      return 'true' if value else 'false'
    case float() if math.isnan(value):
      return ''
    case int() | float():
      return str(value)
  raise ValueError(
    f'the cell of {column!r} is a {type(value).__name__}, {value!r:.60},'
    ' expected text or a number'
  )


def lettered(choices: list[str]) -> str:
  """Choices as lines, '(a) oven', '(b) fridge'; ValueError for more than 26."""
  if len(choices) > len(string.ascii_lowercase):
    raise ValueError(f'there are {len(choices)} choices, expected at most 26')
  pairs = zip(string.ascii_lowercase, choices, strict=False)
  return '\n'.join(f'({letter}) {choice}' for letter, choice in pairs)
