# SPDX-License-Identifier: Apache-2.0
"""The flags of the doors that gin configures, as T5X names them."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from absl import flags

from dsbs_jax.runtime import gin_files, help_page
from dsbs_jax.runtime.configuration import gin_config, gin_macros, gin_texts

Settings = TypeVar('Settings')

_FILES = flags.DEFINE_multi_string(
  'gin_file', [], 'Engine, then model, then benchmark.'
)
_BINDINGS = flags.DEFINE_multi_string(
  'gin_bindings', [], 'NAME = VALUE; --gin.NAME=VALUE is the same.'
)
_PATHS = flags.DEFINE_list(
  'gin_search_paths', ['.'], 'Folders of relative gin files.'
)


def build(
  settings: type[Settings],
  *,
  engine: Sequence[str] = (),
  bindings: Sequence[str] = (),
  defaults: gin_macros.Defaults | None = None,
) -> Settings:
  """Builds a door's settings from its flags; see `gin_config.build`.

  The files of the engine go first, unless the first of them is given anyway;
  --gin.NAME overrides the bindings of the door's own flags.

  Raises:
    UserError: as `gin_config.build`.
  """
  files = list(_FILES.value)
  if engine and engine[0] not in files:
    files = [*engine, *files]
  return gin_config.build(
    settings,
    gin_files=files,
    gin_bindings=[*bindings, *_BINDINGS.value],
    search_paths=_PATHS.value,
    defaults=defaults,
  )


def short(holder: flags.FlagHolder, macro: str, value: Any) -> str:
  """The binding of the macro that a given flag is short for; errors show it."""
  typed = holder.value
  if isinstance(typed, bool):
    return gin_texts.ShortFlag(
      macro, value, f'--{"" if typed else "no"}{holder.name}'
    )
  if isinstance(typed, list):
    typed = ','.join(typed)
  return gin_texts.ShortFlag(macro, value, f'--{holder.name}={typed}')


def implied_engine(settings: type, name: str) -> list[str]:
  """[our engine file] of this name where no --gin_file binds the settings."""
  if gin_texts.has_engine(settings, _FILES.value, _PATHS.value):
    return []
  return [gin_files.find(name)]


def has_files() -> bool:
  """Whether any --gin_file is given."""
  return bool(_FILES.value)


def given(macro: str) -> str | None:
  """The value of the last --gin.MACRO=VALUE, as it is typed; None without."""
  found = None
  for binding in _BINDINGS.value:
    name, _, value = binding.partition('=')
    found = value.strip() if name.strip() == macro else found
  return found


def macros() -> dict[str, Any]:
  """What gin files and --gin flags set; references and None are left out."""
  texts = [gin_texts.read(file, _PATHS.value) for file in _FILES.value]
  return gin_macros.values('\n'.join([*texts, *_BINDINGS.value]))


def help_text(
  settings: type, engine: str, short: Mapping[str, str] | None = None
) -> str:
  """What `--help` tells of the macros of an engine, such as 'eval.gin'.

  `short` has the flags that are short names of macros.
  """
  text = gin_config.engine_text(gin_files.find(engine), settings)
  defaults = gin_macros.defaults(text)
  entries = []
  for macro, field in gin_macros.Bindings(settings, text).macros().items():
    value = defaults.get(macro)
    name = macro if value in (None, 'required') else f'{macro}={value}'
    said = f'{field.type_text}: {field.doc}'
    if value == 'required':
      said += ' [required]'
    if macro in (short or {}):
      said += f' [{short[macro]}]'
    entries.append(help_page.entry(name, said))
  head = f'Settings of gin/{engine}, set by --gin.NAME=VALUE:'
  return '\n\n'.join([head, '\n'.join(entries)])
