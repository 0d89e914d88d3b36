# SPDX-License-Identifier: Apache-2.0
"""Gin's error messages, rewritten: what is wrong, what to type instead."""

import difflib
import re
import tokenize
from collections.abc import Iterable

_REQUIRED = re.compile(r'([\w./]+?)(?:/macro\.value)? set to `%gin')
_NO_MACRO = re.compile(r"No bindings specified for '([\w.]+)/gin\.macro'")
_NO_PARAMETER = re.compile(
  r"Configurable '([^']+)' doesn't have a parameter named '([^']+)'"
)
_NO_NAME = re.compile(
  r"Couldn't resolve selector (\S+); <module '([^']+)'.*has no attribute (\w+)"
)
_NOT_IMPORTED = re.compile(r"'([^']+)' was not provided by an import")
_NO_VALUE = re.compile(
  'Failed to parse token|Unable to parse value|malformed node|EOF in multi-line'
)
_LINE = re.compile(r'\bline (\d+)')
_MOST_CHARS = 500


def explain(error: Exception, known: Iterable[str]) -> str:
  """What gin raised, in one line without the file or flag.

  The macros and dotted names of the config so far are known, to guess from.
  """
  text = str(error).strip() or type(error).__name__
  known = sorted(known)
  if match := _REQUIRED.match(text):
    name = match[1]
    return f'{name} is not given. Add --gin.{name}=VALUE.'
  if match := _NO_MACRO.match(text):
    return (
      f'%{match[1]} has no value, expected a macro that a file or a flag'
      f' sets.{near(match[1], known)}'
    )
  if match := _NO_PARAMETER.match(text):
    own = [k for k in known if k.rpartition('.')[0] == match[1]]
    guess = near(match[2], [k.rpartition('.')[2] for k in own])
    return f'{match[1]} has no parameter {match[2]}.{guess}'
  if match := _NO_NAME.match(text):
    alike = [k for k in known if k.count('.') == match[1].count('.')]
    guess = near(match[1], alike)
    return f'{match[1]} does not exist: {match[2]} has no {match[3]}.{guess}'
  if match := _NOT_IMPORTED.match(text):
    return (
      f'{match[1]} is not imported, expected a module that one of the gin'
      ' files imports, or a line that imports it.'
    )
  if isinstance(error, RecursionError):
    return 'the value nests too deep, expected a few brackets.'
  if _NO_VALUE.search(text):
    return (
      'the value cannot be read, expected a number, True, None, a list, or'
      ' text whose quotes and brackets are closed (in a gin file, strings need'
      " quotes: MODEL_DIR = '/runs/1')."
    )
  # Gin appends its call chain and the whole config; one line says it.
  text = re.split(r'\n  In |\s*\((?:\S+, )?line \d+\)', text, maxsplit=1)[0]
  text = ' '.join(text.split())
  return text if len(text) <= _MOST_CHARS else text[:_MOST_CHARS] + '...'


def line(error: Exception) -> str:
  """':<line>' where the error names one, else ''."""
  found = _LINE.findall(str(error))
  if isinstance(error, tokenize.TokenError):
    found = [error.args[1][0]]
  number = getattr(error, 'lineno', None) or (found[-1] if found else None)
  return f':{number}' if number else ''


def near(name: str, known: Iterable[str]) -> str:
  """' Did you mean ...?', or '' where nothing is near."""
  found = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.8)
  return f' Did you mean {" or ".join(found)}?' if found else ''
