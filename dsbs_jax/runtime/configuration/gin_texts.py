# SPDX-License-Identifier: Apache-2.0
"""What gin files and flags say, read as text: order, imports, who said what."""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence

from dsbs_jax import contract
from dsbs_jax.data.source import json_reader
from dsbs_jax.runtime import gin_files

_IMPORT = re.compile(r'^(?:from \S+ )?import \S+.*$', re.MULTILINE)
_FAMILY = re.compile(r'^FAMILY\s*=\s*["\']?(\w+)', re.MULTILINE)
_MACRO = re.compile(r'%(\w+)')
# A value, and the lines that it goes on in.
_VALUE = r' =(?:.*\\\n)*.*\n(?:[ \t]+\S.*\n)*'
_PARAMETER = re.compile(rf'^((?:\w+\.)*(\w+))\.\w+{_VALUE}', re.MULTILINE)
_INCLUDE = re.compile(r'^\s*include\b', re.MULTILINE)
# A value goes on behind a backslash, and in lines that are indented.
_CONTINUED = re.compile(r'\\\n\s*')
_BINDING = re.compile(r'^([\w./]+) = (.*(?:\n[ \t]+.*)*)$', re.MULTILINE)


def bindings(config: str) -> list[tuple[str, str]]:
  """(macro or parameter, text of its value) of a config, as gin writes it."""
  found = _BINDING.findall(_CONTINUED.sub('', config))
  return [(name, value.strip()) for name, value in found]


def with_ours(search_paths: Sequence[str]) -> list[str]:
  """Folders of relative gin files, and last the one above our own."""
  return [*search_paths, gin_files.root()]


def locate(file: str, search_paths: Sequence[str]) -> pathlib.Path:
  """Where a gin file lies: here, in a search path, or among our own.

  Raises:
    UserError: it is in none of them.
  """
  folders = ('', *with_ours(search_paths))
  places = (pathlib.Path(folder) / file for folder in folders)
  found = next((place for place in places if place.is_file()), None)
  if found is None:
    raise contract.UserError(
      f'gin file {file!r} is not in {sorted(set(map(str, search_paths)))}.'
      ' Give its path, or its folder with --gin_search_paths.'
    )
  return found


def read(file: str, search_paths: Sequence[str]) -> str:
  """What a gin file says, found as `locate` does.

  Raises:
    UserError: there is no such file, or it is not plain UTF-8.
  """
  found = locate(file, search_paths).read_bytes()
  text = json_reader.decode_text(found, f'gin file {file!r}')
  if text.startswith('\ufeff'):
    raise contract.UserError(
      f'gin file {file!r} begins with a byte-order mark, expected plain'
      ' UTF-8. Save it without one.'
    )
  return text.replace('\r\n', '\n')


def check_order(settings: type, texts: Mapping[str, str]) -> None:
  """Raises UserError where no file is the engine, or where it follows another.

  Each file has its text, in the order of the command.
  """
  binds = _binds(settings)
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


def has_engine(
  settings: type, files: Sequence[str], search_paths: Sequence[str]
) -> bool:
  """Whether one of the gin files binds the settings, or includes others.

  Raises:
    UserError: a file cannot be read.
  """
  texts = [read(file, search_paths) for file in files]
  return any(
    _binds(settings).search(text) or _INCLUDE.search(text) for text in texts
  )


def _binds(settings: type) -> re.Pattern:
  """What a line that binds the settings begins with."""
  return re.compile(rf'^[\w.]*{settings.__name__}(\.\w+ =|:)', re.MULTILINE)


def imports(texts: Mapping[str, str]) -> list[str]:
  """The files' import lines, so that flags may name what files import."""
  found = [line for text in texts.values() for line in _IMPORT.findall(text)]
  return list(dict.fromkeys(found))


def family(texts: Sequence[str]) -> str | None:
  """The last FAMILY of these texts; None where nobody says it."""
  found = [name for text in texts for name in _FAMILY.findall(text)]
  return found[-1] if found else None


def of_family(
  text: str, chosen: str | None, families: Mapping[str, Sequence[str | None]]
) -> str:
  """An engine's config, as gin writes it, for one family of networks.

  What binds other networks is left out, with macros that nothing else reads,
  and what refers to one of them refers to that of the family.

  Args:
    text: the config.
    chosen: the FAMILY; None for the engine's own.
    families: class of a network -> its FAMILY, or several.

  Raises:
    UserError: there is no such family.
  """
  selectors = {
    match[2]: match[1]
    for match in _PARAMETER.finditer(text)
    if match[2] in families
  }
  if len(selectors) < 2:
    return text
  kept = [name for name in selectors if chosen in families[name]]
  if not kept:
    known = sorted(filter(None, itertools.chain(*families.values())))
    raise contract.UserError(
      f'FAMILY is {chosen!r}, expected one of {known}, or no FAMILY for a T5.'
    )
  others = selectors.keys() - kept
  macros = set(_MACRO.findall(text))
  text = _PARAMETER.sub(
    lambda match: '' if match[2] in others else match[0], text
  )
  for name in others:
    text = text.replace(f'@{selectors[name]}()', f'@{selectors[kept[0]]}()')
  for name in macros - set(_MACRO.findall(text)):
    text = re.sub(rf'^{name}{_VALUE}', '', text, flags=re.MULTILINE)
  return text


class ShortFlag(str):
  """A gin binding that a short flag stands for, such as --alpha.

  Attributes:
    typed: the flag as it is typed: '--alpha=0.5'.
  """

  typed: str

  def __new__(cls, macro: str, value: object, typed: str):
    made = super().__new__(cls, f'{macro} = {value!r}')
    made.typed = typed
    return made


def flag(binding: str) -> str:
  """A binding as it is typed: 'ALPHA = 0.5' -> '--gin.ALPHA=0.5'."""
  if isinstance(binding, ShortFlag):
    return binding.typed
  name, _, value = binding.partition('=')
  return f'--gin.{name.strip()}={value.strip()}'


@dataclasses.dataclass(frozen=True)
class Given:
  """What files and flags say, to find out who said something."""

  texts: Mapping[str, str]
  bindings: Sequence[str]

  def of(self, name: str) -> str:
    """The flag, or else the last file, that sets a macro or parameter."""
    sets = re.compile(rf'^\s*{re.escape(name)}\s*=', re.MULTILINE)
    flags = [flag(b) for b in reversed(self.bindings) if sets.match(b)]
    files = [file for file, t in reversed(self.texts.items()) if sets.search(t)]
    return next(iter((*flags, *files)), '')
