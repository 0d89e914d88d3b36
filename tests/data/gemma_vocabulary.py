# SPDX-License-Identifier: Apache-2.0
"""A small SentencePiece model as Gemma's: a start id, and markers of turns."""

import io

import sentencepiece


def train(text: str, **options) -> bytes:
  """The model's bytes; `options`: its size and what else SentencePiece takes."""
  out = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([text] * 9),
    model_writer=out,
    hard_vocab_limit=False,
    control_symbols=['<start_of_turn>', '<end_of_turn>'],
    user_defined_symbols=['\n'],
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    bos_piece='<bos>',
    eos_piece='<eos>',
    **{'pad_id': 0, 'eos_id': 1, 'bos_id': 2, 'unk_id': 3},
    **options,
  )
  return out.getvalue()
