# SPDX-License-Identifier: Apache-2.0
"""Runs in buckets of real servers: killed, resumed elsewhere, read from there."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from dsbs_jax.data.remote import buckets, object_store
from tests import small_runs
from tests.buckets import stores

pytestmark = pytest.mark.long


def _url(store, *names) -> str:
  return '/'.join([f'{store.scheme}:/', stores.BUCKET, *names])


@pytest.fixture
def data_dir(store, tmp_path):
  """Prepared data in the bucket."""
  local = small_runs.prepare(tmp_path / 'data')
  for path in pathlib.Path(local).rglob('*'):
    if path.is_file():
      name = path.relative_to(local).as_posix()
      object_store.write(_url(store, 'data', name), path.read_bytes())
  return _url(store, 'data')


def _start(arguments, tmp_path, *, cache):
  """A command on a machine whose cache is empty; its words go to a file."""
  environment = os.environ | {'DSBS_CACHE': str(tmp_path / cache)}
  with (tmp_path / f'{cache}.log').open('w') as log:
    return subprocess.Popen(
      [sys.executable, *arguments],
      cwd=small_runs.REPOSITORY,
      env=environment,
      stdout=log,
      stderr=log,
    )


def _run(arguments, tmp_path, *, cache, status=0) -> str:
  process = _start(arguments, tmp_path, cache=cache)
  code = process.wait(timeout=1800)
  said = (tmp_path / f'{cache}.log').read_text()
  assert code == status, said
  return said


def _kill_at(store, process, part):
  """Kills a process when it asks for an object whose name has `part`."""

  def fails(method, path):
    if part in path and process.poll() is None:
      process.send_signal(signal.SIGKILL)
      process.wait()

  store.fails = fails


def test_a_killed_run_goes_on_elsewhere_bit_for_bit(store, data_dir, tmp_path):
  unbroken = small_runs.settings(tmp_path / 'unbroken', tmp_path / 'data')
  arguments = small_runs.command(unbroken.model_dir, unbroken.data_dir)
  _run(arguments, tmp_path, cache='unbroken')

  run = small_runs.settings(_url(store, 'runs', 'a'), data_dir)
  arguments = small_runs.command(run.model_dir, run.data_dir)
  # When the first checkpoint is begun, when the second is all but whole, and
  # when its scores follow.
  moments = (
    'checkpoint_6.incomplete',
    'checkpoint_12/checksums.json',
    'checkpoint_12/metrics/metrics',
  )
  for number, moment in enumerate(moments):
    cache = f'machine{number}'
    process = _start(arguments, tmp_path, cache=cache)
    _kill_at(store, process, moment)
    process.wait(timeout=1800)
    assert process.returncode == -signal.SIGKILL, (
      tmp_path / f'{cache}.log'
    ).read_text()
    store.fails = lambda method, path: None
  said = (tmp_path / 'machine2.log').read_text()
  assert f'{run.model_dir}/checkpoint_12 was not uploaded to its end' in said
  assert f'resuming {run.model_dir} from step 6' in said
  said = _run(arguments, tmp_path, cache='machine3')
  assert f'resuming {run.model_dir} from step 12' in said
  assert f'done: 12 steps, checkpoints in {run.model_dir}' in said

  copy = buckets.fetch(run.model_dir)
  here = small_runs.settings(copy, tmp_path / 'data')
  small_runs.assert_same_run(here, unbroken)
  found = object_store.find(run.model_dir)
  assert not [url for url in found if 'incomplete' in url or 'lock' in url]


def test_a_run_is_read_where_it_lies(store, data_dir, tmp_path):
  """eval, infer, show, export and report, by their commands."""
  local = small_runs.settings(tmp_path / 'run', tmp_path / 'data')
  _run(
    small_runs.command(local.model_dir, local.data_dir),
    tmp_path,
    cache='local',
  )
  config = (tmp_path / 'run' / 'config.gin').read_text()
  assert str(tmp_path / 'data') in config
  moved = config.replace(str(tmp_path / 'data'), data_dir)
  (tmp_path / 'run' / 'config.gin').write_text(moved)
  place = buckets.local_path(_url(store, 'runs', 'a'))
  shutil.copytree(tmp_path / 'run', place)
  buckets.push(place)
  run = _url(store, 'runs', 'a')

  def dsbs(verb, *arguments, status=0):
    command = ['-m', f'dsbs_jax.{verb}', *arguments]
    return _run(command, tmp_path, cache=verb, status=status)

  # Scores are those of the same checkpoint on disk, and lie beside it.
  said = dsbs('eval', run, '--step=12')
  assert f'-> {run}/predictions/svamp_gt_label-test-000012.jsonl' in said
  here = dsbs('eval', local.model_dir, '--step=12', f'--data_dir={data_dir}')
  scores = [
    json.loads(line)
    for line in object_store.read(f'{run}/eval.jsonl').split(b'\n')[:-1]
  ]
  mine = [
    json.loads(line)
    for line in (tmp_path / 'run' / 'eval.jsonl').read_text().splitlines()
  ]
  assert [s.pop('checkpoint') for s in scores] == [f'{run}/checkpoint_12'] * 2
  assert scores == [
    {k: v for k, v in s.items() if k != 'checkpoint'} for s in mine
  ]
  assert here.count('step 12') == 2
  dsbs('eval', f'{run}/checkpoint_12')  # lines are added
  assert object_store.read(f'{run}/eval.jsonl').count(b'\n') == 4

  # The answers are those of the same student on disk.
  lines = b''.join(
    b'{"id": "%d", "input": "how many?"}\n' % i for i in range(5)
  )
  object_store.write(_url(store, 'in.jsonl'), lines)
  (tmp_path / 'in.jsonl').write_bytes(lines)
  out = _url(store, 'answers', 'out.jsonl')
  said = dsbs('infer', run, _url(store, 'in.jsonl'), f'--out={out}')
  assert f'-> {out}' in said
  dsbs(
    'infer',
    local.model_dir,
    str(tmp_path / 'in.jsonl'),
    f'--out={tmp_path / "out.jsonl"}',
  )
  answers = (tmp_path / 'out.jsonl').read_bytes()
  assert object_store.read(out) == answers
  # It goes on where it was: nothing is answered twice, more lines follow.
  object_store.write(_url(store, 'in.jsonl'), lines + lines)
  said = dsbs('infer', run, _url(store, 'in.jsonl'), f'--out={out}')
  assert f'going on after line 5 of {out}' in said
  found = object_store.read(out)
  assert found.startswith(answers) and found.count(b'\n') == 10
  assert not [
    name
    for name in object_store.names(_url(store, 'answers'))
    if 'lock' in name
  ]

  said = dsbs('show', run)
  assert 'svamp_gt_dsbs: 9 examples' in said

  said = dsbs('export', run, f'--out={_url(store, "hf")}')
  assert f'{_url(store, "hf")}: {run}/checkpoint_12 for Hugging Face' in said
  there = object_store.names(_url(store, 'hf'))
  assert {'config.json', 'model.safetensors', 'run.json', 'README.md'} <= set(
    there
  )
  # An exported student starts a run, and so does the run itself.
  for student in (_url(store, 'hf'), f'{run}/checkpoint_12'):
    out = tmp_path / pathlib.PurePosixPath(student).name
    said = dsbs(
      'train',
      '--benchmark=svamp',
      f'--data_dir={data_dir}',
      f'--student={student}',
      f'--out={out}',
      '--steps=1',
    )
    assert f'student     {student}' in said, said
    assert repr(student) in (out / 'config.gin').read_text()

  said = dsbs('report', _url(store, 'runs'))
  report = _url(store, 'runs', 'report')
  assert f'{report}/report.html' in said
  table = object_store.read(f'{report}/table.csv')
  dsbs('report', local.model_dir, f'--out={tmp_path / "report"}')
  assert table == (tmp_path / 'report' / 'table.csv').read_bytes()


def test_a_store_that_is_unavailable_for_20_s_ends_no_run(
  store, data_dir, tmp_path
):
  unbroken = small_runs.settings(tmp_path / 'unbroken', tmp_path / 'data')
  arguments = small_runs.command(unbroken.model_dir, unbroken.data_dir)
  _run(arguments, tmp_path, cache='unbroken')
  run = small_runs.settings(_url(store, 'runs', 'a'), data_dir)
  began = []

  def fails(method, path):
    """503 for 20 s from the first upload of a checkpoint on."""
    if 'checkpoint_6.incomplete' in path and not began:
      began.append(time.monotonic())
    return 503 if began and time.monotonic() < began[0] + 20 else None

  store.fails = fails
  arguments = small_runs.command(run.model_dir, run.data_dir)
  _run(arguments, tmp_path, cache='run')
  assert sum(status == 503 for _, _, status in store.calls) >= 3
  store.fails = lambda method, path: None
  here = small_runs.settings(buckets.fetch(run.model_dir), tmp_path / 'data')
  small_runs.assert_same_run(here, unbroken)


def test_a_store_that_refuses_writes_is_one_line(store, data_dir, tmp_path):
  run = small_runs.settings(_url(store, 'runs', 'a'), data_dir)
  arguments = small_runs.command(run.model_dir, run.data_dir)
  store.fails = lambda method, path: 403 if method in ('PUT', 'POST') else None
  said = _run(arguments, tmp_path, cache='refused', status=2)
  assert said.startswith(f'error: {run.model_dir}/.'), said
  assert 'the store refuses' in said and 'permissions' in said
  assert said.count('\n') == 1
  # It refuses later: the run ends, and says how far it was.
  store.fails = lambda method, path: (
    403 if method in ('PUT', 'POST') and 'checkpoint_12' in path else None
  )
  said = _run(arguments, tmp_path, cache='later', status=2)
  assert 'the store refuses' in said.splitlines()[-1]
  assert 'The run had done 12 steps.' in said.splitlines()[-1]
  store.fails = lambda method, path: None
  said = _run(arguments, tmp_path, cache='again')
  assert f'resuming {run.model_dir} from step 6' in said


def test_what_is_not_there_is_one_line(store, data_dir, tmp_path):
  nothing, other = _url(store, 'nothing'), f'{store.scheme}://theirs'
  for command, expected in (
    (['eval', nothing], f"error: '{nothing}' does not exist, expected a run"),
    (['report', nothing], f"error: there is no run in '{nothing}'"),
    (['report', other], f'error: {other}: there is no such bucket'),
    (
      ['show', '--task=svamp_gt_dsbs', f'--data_dir={nothing}'],
      f"error: benchmark 'svamp' is not prepared in '{nothing}'",
    ),
    (
      [
        'show',
        '--task=svamp_gt_dsbs',
        f'--data_dir={data_dir}',
        f'--vocabulary={nothing}.model',
      ],
      f"error: vocabulary '{nothing}.model' is not there",
    ),
    (
      [
        'train',
        '--benchmark=svamp',
        f'--data_dir={data_dir}',
        '--vocabulary=bytes',
        f'--gin.INITIAL_CHECKPOINT_PATH={nothing!r}',
        f'--out={other}/run',
      ],
      f'error: {other}/run/.',
    ),
  ):
    verb, *arguments = command
    arguments = ['-m', f'dsbs_jax.{verb}', *arguments]
    said = _run(arguments, tmp_path, cache=verb, status=2)
    assert said.splitlines()[-1].startswith(expected), said
    assert 'Traceback' not in said


def test_a_sweep_prepares_and_trains_in_a_bucket(store, tmp_path):
  runs = _url(store, 'sweep')
  arguments = [
    *('-m', 'dsbs_jax.sweep', '--benchmarks=svamp', '--methods=gt_dsbs'),
    *(f'--source={small_runs.REPOSITORY}/tests/data/fixtures/archive',),
    *('--vocabulary=bytes', f'--runs_dir={runs}'),
    *(f'--gin.{text}' for text in small_runs.BINDINGS[1:]),
  ]
  said = _run(arguments, tmp_path, cache='sweep')
  assert '1 of 1 runs are finished, 0 failed' in said
  (name,) = (n for n in object_store.names(runs) if n.startswith('svamp_gt'))
  there = set(object_store.names(f'{runs}/{name}'))
  assert {'config.gin', 'metrics.jsonl', 'train.log', 'checkpoint_12'} <= there
  assert 'train.lock' not in there
  said = _run(arguments, tmp_path, cache='again')  # and nothing is done twice
  assert 'plan: 1 runs, 1 finished, 0 to resume, 0 new: 0 steps' in said
  said = _run(['-m', 'dsbs_jax.report', runs], tmp_path, cache='report')
  assert f'{runs}/report/report.html' in said
