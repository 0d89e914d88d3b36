# SPDX-License-Identifier: Apache-2.0
"""Parts of a batch that are computed one after the other, and their totals.

See `batch_gradient`, steps 2 to 4.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dsbs_jax import contract
from dsbs_jax.core import partitioning

Array = jax.Array
Rows = dict[str, Array]


def cut(tree: Any, view: str, *, num_parts: int, num_shards: int) -> Any:
  """Cuts arrays [B, ...] into [num_parts, num_shards, B / both, ...].

  Part i has every num_parts-th row of each shard's block. So do token indices,
  [C, n], whose cells are ordered by shard, then by part. With one shard there
  is no shard axis.

  Args:
    tree: arrays [B, ...], of any dtype.
    view: what an error calls them.
    num_parts: parts that are computed one after the other.
    num_shards: data shards that compute at the same time.

  Raises:
    UserError: there are no parts.
    ValueError: B is no multiple of both.
  """
  if num_parts < 1:
    raise contract.UserError(
      f'num_microbatches is {num_parts}, expected a number >= 1.'
    )
  for array in jax.tree.leaves(tree):
    if len(array) % (num_shards * num_parts):
      raise ValueError(
        f'view {view!r} has {len(array)} rows or cells, which {num_parts}'
        f' microbatches of {num_shards} data shards do not divide. Change one'
        ' of the two.'
      )

  def deal(array):
    # [num_shards, B / both, num_parts, ...] -> [num_parts, num_shards, ...]
    dealt = array.reshape(num_shards, -1, num_parts, *array.shape[1:])
    dealt = jnp.moveaxis(dealt, 2, 0)
    return dealt if num_shards > 1 else dealt[:, 0]

  return jax.tree.map(deal, tree)


def add_up(
  function: Callable[[Rows, Array], Any],
  parts: tuple[Rows, Array],
  *,
  num_shards: int,
  total: Any = None,
) -> Any:
  """Adds function(rows, keys) of each part to the total.

  Args:
    function: rows and keys of one part of one shard -> arrays to add up.
    parts: rows and keys, [num_parts, (num_shards,) b, ...].
    num_shards: data shards; with one there is no shard axis.
    total: what to add to, with the shard axis; None starts from 0.
  """
  if num_shards > 1:
    function = jax.vmap(function)
  first = jax.tree.map(lambda array: array[0], parts)
  add = functools.partial(jax.tree.map, jnp.add)
  if len(jax.tree.leaves(parts)[0]) == 1:
    only = function(*first)
    return only if total is None else add(total, only)
  if total is None:
    shapes = jax.eval_shape(function, *first)
    total = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  return jax.lax.scan(
    lambda total, part: (add(total, function(*part)), None), total, parts
  )[0]


def sum_shards(total: Any, num_shards: int) -> Any:
  """The sum over data shards, of [num_shards, ...]; of one shard [...]."""
  if num_shards == 1:
    return total
  return jax.tree.map(lambda array: jnp.sum(array, axis=0), total)


def check_batch(
  batch: Any, mesh: jax.sharding.Mesh, *, num_microbatches: int = 1
) -> None:
  """Raises UserError unless rows divide over data shards and microbatches.

  Args:
    batch: view -> row group; arrays or shapes of the *global* batch.
    mesh: the devices.
    num_microbatches: how many parts a step cuts the batch into.
  """
  num_shards = mesh.shape[partitioning.DATA_AXIS]
  parts = num_shards * num_microbatches
  for view, rows in batch.items():
    num_rows = len(rows['decoder_target_tokens'])
    if num_rows % parts:
      raise contract.UserError(
        f'view {view!r} has {num_rows} rows, expected a multiple of {parts}'
        f' ({num_shards} data shards x {num_microbatches}'
        ' microbatches). Change the batch size (or the packed row count), the'
        ' mesh or the number of microbatches.'
      )
