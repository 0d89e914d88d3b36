# SPDX-License-Identifier: Apache-2.0
"""Rows decoded in threads are the rows decoded at once, in order."""

import os
import threading

import jax
import numpy as np
import pytest

from dsbs_jax.core import decoding, partitioning
from dsbs_jax.inference.backends import cpu_threads
from tests import models

CONFIG = models.t5(mlp_dim=24, dropout_rate=0.0)


def one_device():
  return partitioning.make_mesh('1x1', devices=jax.devices()[:1])


@pytest.mark.parametrize('num_rows', [32, 24, 23, 1])
def test_threads_give_what_the_whole_batch_gives(num_rows):
  params = models.init(jax.random.key(0), CONFIG)
  random = np.random.default_rng(1)
  tokens = random.integers(2, 128, (num_rows, 9)).astype(np.int32)
  tokens[np.arange(9) >= random.integers(1, 10, (num_rows, 1))] = 0
  rows = {'encoder_input_tokens': tokens}
  program = jax.jit(
    lambda params, rows: decoding.greedy(params, CONFIG, rows, max_decode_len=6)
  )
  expected = np.asarray(program(params, rows))
  assert len({tuple(row) for row in expected.tolist()}) > num_rows // 3
  decode = cpu_threads.per_core(program, one_device(), num_cores=3)
  for _ in range(2):  # the first time one thread compiles
    np.testing.assert_array_equal(decode(params, rows), expected)


def test_rows_are_shared_evenly_and_not_in_crumbs():
  numbers = {
    rows: cpu_threads.num_threads(rows, num_cores=4)
    for rows in (1, 8, 16, 24, 32, 64, 130)
  }
  assert numbers == {1: 1, 8: 1, 16: 2, 24: 3, 32: 4, 64: 4, 130: 2}


def test_threads_run_at_the_same_time():
  """Each waits for the other; one after the other, they would wait in vain."""
  both = threading.Barrier(2, timeout=300)
  compiled = threading.Event()

  def program(params, batch):
    if compiled.is_set():
      both.wait()
    return batch + params

  decode = cpu_threads.per_core(program, one_device(), num_cores=2)
  batch = np.arange(24)
  np.testing.assert_array_equal(decode(1, batch), batch + 1)  # in turn
  compiled.set()
  np.testing.assert_array_equal(decode(1, batch), batch + 1)


def test_an_error_in_a_thread_is_raised():
  def program(params, batch):
    raise RuntimeError('out of memory')

  decode = cpu_threads.per_core(program, one_device(), num_cores=2)
  with pytest.raises(RuntimeError, match='out of memory'):
    decode(0, np.arange(16))


def test_a_system_without_affinity_uses_all_cores(monkeypatch):
  """As macOS, where `os` lacks this function."""
  monkeypatch.delattr(os, 'sched_getaffinity', raising=False)
  decode = cpu_threads.per_core(
    lambda params, batch: batch + params, one_device()
  )
  np.testing.assert_array_equal(decode(1, np.arange(16)), np.arange(16) + 1)
