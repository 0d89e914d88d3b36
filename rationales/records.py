# SPDX-License-Identifier: Apache-2.0
"""The lines of a completions file, and an index of them that stays small.

Each line is a JSON object with a `kind`:

  header           the run's settings; the first line, again after --force
  completion       id, sample, text, finish_reason, usage, model, prompt_hash,
                   backend, time: a good line, one per row and sample
  rationalization  the same with `hint`, the right label told to the model
  failure          a row that failed for good: `of`, `error`, `status`
  lost             a call that may have been paid and gave no answer
  batch            a step of the Batch API

`usage` stands on the first line of a call; the other samples of the same call
carry null, so that the sum over lines is what was paid. Readers skip kinds
that they do not know.
"""

import array
import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

HEADER = 'header'
COMPLETION = 'completion'
RATIONALIZATION = 'rationalization'
FAILURE = 'failure'
LOST = 'lost'
BATCH = 'batch'

ANSWERS = (COMPLETION, RATIONALIZATION)

_HASH = re.compile('[0-9a-f]{1,16}')
# What is read of the lines of a kind, and what it must be.
_FIELDS = {
  HEADER: {'settings': dict},
  BATCH: {
    'number': int,
    'event': str,
    'file_id': str,
    'uploaded_at': (int, float),
  },
  **dict.fromkeys(ANSWERS, {'id': str, 'sample': int, 'prompt_hash': str}),
}


@dataclasses.dataclass(frozen=True)
class Slot:
  """What is paid once: one sample of one row, in one of the two passes.

  Attributes:
    kind: COMPLETION or RATIONALIZATION.
    example_id: the row's id.
    sample: number of the sample, from 0.
  """

  kind: str
  example_id: str
  sample: int

  @property
  def key(self) -> int:
    """64 bits that stand for the slot.

    Two of a million slots share a key with probability 3e-8; then one row
    would be taken for answered.
    """
    text = f'{self.kind}\0{self.sample}\0{self.example_id}'
    digest = hashlib.blake2b(
      text.encode('utf-8', 'surrogatepass'), digest_size=8
    ).digest()
    return int.from_bytes(digest, 'little')


def scan(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
  """Reads a completions file line by line.

  Args:
    path: the file; its last line may be torn, which ends the scan.

  Yields:
    The offset of each line in bytes, and its record.

  Raises:
    ValueError: a line that is not the last one is broken.
  """
  offset = 0
  with path.open('rb') as file:
    for number, line in enumerate(file, 1):
      try:
        record = json.loads(line)
        kind = record['kind']
      except (ValueError, TypeError, KeyError, RecursionError):
        if not line.endswith(b'\n'):
          return
        raise ValueError(
          f'{path}:{number} is {line[:60]!r}, expected a JSON object with a'
          ' "kind". The file was edited or is of another origin: mend or'
          ' delete the line, or give another file with --out.'
        ) from None
      if kind in ANSWERS and not isinstance(record.get('text'), str):
        raise ValueError(
          f'{path}:{number} is a {kind} without a text. Delete the line;'
          ' the next run asks again.'
        )
      fault = _fault(record)
      if fault:
        raise ValueError(
          f'{path}:{number} is a {kind} whose {fault}. The file was edited:'
          ' mend or delete the line, or give another file with --out.'
        )
      yield offset, record
      offset += len(line)


def _fault(record: dict[str, Any]) -> str | None:
  """What a line lacks that its readers rely on, in words."""
  kind = record['kind']
  fields = _FIELDS.get(kind, {}) if isinstance(kind, str) else {}
  for name, expected in fields.items():
    if not isinstance(record.get(name), expected):
      return f'{name} is {record.get(name)!r:.60}'
  if kind in ANSWERS and not _HASH.fullmatch(record['prompt_hash']):
    return f'prompt_hash is {record["prompt_hash"]!r:.60}'
  usage = record.get('usage')
  if usage and not _is_usage(usage):
    return f'usage is {usage!r:.60}'
  return None


def _is_usage(usage: Any) -> bool:
  names = ('prompt_tokens', 'completion_tokens')
  return isinstance(usage, dict) and all(
    isinstance(usage.get(name), int) and 0 <= usage[name] < 1 << 53
    for name in names
  )


class Index:
  """Which slots are answered, and where: 24 bytes per answer.

  Fill it with `add` in any order, then `freeze` it. The first of two lines
  for one slot wins; `duplicates` counts the others.
  """

  def __init__(self):
    self._columns = [array.array('Q') for _ in range(3)]
    self._keys = self._hashes = self._offsets = np.zeros(0, np.uint64)
    self.duplicates = 0

  def add(self, offset: int, record: dict[str, Any]) -> None:
    """Takes in a line that answers a slot; skips all other kinds."""
    if record['kind'] in ANSWERS:
      slot = Slot(record['kind'], record['id'], record['sample'])
      values = slot.key, int(record['prompt_hash'], 16), offset
      for column, value in zip(self._columns, values, strict=True):
        column.append(value)

  def freeze(self) -> 'Index':
    """Sorts what was added; lookups work from now on."""
    keys, hashes, offsets = (np.array(c, np.uint64) for c in self._columns)
    self._columns = [array.array('Q') for _ in range(3)]
    self._keys, first = np.unique(keys, return_index=True)
    self._hashes, self._offsets = hashes[first], offsets[first]
    self.duplicates = len(keys) - len(first)
    return self

  def __len__(self) -> int:
    return len(self._keys)

  def __contains__(self, slot: Slot) -> bool:
    return self._place(slot) is not None

  def prompt_hash(self, slot: Slot) -> str | None:
    """The hash of the prompt that the slot's answer belongs to."""
    place = self._place(slot)
    return None if place is None else f'{int(self._hashes[place]):016x}'

  def read(self, slot: Slot, file: BinaryIO) -> dict[str, Any] | None:
    """The slot's record, read from the file that was indexed."""
    place = self._place(slot)
    if place is None:
      return None
    file.seek(int(self._offsets[place]))
    return json.loads(file.readline())

  def _place(self, slot: Slot) -> int | None:
    key = np.uint64(slot.key)
    place = int(np.searchsorted(self._keys, key))
    if place < len(self._keys) and self._keys[place] == key:
      return place
    return None
