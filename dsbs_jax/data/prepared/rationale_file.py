# SPDX-License-Identifier: Apache-2.0
"""The rationales of rows that have several: a file beside the examples.

`rationales-train.jsonl` in the dataset's folder has one line per such row: its
position in the split and all its rationales. Data of which every row has one
has no such file, and the examples are the same with it and without.
metadata.json holds counts and the digest of the file.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data import benchmark

KEY = 'rationales'
_FIELDS = tuple(f.name for f in dataclasses.fields(benchmark.Rationale))


def path(folder: pathlib.Path, split: str) -> pathlib.Path:
  """Where the file of a split lies, whether it exists or not."""
  return folder / f'rationales-{split}.jsonl'


class Writer:
  """Writes the file of a split while its examples pass.

  Attributes:
    about: counts and digest, for the metadata; empty until all have passed,
      and where no row has several rationales.
  """

  def __init__(self, file: pathlib.Path):
    self._file = file
    self.about: dict[str, Any] = {}

  def watch(
    self, examples: Iterable[benchmark.Example]
  ) -> Iterator[benchmark.Example]:
    """Passes examples on; writes the rationales of those with several."""
    digest, rows, count, out = hashlib.sha256(), 0, 0, None
    try:
      for position, example in enumerate(examples):
        if example.rationales:
          out = out or self._file.open('wb')
          line = _line(position, example)
          out.write(line)
          digest.update(line)
          rows += 1
          count += len(example.rationales)
        yield example
    finally:
      if out is not None:
        out.close()
    if rows:
      self.about = {
        'rows': rows,
        'rationales': count,
        'sha256': digest.hexdigest(),
      }


def _line(position: int, example: benchmark.Example) -> bytes:
  kept = [
    [getattr(rationale, field) for field in _FIELDS]
    for rationale in example.rationales
  ]
  try:
    text = json.dumps({'position': position, KEY: kept}, ensure_ascii=False)
    return text.encode() + b'\n'
  except UnicodeEncodeError as error:
    raise contract.UserError(
      f'row {example.index} ({example.example_id!r}): a rationale is not valid'
      f' Unicode ({error}). Fix or drop the row.'
    ) from error


def read(
  folder: pathlib.Path, split: str, about: Mapping[str, Any]
) -> Iterator[tuple[int, tuple[benchmark.Rationale, ...]]]:
  """Position in the split and rationales of each row with several, in order.

  Raises:
    UserError: the file is not as it was written, which is known for certain
      once all of it was read.
  """
  file = path(folder, split)
  digest = hashlib.sha256()
  try:
    with file.open('rb') as lines:
      for line in lines:
        digest.update(line)
        row = json.loads(line)
        found = [dict(zip(_FIELDS, e, strict=True)) for e in row[KEY]]
        rationales = tuple(benchmark.Rationale(**each) for each in found)
        yield row['position'], rationales
    if digest.hexdigest() != about['sha256']:
      raise ValueError('it holds other bytes than were written')
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise contract.UserError(
      f'{file} is damaged ({error}), expected what prepare wrote. Prepare the'
      ' benchmark again with --overwrite.'
    ) from error
