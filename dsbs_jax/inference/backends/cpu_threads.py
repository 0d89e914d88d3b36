# SPDX-License-Identifier: Apache-2.0
"""On a single CPU, a batch is decoded in parts at the same time, one per core.

A decoding step is many operations that are too small for XLA to spread over
cores: on two of them it is hardly faster than on one. Rows do not depend on
each other, so each core decodes rows of its own, in a thread. Accelerators and
meshes of several devices run the whole batch as one program.
"""

import concurrent.futures
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

# With fewer rows per thread, each weight is read for too little work.
_MIN_ROWS = 8

# (params, *batches) -> array; batches are trees of arrays that share their
# leading axis, the rows, with the result.
RowProgram = Callable[..., Any]


def per_core(
  program: RowProgram, mesh: jax.sharding.Mesh, *, num_cores: int | None = None
) -> Callable[..., np.ndarray]:
  """The program with a NumPy result, on a single CPU spread over cores.

  Args:
    num_cores: threads at most; None takes the cores this process may use.
  """
  if not is_single_cpu(mesh):
    return lambda params, *batches: np.asarray(program(params, *batches))
  num_cores = num_cores or usable_cores()
  pool = concurrent.futures.ThreadPoolExecutor(num_cores)
  compiled: set[tuple[tuple[int, ...], ...]] = set()

  def call(params: Any, *batches: Any) -> np.ndarray:
    shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batches))
    threads = num_threads(shapes[0][0], num_cores=num_cores)
    if threads == 1:
      return np.asarray(program(params, *batches))

    def run(first: int) -> np.ndarray:
      # Every n-th row: rows may be sorted by length, so shares are alike.
      share = jax.tree.map(lambda array: array[first::threads], batches)
      return np.asarray(program(params, *share))

    # One thread compiles a new shape; together, each of them would.
    ahead = 0 if shapes in compiled else 1
    results = [run(first) for first in range(ahead)]
    compiled.add(shapes)
    results += pool.map(run, range(ahead, threads))
    merged = np.stack(results, axis=1)
    return merged.reshape(-1, *merged.shape[2:])

  return call


def is_single_cpu(mesh: jax.sharding.Mesh) -> bool:
  """Whether the mesh is one CPU device."""
  return mesh.size == 1 and mesh.devices.flat[0].platform == 'cpu'


def usable_cores() -> int:
  """Cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):  # not on macOS
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def num_threads(num_rows: int, *, num_cores: int) -> int:
  """Threads for a batch: equal shares, of `_MIN_ROWS` rows or more.

  Args:
    num_rows: rows of the batch, at least 1.
  """
  threads = max(1, min(num_cores, num_rows // _MIN_ROWS))
  while num_rows % threads:
    threads -= 1
  return threads
