# SPDX-License-Identifier: Apache-2.0
"""A SentencePiece model as bytes: reads it, and adds extra ids."""

from typing import Any

from dsbs_jax import contract


def parse_model(model: bytes) -> Any:
  """A SentencePiece model's ModelProto."""
  # Imported here: it brings protobuf, which byte vocabularies do without.
  from google.protobuf import message
  from sentencepiece import sentencepiece_model_pb2

  try:
    return sentencepiece_model_pb2.ModelProto.FromString(model)
  except message.DecodeError as error:
    raise contract.UserError(
      f'it is no SentencePiece model ({error})'
    ) from error


def with_extra_ids(model: bytes, extra_ids: int) -> bytes:
  """A SentencePiece model with extra ids at its end, as another such model.

  Args:
    model: content of a .model file.
    extra_ids: number of pieces `<extra_id_n>` to add; the last id is
      <extra_id_0>, as in T5.

  Raises:
    UserError: the content is no SentencePiece model.
  """
  proto = parse_model(model)
  for number in reversed(range(extra_ids)):
    proto.pieces.add(
      piece=f'▁<extra_id_{number}>',
      score=0.0,
      type=proto.SentencePiece.USER_DEFINED,
    )
  return proto.SerializeToString()
