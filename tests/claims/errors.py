# SPDX-License-Identifier: Apache-2.0
"""How the tests of errors call commands, and what they ask of an error."""

import pathlib

from tests.claims import doors

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
MODEL = {
  'VOCABULARY': "'bytes'",
  'VOCAB_SIZE': 384,
  'EMB_DIM': 16,
  'HEAD_DIM': 4,
  'MLP_DIM': 32,
  'NUM_ENCODER_LAYERS': 1,
  'NUM_DECODER_LAYERS': 1,
  'EVAL_BATCH_SIZE': 2,
}
FILES = ('models/tiny', 'benchmarks/svamp')


def refused(ended, *parts):
  """Asserts one error line with these parts, and no traceback."""
  assert ended.status == 2, ended
  lines = [line for line in ended.stderr.splitlines() if 'error: ' in line]
  assert len(lines) == 1 and lines[0].startswith('error: '), ended.stderr
  assert 'Traceback' not in ended.stderr
  for part in parts:
    assert part in lines[0], lines[0]


def write(folder, files):
  for name, content in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(data)


def gin(verb, place, *flags, files=FILES):
  """Calls a door that gin configures; NAME=VALUE flags become --gin.NAME."""
  own = {
    'train': {'MODEL_DIR': f"'{place / 'fresh'}'"},
    'eval': {'CHECKPOINT_PATH': f"'{place / 'run'}'", 'MAX_DECODE_LEN': 4},
    'infer': {
      'CHECKPOINT_PATH': f"'{place / 'run'}'",
      'INPUT': f"'{place / 'q.txt'}'",
      'OUTPUT': f"'{place / 'answers'}'",
    },
    'serve': {'CHECKPOINT_PATH': f"'{place / 'run'}'", 'PORT': 0},
  }[verb]
  if verb in ('train', 'eval'):
    own['DATA_DIR'] = f"'{place / 'data'}'"
  model = MODEL
  if verb == 'serve':
    model = {k: v for k, v in MODEL.items() if k != 'EVAL_BATCH_SIZE'}
  settings = [f'{k}={v}' for k, v in (own | model).items()]
  ended = doors.call(
    f'dsbs_jax.{verb}',
    f'--gin_search_paths={REPOSITORY}',
    f'--gin_file=gin/{verb}.gin',
    *(f'--gin_file={f if "/" == f[0] else f"gin/{f}.gin"}' for f in files),
    *(f'--gin.{setting}' for setting in settings),
    *(f if f.startswith('--') else f'--gin.{f}' for f in flags),
  )
  assert not list((place / 'fresh').glob('checkpoint*'))
  return ended
