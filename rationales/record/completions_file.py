# SPDX-License-Identifier: Apache-2.0
"""The format of a completions file, and a compact index of its answers.

Each line is a JSON object with a `kind`:

  header           the run's settings, and `substitutes` for fields of requests
                   that the server refuses; the first line, again after a change
  completion       id, sample, text, finish_reason, usage, model, prompt_hash,
                   fingerprint (of the row), backend, time: one line per row
                   and sample; reasoning and refusal if there were any;
                   `logprobs` of the answer's tokens where they were asked for;
                   `retry` if it replaces the answer of an earlier line
  rationalization  the same with `hint`, the label that the prompt contained
  verdict          the same with `about`, the digest of the completion of this
                   sample, of which the text says whether it is right
  counterfactual   an answer that argues for a wrong label, as it was asked to:
                   the same with `hint`, that label
  failure          a row that failed for good: `of`, `error`, `status`
  lost             a call that may have been paid and gave no answer, or one of
                   another model, with its texts
  batch            a step of the Batch API

`usage` is on the first line of a call; the lines of its other samples have
null, so that the sum over all lines is what was paid. Readers skip kinds that
they do not know.
"""

import array
import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np

from dsbs_jax import contract
from dsbs_jax.data.source import archive, completions

FORMAT = 1

HEADER = 'header'
COMPLETION = 'completion'
RATIONALIZATION = 'rationalization'
VERDICT = 'verdict'
COUNTERFACTUAL = 'counterfactual'
FAILURE = 'failure'
LOST = 'lost'
BATCH = 'batch'

ANSWERS = (COMPLETION, RATIONALIZATION, VERDICT, COUNTERFACTUAL)
USAGE_FIELDS = ('prompt_tokens', 'completion_tokens')
# Why a completion ended: at max_tokens, or withheld by the server.
LENGTH, CONTENT_FILTER = 'length', 'content_filter'

_HASH = re.compile('[0-9a-f]{1,16}')
# The fields that readers of a kind rely on, and their types.
_FIELDS = {
  HEADER: {'settings': dict},
  BATCH: {
    'number': int,
    'event': str,
    'file_id': str,
    'uploaded_at': (int, float),
  },
  **dict.fromkeys(
    ANSWERS, {'id': str, 'sample': int, 'text': str, 'prompt_hash': str}
  ),
}


@dataclasses.dataclass(frozen=True)
class SampleKey:
  """Identifies what is paid for once: a sample of a row, in a pass."""

  kind: str  # one of ANSWERS
  example_id: str
  sample: int  # from 0

  @property
  def hash64(self) -> int:
    """A 64-bit hash.

    Two of a million keys share a hash with probability 3e-8; then one row
    would be taken for answered.
    """
    return _hash64(f'{self.kind}\0{self.sample}\0{self.example_id}')


def _hash64(text: str) -> int:
  data = text.encode('utf-8', 'surrogatepass')
  digest = hashlib.blake2b(data, digest_size=8).digest()
  return int.from_bytes(digest, 'little')


