# SPDX-License-Identifier: Apache-2.0
"""The benchmarks measure what they say, on what they say."""

import dataclasses
import json
import os
import pathlib
import platform
import subprocess
import sys

import jax
import numpy as np
import pytest

from bench import table, worker, workload
from dsbs_jax.core import flops, network
from tests import models

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
CONFIG = models.t5(
  vocab_size=512,
  emb_dim=128,
  num_heads=4,
  head_dim=32,
  mlp_dim=256,
  num_encoder_layers=2,
  num_decoder_layers=2,
)


def rows_of(inputs, targets, *, rows=3):
  return {
    'encoder_input_tokens': np.ones((rows, inputs), np.int32),
    'decoder_input_tokens': np.ones((rows, targets), np.int32),
    'decoder_target_tokens': np.ones((rows, targets), np.int32),
  }


@pytest.mark.parametrize('inputs, targets', [(48, 16), (16, 40)])
def test_flops_are_those_that_xla_counts_for_the_products(inputs, targets):
  shapes = network.param_shapes(CONFIG)
  lowered = jax.jit(
    lambda params: network.apply(params, CONFIG, rows_of(inputs, targets))
  ).lower(shapes)
  counted = lowered.cost_analysis()['flops']
  products = flops.forward(CONFIG, inputs, targets, rows=3)
  assert products < counted < 1.1 * products


def test_flops_of_t5_base_are_those_of_its_parameters():
  # 2 FLOPs per parameter and token, where each token meets its own stack.
  base = workload.model('base', vocab_size=32128)
  longer = flops.forward(base, 1, 2) - flops.forward(base, 1, 1)
  decoder = 12 * (6 * 768 * 768 + 3 * 768 * 2048) + 768 * 32128
  assert longer == pytest.approx(2 * decoder, rel=1e-3)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """Two batches of two pairs, each padded to 8/4, saved and loaded."""
  arrays = {}
  for step in range(2):
    for view in workload.VIEWS:
      rows = rows_of(8, 4, rows=2)
      rows['encoder_input_tokens'][0, 5:] = 0
      rows['decoder_target_tokens'][0, 2:] = 0
      for feature, array in rows.items():
        arrays[f'padded/{step}/{view}/{feature}'] = array
  path = tmp_path_factory.mktemp('bench') / 'workload.npz'
  facts = {'num_steps': 2, 'batch_size': 2}
  workload.Workload(facts, arrays).save(path)
  return workload.load(path)


def test_a_workload_keeps_examples_apart(data):
  first, second = data.examples(0, 'label')
  assert [len(ids) for ids in (*first, *second)] == [5, 2, 8, 4]


def test_useful_flops_leave_padding_out(data):
  alone = flops.train(CONFIG, 5, 2) + flops.train(CONFIG, 8, 4)
  assert data.useful_flops(CONFIG, 0) == 2 * alone
  laid = data.laid_flops(CONFIG, 'padded', 0)
  assert laid == 2 * flops.train(CONFIG, 8, 4, rows=2)


def test_ratios_are_taken_pair_by_pair():
  # The machine slowed down in the second round; the ratio did not change.
  row = table.row('s', 'w', [1.0, 10.0], 'x', others=[2.0, 20.0], against='o')
  assert row.ratio == 0.5
  text = table.markdown([row, dataclasses.replace(row, section='t')])
  assert '### s' in text and '### t' in text and '0.50x o' in text


def test_workers_take_turns_in_processes_of_their_own():
  started = {
    name: worker.Worker(
      'tests.bench.doubling_worker',
      environment={'PYTHONPATH': str(REPOSITORY)},
      cores=cores,
    )
    for name, cores in (('one', 1), ('other', None))
  }
  try:
    found = worker.race(started, rounds=2, requests=['1', '20'])
  finally:
    for process in started.values():
      process.close()
  for results in found.values():
    assert len(results) == 2
    for result in results:
      assert result['double'] == 2 + 40
      assert 0 < result['seconds'] < 60
  mine = sorted(os.sched_getaffinity(0))
  assert started['one'].ready['cores'] == mine[-1:]
  assert started['other'].ready['cores'] == mine


def test_a_worker_that_cannot_start_is_an_error():
  with pytest.raises(worker.Failed, match='bench.no_such'):
    worker.Worker('bench.no_such')


_MALLOC = """
import ctypes, resource, sys
from dsbs_jax.runtime import malloc
kept = malloc.keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.memset.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
size = 64 << 20
faults = []
for _ in range(6):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  block = libc.malloc(size)
  libc.memset(block, 1, size)
  libc.free(block)
  faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(kept, *faults)
"""


@pytest.mark.skipif(
  platform.libc_ver()[0] != 'glibc',
  reason='the C library is not GNU',
)
@pytest.mark.parametrize('keep', [True, False])
def test_kept_memory_is_not_asked_of_the_kernel_again(keep):
  done = subprocess.run(
    [sys.executable, '-c', _MALLOC],
    cwd=REPOSITORY,
    env=os.environ | {'DSBS_KEEP_MEMORY': str(int(keep))},
    capture_output=True,
    text=True,
    check=True,
  )
  kept, *faults = done.stdout.split()
  later = sum(map(int, faults[2:]))
  assert kept == str(keep)
  assert later < 100 if keep else later > 1000, faults


