# SPDX-License-Identifier: Apache-2.0
"""Prepared data and a checkpoint that the tests of errors point at."""

import jax
import jax.numpy as jnp
import pytest

from dsbs_jax.core import network, steps
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.runs import checkpoints
from dsbs_jax.runtime.configuration import gin_config
from dsbs_jax.training import train_config
from tests.claims import doors
from tests.claims.errors import FILES, MODEL, REPOSITORY


@pytest.fixture(scope='session')
def place(tmp_path_factory):
  """A folder with `data` (prepared SVAMP) and `run` (a checkpoint)."""
  place = tmp_path_factory.mktemp('errors')
  done = doors.call(
    'dsbs_jax.prepare',
    '--benchmark=svamp',
    f'--source={REPOSITORY / "tests/data/fixtures/archive"}',
    f'--data_dir={place / "data"}',
    '--vocabulary=bytes',
  )
  assert done.status == 0, done
  model = gin_config.build(
    train_config.TrainConfig,
    gin_files=['gin/train.gin', *(f'gin/{file}.gin' for file in FILES)],
    gin_bindings=[
      "MODEL_DIR = '/x'",
      *(f'{k} = {v}' for k, v in MODEL.items()),
    ],
    search_paths=[str(REPOSITORY)],
  ).model
  params = network.init(jax.random.key(0), model)
  saved = checkpoints.Checkpoints(place / 'run')
  saved.save(
    steps.TrainState(step=jnp.int32(7), params=params, opt_state={}),
    position={},
    run={'vocabulary': vocabularies.load('bytes').fingerprint},
  )
  saved.close()
  (place / 'q.txt').write_text('2 + 2?\n')
  return place
