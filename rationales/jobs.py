# SPDX-License-Identifier: Apache-2.0
"""What a completions file and its folder know of batches (see `batch`)."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from rationales import calls, records

UPLOADED, CREATED, COLLECTED = 'uploaded', 'created', 'collected'


@dataclasses.dataclass(frozen=True)
class Job:
  """One batch.

  Attributes:
    number: counts the batches of a completions file.
    event: the last step that is done.
    file_id: the uploaded requests.
    batch_id: the batch, once created.
    uploaded_at: seconds since 1970.
  """

  number: int
  event: str
  file_id: str
  batch_id: str | None
  uploaded_at: float

  def line(self) -> dict[str, Any]:
    return {'kind': records.BATCH, **dataclasses.asdict(self)}


class Jobs:
  """The batches that a completions file knows of."""

  def __init__(self):
    self._jobs: dict[int, Job] = {}

  def remember(self, record: Mapping[str, Any]) -> None:
    """Takes in a line of the file; skips other kinds."""
    if record['kind'] == records.BATCH:
      fields = {f.name: record.get(f.name) for f in dataclasses.fields(Job)}
      self._jobs[record['number']] = Job(**fields)

  def pending(self) -> list[Job]:
    """Those that are not collected."""
    return [job for job in self._jobs.values() if job.event != COLLECTED]

  def next_number(self) -> int:
    return max(self._jobs, default=0) + 1


def call_record(asked: calls.Call) -> dict[str, Any]:
  """A call without its prompt, which the requests file has."""
  return dataclasses.asdict(dataclasses.replace(asked, content=''))


def call(record: Mapping[str, Any]) -> calls.Call:
  """The call of such a record."""
  return calls.Call(**{**record, 'samples': tuple(record['samples'])})


def write(path: pathlib.Path, found: Iterable[Mapping]) -> None:
  """Writes records as JSON lines, down to the disk."""
  with path.open('w', encoding='ascii') as file:
    for line in found:
      file.write(json.dumps(line) + '\n')
    file.flush()
    os.fsync(file.fileno())


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """Reads them back."""
  if not path.is_file():
    raise ValueError(
      f'{path} is missing: it says which rows a batch asked about. Restore'
      ' it, or give another --out.'
    )
  with path.open('rb') as file:
    return [json.loads(line) for line in file]


def paths(path: pathlib.Path, number: int) -> tuple[pathlib.Path, pathlib.Path]:
  """The files of a batch's requests and calls, beside the completions."""
  requests = path.with_name(f'{path.name}.batch-{number}.requests')
  return requests, path.with_name(f'{path.name}.batch-{number}.calls')


def request(
  sampling: calls.Sampling, asked: calls.Call, place: int
) -> dict[str, Any]:
  """A line of the file of requests."""
  chat = sampling.endpoint == calls.CHAT
  return {
    'custom_id': str(place),
    'method': 'POST',
    'url': f'/v1/{"chat/" if chat else ""}completions',
    'body': sampling.body(asked),
  }
