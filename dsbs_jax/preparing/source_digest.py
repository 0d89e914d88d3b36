# SPDX-License-Identifier: Apache-2.0
"""A digest of the files that a preparation reads: rows and completions."""

import functools
import hashlib
import pathlib

from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import declared
from dsbs_jax.data.source import archive, file_layout, json_reader


def files_below(path: str | None) -> list[pathlib.Path]:
  """The files at a path or below it."""
  if path is None:
    return []
  place = pathlib.Path(path).expanduser()
  if place.is_file():
    return [place]
  return [file for file in place.rglob('*') if file.is_file()]


def digest(
  known: benchmark_lib.Benchmark, source: str, completions: str | None
) -> str | None:
  """The digest; None where the source is not at hand.

  Args:
    completions: a file or folder of completions; None for those beside rows.
  """
  if not pathlib.Path(source).expanduser().exists():
    return None
  opened = archive.open_archive(source)
  openers = {
    str(file): functools.partial(file.open, 'rb')
    for file in sorted(files_below(completions))
  }
  for split in known.splits:
    for part in file_layout.find_parts(known, opened, split) or ():
      beside = archive.beside(opened, part.file, 'llm/*')
      if declared.is_made(known):  # see prepare.py
        beside = []
      for name in (part.file, *beside):
        openers[f'{opened.root}/{name}'] = functools.partial(opened.open, name)
  hasher = hashlib.sha256()
  for place, opener in openers.items():
    with opener() as file:
      while some := json_reader.read_some(file.read, 1 << 20, place):
        hasher.update(some)
  return hasher.hexdigest()
