# SPDX-License-Identifier: Apache-2.0
"""Computing real tokens only, where a position needs no other one.

Packed rows are never full: a fifth of a batch's encoder positions is padding,
and a third of its decoder positions. Only attention needs rows. Projections,
MLPs, norms and logits, nine tenths of the arithmetic, work on single tokens, so
they get *flat* arrays with the real ones only, and attention converts to rows
and back.

The loader says where the real tokens are. A batch is cut along a grid of data
shards and microbatches; each of its C cells has n slots, for the tokens of the
cell's own rows. A flat array has C * n entries, cell after cell, and zeros in
slots without a token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# The tokens of a row group that say what is padding, and the key of the
# `Unpadding.token_index` of these.
TOKENS = {
  'encoder': 'encoder_input_tokens',
  'decoder': 'decoder_target_tokens',
}
TOKEN_INDEX = {stack: f'{stack}_token_index' for stack in TOKENS}


class Unpadding(NamedTuple):
  """Converts between rows [B, L, ...] and flat tokens [C * n, ...].

  Attributes:
    token_index: [C, n] int32, where in its cell's rows the token of each slot
      is: row * L + position; B * L / C in a slot without a token.
    row_index: [C, B * L / C] int32, the inverse: the slot of each position of a
      cell's rows; n for padding.
    shape: B and L.
  """

  token_index: jax.Array
  row_index: jax.Array
  shape: tuple[int, int]

  def unpad(self, rows: jax.Array) -> jax.Array:
    """[B, L, ...] -> [C * n, ...]; zeros in slots without a token."""
    in_cells = self._split_cells(rows, num_axes=2)
    return _merge_cells(_permute(in_cells, self.token_index, self.row_index))

  def pad(self, flat: jax.Array) -> jax.Array:
    """[C * n, ...] -> [B, L, ...]; zeros on padding."""
    in_cells = self._split_cells(flat, num_axes=1)
    rows = _permute(in_cells, self.row_index, self.token_index)
    return rows.reshape(*self.shape, *flat.shape[1:])

  def repeat_rows(self, per_row: jax.Array) -> jax.Array:
    """Each token's copy of what its row has: [B, 1, ...] -> [C * n, ...]."""
    in_cells = self._split_cells(per_row, num_axes=2)
    row = self.token_index // self.shape[1]
    row = jnp.minimum(row, in_cells.shape[1] - 1)  # of slots without a token
    return _merge_cells(jax.vmap(lambda array, of: array[of])(in_cells, row))

  def _split_cells(self, array: jax.Array, *, num_axes: int) -> jax.Array:
    """Takes the leading axes as one and cuts it into [C, x]."""
    return array.reshape(len(self.token_index), -1, *array.shape[num_axes:])


def make_unpadding(rows: dict[str, jax.Array], stack: str) -> Unpadding | None:
  """Inverts the loader's index; None where rows stay as they are.

  Args:
    rows: a row group, with or without the token index.
    stack: 'encoder' or 'decoder'.
  """
  token_index = rows.get(TOKEN_INDEX[stack])
  if token_index is None:
    return None
  num_rows, length = rows[TOKENS[stack]].shape
  num_cells, num_slots = token_index.shape
  slots = jnp.arange(num_slots, dtype=jnp.int32)
  padding = jnp.full(num_rows * length // num_cells, num_slots, jnp.int32)
  row_index = jax.vmap(lambda index: padding.at[index].set(slots, mode='drop'))(
    token_index
  )
  return Unpadding(token_index, row_index, (num_rows, length))


def unpad_targets(rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """A row group whose decoder arrays [B, T, ...] have become [C, n, ...].

  Unchanged where the row group has no decoder_token_index.
  """
  unpadding = make_unpadding(rows, 'decoder')
  if unpadding is None:
    return rows
  return {
    name: unpadding.unpad(array).reshape(
      *unpadding.token_index.shape, *array.shape[2:]
    )
    if name.startswith('decoder_')
    else array
    for name, array in rows.items()
    if name not in TOKEN_INDEX.values()
  }


def _merge_cells(array: jax.Array) -> jax.Array:
  """[C, n, ...] -> [C * n, ...]."""
  return array.reshape(-1, *array.shape[2:])


@jax.custom_vjp
def _permute(
  arrays: jax.Array, index: jax.Array, inverse: jax.Array
) -> jax.Array:
  """Gathers [C, x, ...] by an index [C, y]; zeros where that is out of range.

  No entry is taken twice, so the gradient is a gather by the inverse index
  [C, x]. The derived one would be a scattered sum, which is slow everywhere.
  """
  del inverse
  return jax.vmap(
    lambda array, chosen: array.at[chosen].get(mode='fill', fill_value=0)
  )(arrays, index)


def _permute_forward(arrays, index, inverse):
  return _permute(arrays, index, inverse), (index, inverse)


def _permute_backward(residuals, gradient):
  index, inverse = residuals
  return _permute(gradient, inverse, index), None, None


_permute.defvjp(_permute_forward, _permute_backward)
