# SPDX-License-Identifier: Apache-2.0
"""The views of a batch as one row group: one pass, not two or more.

The views of a packed batch differ in their lengths only, and outside of
attention nothing has a length where padding is left out (`unpadding`). So all
may pass through the network together: half of the products for two views, each
with twice the rows, half of the program to compile. The loss needs to know
nothing of it, since each target has its own weight (`batch_gradient`).
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dsbs_jax import contract
from dsbs_jax.core.layers import unpadding

Rows = dict[str, jax.Array]

# Key of a token index -> that of its tokens.
_INDICES = {
  index: unpadding.TOKENS[stack]
  for stack, index in unpadding.TOKEN_INDEX.items()
}


def can_join(batch: dict[str, Rows]) -> bool:
  """Whether a batch has views of its own, packed and with token indices."""
  return set(batch) >= {contract.LABEL_VIEW, contract.RATIONALE_VIEW} and all(
    name in rows for rows in batch.values() for name in _INDICES
  )


def join_parts(
  parts: dict[str, tuple[Rows, jax.Array]],
) -> dict[str, tuple[Rows, jax.Array]]:
  """The parts of all views as those of one; unchanged where they cannot be.

  Args:
    parts: view -> (rows, dropout keys of the rows), each array with leading
      axes for microbatches and, where there are several, data shards.
  """
  if not can_join({view: rows for view, (rows, _) in parts.items()}):
    return parts
  both = _join
  for _ in parts[contract.LABEL_VIEW][1].shape[:-1]:
    both = jax.vmap(both)
  return {contract.MIXTURE_VIEW: functools.reduce(both, parts.values())}


def _join(
  first: tuple[Rows, jax.Array], second: tuple[Rows, jax.Array]
) -> tuple[Rows, jax.Array]:
  """Two packed row groups, and the dropout keys of their rows, as one.

  From b1 rows of S1 source and T1 target tokens and b2 of S2 and T2, in as many
  cells, to b1 + b2 rows of max(S1, S2) and max(T1, T2): in each cell first the
  rows, slots and keys of the first group, then those of the second.
  """
  rows, keys = zip(first, second, strict=True)
  num_cells = len(rows[0][unpadding.TOKEN_INDEX['encoder']])
  joined = {
    name: _join_indices(
      [(group[name], group[_INDICES[name]]) for group in rows]
    )
    if name in _INDICES
    else _join_rows([group[name] for group in rows], num_cells)
    for name in rows[0]
  }
  return joined, _join_rows(keys, num_cells)


def _join_rows(groups: Sequence[jax.Array], num_cells: int) -> jax.Array:
  """[b1, L1] and [b2, L2] -> [b1 + b2, max(L1, L2)]; keys [b] likewise.

  The rows of a cell stay neighbours, and so stay on their device.
  """
  if groups[0].ndim == 2:
    length = max(group.shape[1] for group in groups)
    groups = [
      jnp.pad(group, ((0, 0), (0, length - group.shape[1]))) for group in groups
    ]
  cells = [group.reshape(num_cells, -1, *group.shape[1:]) for group in groups]
  joined = jnp.concatenate(cells, axis=1)
  return joined.reshape(-1, *joined.shape[2:])


def _join_indices(groups: Sequence[tuple[jax.Array, jax.Array]]) -> jax.Array:
  """Token indices [C, n1] and [C, n2] of rows -> [C, n1 + n2] of joined rows.

  Each comes with an array of its rows, [b, L]. See `unpadding.Unpadding`.
  """
  num_cells = len(groups[0][0])
  length = max(rows.shape[1] for _, rows in groups)
  end = sum(len(rows) for _, rows in groups) // num_cells * length
  joined, offset = [], 0
  for index, rows in groups:
    row, position = jnp.divmod(index, rows.shape[1])
    num_rows = len(rows) // num_cells
    moved = (offset + row) * length + position
    joined.append(jnp.where(row < num_rows, moved, end))
    offset += num_rows
  return jnp.concatenate(joined, axis=1)
