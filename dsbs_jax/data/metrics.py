# SPDX-License-Identifier: Apache-2.0
"""Scores: exact text, and the value of an equation. Plain Python.

Both metrics have seqio's signature `(targets, predictions) -> {name: value}`
and give percent. Equations come from models and files, so they are never
given to `eval`: a bounded reader walks Python's own syntax tree and knows
numbers, + - * /, signs and parentheses.
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Sequence

MAX_CHARS = 1000
MAX_DEPTH = 50
MAX_DIGITS = 300

# Only these characters can be part of an equation; `e` is the exponent's.
_EQUATION = re.compile(r'[0-9eE.+\-*/() \t\n]+', re.ASCII)
_NUMBER = re.compile(r'[0-9.]+')
_BINARY = {
  ast.Add: operator.add,
  ast.Sub: operator.sub,
  ast.Mult: operator.mul,
  ast.Div: operator.truediv,
}
_UNARY = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def exact_match(
  targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
  """Percentage of predictions equal to their target, character by character.

  Nothing is stripped or lower-cased, and a blank prediction counts as wrong
  unless the target is the same blank.

  Returns:
    {'accuracy': percent in [0, 100]}.

  Raises:
    ValueError: different numbers of texts, or none.

  Source: the text accuracy of the original code of arXiv 2305.02301.
  """
  return _accuracy(targets, predictions, str)


def equation_accuracy(
  targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
  """Percentage of predictions whose value equals their target's.

  Args:
    targets: equations or numbers as text, such as '( 84.0 / 2.0 )'.

  Returns:
    {'accuracy': percent in [0, 100]}. Values are compared as exact floats; a
    text without a value (see `value`) equals nothing, not even itself.

  Raises:
    ValueError: different numbers of texts, or none.
  """
  return _accuracy(targets, predictions, value)


def value(equation: str) -> float:
  """The number that an equation stands for, or NaN.

  Numbers, + - * /, signs and parentheses have their meaning in Python;
  whatever else, division by zero, infinities and anything over the bounds of
  this module (characters, depth of parentheses, digits of one number) give
  NaN. The bounds are checked before anything is parsed, so that no text takes
  long.
  """
  text = equation.strip() if len(equation) <= MAX_CHARS else ''
  if not _EQUATION.fullmatch(text) or not _within_bounds(text):
    return math.nan
  try:
    number = float(_walk(ast.parse(text, mode='eval').body))
  except (SyntaxError, ArithmeticError, RecursionError, MemoryError):
    return math.nan
  return number if math.isfinite(number) else math.nan


def has_value(equation: str) -> bool:
  """Whether a text is an equation that `value` can read."""
  return not math.isnan(value(equation))


def _within_bounds(text: str) -> bool:
  depth = deepest = signs = 0
  for character in text:
    depth += (character == '(') - (character == ')')
    signs = signs + 1 if character in '+-' else 0 if character > ' ' else signs
    deepest = max(deepest, depth, signs)
  longest = max(map(len, _NUMBER.findall(text)), default=0)
  return deepest <= MAX_DEPTH and longest <= MAX_DIGITS


def _walk(node: ast.AST) -> int | float:
  """The value of a syntax tree; SyntaxError for what is not arithmetic."""
  # A long sum leans to the left: walked in a loop, so that the depth of calls
  # is bounded by MAX_DEPTH and no value depends on how deep the caller is.
  pending = []
  while isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
    pending.append(node)
    node = node.left
  number = _operand(node)
  for outer in reversed(pending):
    number = _BINARY[type(outer.op)](number, _walk(outer.right))
  return number


def _operand(node: ast.AST) -> int | float:
  match node:
    case ast.Constant(value=int() | float() as number):
      return number
    case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
      return _UNARY[type(op)](_walk(operand))
    case ast.BinOp(op=op) if type(op) in _BINARY:
      return _walk(node)
  raise SyntaxError(f'{type(node).__name__} is not arithmetic')


def _accuracy(
  targets: Sequence[str], predictions: Sequence[str], key: Callable
) -> dict[str, float]:
  """Percentage of predictions with the same key as their target."""
  if len(targets) != len(predictions) or not len(targets):
    raise ValueError(
      f'{len(targets)} targets and {len(predictions)} predictions, expected'
      ' the same number and at least one.'
    )
  pairs = zip(targets, predictions, strict=True)
  hits = sum(key(target) == key(prediction) for target, prediction in pairs)
  return {'accuracy': 100.0 * hits / len(targets)}
