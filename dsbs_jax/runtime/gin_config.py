# SPDX-License-Identifier: Apache-2.0
"""The only file that imports gin: parses and builds a config, writes it down.

An engine file binds the fields of one settings dataclass; model and benchmark
files set macros. `build` parses them and calls the dataclass through gin. A
binding or macro that nothing reads is an error; gin would ignore it.
"""

import contextlib
import dataclasses
import functools
import inspect
import logging
import pathlib
import re
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import gin
from dsbs_jax import contract
from dsbs_jax.runtime import gin_errors

Settings = TypeVar('Settings')

_DOTTED = re.compile(r'^([A-Za-z_][\w./]*\.\w+) =', re.MULTILINE)
_IMPORT = re.compile(r'^(?:from \S+ )?import \S+.*$', re.MULTILINE)
_INCLUDE = re.compile(r'^\s*include\b', re.MULTILINE)
_MACRO = re.compile(r'^([A-Za-z_]\w*) =', re.MULTILINE)
_REFERENCE = re.compile(r'@([\w.]+)')
# How the settings' own errors begin: 'alpha is 2, ...', 'T5Config.dtype is'.
_FIELD = re.compile(r'(?:\w+\.)?(\w+) is ')
# What gin and its parser raise on bad text.
_ERRORS = (
  ValueError,
  TypeError,
  RuntimeError,
  SyntaxError,
  ImportError,
  AttributeError,
  NameError,
  LookupError,
  OSError,
  tokenize.TokenError,
)


def build(
  settings: type[Settings],
  *,
  gin_files: Sequence[str],
  gin_bindings: Sequence[str],
  search_paths: Sequence[str] = ('.',),
) -> Settings:
  """Parses gin files and bindings and builds the settings that they bind.

  Args:
    settings: a dataclass that the engine file binds, such as `TrainConfig`.
    gin_files: engine first, then model and benchmark files.
    gin_bindings: `NAME = VALUE` lines that override the files.
    search_paths: folders in which relative gin files are looked up.

  Returns:
    The settings.

  Raises:
    UserError: a file is missing, a line does not parse, a name is unknown, a
      required value is not given, or a binding or macro is read by nothing.
  """
  gin.clear_config()
  for path in search_paths:
    gin.add_config_file_search_path(path)
  if not gin_files:
    raise contract.UserError(
      'no gin file is given, expected at least an engine file:'
      ' --gin_file=gin/train.gin.'
    )
  texts = {file: _text(file, search_paths) for file in gin_files}
  _check_order(settings, texts)
  given = _Given(texts, gin_bindings)
  with _silent():
    for file in gin_files:
      with _explained(lambda error, file=file: file + gin_errors.line(error)):
        gin.parse_config_file(file)
    imports = _imports(texts)
    for binding in gin_bindings:
      with _explained(lambda _, binding=binding: flag(binding)):
        gin.parse_config([*imports, binding])
    with _explained(lambda _: ''):
      _derive_macros(getattr(settings, 'DERIVED_MACROS', {}))
      gin.finalize()
  with _explained(given.origin):
    built = gin.get_configurable(settings)()
  _check_all_read(given)
  return _with_functions_bound(built)


def operative_text() -> str:
  """The operative config: a gin file that rebuilds the settings."""
  return gin.operative_config_str()


def _text(file: str, search_paths: Sequence[str]) -> str:
  """What a gin file says."""
  places = (pathlib.Path(path) / file for path in ('', *search_paths))
  found = next((place for place in places if place.is_file()), None)
  if found is None:
    raise contract.UserError(
      f'gin file {file!r} is not in {sorted(set(map(str, search_paths)))}.'
      ' Give its path, or its folder with --gin_search_paths.'
    )
  try:
    text = found.read_text(encoding='utf-8')
  except UnicodeDecodeError as error:
    raise contract.UserError(
      f'gin file {file!r} has the byte 0x{error.object[error.start]:02x} at'
      f' position {error.start:,}, expected UTF-8 text. Convert it to UTF-8.'
    ) from error
  if text.startswith('\ufeff'):
    raise contract.UserError(
      f'gin file {file!r} begins with a byte-order mark, expected plain'
      ' UTF-8. Save it without one.'
    )
  return text


def _check_order(settings: type, texts: Mapping[str, str]) -> None:
  """Raises where no file is the engine, or where it follows another."""
  binds = re.compile(rf'^[\w.]*{settings.__name__}(\.\w+ =|:)', re.MULTILINE)
  engines = [file for file, text in texts.items() if binds.search(text)]
  first = next(iter(texts))
  if engines and engines[0] != first:
    position = list(texts).index(engines[0]) + 1
    raise contract.UserError(
      f'the engine file {engines[0]!r} is gin file number {position}, expected'
      f' it first: its defaults would override {first!r}. Give engine, model,'
      ' benchmark in this order.'
    )
  if not engines and not any(map(_INCLUDE.search, texts.values())):
    raise contract.UserError(
      f'none of the gin files {", ".join(texts)} binds {settings.__name__},'
      ' expected the engine file of this command first, such as'
      ' --gin_file=gin/train.gin for training.'
    )


