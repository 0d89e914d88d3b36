# SPDX-License-Identifier: Apache-2.0
"""A real sweep from raw files to the page; killed, it goes on."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.claims import doors

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
COLOURS = ('red', 'blue', 'green', 'white', 'black')


def _write_rows(folder, split, count):
  """Invented questions whose answer stands in them, and an LLM that errs."""
  rows, completions = [], []
  for i in range(count):
    colour = COLOURS[i % 5]
    said = colour if i % 4 else COLOURS[(i + 1) % 5]
    rows.append(
      {
        'id': f'{split}{i}',
        'question': f'Box {i} is {colour}. What is its colour?',
        'choices': list(COLOURS),
        'answer': colour,
      }
    )
    completions.append(
      f'The box is {said}. So the answer is (a) {said}.\n\nQ: next'
    )
  lines = '\n'.join(json.dumps(row) for row in rows)
  (folder / f'cqa_{split}.json').write_text(lines + '\n')
  llm = folder / 'llm'
  llm.mkdir(exist_ok=True)
  (llm / f'{split}_CoT_0.json').write_text(json.dumps(completions))


@pytest.fixture
def command(tmp_path):
  """The sweep's command line over two methods and two shares."""
  source = tmp_path / 'datasets' / 'cqa'
  source.mkdir(parents=True)
  _write_rows(source, 'train', 60)
  _write_rows(source, 'test', 10)
  model = tmp_path / 'atom.gin'
  model.write_text(
    'EMB_DIM = 16\nNUM_HEADS = 2\nHEAD_DIM = 8\nMLP_DIM = 32\n'
    'NUM_ENCODER_LAYERS = 1\nNUM_DECODER_LAYERS = 1\n'
    "MLP_ACTIVATIONS = ('gelu', 'linear')\nLOGITS_VIA_EMBEDDING = False\n"
  )
  return [
    sys.executable,
    '-m',
    'dsbs_jax.sweep',
    '--benchmarks=cqa',
    '--methods=gt_finetune,gt_dsbs',
    f'--models={model}',
    '--fractions=0.5,1',
    f'--runs_dir={tmp_path / "runs"}',
    f'--source={tmp_path / "datasets"}',
    '--vocabulary=bytes',
    '--gin.VOCAB_SIZE=384',
    '--gin.TRAIN_STEPS=800',
    '--gin.EVAL_PERIOD=200',
    '--gin.LOG_PERIOD=50',
    '--gin.BATCH_SIZE=4',
    '--gin.MAX_DECODE_LEN=8',
  ]


def _run(arguments, **options):
  return subprocess.run(
    arguments,
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    check=False,
    **options,
  )


def _steps(path):
  lines = (path / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line)['step'] for line in lines]


def test_print_is_a_shell_script_and_typos_are_status_2(command):
  arguments = command[3:]  # after python -m dsbs_jax.sweep
  done = doors.call('dsbs_jax.sweep', *arguments, '--print')
  assert done.status == 0, done.stderr
  lines = done.stdout.splitlines()
  assert len(lines) == 2 + 4
  checked = _run(['bash', '-n', '-c', '\n'.join(lines)])
  assert checked.returncode == 0, checked.stderr
  done = doors.call(
    'dsbs_jax.sweep', *arguments, '--print', '--gin.TRAIN_STEP=7'
  )
  assert done.status == 2
  assert 'Did you mean TRAIN_STEPS' in done.stderr


@pytest.mark.long
def test_a_killed_sweep_goes_on_and_the_report_has_all_of_it(command, tmp_path):
  runs = tmp_path / 'runs'
  with (tmp_path / 'first.log').open('w') as log:
    first = subprocess.Popen(
      command, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True
    )
    deadline = time.monotonic() + 900
    while not list(runs.glob('*/checkpoint_200')):
      assert first.poll() is None, (tmp_path / 'first.log').read_text()
      assert time.monotonic() < deadline
      time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=300) == 75
  (begun,) = runs.glob('cqa_*')
  assert max(_steps(begun)) < 800

  second = _run(command, timeout=1800)
  assert second.returncode == 0, second.stderr
  assert '1 to resume, 3 new' in second.stderr
  assert '4 of 4 runs are finished, 0 failed' in second.stderr
  for path in runs.glob('cqa_*'):
    assert sorted(set(_steps(path))) == list(range(50, 801, 50))
    assert len(_steps(path)) == 16 + 2 * 4

  third = _run(command, timeout=300)
  assert '4 finished' in third.stderr

  report = [sys.executable, '-m', 'dsbs_jax.report', str(runs)]
  done = _run(report, timeout=300)
  assert done.returncode == 0, done.stderr
  assert '| Step-by-step, human labels | 50 % (27) |' in done.stdout
  page = (runs / 'report' / 'report.html').read_text()
  assert 'The LLM itself (teacher): 70.0' in page
  assert 'Box 3 is white' in page


@pytest.mark.long
def test_in_process_gives_the_same_runs(command, tmp_path):
  apart = _run([*command, '--methods=gt_dsbs', '--fractions=1'], timeout=1800)
  assert apart.returncode == 0, apart.stderr
  (path,) = (tmp_path / 'runs').glob('cqa_*')
  before = (path / 'metrics.jsonl').read_text()
  os.rename(tmp_path / 'runs', tmp_path / 'apart')
  here = _run(
    [*command, '--methods=gt_dsbs', '--fractions=1', '--in_process'],
    timeout=1800,
  )
  assert here.returncode == 0, here.stderr
  assert (path / 'metrics.jsonl').read_text() == before
