# SPDX-License-Identifier: Apache-2.0
"""Batches of the Batch API, as recorded beside the completions (`batch`)."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from dsbs_jax import contract
from dsbs_jax.runtime import files
from rationales.record import calls, completions_file

UPLOADED, CREATED, COLLECTED = 'uploaded', 'created', 'collected'


@dataclasses.dataclass(frozen=True)
class BatchJob:
  """One batch."""

  number: int  # counts the batches of a completions file, from 1
  event: str  # the last step that is done: UPLOADED, CREATED or COLLECTED
  file_id: str  # the server's, of the uploaded requests
  batch_id: str | None  # the server's, once created
  uploaded_at: float  # seconds since 1970

  def line(self) -> dict[str, Any]:
    return {'kind': completions_file.BATCH, **dataclasses.asdict(self)}


class BatchJobs:
  """The batches that a completions file has lines of."""

  def __init__(self):
    self._jobs: dict[int, BatchJob] = {}

  def restore(self, record: Mapping[str, Any]) -> None:
    """Takes in a line of the file; ignores other kinds."""
    if record['kind'] == completions_file.BATCH:
      names = [field.name for field in dataclasses.fields(BatchJob)]
      job = BatchJob(**{name: record.get(name) for name in names})
      self._jobs[job.number] = job

  def pending(self) -> list[BatchJob]:
    """Those that are not collected."""
    return [job for job in self._jobs.values() if job.event != COLLECTED]

  def next_number(self) -> int:
    return max(self._jobs, default=0) + 1


def paths(path: pathlib.Path, number: int) -> tuple[pathlib.Path, pathlib.Path]:
  """The files of a batch's requests and calls, beside the completions."""
  requests = path.with_name(f'{path.name}.batch-{number}.requests')
  return requests, path.with_name(f'{path.name}.batch-{number}.calls')


def write(
  path: pathlib.Path,
  number: int,
  sampling: calls.Sampling,
  asked: list[calls.Call],
  *,
  substitutes: calls.Substitutes,
) -> pathlib.Path:
  """Writes both files of a batch to the disk; returns that of requests."""
  requests, kept = paths(path, number)
  # The prompts are in the other file.
  _write(kept, (vars(dataclasses.replace(c, content='')) for c in asked))
  _write(
    requests,
    (
      {
        'custom_id': str(position),
        'method': 'POST',
        'url': f'/v1{sampling.path}',
        'body': substitutes.apply(sampling.body(call)),
      }
      for position, call in enumerate(asked)
    ),
  )
  return requests


def read_calls(path: pathlib.Path, number: int) -> list[calls.Call]:
  """Reads the calls of a batch, in the order of its requests.

  Raises:
    contract.UserError: the file is missing.
  """
  _, kept = paths(path, number)
  if not kept.is_file():
    raise contract.UserError(
      f'{kept} is missing, expected the rows that a batch asked about. Restore'
      ' it, or give another --out.'
    )
  with kept.open('rb') as file:
    found = [json.loads(line) for line in file]
  return [calls.Call(**r | {'samples': tuple(r['samples'])}) for r in found]


def sent_fields(path: pathlib.Path, number: int) -> set[str]:
  """Names of the fields of a batch's requests, as far as they are kept."""
  requests = paths(path, number)[0]
  if not requests.is_file():
    return set()
  with requests.open() as file:
    return set(json.loads(file.readline())['body'])


def _write(path: pathlib.Path, records: Iterable[Mapping]) -> None:
  with files.writing(path), path.open('w', encoding='ascii') as file:
    file.writelines(json.dumps(record) + '\n' for record in records)
    file.flush()
    os.fsync(file.fileno())
