# SPDX-License-Identifier: Apache-2.0
"""What Python computes of + - * / and numbers, written down a second time."""

import ast
import operator

_OPERATORS = {
  ast.Add: operator.add,
  ast.Sub: operator.sub,
  ast.Mult: operator.mul,
  ast.Div: operator.truediv,
  ast.UAdd: operator.pos,
  ast.USub: operator.neg,
}


def python_value(text: str) -> float:
  """The value of an expression, without running it.

  Args:
    text: numbers, + - * /, signs and parentheses, nested as deep as Python
      can parse.

  Raises:
    SyntaxError, TypeError: it is something else.
    ArithmeticError: a division by zero or an overflow.
  """
  tree = ast.parse(text.strip(), mode='eval').body
  values = {}
  # Parents come before their children, so backwards every operand is known.
  for node in reversed(list(ast.walk(tree))):
    match node:
      case ast.Constant(value=int() | float() as number):
        values[node] = number
      case ast.UnaryOp(op=op, operand=operand):
        values[node] = _OPERATORS[type(op)](values[operand])
      case ast.BinOp(op=op, left=left, right=right):
        values[node] = _OPERATORS[type(op)](values[left], values[right])
      case _ if type(node) not in _OPERATORS:
        raise TypeError(f'{text!r} holds {type(node).__name__}')
  return float(values[tree])
