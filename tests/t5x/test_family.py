# SPDX-License-Identifier: Apache-2.0
"""T5X asked for a network that it does not have: one line, status 2."""

import os
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.long
@pytest.mark.parametrize('program', ['train', 'eval', 'infer'])
@pytest.mark.parametrize('model', ['gemma3_nano', 'umt5_small'])
def test_programs_of_t5x_say_so(tmp_path, program, model):
  folder = {'train': 'MODEL_DIR', 'eval': 'EVAL_OUTPUT_DIR'}
  bindings = {
    folder.get(program, 'INFER_OUTPUT_DIR'): str(tmp_path),
    'DATA_DIR': str(tmp_path),
    'VOCABULARY': 'bytes',
  }
  if program != 'train':
    bindings['CHECKPOINT_PATH'] = str(tmp_path)
  done = subprocess.run(
    [
      *(sys.executable, '-m', f't5x.{program}', '--gin_search_paths=.'),
      f'--gin_file=gin/t5x/{program}.gin',
      f'--gin_file=gin/models/{model}.gin',
      '--gin_file=gin/benchmarks/cqa.gin',
      *(f'--gin.{name}={value!r}' for name, value in bindings.items()),
    ],
    cwd=REPOSITORY,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '3'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2, done.stderr[-3000:]
  assert 'Traceback' not in done.stderr
  assert 'error: ' in done.stderr.splitlines()[-1]
