# SPDX-License-Identifier: Apache-2.0
"""When the disk is full or may not be written to: which file, and what now."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def writing(path: str | pathlib.Path) -> Iterator[None]:
  """Makes an OSError say which file of a run was not written, and what now."""
  try:
    yield
  except OSError as error:
    raise failure(path, error) from error


def failure(path: str | pathlib.Path, error: Exception) -> OSError:
  """The error of a run that could not write a file."""
  reason = getattr(error, 'strerror', None) or str(error).partition('\n')[0]
  return OSError(
    f'{path} could not be written: {reason}. What was saved before is whole:'
    ' make room or change the permissions, and the same command goes on from'
    ' the newest checkpoint.'
  )


def check_writable(folder: str | pathlib.Path) -> None:
  """Raises OSError at once where a run could write nothing hours later."""
  folder = pathlib.Path(folder)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
      file.write(b'dsbs_jax')
  except (FileExistsError, NotADirectoryError) as error:
    raise OSError(
      f'{str(folder)!r} is a file or inside of one, expected a folder to write'
      ' to. Give another path.'
    ) from error
  except OSError as error:
    raise OSError(
      f'{str(folder)!r} cannot be written to: {error.strerror or error}.'
      ' Change its permissions, make room, or set another MODEL_DIR.'
    ) from error


def replace_text(path: pathlib.Path, text: str) -> None:
  """Writes a file so that a kill leaves the old one or the new one."""
  partial = path.with_name(f'{path.name}.tmp')
  with writing(path):
    partial.write_text(text)
    partial.replace(path)
