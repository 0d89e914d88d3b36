# SPDX-License-Identifier: Apache-2.0
"""Computing real tokens alone where a position needs no other one.

Packed rows are never full: of the places of a batch a fifth is padding in the
encoder, a third in the decoder. Only attention needs rows. Projections, MLPs,
norms and logits, nine tenths of the arithmetic, work on single tokens, so they
get a *flat* array of the real ones, and attention moves between the two.

The loader says where the tokens are, in as many *cells* as the batch is cut
into by data shards and microbatches: C cells of n slots each, with the tokens
of a cell's own rows. A flat array has C * n slots, cell after cell; one that is
left over holds zeros.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Where the loader puts the places of a row group's tokens.
ENCODER_TOKEN_INDEX = 'encoder_token_index'
DECODER_TOKEN_INDEX = 'decoder_token_index'
_TARGETS = 'decoder_'


class Unpadding(NamedTuple):
  """The way between rows [B, L, ...] and flat tokens [C * n, ...].

  Attributes:
    places: [C, n] int32, row * L + position within the rows of the cell, of the
      token in each slot; B * L / C in a slot without token.
    slots: [C, B * L / C] int32, the slot of each place; n for padding.
    shape: B and L.
  """

  places: jax.Array
  slots: jax.Array
  shape: tuple[int, int]

  def flat(self, rows: jax.Array) -> jax.Array:
    """[B, L, ...] -> [C * n, ...]; zeros in slots without token."""
    moved = _move(self._of_cells(rows, 2), self.places, self.slots)
    return _merge(moved)

  def rows(self, flat: jax.Array) -> jax.Array:
    """[C * n, ...] -> [B, L, ...]; zeros on padding."""
    moved = _move(self._of_cells(flat, 1), self.slots, self.places)
    return moved.reshape(*self.shape, *flat.shape[1:])

  def each(self, of_rows: jax.Array) -> jax.Array:
    """What is the same all along a row, [B, 1, ...] -> [C * n, ...]."""
    of_cells = self._of_cells(of_rows, 2)
    rows = jnp.minimum(self.places // self.shape[1], of_cells.shape[1] - 1)
    return _merge(jax.vmap(lambda array, row: array[row])(of_cells, rows))

  def _of_cells(self, array: jax.Array, num_axes: int) -> jax.Array:
    """Cuts the leading axes, taken as one, into [C, x]."""
    return array.reshape(len(self.places), -1, *array.shape[num_axes:])


def make_unpadding(
  places: jax.Array | None, like: jax.Array
) -> Unpadding | None:
  """The way between rows and flat tokens, or None where rows stay as they are.

  Args:
    places: [C, n], see `Unpadding`; or None.
    like: [B, L, ...], an array of the row group.
  """
  if places is None:
    return None
  num_rows, length = like.shape[:2]
  size = num_rows * length // len(places)
  numbers = jnp.arange(places.shape[1], dtype=jnp.int32)
  slots = jax.vmap(
    lambda place: (
      jnp.full(size, len(numbers), jnp.int32)
      .at[place]
      .set(numbers, mode='drop')
    )
  )(places)
  return Unpadding(places, slots, (num_rows, length))


def unpad_targets(rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """A row group whose targets, and all that is told of them, are [C, n]."""
  way = make_unpadding(
    rows.get(DECODER_TOKEN_INDEX), rows['decoder_target_tokens']
  )
  if way is None:
    return rows
  return {
    name: way.flat(array).reshape(way.places.shape)
    if name.startswith(_TARGETS)
    else array
    for name, array in rows.items()
    if name not in (ENCODER_TOKEN_INDEX, DECODER_TOKEN_INDEX)
  }


def _merge(array: jax.Array) -> jax.Array:
  return array.reshape(-1, *array.shape[2:])


@jax.custom_vjp
def _move(arrays: jax.Array, index: jax.Array, _: jax.Array) -> jax.Array:
  """Entries [C, x, ...] by numbers [C, y], zeros where there is no such one.

  Both ways are one to one, so the gradient takes the other way, by its numbers;
  derived, it would be a scattered sum, which is slow everywhere.
  """
  return jax.vmap(
    lambda array, chosen: array.at[chosen].get(mode='fill', fill_value=0)
  )(arrays, index)


def _move_forward(arrays, index, back):
  return _move(arrays, index, back), (index, back)


def _move_backward(numbers, gradient):
  index, back = numbers
  return _move(gradient, back, index), None, None


_move.defvjp(_move_forward, _move_backward)
