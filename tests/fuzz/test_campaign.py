# SPDX-License-Identifier: Apache-2.0
"""Atheris on every target: DSBS_FUZZ_SECONDS each, 600 by default."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.fuzz import targets

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SECONDS = int(os.environ.get('DSBS_FUZZ_SECONDS', '600'))


@pytest.mark.long
@pytest.mark.parametrize('name', targets.TARGETS)
def test_minutes_of_guided_inputs_break_nothing(tmp_path, name, capsys):
  pytest.importorskip(
    'atheris', reason="atheris is not installed: pip install '.[fuzz]'"
  )
  done = subprocess.run(
    [
      sys.executable,
      *('-m', 'tests.fuzz.campaign', name, str(SECONDS), str(tmp_path)),
    ],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    timeout=2 * SECONDS + 120,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  figures = json.loads((tmp_path / f'{name}.json').read_text())
  with capsys.disabled():
    print(f'\n{json.dumps(figures)}')
  assert figures['inputs'] > 100
  assert not figures['failures'], figures
  assert figures['worst_cpu_milliseconds'] < 30_000
