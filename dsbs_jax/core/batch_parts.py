# SPDX-License-Identifier: Apache-2.0
"""Parts of a batch that are computed one after the other, and their totals.

See `gradients`, steps 2 to 4.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
Rows = dict[str, Array]


def cut(tree: Any, view: str, *, num_parts: int, num_shards: int) -> Any:
  """Cuts arrays [B, ...] into [num_parts, num_shards, B / both, ...].

  Part i has every num_parts-th row of each shard's block. So do token indices,
  [C, n], whose cells are ordered by shard, then by part. With one shard there
  is no shard axis.
  """
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
  """Adds function(rows, keys) of each part to the total; None starts from 0.

  Parts are [num_parts, (num_shards,) b, ...], and the total has the shard axis.
  """
  if num_shards > 1:
    function = jax.vmap(function)
  first = jax.tree.map(lambda array: array[0], parts)
  if len(jax.tree.leaves(parts)[0]) == 1:
    only = function(*first)
    return only if total is None else _add(total, only)
  if total is None:
    shapes = jax.eval_shape(function, *first)
    total = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  def visit(total, part):
    return _add(total, function(*part)), None

  return jax.lax.scan(visit, total, parts)[0]


def sum_shards(total: Any, num_shards: int) -> Any:
  """[num_shards, ...] -> [...]; one shard has no shard axis."""
  if num_shards == 1:
    return total
  return jax.tree.map(lambda array: jnp.sum(array, axis=0), total)


def _add(left: Any, right: Any) -> Any:
  return jax.tree.map(jnp.add, left, right)