# A program with buffers of 100 MB, more than the C library lends to other threads
# than the main one. It takes some runs until a gap is left that holds them.
_FAULTS = """
import resource, statistics
from dsbs_jax.runtime import malloc
malloc.keep_freed_memory()
import jax, jax.numpy as jnp
square = jax.jit(lambda a: (a @ a.T) @ a)
matrix = jnp.ones([5120, 8])
faults = []
for _ in range(16):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  square(matrix).block_until_ready()
  faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(statistics.median(faults))
"""


@pytest.mark.skipif(
  platform.libc_ver()[0] != 'glibc',
  reason='the C library is not GNU',
)
@pytest.mark.parametrize(
  'keep', [True, pytest.param(False, marks=pytest.mark.long)]
)
def test_a_program_finds_the_memory_of_its_last_run(keep):
  done = subprocess.run(
    [sys.executable, '-c', _FAULTS],
    cwd=REPOSITORY,
    env=os.environ
    | {
      'DSBS_KEEP_MEMORY': str(int(keep)),
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': '',
    },
    capture_output=True,
    text=True,
    check=True,
  )
  usual = float(done.stdout)
  assert usual < 100 if keep else usual > 10_000


def save_workload(folder):
  """One batch of four pairs."""
  arrays = {}
  for view in workload.VIEWS:
    rows = rows_of(16, 8, rows=4) | {
      'decoder_loss_weights': np.ones((4, 8), np.float32),
      'decoder_task_ids': np.full(
        (4, 8), 1 + workload.VIEWS.index(view), np.int32
      ),
      'decoder_target_tokens': np.full((4, 8), 7, np.int32),
    }
    for layout in ('packed', 'padded'):
      arrays |= {f'{layout}/0/{view}/{key}': rows[key] for key in rows}
  path = folder / 'workload.npz'
  workload.Workload({'num_steps': 1, 'batch_size': 4}, arrays).save(path)
  return path


def accelerate(folder, *flags):
  """What bench.accelerator prints."""
  path = save_workload(folder)
  code = (
    'import sys; from bench import accelerator; accelerator.main();'
    "assert not {'tensorflow', 'seqio', 'grain'} & set(sys.modules)"
  )
  done = subprocess.run(
    [
      *(sys.executable, '-c', code, f'--workload={path}'),
      *('--model=tiny', '--vocab_size=128', '--steps=1'),
      *('--dtype=float32', '--product_size=256', '--dropout=0.0', *flags),
    ],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.mark.long
def test_the_accelerator_benchmark_runs_without_tensorflow(tmp_path):
  """On whatever device there is: here it says what the figures are made of."""
  found = accelerate(tmp_path)
  config = workload.model('tiny', vocab_size=128)
  useful = 2 * flops.train(config, 16, 8, rows=4)
  rate = found['utilisation_useful'] * found['product_tflops'] * 1e12
  assert rate * found['seconds_per_step'] == pytest.approx(useful)
  assert len(found['top_ten_milliseconds']) == 10
  assert sum(found['kinds_milliseconds'].values()) == pytest.approx(
    found['operations_milliseconds']
  )
  assert 4 < found['loss'] < 6  # ln 128 = 4.9


@pytest.mark.long
def test_the_accelerator_benchmark_decodes_to_the_limit(tmp_path):
  found = accelerate(tmp_path, '--decode_rows=6', '--decode_len=3')
  assert found['rows'] == [6, 16]
  assert found['tokens_per_run'] == 18
  seconds = found['tokens_per_run'] / found['tokens_per_second']
  assert seconds == pytest.approx(found['seconds_per_step'])


@pytest.mark.long
def test_the_accelerator_check_keeps_what_it_has(tmp_path):
  """On a CPU, with small models; a configuration that cannot run is told."""
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'bench.accelerator_check'),
      f'--inputs={save_workload(tmp_path)}',
      f'--out={tmp_path}',
      *('--model=tiny', '--steps=1', '--product_size=128'),
      *('--parts=parity,train,decode,choices,peers', '--peer_device=nowhere'),
      *('--only', 'base', 'base, 32 rows', 'base, attention of cuDNN'),
    ],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / 'accelerator.json').read_text())
  assert found['base']['pairs_per_second'] > 0
  assert found['base']['compiled_bytes'] > 1 << 20
  assert found['base, 32 rows']['tokens_per_run'] == 32 * 64
  assert 'failed' in found['base, attention of cuDNN']  # no such device
  assert 'failed' in found['transformers, base, 32 rows']
  assert found['parity']['float32, views joined']['loss'] < 2e-5
  table = (tmp_path / 'accelerator.md').read_text()
  assert table.count('\n| base') == 2
