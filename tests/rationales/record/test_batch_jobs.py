# SPDX-License-Identifier: Apache-2.0
"""A batch is on the disk before it is sent, and found again among others."""

import asyncio
import os
import types

import pytest

from rationales.client import batch, secret, server_config
from rationales.record import batch_jobs, calls, completions_file

SAMPLING = calls.Sampling('m', calls.CHAT, 0.0, 0, (), {})


def _call(number):
  return calls.Call(
    kind='completion',
    example_id=f'r{number}',
    samples=(0, 1),
    content=[{'role': 'user', 'content': f'Is it {number}?'}],
    prompt_hash='0',
    prompt_bytes=7,
    gold='',
  )


def test_both_files_are_synced_when_they_are_whole(tmp_path, monkeypatch):
  synced = {}

  def fsync(descriptor):
    about = os.fstat(descriptor)
    synced[about.st_ino] = about.st_size

  monkeypatch.setattr(os, 'fsync', fsync)
  path, asked = tmp_path / 'out.jsonl', [_call(number) for number in range(3)]
  batch_jobs.write(path, 1, SAMPLING, asked, substitutes=calls.Substitutes())
  for file in batch_jobs.paths(path, 1):
    about = file.stat()
    assert synced[about.st_ino] == about.st_size > 0
  found = batch_jobs.read_calls(path, 1)
  assert [call.sample_keys() for call in found] == [
    call.sample_keys() for call in asked
  ]


UPLOADED_AT = 1_000_000
HOUR = 3600


class Batches:
  """The server's batches, newest first; all that are asked for are done."""

  def __init__(self, *listed):
    self.listed, self.created, self.asked = listed, [], []

  async def list(self, limit):
    del limit
    for file_id, seconds in self.listed:
      yield types.SimpleNamespace(
        id=f'of {file_id}',
        input_file_id=file_id,
        created_at=UPLOADED_AT + seconds,
      )
      assert seconds > -2 * HOUR, 'all that are older are read for nothing'

  async def create(self, input_file_id, **_):
    self.created.append(input_file_id)
    return types.SimpleNamespace(id=f'of {input_file_id}')

  async def retrieve(self, batch_id):
    self.asked.append(batch_id)
    return types.SimpleNamespace(
      status='completed', output_file_id=None, error_file_id=None, errors=None
    )


@pytest.mark.parametrize(
  ('others', 'created'),
  [
    ([('theirs', 20), ('mine', 10), ('old', -9 * HOUR)], []),
    ([('theirs', 20), ('mine', -10)], []),  # the server's clock is behind
    ([('theirs', 20), ('old', -9 * HOUR), ('older', -10 * HOUR)], ['mine']),
  ],
)
def test_a_batch_that_may_have_been_created_is_looked_for(
  tmp_path, others, created
):
  batches, path = Batches(*others), tmp_path / 'out.jsonl'

  async def close():
    pass

  client = types.SimpleNamespace(batches=batches, close=close)
  jobs = batch_jobs.BatchJobs()
  uploaded = batch_jobs.BatchJob(
    1, batch_jobs.UPLOADED, 'mine', None, UPLOADED_AT
  )
  jobs.restore(uploaded.line())
  batch_jobs.write(
    path, 1, SAMPLING, [_call(0)], substitutes=calls.Substitutes()
  )
  nothing = types.SimpleNamespace(
    path=path, check=lambda: None, append=lambda line: None, sync=lambda: None
  )
  failed = []
  runner = batch.BatchRunner(
    SAMPLING,
    types.SimpleNamespace(
      client=lambda: client,
      batch_size=8,
      forget_batches=False,
      poll_seconds=0,
      key=secret.Secret(''),
      backoff=server_config.Backoff(),
    ),
    types.SimpleNamespace(
      file=nothing,
      monitor=types.SimpleNamespace(tick=lambda: None),
      failure=lambda call, reason, status: failed.append(reason),
    ),
    types.SimpleNamespace(
      jobs=jobs, index=completions_file.Index(tmp_path).freeze()
    ),
    calls.Substitutes(),
  )
  asyncio.run(runner.run(iter(())))
  assert (batches.created, batches.asked) == (created, ['of mine'])
  assert not jobs.pending()
  assert failed == ['"the batch has no line for it"']
