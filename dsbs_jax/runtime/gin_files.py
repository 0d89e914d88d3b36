# SPDX-License-Identifier: Apache-2.0
"""Where our gin files lie: in the checkout, or in the installed package."""

import pathlib

from dsbs_jax import contract

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# A checkout keeps them beside the package. So does pip with gin-config, whose
# folder has the same name and none of these files.
_FOLDERS = (_PACKAGE.parent / 'gin', _PACKAGE / 'gin')


def find(name: str) -> str:
  """The path of one of our gin files, such as 'eval.gin'.

  Raises:
    UserError: there is no such file.
  """
  for folder in _FOLDERS:
    if (folder / name).is_file():
      return str(folder / name)
  raise contract.UserError(
    f'gin file {name!r} is not in {_FOLDERS[0]} or {_FOLDERS[1]}. Install the'
    ' project again, or give its path with --gin_file.'
  )
