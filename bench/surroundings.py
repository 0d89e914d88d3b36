# SPDX-License-Identifier: Apache-2.0
"""Figures around the step: loader, first step, evaluation, devices, data."""

import contextlib
import functools
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from bench import table
from dsbs_jax.data import register, vocabularies
from dsbs_jax.data.batching import batch_order, layouts, loader
from dsbs_jax.preparing import prepare

_REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
_FIRST = re.compile(r'first step after ([\d.]+) s')


def loading(
  name: str, data_dir: str, vocabulary: str, *, rounds: int = 5
) -> Iterator[table.Row]:
  """Pairs per second that the loader lays out, on one core."""
  source = register.source(data_dir=data_dir, vocabulary=vocabulary)
  for layout in (layouts.Padded, layouts.Bucketed, layouts.Packed):
    data = loader.open(
      name, source, batch_order.BatchOrder(batch_size=64), layout=layout()
    )
    rates = []
    for number in range(rounds + 1):
      started = time.process_time()
      for step in range(number * 50, number * 50 + 50):
        data.batch(step)
      rates.append(50 * 64 / (time.process_time() - started))
    yield table.row(
      'Loader, batches of 64 pairs',
      layout.__name__.lower(),
      rates[1:],
      'pairs per CPU second',
    )


def first_step(
  name: str, data_dir: str, vocabulary: str, *, rounds: int = 3
) -> Iterator[table.Row]:
  """Seconds from the start of the process to the end of its first step."""
  size = model_vocab_size(data_dir, vocabulary)
  with tempfile.TemporaryDirectory() as folder:
    cold, warm = [], []
    for number in range(rounds):
      cache = f'{folder}/cache{number}'
      for seconds, run in ((cold, 'cold'), (warm, 'warm')):
        seconds.append(
          _train_one(
            name, data_dir, vocabulary, size, cache, f'{folder}/{run}{number}'
          )
        )
  section = 'First step, gin/models/tiny.gin, 64 pairs'
  yield table.row(section, 'nothing compiled before', cold, 's')
  yield table.row(
    section, 'second run', warm, 's', others=cold, against='first run'
  )


def model_vocab_size(data_dir: str, vocabulary: str) -> int:
  """Rows of a model for this vocabulary: the next multiple of 128."""
  source = register.source(data_dir=data_dir, vocabulary=vocabulary)
  return -(-vocabularies.load(source.vocabulary).size // 128) * 128


def _train_one(name, data_dir, vocabulary, vocab_size, cache, model_dir):
  macros = {
    'MODEL_DIR': model_dir,
    'DATA_DIR': data_dir,
    'VOCABULARY': vocabulary,
    'MIXTURE_OR_TASK_NAME': name,
    'VOCAB_SIZE': vocab_size,
    'TRAIN_STEPS': 1,
    'EVAL_SPLITS': (),
  }
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'dsbs_jax.train'),
      '--gin_file=gin/train.gin',
      '--gin_file=gin/models/tiny.gin',
      *(f'--gin.{macro}={value!r}' for macro, value in macros.items()),
    ],
    cwd=_REPOSITORY,
    env=os.environ | {'JAX_COMPILATION_CACHE_DIR': cache},
    capture_output=True,
    text=True,
  )
  found = _FIRST.search(done.stdout + done.stderr)
  if found is None:
    raise RuntimeError(f'the run did not train: {done.stderr[-2000:]}')
  return float(found[1])


def data_sizes(
  sizes: tuple[int, ...] = (1_000, 10_000, 100_000),
) -> Iterator[table.Row]:
  """The whole way of the data as the number of examples grows.

  Rows of the bundled benchmark are repeated under ids of their own. Each size
  is measured in processes of its own, for their memory.
  """
  found = {}
  for size in sizes:
    with tempfile.TemporaryDirectory() as folder:
      write_rows(pathlib.Path(folder) / 'source', size)
      found[size] = {}
      for part in _DATA_PARTS:
        done = subprocess.run(
          [sys.executable, '-m', 'bench.surroundings', part, folder],
          cwd=_REPOSITORY,
          check=True,
          stdout=subprocess.PIPE,
          text=True,
        )
        found[size] |= json.loads(done.stdout.splitlines()[-1])
  for key in found[sizes[0]]:
    for size, values in found.items():
      yield table.row(
        f'Cost against the number of examples: {key}',
        f'{size:,} examples',
        [values[key]],
        '',
        others=[found[sizes[0]][key]],
        against=f'{sizes[0]:,}',
      )


def write_rows(folder: pathlib.Path, size: int) -> None:
  """The bundled benchmark with `size` training rows."""
  shutil.copytree(_REPOSITORY / 'examples' / 'parcels', folder)
  for path in (folder / 'train.jsonl', folder / 'llm' / 'train.jsonl'):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    with path.open('w') as file:
      for number in range(size):
        row = rows[number % len(rows)] | {'id': f'train-{number}'}
        file.write(json.dumps(row) + '\n')


def prepare_rows(folder: str) -> dict[str, float]:
  """Joins, parses, counts and stores them, and trains their vocabulary."""
  started = time.perf_counter()
  with contextlib.redirect_stdout(sys.stderr):
    prepare.prepare(
      prepare.PrepareConfig(
        benchmark='parcels',
        source=f'{folder}/source',
        data_dir=f'{folder}/data',
        train_vocab=256,
      )
    )
  return {
    'prepare, s': time.perf_counter() - started,
    'prepare, MiB at most': _peak_mib(),
  }


def read_rows(folder: str, opened: str) -> dict[str, float]:
  """Opens a loader on them and reads 200 batches."""
  (vocabulary,) = pathlib.Path(f'{folder}/data/vocabularies').glob('*.model')
  source = register.source(
    data_dir=f'{folder}/data', vocabulary=f'{vocabulary}:0'
  )
  started = time.perf_counter()
  data = loader.open(
    'parcels_gt_dsbs', source, batch_order.BatchOrder(batch_size=64)
  )
  seconds = time.perf_counter() - started
  cpu = time.process_time()
  for step in range(200):
    data.batch(step)
  cpu = time.process_time() - cpu
  return {
    f'{opened}, s': seconds,
    f'{opened} and read, MiB at most': _peak_mib(),
    f'batch of 64 pairs, {opened}, CPU ms': 1000 * cpu / 200,
  }


def _peak_mib() -> float:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


_DATA_PARTS = {
  'prepare': prepare_rows,
  'open': functools.partial(read_rows, opened='opened first'),
  'reopen': functools.partial(read_rows, opened='opened again'),
}


if __name__ == '__main__':
  print(json.dumps(_DATA_PARTS[sys.argv[1]](sys.argv[2])))
