# SPDX-License-Identifier: Apache-2.0
"""The flags of the doors that gin configures, as T5X names them."""

from collections.abc import Sequence
from typing import TypeVar

from absl import flags

from dsbs_jax.runtime import gin_config

Settings = TypeVar('Settings')

_FILES = flags.DEFINE_multi_string(
  'gin_file', [], 'Engine, then model, then benchmark.'
)
_BINDINGS = flags.DEFINE_multi_string('gin_bindings', [], 'NAME = VALUE.')
_PATHS = flags.DEFINE_list(
  'gin_search_paths', ['.'], 'Folders of relative gin files.'
)


def build(settings: type[Settings], *, engine: Sequence[str] = ()) -> Settings:
  """Builds a door's settings from its flags; see `gin_config.build`.

  Files of `engine` go first, unless the first of them is given anyway.
  """
  files = list(_FILES.value)
  if engine and engine[0] not in files:
    files = [*engine, *files]
  return gin_config.build(
    settings,
    gin_files=files,
    gin_bindings=_BINDINGS.value,
    search_paths=_PATHS.value,
  )
