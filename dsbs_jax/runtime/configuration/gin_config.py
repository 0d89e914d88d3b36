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
import re
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import gin
from dsbs_jax import contract
from dsbs_jax.runtime.configuration import gin_errors, gin_macros, gin_texts

Settings = TypeVar('Settings')

_DOTTED = re.compile(r'^([A-Za-z_][\w./]*\.\w+) =', re.MULTILINE)
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
  defaults: gin_macros.Defaults | None = None,
) -> Settings:
  """Parses gin files and bindings and builds the settings that they bind.

  Args:
    settings: a dataclass that the engine file binds, such as `TrainConfig`.
    gin_files: engine first, then model and benchmark files.
    gin_bindings: `NAME = VALUE` lines that override the files. Text needs no
      quotes where the field takes text.
    search_paths: folders in which relative gin files are looked up.
    defaults: what overrides the engine file, and is overridden by the rest.

  Raises:
    UserError: a file is missing, a line does not parse, a name is unknown, a
      required value is not given, or a binding or macro is read by nothing.
  """
  gin.clear_config()
  # For the files that files include.
  for path in gin_texts.with_ours(search_paths):
    gin.add_config_file_search_path(path)
  if not gin_files:
    raise contract.UserError(
      'no gin file is given, expected at least an engine file:'
      ' --gin_file=gin/train.gin.'
    )
  texts = {file: gin_texts.read(file, search_paths) for file in gin_files}
  gin_texts.check_order(settings, texts)
  engine, *others = gin_files
  imports = gin_texts.imports(texts)
  said = [
    texts[engine],
    defaults.family if defaults else '',
    *(texts[file] for file in others),
    *gin_bindings,
  ]
  with _silent():
    _parse_engine(engine, search_paths, settings=settings, said=said)
    texts = (
      {engine: texts[engine]} | _apply(defaults, settings, imports) | texts
    )
    given = gin_texts.Given(texts, gin_bindings)
    for file in others:
      _parse_file(file, search_paths)
    fields = gin_macros.Bindings(settings, gin.config_str())
    for binding in gin_bindings:
      with _explained(lambda _, binding=binding: gin_texts.flag(binding)):
        field = fields.field(binding.partition('=')[0].strip())
        gin.parse_config([*imports, gin_macros.quote(binding, field)])
    if defaults is not None:
      _check_missing(fields.missing(defaults), engine=engine, given=given)
    with _explained(lambda _: ''):
      _derive_macros(getattr(settings, 'DERIVED_MACROS', {}))
      gin.finalize()
  with _explained(lambda error: _origin(error, given)):
    built = gin.get_configurable(settings)()
  _check_all_read(given)
  return _with_functions_bound(built)


def _parse_file(file: str, search_paths: Sequence[str]) -> None:
  with _explained(lambda error: file + gin_errors.line(error)):
    gin.parse_config_file(str(gin_texts.locate(file, search_paths)))


def _parse_engine(
  file: str, search_paths: Sequence[str], *, settings: type, said: Sequence[str]
) -> None:
  """Parses an engine file for the network family that `said` last names."""
  _parse_file(file, search_paths)
  text, families = gin.config_str(), gin_macros.families(settings)
  kept = gin_texts.of_family(text, gin_texts.family(said), families)
  if kept != text:
    gin.clear_config()
    gin.parse_config(kept)


def _apply(
  defaults: gin_macros.Defaults | None, settings: type, imports: Sequence[str]
) -> dict[str, str]:
  """Sets the defaults that the engine has a field for; place -> their text."""
  if defaults is None:
    return {}
  lines = gin_macros.Bindings(settings, gin.config_str()).lines(defaults)
  gin.parse_config([*imports, *lines])
  return {defaults.place: '\n'.join(lines)}


def _check_missing(
  missing: Mapping[str, str], *, engine: str, given: gin_texts.Given
) -> None:
  """Raises where nobody but the engine sets what a folder does not say."""
  for name, message in missing.items():
    if given.of(name) in ('', engine):
      raise contract.UserError(message)


def engine_text(file: str, settings: type) -> str:
  """The config of an engine file alone, as gin writes it."""
  gin.clear_config()
  with _silent():
    _parse_engine(file, (), settings=settings, said=[])
  return gin.config_str()


def operative_text() -> str:
  """The operative config: a gin file that rebuilds the settings."""
  return gin.operative_config_str()


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
    if _plain(value := getattr(settings, field.name)) is not None
  }
  return dataclasses.replace(settings, **functions) if functions else settings


def _plain(value: object) -> Callable | None:
  """The function that gin wraps, or the class that it derives from, if any."""
  if inspect.isfunction(value):
    return getattr(value, '__wrapped__', None)
  base = getattr(value, '__base__', None)
  derived = base and base.__qualname__ == value.__qualname__
  return base if derived else None


def _bound(function: Callable) -> Callable:
  """The function itself, or with the arguments that gin binds."""
  plain = _plain(function)
  try:
    arguments = gin.get_bindings(plain if inspect.isclass(plain) else function)
  except ValueError as error:
    raise contract.UserError(
      f'{function.__name__} is referred to with a scope, expected none:'
      f' @{function.__module__.rpartition(".")[2]}.{function.__name__}.'
    ) from error
  if not arguments:
    return plain
  bound = functools.partial(plain, **arguments)
  bound.__name__ = plain.__name__
  return bound


def _origin(error: Exception, given: gin_texts.Given) -> str:
  """Who set the field that an error's message begins with, if it does."""
  field = _FIELD.match(str(error))
  if field is None:
    return ''
  bound = re.search(
    rf'^([\w./]+\.{field[1].lower()}) = (?:%(\w+))?',
    gin.config_str(),
    re.MULTILINE,
  )
  return given.of(bound[2] or bound[1]) if bound else ''


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


def _check_all_read(given: gin_texts.Given) -> None:
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
