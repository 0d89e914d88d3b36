# SPDX-License-Identifier: Apache-2.0
"""A student in a bucket is served, planned with and exported from there."""

import importlib.util
import json
import shutil
import subprocess
import sys

import pytest

from dsbs_jax.data.remote import buckets, object_store
from tests import small_runs
from tests.buckets import stores, test_runs
from tests.serving import serving_process

pytestmark = pytest.mark.long
data_dir = test_runs.data_dir


@pytest.fixture
def student(store, data_dir, tmp_path):
  """(the same run in the bucket, and on disk); its data are in the bucket."""
  run = small_runs.settings(tmp_path / 'run', data_dir, 'TRAIN_STEPS = 1')
  command = small_runs.command(run.model_dir, run.data_dir, 'TRAIN_STEPS = 1')
  test_runs._run(command, tmp_path, cache='trained')
  url = f'{store.scheme}://{stores.BUCKET}/runs/a'
  place = buckets.local_path(url)
  shutil.copytree(run.model_dir, place)
  buckets.push(place)
  return url, run.model_dir


class _Server(serving_process.Process):
  """A server of a folder, by its command."""

  def __init__(self, log, folder):
    self._log = log
    with log.open('w') as file:
      self.process = subprocess.Popen(
        [
          *(sys.executable, '-m', 'dsbs_jax.serve', folder, '--port=0'),
          *('--gin.BATCH_SIZES=(2,)', '--gin.INPUT_LENGTHS=(64,)'),
        ],
        cwd=small_runs.REPOSITORY,
        stderr=file,
      )


def test_it_is_served(student, tmp_path, monkeypatch):
  """With the answers of the same student on disk."""
  answers = []
  for number, folder in enumerate(student):
    monkeypatch.setenv('DSBS_CACHE', str(tmp_path / f'server{number}'))
    with _Server(tmp_path / f'server{number}.log', folder) as server:
      server.wait()
      body = {'inputs': ['how many?', 'and where?']}
      status, answer = server.post('/v1/answers', body)
      assert status == 200, answer
      answers.append(answer['answers'])
  assert answers[0] == answers[1] and len(answers[0]) == 2


@pytest.mark.skipif(
  importlib.util.find_spec('ctranslate2') is None,
  reason="ctranslate2 is not installed: pip install -e '.[ct2]'",
)
def test_it_is_exported_for_ctranslate2(student, tmp_path):
  """Beside it in the bucket, with the bytes of an export on disk."""
  url, local = student
  check = '--check=validation'
  flags = '--format=ct2', '--quantization=int8', '--max_drop=100'
  out = f'{url}-ct2'
  said = test_runs._run(
    ['-m', 'dsbs_jax.export', url, *flags, check, f'--out={out}'],
    tmp_path,
    cache='export',
  )
  assert f'{out}: {url}/checkpoint_1 for ctranslate2, int8' in said
  here = tmp_path / 'ct2'
  test_runs._run(
    ['-m', 'dsbs_jax.export', local, *flags, check, f'--out={here}'],
    tmp_path,
    cache='local',
  )
  for name in ('model.bin', 'config.json', 'shared_vocabulary.json'):
    assert object_store.read(f'{out}/{name}') == (here / name).read_bytes()
  names = set(object_store.names(out))
  assert {'run.py', 'settings.json', 'README.md'} <= names
  assert not [name for name in names if 'incomplete' in name]


def test_a_run_in_a_bucket_is_planned(student, data_dir, tmp_path):
  """Its sizes are those of the student there, its batches of the data there."""
  url, local = student
  plans = []
  for number, (folder, data) in enumerate(
    ((url, data_dir), (local, str(tmp_path / 'data')))
  ):
    said = test_runs._run(
      [
        *('-m', 'dsbs_jax.plan', '--gin_file=gin/benchmarks/svamp.gin'),
        *(f'--student={folder}', f'--gin.DATA_DIR={data!r}'),
        *('--gin.BATCH_SIZE=4', "--gin.VOCABULARY='bytes'"),
        *('--mesh=1x1', '--device=h100', '--noremedies', '--json'),
      ],
      tmp_path,
      cache=f'plan{number}',
    )
    plan = json.loads(said[said.index('{') : said.rindex('}') + 1])
    assert data in plan['batch_from']
    plans.append((plan['num_params'], plan['views'], plan['parts']))
  assert plans[0] == plans[1]
