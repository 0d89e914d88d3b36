# SPDX-License-Identifier: Apache-2.0
"""Decoding parts of a batch at the same time on a CPU, one per core.

A decoding step is many operations that are too small for XLA to share out
among cores: on two of them it is hardly sooner done than on one. Rows do not
need each other, so each core gets rows of its own, through a thread.
"""

import concurrent.futures
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

# Fewer rows in a stream, and each weight is read for too little work.
_FEWEST_ROWS = 8


class Streams:
  """A program of parameters and batches that runs on parts of their rows.

  Args:
    program: jitted, (params, *batches) -> array; batches are trees of arrays
      with one leading axis of rows, as the array has.
    mesh: the devices. On any but a single CPU there is one stream.
    num_cores: streams at most; None: cores that this process may use.
  """

  def __init__(
    self,
    program: Callable[..., jax.Array],
    mesh: jax.sharding.Mesh,
    *,
    num_cores: int | None = None,
  ):
    self._program = program
    self._most = 1
    if mesh.size == 1 and mesh.devices.flat[0].platform == 'cpu':
      self._most = num_cores or len(os.sched_getaffinity(0))
    self._pool = concurrent.futures.ThreadPoolExecutor(self._most)
    self._compiled: set[tuple[int, ...]] = set()

  def number(self, num_rows: int) -> int:
    """Streams for so many rows: each gets as many as the others."""
    streams = max(1, min(self._most, num_rows // _FEWEST_ROWS))
    while num_rows % streams:
      streams -= 1
    return streams

  def __call__(self, params: Any, *batches: Any) -> np.ndarray:
    """What the program says of all rows, in their order."""
    leaves = jax.tree.leaves(batches)
    streams = self.number(len(leaves[0]))
    if streams == 1:
      return np.asarray(self._program(params, *batches))
    parts = (_every(streams, batches, first) for first in range(streams))
    done = []
    shapes = tuple(leaf.shape for leaf in leaves)
    if shapes not in self._compiled:  # by one thread, not by each
      done.append(self._run(params, next(parts)))
      self._compiled.add(shapes)
    done += self._pool.map(lambda part: self._run(params, part), parts)
    whole = np.stack(done, axis=1)
    return whole.reshape(-1, *whole.shape[2:])

  def _run(self, params, batches) -> np.ndarray:
    return np.asarray(self._program(params, *batches))


def _every(step: int, batches: Any, first: int) -> Any:
  """Every step-th row: rows may be sorted by length, and parts are alike."""
  return jax.tree.map(lambda array: array[first::step], batches)
