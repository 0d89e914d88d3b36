# SPDX-License-Identifier: Apache-2.0
"""Figures around the step: loader, evaluation, first step, sizes of data."""

import concurrent.futures
import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from bench import batches, programs, table, worker, workload
from dsbs_jax.core import decoding, network
from dsbs_jax.data import register
from dsbs_jax.data.batching import batch_order, eval_loader, loader
from dsbs_jax.data.prepared import tokens
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.preparing import prepare as prepare_lib

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
BUNDLED = REPOSITORY / 'examples' / 'parcels'
_EVAL_BATCH, _EVAL_BATCHES = 128, 4
_ROUNDS = 3
_SIZES = 1_000, 10_000, 100_000  # examples
_FIRST = re.compile(r'first step after ([\d.]+) s')


def prepare(folder: pathlib.Path, data_dir: str) -> str:
  """Prepares rows of the bundled benchmark; returns their new vocabulary."""
  with contextlib.redirect_stdout(sys.stderr):
    prepare_lib.prepare(
      prepare_lib.PrepareConfig(
        benchmark='parcels',
        source=str(folder),
        data_dir=data_dir,
        train_vocab=256,
      )
    )
  return f'{data_dir}/vocabularies/parcels.256.model:0'


def loading(name: str, source: tokens.Source) -> Iterator[table.Row]:
  """Pairs per second of a mixture that the loader lays out, on one core."""

  def rate(data, steps) -> float:
    started = time.process_time()
    for step in itertools.islice(steps, 50):
      data.batch(step)
    return 50 * 64 / (time.process_time() - started)

  order = batch_order.BatchOrder(batch_size=64)
  ways = {
    layout: functools.partial(
      rate, loader.open(name, source, order, layout=make()), itertools.count()
    )
    for layout, make in batches.LAYOUTS.items()
  }
  yield from table.rows(
    'Loader, batches of 64 pairs',
    worker.take_turns(ways, rounds=5),
    'pairs per CPU second',
  )


def evaluation(name: str, source: tokens.Source) -> Iterator[table.Row]:
  """Examples per second of a task's validation split, by the ways to answer.

  The parameters are random and end no row early: decoding stops when all rows
  of a batch have ended, so its time is that of the longest answer.
  """
  data = tokens.load(name, 'validation', source)
  vocab_size = model_vocab_size(source)
  config = workload.model('mini', vocab_size=vocab_size, dropout_rate=0.0)
  params = programs.endless_params(config)
  ways = _ways_to_answer(config)
  compiled = {way: jax.jit(function) for way, (function, _) in ways.items()}

  def rate(way) -> float:
    rows_of = _some(data, ways[way][1])
    started = time.perf_counter()
    for rows in rows_of:
      np.asarray(compiled[way](params, rows))
    return len(rows_of) * _EVAL_BATCH / (time.perf_counter() - started)

  yield from table.rows(
    f'Evaluation of {name}, batches of {_EVAL_BATCH}',
    worker.take_turns(
      {way: functools.partial(rate, way) for way in ways}, rounds=_ROUNDS
    ),
    'examples/s',
    against=next(iter(ways)),
  )


def _ways_to_answer(
  config: network.Config,
) -> dict[str, tuple[Callable[..., jax.Array], bool]]:
  """Name -> (params, rows) -> answers, and whether rows are sorted."""

  def greedy(params, rows, *, length=64):
    return decoding.greedy(params, config, rows, max_decode_len=length)

  def beam(params, rows):
    return decoding.beam_search(
      params, config, rows, num_beams=4, max_decode_len=8
    )[0]

  def options(params, rows):
    batch = len(rows['encoder_input_tokens'])
    choices = jnp.broadcast_to(
      jnp.array([[5, 6, 1], [7, 8, 1], [9, 1, 0], [10, 1, 0], [11, 12, 1]]),
      (batch, 5, 3),
    )
    return decoding.score_options(params, config, rows, options_tokens=choices)

  return {
    'file order, 64 tokens': (greedy, False),
    'sorted by length, 64 tokens': (greedy, True),
    'sorted by length, 8 tokens': (functools.partial(greedy, length=8), True),
    'sorted by length, 8 tokens, 4 beams': (beam, True),
    'sorted by length, 5 options of 3 tokens scored': (options, True),
  }


