# SPDX-License-Identifier: Apache-2.0
"""Where our gin files lie: in the checkout, or in the installed package.

A name such as 'gin/sweeps/cpu.flags' means the current folder's file, as ever;
where there is none, ours.
"""

import pathlib
from collections.abc import Iterator, Sequence

from dsbs_jax import contract

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
_FOLDER = 'gin'
_FLAG_FILE = '--flagfile='


def root() -> str:
  """The folder above our gin files: 'gin/train.gin' is relative to it."""
  # A checkout keeps them beside the package. So does pip with gin-config, whose
  # folder has the same name and none of these files.
  is_checkout = (_PACKAGE.parent / _FOLDER / 'train.gin').is_file()
  return str(_PACKAGE.parent if is_checkout else _PACKAGE)


def find(name: str) -> str:
  """The path of one of our gin files, such as 'eval.gin'.

  Raises:
    UserError: there is no such file.
  """
  path = pathlib.Path(root(), _FOLDER, name)
  if not path.is_file():
    raise contract.UserError(
      f'gin file {name!r} is not in {path.parent}. Install the project again,'
      ' or give its path with --gin_file.'
    )
  return str(path)


def models() -> list[str]:
  """Names of our model files: 'base' and so on."""
  return sorted(
    f.stem for f in pathlib.Path(root(), 'gin/models').glob('*.gin')
  )


def expand_flag_files(arguments: Sequence[str]) -> list[str]:
  """Puts the lines of our flag files in the place of --flagfile.

  A file of the current folder, or one that is nowhere, is left to absl.
  """
  return [new for argument in arguments for new in _expanded(argument)]


def _expanded(argument: str) -> Iterator[str]:
  name = argument.removeprefix(_FLAG_FILE)
  ours = pathlib.Path(root(), name)
  if name == argument or pathlib.Path(name).exists() or not ours.is_file():
    yield argument
    return
  for line in ours.read_text(encoding='utf-8').splitlines():
    if line.startswith('--'):
      yield from _expanded(line)
