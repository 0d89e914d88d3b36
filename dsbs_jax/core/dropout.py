# SPDX-License-Identifier: Apache-2.0
"""Dropout: what is kept, drawn per row, and how it is applied.

Each layer draws from a key of its own for each row, so that a row's masks are
the same wherever and with whichever others it is computed.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dsbs_jax.core.t5.config import T5Config
from dsbs_jax.core.unpadding import Unpadding


def dropout(
  inputs: jax.Array, keep: jax.Array | None, *, rate: float
) -> jax.Array:
  """Zeroes what is not kept and scales the rest up by 1 / (1 - rate).

  Args:
    inputs: any float array.
    keep: bool, broadcast against `inputs`; None keeps everything as it is.
    rate: the share of zeroes that `keep` was drawn with, in [0, 1).

  Returns:
    An array like `inputs`.
  """
  if keep is None:
    return inputs
  scale = jnp.asarray(1.0 / (1.0 - rate), inputs.dtype)
  return inputs * jnp.where(keep, scale, jnp.zeros_like(scale))


def row_keys(key: jax.Array | None, num_rows: int) -> jax.Array | None:
  """One key per row, [B], of one key; keys of rows and None stay as they are."""
  if key is None or key.ndim:
    return key
  return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_rows))


def split_keys(keys: jax.Array | None, num: int):
  """Keys of rows [B] -> `num` such, or as many Nones without dropout."""
  if keys is None:
    return [None] * num
  return jax.vmap(lambda key: jax.random.split(key, num), out_axes=1)(keys)


def feature_masks(
  keys: jax.Array | None,
  config: T5Config,
  widths: tuple[int, ...],
  *,
  unpadding: Unpadding | None = None,
) -> list[jax.Array | None]:
  """Draws what dropout keeps at several places.

  T5 drops the same features at all positions of a row. One draw is cut into
  several masks: each draw costs compile time.

  Args:
    keys: typed keys of the rows [B]; None for no dropout.
    config: says the rate.
    widths: features of each place.
    unpadding: of the arrays that are masked, where they are flat.

  Returns:
    Per place [B, 1, width] bool, or [C * n, width]; None for no dropout.
  """
  masks = _draw(keys, config, widths)
  if unpadding is None or masks[0] is None:
    return masks
  return [unpadding.each(mask) for mask in masks]


def position_masks(
  keys: jax.Array | None,
  config: T5Config,
  like: jax.Array,
  *,
  unpadding: Unpadding | None = None,
) -> jax.Array | None:
  """Draws what dropout keeps where every position has a mask of its own.

  Args:
    keys: as in `feature_masks`.
    config: says the rate.
    like: the array that is masked, [B, L, D] or flat.
    unpadding: its, where it is flat.

  Returns:
    bool, shaped as `like`; None for no dropout.
  """
  shape = like.shape[:2] if unpadding is None else unpadding.shape
  width = like.shape[-1]
  (keep,) = _draw(keys, config, (shape[1] * width,))
  if keep is None:
    return None
  keep = keep.reshape(*shape, width)
  return keep if unpadding is None else unpadding.flat(keep)


def layer_masks(
  keys: jax.Array | None,
  config: T5Config,
  *lengths: int,
  unpadding: Unpadding | None = None,
) -> tuple[list, jax.Array | None, list]:
  """Draws what dropout keeps in a layer whose attentions have these keys.

  A mesh's model axis splits heads and the MLP's features, but not the
  embedding's. Cut from one draw, all would be split alike, and activations
  gathered in every layer; so there are two.

  Returns:
    [B, H, 1, length] of each attention; of the features within the MLP and of
    each block's output as `feature_masks` has them; Nones without dropout.
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
    mlp = unpadding.each(mlp)
  return [_per_head(keep, config.num_heads) for keep in heads], mlp, outputs


def _draw(keys, config, widths) -> list[jax.Array | None]:
  """[B, 1, width] bool each."""
  if keys is None or config.dropout_rate == 0.0:
    return [None] * len(widths)
  share = 1.0 - config.dropout_rate
  keep = jax.vmap(
    lambda key: jax.random.bernoulli(key, share, (1, sum(widths)))
  )(keys)
  return jnp.split(keep, np.cumsum(widths)[:-1], axis=2)


def _per_head(keep: jax.Array | None, num_heads: int):
  """[B, 1, H * S] -> [B, H, 1, S], what attention drops for all queries."""
  if keep is None:
    return None
  return keep.reshape(keep.shape[0], num_heads, 1, -1)
