# SPDX-License-Identifier: Apache-2.0
"""The flags of the doors that gin configures, as T5X names them."""

from typing import TypeVar

from absl import flags

from dsbs_jax.run import config

Settings = TypeVar('Settings')

_FILES = flags.DEFINE_multi_string(
  'gin_file', [], 'Engine, then model, then benchmark.'
)
_BINDINGS = flags.DEFINE_multi_string('gin_bindings', [], 'NAME = VALUE.')
_PATHS = flags.DEFINE_list(
  'gin_search_paths', ['.'], 'Folders of relative gin files.'
)


def build(settings: type[Settings]) -> Settings:
  """Builds a door's settings from its flags; see `config.build`."""
  return config.build(
    settings,
    gin_files=_FILES.value,
    gin_bindings=_BINDINGS.value,
    search_paths=_PATHS.value,
  )
