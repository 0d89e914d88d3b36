# SPDX-License-Identifier: Apache-2.0
"""20,000 lines, SIGKILL at random moments, files that change: no wrong line.

`pytest -m long -s` prints the figures.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from dsbs_jax.inference import answer_file
from tests.inference import small_student

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
NUM_LINES, CHUNK_SIZE, NUM_KILLS = 20_000, 500, 12


class Work:
  """One file to answer, by processes that can be killed."""

  def __init__(self, folder):
    self.folder = folder
    self.output = folder / 'output'
    self.state = folder / f'output{answer_file.STATE_SUFFIX}'

  def start(self):
    macros = {
      **small_student.MACROS,
      'CHECKPOINT_PATH': str(self.folder / 'run'),
      'INPUT': str(self.folder / 'input'),
      'OUTPUT': str(self.output),
      'EVAL_BATCH_SIZE': 64,
      'CHUNK_SIZE': CHUNK_SIZE,
      'MAX_INPUT_LEN': 64,
    }
    files = ('infer', 'models/nano', 'benchmarks/svamp')
    command = [sys.executable, '-m', 'dsbs_jax.infer']
    command += [f'--gin_file=gin/{name}.gin' for name in files]
    command += [f'--gin.{name}={value!r}' for name, value in macros.items()]
    with (self.folder / 'errors').open('w') as errors:
      return subprocess.Popen(command, cwd=REPOSITORY, stderr=errors)

  def said(self):
    return (self.folder / 'errors').read_text()

  def finish(self):
    assert self.start().wait(timeout=1800) == 0, self.said()
    return self.output.read_bytes()

  def num_lines(self):
    return self.output.read_bytes().count(b'\n') if self.output.exists() else 0

  def run_until(self, num_lines):
    """Starts a process and returns once it has written as many more lines."""
    process, before = self.start(), self.num_lines()
    deadline = time.monotonic() + 900
    while process.poll() is None and self.num_lines() < before + num_lines:
      assert time.monotonic() < deadline, 'nothing happens'
      time.sleep(0.01)
    return process


@pytest.fixture(scope='module')
def work(tmp_path_factory):
  folder = tmp_path_factory.mktemp('infer')
  small_student.write(folder / 'run')
  lines = (f'{"very " * (i % 7)}odd {i}?\n' for i in range(NUM_LINES))
  (folder / 'input').write_text(''.join(lines))
  return Work(folder)


@pytest.fixture(scope='module')
def whole(work):
  answers = work.finish()
  entries = [json.loads(line) for line in answers.splitlines()]
  assert [x['line'] for x in entries] == list(range(1, NUM_LINES + 1))
  return answers


@pytest.fixture(autouse=True)
def anew(work, whole):
  work.output.unlink(missing_ok=True)
  work.state.unlink(missing_ok=True)


@pytest.mark.long
def test_kills_change_no_byte(work, whole):
  draw = random.Random(int(os.environ.get('DSBS_KILL_SEED', '7')))
  reached = []
  for _ in range(NUM_KILLS):
    process = work.run_until(draw.randrange(1, 3) * CHUNK_SIZE)
    time.sleep(draw.uniform(0, 0.1))
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached.append(work.num_lines())
  assert work.finish() == whole
  assert reached[-1] < NUM_LINES and len(set(reached)) == NUM_KILLS
  print(f'\n{NUM_KILLS} kills, at lines {reached}: {len(whole):,} equal bytes')


@pytest.mark.long
def test_an_output_that_is_deleted_between_and_under_processes(work, whole):
  process = work.run_until(2 * CHUNK_SIZE)
  process.kill()
  process.wait()
  work.output.unlink()  # its state stays behind
  process = work.run_until(2 * CHUNK_SIZE)
  work.output.unlink()
  assert process.wait(timeout=900) == 2
  assert 'was removed or replaced while it was written' in work.said()
  assert not work.output.exists()
  assert work.finish() == whole


@pytest.mark.long
def test_an_input_that_changes_between_and_under_processes(work, whole):
  path = work.folder / 'input'
  text = path.read_text()
  changed = text.replace('odd 3?', 'odd !?', 1)
  assert len(changed) == len(text)
  process = work.run_until(2 * CHUNK_SIZE)
  process.kill()
  process.wait()
  path.write_text(changed)
  assert work.start().wait(timeout=900) == 2
  assert 'of the input are not those that' in work.said()
  path.write_text(text)
  process = work.run_until(2 * CHUNK_SIZE)
  path.write_text(changed)
  assert process.wait(timeout=1800) == 2
  assert 'the input has changed while it was read' in work.said()
  path.write_text(text)
  work.output.unlink()  # some answers may be to half-written lines
  assert work.finish() == whole
