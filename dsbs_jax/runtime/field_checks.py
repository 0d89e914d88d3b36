# SPDX-License-Identifier: Apache-2.0
"""Checks of config fields: gin passes on whatever a user types, of any type.

Each message begins with the field's name, from which `gin_config` finds the
file or flag that set it.
"""

import math
from collections.abc import Sequence
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data import benchmark


def texts(settings: Any, *names: str) -> None:
  """Raises unless these fields are texts that are not empty."""
  for name in names:
    value = getattr(settings, name)
    if not isinstance(value, str) or not value or '\0' in value:
      _refuse(name, value, 'a text in quotes')


def texts_or_none(settings: Any, *names: str) -> None:
  """The same, or None."""
  texts(settings, *(n for n in names if getattr(settings, n) is not None))


def counts(
  settings: Any, *names: str, least: int = 1, below: int = 1 << 62
) -> None:
  """Raises unless these fields are whole numbers >= `least` and < `below`."""
  for name in names:
    value = getattr(settings, name)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not least <= value < below:
      limit = f' and < {below:,}' if whole and value >= below else ''
      _refuse(name, value, f'a whole number >= {least}{limit}')


def numbers(settings: Any, *names: str) -> None:
  """Raises unless these fields are finite numbers >= 0."""
  for name in names:
    value = getattr(settings, name)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and 0 <= value < math.inf):
      _refuse(name, value, 'a number >= 0')


def numbers_or_none(settings: Any, *names: str) -> None:
  """The same, or None."""
  numbers(settings, *(n for n in names if getattr(settings, n) is not None))


def rising(settings: Any, *names: str) -> None:
  """Raises unless these fields are tuples of rising whole numbers from 1."""
  for name in names:
    value = getattr(settings, name)
    whole = isinstance(value, tuple) and all(type(v) is int for v in value)
    if not whole or not value or (0, *value) != (*sorted({0, *value}),):
      _refuse(name, value, 'a tuple of rising whole numbers from 1')


def one_of(settings: Any, name: str, known: Sequence[str]) -> None:
  """Raises unless this field is one of some texts."""
  if getattr(settings, name) not in known:
    _refuse(name, getattr(settings, name), f'one of {tuple(known)}')


def flags(settings: Any, *names: str) -> None:
  """Raises unless these fields are True or False."""
  for name in names:
    if not isinstance(getattr(settings, name), bool):
      _refuse(name, getattr(settings, name), 'True or False')


def splits(settings: Any, *names: str) -> None:
  """Raises unless these fields are tuples of names of splits."""
  for name in names:
    value, known = getattr(settings, name), benchmark.SPLITS
    if not (isinstance(value, tuple | list) and all(v in known for v in value)):
      expected = f"a tuple of some of {', '.join(known)}, such as ('test',)"
      _refuse(name, value, expected)


def functions(settings: Any, *names: str) -> None:
  """Raises unless these fields can be called."""
  for name in names:
    if not callable(getattr(settings, name)):
      expected = 'a reference such as those of the engine file, with @'
      _refuse(name, getattr(settings, name), expected)


def _refuse(name: str, value: Any, expected: str) -> None:
  raise contract.UserError(f'{name} is {value!r:.80}, expected {expected}.')
