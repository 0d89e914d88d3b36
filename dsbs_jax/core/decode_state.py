# SPDX-License-Identifier: Apache-2.0
"""What cached decoding of every network family starts from and carries along.

R counts decoded rows: B, or B * G when each row has G beams, which are
neighbours. Rows to decode are encoder_input_tokens [B, S] int32, one example
per row.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from dsbs_jax import contract


@struct.dataclass
class DecodeState:
  """What a decoding step reads and writes.

  Attributes:
    index: [] int32, tokens chosen so far.
    tokens: [R, L] int32, the chosen tokens; 0 from `index` on.
    kv_cache: per layer, under its name, the family's keys and values in the
      activation dtype; zeros at positions that are still to come.
    done_mask: [B] bool, True for rows whose result can no longer change.
  """

  index: jax.Array
  tokens: jax.Array
  kv_cache: dict
  done_mask: jax.Array

  @property
  def unfinished(self) -> jax.Array:
    """Whether a further step can change a result; bool scalar."""
    return (self.index < self.tokens.shape[1]) & ~jnp.all(self.done_mask)


def first_state(kv_cache: dict, prefilled: Any, num_beams: int) -> DecodeState:
  """The state before the first token; rows of padding are done already."""
  empty_mask = prefilled.empty_mask
  shape = empty_mask.shape[0] * num_beams, prefilled.max_decode_len
  return DecodeState(
    index=jnp.int32(0),
    tokens=jnp.full(shape, contract.PAD_ID, jnp.int32),
    kv_cache=kv_cache,
    done_mask=empty_mask,
  )


def source_tokens(
  rows: dict[str, jax.Array], max_decode_len: int = 1
) -> jax.Array:
  """The encoder tokens [B, S] of rows to decode, one example per row.

  Raises:
    UserError: outputs could have no token.
    ValueError: the rows are packed.
  """
  if max_decode_len < 1:
    raise contract.UserError(
      f'max_decode_len is {max_decode_len}, expected at least 1.'
    )
  if rows.get('encoder_segment_ids') is not None:
    raise ValueError(
      'The rows to decode have encoder_segment_ids, expected one example'
      ' per row: packing is for training. Use the padded layout.'
    )
  return rows['encoder_input_tokens']