def scan(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
  """The offset in bytes and the record of each line, up to a torn last line.

  Raises:
    contract.UserError: it is no regular file, or a line that is not the last
      one is malformed.
  """
  archive.check_regular(path)
  offset = 0
  with path.open('rb') as file:
    for number, line in enumerate(file, 1):
      try:
        record = json.loads(line)
        kind = record['kind']
      except (ValueError, TypeError, KeyError, RecursionError):
        if not line.endswith(b'\n'):
          return
        raise contract.UserError(
          f'{path}:{number} is {line[:60]!r}, expected a JSON object with a'
          ' "kind". The file was edited or is of another program: repair or'
          ' delete the line, or give another file with --out.'
        ) from None
      problem = _problem(record)
      if problem:
        raise contract.UserError(
          f'{path}:{number} is a {kind} whose {problem}. The file was edited:'
          ' repair or delete the line (the next run asks for a deleted answer'
          ' again), or give another file with --out.'
        )
      yield offset, record
      offset += len(line)


def _problem(record: dict[str, Any]) -> str | None:
  """Which field that readers rely on is missing or wrong, in words."""
  kind = record['kind']
  fields = _FIELDS.get(kind, {}) if isinstance(kind, str) else {}
  for name, expected in fields.items():
    if not isinstance(record.get(name), expected):
      return f'{name} is {record.get(name)!r:.60}'
  if kind in ANSWERS and not _HASH.fullmatch(record['prompt_hash']):
    return f'prompt_hash is {record["prompt_hash"]!r:.60}'
  usage = record.get('usage')
  if usage and not is_usage(usage):
    return f'usage is {usage!r:.60}'
  return None


def is_usage(usage: Any) -> bool:
  """Whether this holds two plausible numbers of tokens."""
  return isinstance(usage, dict) and all(
    isinstance(usage.get(name), int) and 0 <= usage[name] < 1 << 53
    for name in USAGE_FIELDS
  )


class Index:
  """Which samples are answered, and where: 32 bytes per answer.

  Call `add` for every line, then `freeze` once. Of several lines for the same
  sample the first counts, or the last one with `retry`.

  Args:
    path: the file, which `read` opens and keeps open.

  Attributes:
    num_samples: as many samples of the first pass as a row has, at most.
  """

  def __init__(self, path: pathlib.Path):
    self._path = path
    # Four numbers per line: hashes of key and prompt, offset, hash of the id.
    self._answers, self._retries = array.array('Q'), array.array('Q')
    self.num_samples = 0

  def add(self, offset: int, record: dict[str, Any]) -> None:
    """Adds a line, at an offset in bytes, if it is an answer."""
    if record['kind'] in ANSWERS:
      key = SampleKey(record['kind'], record['id'], record['sample'])
      if key.kind == COMPLETION:
        self.num_samples = max(self.num_samples, 1 + key.sample)
      prompt = int(record['prompt_hash'], 16)
      lines = self._retries if record.get('retry') else self._answers
      lines.extend((key.hash64, prompt, offset, _hash64(record['id'])))

  def freeze(self) -> 'Index':
    """Sorts the added lines; now they can be looked up, but no more added."""
    answers, retries = (
      np.asarray(lines, np.uint64).reshape(-1, 4)
      for lines in (self._answers, self._retries)
    )
    self._answers = self._retries = None
    lines = np.concatenate([retries[::-1], answers])
    # The first of equal keys is kept.
    _, first = np.unique(lines[:, 0], return_index=True)
    columns = (column[first] for column in lines.T)
    self._keys, self._hashes, self._offsets, self._ids = columns
    return self

  def __len__(self) -> int:
    return len(self._keys)

  def __contains__(self, key: SampleKey) -> bool:
    return self._position(key) is not None

  def prompt_hash(self, key: SampleKey) -> str | None:
    """The hash of the prompt that was answered; None without an answer."""
    position = self._position(key)
    return None if position is None else f'{int(self._hashes[position]):016x}'

  def offset(self, key: SampleKey) -> int:
    """Where in the file the sample's record is; -1 without an answer."""
    position = self._position(key)
    return -1 if position is None else int(self._offsets[position])

  def of_no_row(self, ids: Iterable[str]) -> list[int]:
    """The offsets of answers to other ids than these, in ascending order."""
    known = np.fromiter(map(_hash64, ids), np.uint64)
    return np.sort(self._offsets[~np.isin(self._ids, known)]).tolist()

  @functools.cached_property
  def _file(self) -> BinaryIO:
    return self._path.open('rb')

  def read(self, key: SampleKey) -> dict[str, Any] | None:
    """A sample's record; None where the file has no such sample.

    A `<think>` part of its text is in 'reasoning' instead, and lone surrogates
    are replaced, which no request can hold.
    """
    if key not in self:
      return None
    self._file.seek(self.offset(key))
    record = json.loads(self._file.readline())
    # Earlier versions left the reasoning in the text.
    text, thought = completions.split_reasoning(record['text'])
    text = completions.encodable(text)
    return record | {'text': text} | ({'reasoning': thought} if thought else {})

  def _position(self, key: SampleKey) -> int | None:
    hashed = np.uint64(key.hash64)
    position = int(np.searchsorted(self._keys, hashed))
    if position < len(self._keys) and self._keys[position] == hashed:
      return position
    return None