def _some(data, sort):
  """The first batches: the longest inputs where they are sorted."""
  batches = [
    {'encoder_input_tokens': rows['encoder_input_tokens']}
    for _, rows in eval_loader.batches(data, _EVAL_BATCH, sort=sort)
  ]
  middle = (len(batches) - _EVAL_BATCHES) // 2
  return batches[max(0, middle) :][:_EVAL_BATCHES]


def first_step(name: str, source: tokens.Source) -> Iterator[table.Row]:
  """Seconds from the start of the process to the end of its first step."""
  cold, warm = 'nothing compiled before', 'second run'
  seconds = {cold: [], warm: []}
  for _ in range(_ROUNDS):
    with tempfile.TemporaryDirectory() as folder:
      for run, found in seconds.items():
        found.append(_train_one(name, source, folder, run))
  yield from table.rows(
    'First step, gin/models/tiny.gin, 64 pairs', seconds, 's', against=cold
  )


def model_vocab_size(source: tokens.Source) -> int:
  """Rows of a model for its vocabulary: the next multiple of 128."""
  return -(-vocabularies.load(source.vocabulary).size // 128) * 128


def _train_one(name, source, folder, run) -> float:
  macros = {
    'MODEL_DIR': f'{folder}/{run}',
    'DATA_DIR': source.data_dir,
    'VOCABULARY': source.vocabulary,
    'MIXTURE_OR_TASK_NAME': name,
    'VOCAB_SIZE': model_vocab_size(source),
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
    cwd=REPOSITORY,
    env=os.environ | {'JAX_COMPILATION_CACHE_DIR': f'{folder}/cache'},
    capture_output=True,
    text=True,
  )
  found = _FIRST.search(done.stdout + done.stderr)
  if found is None:
    raise RuntimeError(f'the run did not train: {done.stderr[-2000:]}')
  return float(found[1])


def data_sizes() -> Iterator[table.Row]:
  """The whole way of the data as the number of examples grows.

  Rows of the bundled benchmark are repeated under ids of their own. Each part
  is measured in a process of its own, for its memory.
  """
  parts = (
    _prepare_rows,
    functools.partial(_read_rows, opened='opened first'),
    functools.partial(_read_rows, opened='opened again'),
  )
  found = {}
  for size in _SIZES:
    with (
      tempfile.TemporaryDirectory() as folder,
      concurrent.futures.ProcessPoolExecutor(
        max_workers=1,
        mp_context=multiprocessing.get_context('spawn'),
        max_tasks_per_child=1,
      ) as processes,
    ):
      _write_rows(pathlib.Path(folder) / 'source', size)
      for part in parts:
        for key, value in processes.submit(part, folder).result().items():
          found.setdefault(key, {})[f'{size:,} examples'] = [value]
  for key, values in found.items():
    section = f'Cost against the number of examples: {key}'
    against = f'{_SIZES[0]:,} examples'
    yield from table.rows(section, values, '', against=against)


def _write_rows(folder: pathlib.Path, size: int) -> None:
  """The bundled benchmark with `size` training rows."""
  shutil.copytree(BUNDLED, folder)
  for path in (folder / 'train.jsonl', folder / 'llm' / 'train.jsonl'):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    with path.open('w') as file:
      for number in range(size):
        row = rows[number % len(rows)] | {'id': f'train-{number}'}
        file.write(json.dumps(row) + '\n')


def _prepare_rows(folder: str) -> dict[str, float]:
  """Joins, parses, counts and stores them, and trains their vocabulary."""
  started = time.perf_counter()
  prepare(pathlib.Path(folder) / 'source', f'{folder}/data')
  return {
    'prepare, s': time.perf_counter() - started,
    'prepare, MiB at most': worker.peak_bytes() / 2**20,
  }


def _read_rows(folder: str, opened: str) -> dict[str, float]:
  """Opens a loader on them and reads 200 batches."""
  source = register.source(
    data_dir=f'{folder}/data',
    vocabulary=f'{folder}/data/vocabularies/parcels.256.model:0',
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
    f'{opened} and read, MiB at most': worker.peak_bytes() / 2**20,
    f'batch of 64 pairs, {opened}, CPU ms': 1000 * cpu / 200,
  }
