# SPDX-License-Identifier: Apache-2.0
"""Batches of a whole split, each example once, in few static shapes."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from dsbs_jax.data.batching import layouts, loader, token_table
from dsbs_jax.data.prepared import tokens


def batches(
  examples: tokens.Tokens,
  batch_size: int,
  *,
  shard_info: loader.ShardInfo | None = None,
  sort: bool = True,
  num_shapes: int = 4,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
  """All examples of a split once, in rows of few static shapes.

  Args:
    batch_size: examples per batch of all processes; rounded up to what
      `shard_info` asks for.
    shard_info: this process among all; None is the only one.
    sort: longest inputs first, so that batches are even and memory is known
      at the first; False keeps the split's order.

  Yields:
    positions [rows] int32 in the split of all rows of the batch, -1 where a
    row is padding, and this process's rows. The last batch has as many rows.
  """
  shard_info = shard_info or loader.ShardInfo()
  lengths = examples.inputs.lengths
  order = (
    np.argsort(-lengths, kind='stable') if sort else np.arange(len(lengths))
  )
  parts = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
  packer = layouts.Bucketed(num_shapes=num_shapes).packer(
    token_table.from_tasks([examples]),
    parts,
    batch_size=batch_size,
    multiple=shard_info.multiple,
  )
  # Inputs alone decide: nothing is computed of targets, and one long target
  # would have its whole batch computed in the widest rows.
  widest = packer.shapes[-1].targets
  shapes = dict.fromkeys(s._replace(targets=widest) for s in packer.shapes)
  packer = dataclasses.replace(packer, shapes=tuple(shapes))
  for part in parts:
    positions = np.full(packer.shapes[0].rows, -1, np.int32)
    positions[: len(part)] = part
    yield positions, packer.pack(part, **shard_info.process)