def _imports(texts: Mapping[str, str]) -> list[str]:
  """The files' import lines, so that flags may name what files import."""
  found = [line for text in texts.values() for line in _IMPORT.findall(text)]
  return list(dict.fromkeys(found))


def _derive_macros(derived: Mapping[str, tuple[Callable, str]]) -> None:
  """Sets macros that are None: name -> (function, macro of its argument)."""

  def value(name):
    return gin.query_parameter(f'{name}/gin.macro.value')

  for name, (function, argument) in derived.items():
    if f'\n{name} = None\n' in f'\n{gin.config_str()}':
      gin.parse_config(f'{name} = {function(value(argument))!r}')


def _with_functions_bound(settings: Settings) -> Settings:
  """The settings, whose functions no later config changes any more."""
  functions = {
    field.name: _bound(value)
    for field in dataclasses.fields(settings)
    if inspect.isfunction(value := getattr(settings, field.name))
    and hasattr(value, '__wrapped__')
  }
  return dataclasses.replace(settings, **functions) if functions else settings


def _bound(function: Callable) -> Callable:
  """The function itself, or with the arguments that gin binds."""
  try:
    arguments = gin.get_bindings(function)
  except ValueError as error:
    raise contract.UserError(
      f'{function.__name__} is referred to with a scope, expected none:'
      f' @{function.__module__.rpartition(".")[2]}.{function.__name__}.'
    ) from error
  function = function.__wrapped__
  if not arguments:
    return function
  bound = functools.partial(function, **arguments)
  bound.__name__ = function.__name__
  return bound


def flag(binding: str) -> str:
  """A binding as it is typed: 'ALPHA = 0.5' -> '--gin.ALPHA=0.5'."""
  name, _, value = binding.partition('=')
  return f'--gin.{name.strip()}={value.strip()}'


@dataclasses.dataclass(frozen=True)
class _Given:
  """What files and flags say, to find out who said something."""

  texts: Mapping[str, str]
  bindings: Sequence[str]

  def of(self, name: str) -> str:
    """The flag, or else the last file, that sets a macro or parameter."""
    sets = re.compile(rf'^\s*{re.escape(name)}\s*=', re.MULTILINE)
    flags = [flag(b) for b in reversed(self.bindings) if sets.match(b)]
    files = [file for file, t in reversed(self.texts.items()) if sets.search(t)]
    return next(iter((*flags, *files)), '')

  def origin(self, error: Exception) -> str:
    """Who set the field that an error's message begins with, if it does."""
    field = _FIELD.match(str(error))
    if field is None:
      return ''
    bound = re.search(
      rf'^([\w./]+\.{field[1].lower()}) = (?:%(\w+))?',
      gin.config_str(),
      re.MULTILINE,
    )
    return self.of(bound[2] or bound[1]) if bound else ''


@contextlib.contextmanager
def _explained(place: Callable[[Exception], str]) -> Iterator[None]:
  """Turns what gin raises into one UserError that names the place."""
  try:
    yield
  except _ERRORS as error:
    reason = gin_errors.explain(error, _known())
    where = place(error)
    raise contract.UserError(
      f'{where}: {reason}' if where else reason
    ) from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
  """Gin logs every path where a file is not; the error says so once."""
  before = logging.root.manager.disable
  logging.disable(logging.ERROR)
  try:
    yield
  finally:
    logging.disable(before)


def _known() -> set[str]:
  """Macros, parameters and references of the config so far."""
  text = gin.config_str()
  parameters = set(_DOTTED.findall(text))
  objects = {name.rpartition('.')[0] for name in parameters}
  return (
    parameters
    | objects
    | set(_MACRO.findall(text))
    | set(_REFERENCE.findall(text))
  )


def _check_all_read(given: _Given) -> None:
  """Raises where a binding or macro was given and read by nothing."""
  bound, read = gin.config_str(), gin.operative_config_str()
  for kind, pattern in (('binding', _DOTTED), ('macro', _MACRO)):
    read_names = set(pattern.findall(read))
    dead = sorted(set(pattern.findall(bound)) - read_names)
    if dead:
      place = given.of(dead[0])
      raise contract.UserError(
        f'{place}{": " if place else ""}the gin {kind} {dead[0]} is read by'
        ' nothing; check its spelling, or remove it.'
        f'{gin_errors.near(dead[0], read_names)}'
      )
