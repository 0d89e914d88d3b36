# SPDX-License-Identifier: Apache-2.0
"""What a macro sets: the field of a settings dataclass, its type, its words.

By the field's type, text needs no quotes of its own on the command line, and
`--help` lists every macro. Gin itself is not needed: its config is read as
text.
"""

import ast
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dsbs_jax import contract
from dsbs_jax.runtime.configuration import gin_texts

_MACRO = re.compile(r'\w+')
_ATTRIBUTE = re.compile(r'^  (\w+): (.*(?:\n    .*)*)', re.MULTILINE)
# What gin reads otherwise than as a literal; quotes that do not close.
_GIN_VALUE = ('@', '%', '"', "'")
_WORD = re.compile(r'[\w./:-]+')
_TYPES = {
  str: 'text',
  int: 'whole number',
  float: 'number',
  bool: 'True or False',
  type(None): 'None',
}


@dataclasses.dataclass(frozen=True)
class Field:
  """A field of a settings dataclass."""

  owner: type  # the dataclass
  name: str
  type: Any  # its annotation
  doc: str  # what the owner's docstring says of it

  @property
  def takes_text(self) -> bool:
    """Whether its value may be a text."""
    return str in _members(self.type)

  @property
  def type_text(self) -> str:
    """Its type in words: 'text or None'."""
    return ' or '.join(map(_type_text, _members(self.type)))


@dataclasses.dataclass(frozen=True)
class Defaults:
  """What a run's folder says of itself."""

  place: str  # the folder
  fields: Mapping[str, Mapping[str, Any]]  # dataclass -> field -> value
  # Field -> the error if no gin file and no flag sets it.
  missing: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def family(self) -> str:
    """The line that chooses the network's family, '' where none is said."""
    found = [v['family'] for v in self.fields.values() if 'family' in v]
    return f'FAMILY = {found[0]!r}' if found else ''


class Bindings:
  """Which fields of settings a config's text, by gin, binds to which macros."""

  def __init__(self, settings: type, config: str):
    self._fields = {
      (owner.__name__, field.name): field
      for owner in _owners(settings)
      for field in _fields(owner)
    }
    self._selectors, self._values = {}, {}
    for parameter, value in gin_texts.bindings(config):
      selector, _, name = parameter.rpartition('.')
      owner = selector.rpartition('.')[2]
      if (owner, name) in self._fields:
        self._selectors[owner] = selector
        self._values[owner, name] = value
    self._by_macro = {
      value[1:]: self._fields[key]
      for key, value in reversed(self._values.items())
      if re.fullmatch(r'%\w+', value)
    }

  def field(self, name: str) -> Field | None:
    """The field that a macro or a dotted parameter sets, None if unknown."""
    owner, _, parameter = name.rpartition('.')
    if not owner:
      return self._by_macro.get(name)
    return self._fields.get((owner.rpartition('.')[2], parameter))

  def setter(self, owner: str, name: str) -> str | None:
    """What sets a field: its macro, else 'selector.field'; None if nothing."""
    value = self._values.get((owner, name), '')
    if re.fullmatch(r'%\w+', value):
      return value[1:]
    if owner in self._selectors and (owner, name) in self._fields:
      return f'{self._selectors[owner]}.{name}'
    return None

  def lines(self, defaults: Defaults) -> list[str]:
    """The bindings of those defaults for which the config has a field."""
    named = {
      self.setter(owner, name): value
      for owner, values in defaults.fields.items()
      for name, value in values.items()
    }
    named.pop(None, None)
    return [f'{name} = {value!r}' for name, value in named.items()]

  def missing(self, defaults: Defaults) -> dict[str, str]:
    """Macro or parameter -> the error if nobody else sets it."""
    found = {
      self.setter(owner, name): defaults.missing[name]
      for owner, name in self._values
      if name in defaults.missing
    }
    found.pop(None, None)
    return found

  def macros(self) -> dict[str, Field]:
    """Macro -> field, in the order of the fields."""
    order = {
      field: number for number, field in enumerate(self._fields.values())
    }
    return dict(sorted(self._by_macro.items(), key=lambda one: order[one[1]]))


def defaults(config: str) -> dict[str, str]:
  """Macro -> its value in a config, as text; 'required' where it has none."""
  return {
    name: 'required'
    if value == '%gin.REQUIRED'
    else re.sub(r'\n\s*', ' ', value)
    for name, value in _macros(config)
  }


def values(config: str) -> dict[str, Any]:
  """Macro -> its value; references and those that are None are left out."""
  found = {}
  for name, text in _macros(config):
    found.pop(name, None)
    try:
      value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
      value = None if text.startswith(_GIN_VALUE) else text
    if value is not None:
      found[name] = value
  return found


def _macros(config: str) -> list[tuple[str, str]]:
  found = gin_texts.bindings(config)
  return [(name, value) for name, value in found if _MACRO.fullmatch(name)]


def quote(binding: str, field: Field | None) -> str:
  """A binding, such as 'STEP = best', with the quotes that gin asks for.

  A Python literal stays what it is, and so does what begins as gin's own values
  do, or sets no known field.

  Raises:
    UserError: a plain word for a field that is no text.
  """
  name, equals, value = binding.partition('=')
  value = value.strip()
  if field is None or not value or value.startswith(_GIN_VALUE):
    return binding
  try:
    ast.literal_eval(value)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    if field.takes_text:
      return f'{name}{equals} {value!r}'
    if _WORD.fullmatch(value):
      raise contract.UserError(
        f'the value cannot be read, expected {field.type_text}.'
      ) from None
  return binding


def _members(annotation: Any) -> tuple[Any, ...]:
  """The members of a union, or the type alone."""
  if isinstance(annotation, types.UnionType):
    return typing.get_args(annotation)
  return (annotation,)


def _type_text(annotation: Any) -> str:
  origin = typing.get_origin(annotation) or annotation
  if origin is tuple:
    members = typing.get_args(annotation)
    return f'tuple of {_TYPES.get(members[0], "value")}s'
  if origin is Mapping:
    return 'mapping'
  if origin is Callable:
    return '@function'
  return _TYPES.get(annotation, getattr(annotation, '__name__', 'value'))


def _owners(settings: type) -> Iterator[type]:
  """A settings dataclass and the dataclasses in it."""
  yield settings
  for field in dataclasses.fields(settings):
    for member in filter(dataclasses.is_dataclass, _members(field.type)):
      yield from _owners(member)


def families(settings: type) -> dict[str, tuple[str | None, ...]]:
  """Class of a network that the settings may have -> its FAMILY, or several.

  None is the one that they have where nobody says FAMILY.
  """
  return {
    member.__name__: getattr(member, 'FAMILIES', (None,))
    for field in dataclasses.fields(settings)
    if isinstance(field.type, types.UnionType)
    for member in filter(dataclasses.is_dataclass, _members(field.type))
  }


def _fields(owner: type) -> Iterator[Field]:
  docs = {}
  for base in reversed(owner.__mro__):
    text = inspect.cleandoc(base.__doc__ or '').partition('Attributes:\n')[2]
    docs |= {
      name: ' '.join(doc.split()) for name, doc in _ATTRIBUTE.findall(text)
    }
  for field in dataclasses.fields(owner):
    yield Field(owner, field.name, field.type, docs.get(field.name, ''))
