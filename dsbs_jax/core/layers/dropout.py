# SPDX-License-Identifier: Apache-2.0
"""Dropout: masks of what is kept, drawn per row, and how they are applied.

Each layer has a key per row, so a row's masks do not depend on the device, the
microbatch or the other rows that it is computed with.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsbs_jax.core.layers.unpadding import Unpadding


def dropout(
  inputs: jax.Array, keep_mask: jax.Array | None, *, rate: float
) -> jax.Array:
  """Zeroes what is not kept and scales the rest up by 1 / (1 - rate).

  Args:
    inputs: any float array.
    keep_mask: bool, broadcast against `inputs`; None returns `inputs`.
    rate: the share of zeroes that the mask was drawn with, in [0, 1).
  """
  if keep_mask is None:
    return inputs
  scale = jnp.asarray(1.0 / (1.0 - rate), inputs.dtype)
  return inputs * jnp.where(keep_mask, scale, jnp.zeros_like(scale))


def row_keys(key: jax.Array | None, num_rows: int) -> jax.Array | None:
  """One typed key -> a key per row, [num_rows].

  Keys of rows [B], and None (no dropout), are returned unchanged.
  """
  if key is None or key.ndim:
    return key
  return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_rows))


def split_keys(keys: jax.Array | None, num: int) -> jax.Array | list[None]:
  """Splits typed keys of rows [B] into [num, B]; None into `num` Nones."""
  if keys is None:
    return [None] * num
  return jax.vmap(lambda key: jax.random.split(key, num), out_axes=1)(keys)


def feature_masks(
  keys: jax.Array | None,
  config: Any,
  widths: tuple[int, ...],
  *,
  unpadding: Unpadding | None = None,
) -> list[jax.Array | None]:
  """Draws masks that all positions of a row share, as T5 has it.

  One draw is cut into several masks, since each draw costs compile time.

  Args:
    keys: typed keys of the rows [B]; None for no dropout.
    config: has the rate.
    widths: features of each mask.
    unpadding: of the arrays to mask, where they are flat; else None.

  Returns:
    A mask per width, [B, 1, width] bool, or [C * n, width] where flat; Nones
    without dropout.
  """
  masks = _draw(keys, config, widths)
  if unpadding is None or masks[0] is None:
    return masks
  return [unpadding.repeat_rows(mask) for mask in masks]


def position_masks(
  keys: jax.Array | None,
  config: Any,
  like: jax.Array,
  *,
  unpadding: Unpadding | None = None,
) -> jax.Array | None:
  """Draws a mask per position: bool, shaped as `like`; None for no dropout.

  Args:
    keys: as in `feature_masks`.
    config: likewise.
    like: the array to mask, [B, L, D], or flat [C * n, D].
    unpadding: of `like`, where it is flat; else None.
  """
  shape = like.shape[:2] if unpadding is None else unpadding.shape
  width = like.shape[-1]
  (keep_mask,) = _draw(keys, config, (shape[1] * width,))
  if keep_mask is None:
    return None
  keep_mask = keep_mask.reshape(*shape, width)
  return keep_mask if unpadding is None else unpadding.unpad(keep_mask)


def layer_masks(
  keys: jax.Array | None,
  config: Any,
  *lengths: int,
  unpadding: Unpadding | None = None,
) -> tuple[list, jax.Array | None, list]:
  """Draws all masks of one layer.

  A mesh's model axis splits heads and MLP features, but not the model width. If
  all masks were cut from one draw, the compiler would split them alike and
  gather activations in every layer; so there are two draws.

  Args:
    keys: typed keys of the rows [B]; None for no dropout.
    config: has the rate and the widths.
    *lengths: keys that each attention of the layer attends to.
    unpadding: of the layer's tokens, where they are flat; else None.

  Returns:
    Per attention [B, H, 1, length] bool; the mask within the MLP, and those of
    each block's output, shaped as in `feature_masks`. Nones without dropout.
  """
  wide_keys, narrow_keys = split_keys(keys, 2)
  *heads, mlp = _draw(
    wide_keys,
    config,
    (*(config.num_heads * length for length in lengths), config.mlp_dim),
  )
  outputs = feature_masks(
    narrow_keys,
    config,
    (config.emb_dim,) * (len(lengths) + 1),
    unpadding=unpadding,
  )
  if mlp is not None and unpadding is not None:
    mlp = unpadding.repeat_rows(mlp)
  return (
    # All queries drop the same keys: [B, 1, H * S] -> [B, H, 1, S].
    [
      keep_mask
      if keep_mask is None
      else keep_mask.reshape(len(keep_mask), config.num_heads, 1, -1)
      for keep_mask in heads
    ],
    mlp,
    outputs,
  )


def _draw(
  keys: jax.Array | None, config: Any, widths: tuple[int, ...]
) -> list[jax.Array | None]:
  """A mask per width, [B, 1, width] bool, True with probability 1 - rate."""
  if keys is None or config.dropout_rate == 0.0:
    return [None] * len(widths)
  share = 1.0 - config.dropout_rate
  keep_mask = jax.vmap(
    lambda key: jax.random.bernoulli(key, share, (1, sum(widths)))
  )(keys)
  return jnp.split(keep_mask, np.cumsum(widths)[:-1], axis=2)
