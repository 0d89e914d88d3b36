# SPDX-License-Identifier: Apache-2.0
"""Gin, the only file that touches it: parse, guard, build, write down.

An engine file binds the fields of one settings dataclass; model and benchmark
files set macros. `build` parses them, calls the dataclass through gin, and
refuses what would otherwise pass in silence: a binding or macro that nothing
reads.
"""

import dataclasses
import difflib
import pathlib
import re
from collections.abc import Sequence
from typing import TypeVar

import gin

Settings = TypeVar('Settings')

_DOTTED = re.compile(r'^([A-Za-z_][\w./]*\.\w+) =', re.MULTILINE)
_IMPORT = re.compile(r'^(?:from \S+ )?import \S+.*$', re.MULTILINE)
_MACRO = re.compile(r'^([A-Za-z_]\w*) =', re.MULTILINE)


def build(
  settings: type[Settings],
  *,
  gin_files: Sequence[str],
  gin_bindings: Sequence[str],
  search_paths: Sequence[str] = ('.',),
) -> Settings:
  """Parses gin files and bindings and builds the settings that they bind.

  Args:
    settings: a dataclass that the engine file binds, such as `loop.Training`.
    gin_files: engine first, then model and benchmark files.
    gin_bindings: `NAME = VALUE` lines that override the files.
    search_paths: folders in which relative gin files are looked up.

  Returns:
    The settings.

  Raises:
    ValueError: a file is missing, a line does not parse, a name is unknown, a
      required value is not given, or a binding or macro is read by nothing.
  """
  _require_gin()
  gin.clear_config()
  for path in search_paths:
    gin.add_config_file_search_path(path)
  if not gin_files:
    raise ValueError(
      'no gin file is given, expected at least an engine file:'
      ' --gin_file=gin/train.gin.'
    )
  _check_files(gin_files, search_paths)
  _check_order(settings, gin_files, search_paths)
  try:
    gin.parse_config_files_and_bindings(
      list(gin_files),
      [*_imports(gin_files, search_paths), *gin_bindings],
    )
    built = gin.get_configurable(settings)()
  except (
    ValueError,
    TypeError,
    RuntimeError,
    SyntaxError,
    ImportError,
    AttributeError,
    NameError,
    LookupError,
    OSError,
  ) as error:
    raise ValueError(_explain(error, gin_files, gin_bindings)) from error
  _check_all_read()
  return built


def operative_text() -> str:
  """The bindings that were read, as a gin file that rebuilds the settings."""
  return gin.operative_config_str()


def describe(settings: object) -> dict[str, str]:
  """One string per field of a settings dataclass, for a summary or a diff."""
  return {
    field.name: repr(getattr(settings, field.name))
    for field in dataclasses.fields(settings)
  }


def _require_gin() -> None:
  if not hasattr(gin, 'parse_config_files_and_bindings'):
    raise ValueError(
      f'the package imported as gin is {list(gin.__path__)}, expected'
      ' gin-config. Install the pinned dependencies: make env.'
    )


def _check_files(gin_files: Sequence[str], search_paths: Sequence[str]) -> None:
  for file in gin_files:
    if _find(file, search_paths) is None:
      raise ValueError(
        f'gin file {file!r} is not in {sorted(set(map(str, search_paths)))}.'
        ' Give its path, or its folder with --gin_search_paths.'
      )


def _find(file: str, search_paths: Sequence[str]) -> pathlib.Path | None:
  places = (pathlib.Path(path) / file for path in ('', *search_paths))
  return next((place for place in places if place.is_file()), None)


def _check_order(
  settings: type, gin_files: Sequence[str], search_paths: Sequence[str]
) -> None:
  """Raises where an engine file follows a model file and would undo it."""
  binds = re.compile(rf'^[\w.]*{settings.__name__}(\.\w+ =|:)', re.MULTILINE)
  for position, file in enumerate(gin_files):
    if binds.search(_find(file, search_paths).read_text()):
      if position:
        raise ValueError(
          f'the engine file {file!r} is gin file number {position + 1},'
          ' expected it first: its defaults would override'
          f' {gin_files[0]!r}. Give engine, model, benchmark in this order.'
        )
      return


def _imports(
  gin_files: Sequence[str], search_paths: Sequence[str]
) -> list[str]:
  """The files' import lines, so that flags may name what files import."""
  lines = []
  for file in gin_files:
    lines += _IMPORT.findall(_find(file, search_paths).read_text())
  return list(dict.fromkeys(lines))


def _explain(
  error: Exception, gin_files: Sequence[str], gin_bindings: Sequence[str]
) -> str:
  places = ', '.join(gin_files) + (' and the flags' if gin_bindings else '')
  return f'{_first_line(error)} (in {places})'


def _first_line(error: Exception) -> str:
  """Gin appends its call chain to a message; its first paragraph says it."""
  text = str(error).strip() or type(error).__name__
  return text.split('\n  In call to configurable')[0].strip()


def _check_all_read() -> None:
  """Raises where a binding or macro was given and read by nothing."""
  given, read = gin.config_str(), gin.operative_config_str()
  for kind, pattern in (('binding', _DOTTED), ('macro', _MACRO)):
    read_names = set(pattern.findall(read))
    dead = sorted(set(pattern.findall(given)) - read_names)
    if dead:
      near = difflib.get_close_matches(dead[0], sorted(read_names), n=3)
      remedy = f' Did you mean {" or ".join(near)}?' if near else ''
      raise ValueError(
        f'the gin {kind} {dead[0]} is read by nothing; check its'
        f' spelling, or remove it.{remedy}'
      )
