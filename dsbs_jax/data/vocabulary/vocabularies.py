# SPDX-License-Identifier: Apache-2.0
"""Text to ids and back, without TensorFlow.

A vocabulary is named by a spec (`vocabulary_files`). Ids equal those of seqio's
vocabularies of the same file and number of extra ids; `</s>` inside a text is
one id, as in Hugging Face's T5 tokenizer. Decoded texts are those of its
`decode(ids, skip_special_tokens=True)`: padding, unknown and extra ids leave no
trace.
"""

import functools
import hashlib
import pathlib
from collections.abc import Sequence

import numpy as np
import sentencepiece

from dsbs_jax import contract
from dsbs_jax.data.vocabulary import base_vocabulary, vocabulary_files

EOS_TEXT = vocabulary_files.EOS_TEXT
UNKNOWN_TEXT = ' ⁇ '  # how SentencePiece writes an unknown id

UNK_ID = 2
BOS_TEXT = '<bos>'  # of a decoder's vocabulary
_NUM_SPECIAL_BYTES = 3  # pad, eos, unk stand before the 256 bytes


Vocabulary = base_vocabulary.Vocabulary


class SentencePieceVocabulary(Vocabulary):
  """A SentencePiece model with extra ids at its end, numbered downwards.

  Attributes:
    model: the content of the file, without the extra ids.
    model_with_extra_ids: the same with them.
  """

  unknown_text = UNKNOWN_TEXT

  def __init__(
    self,
    model: bytes,
    *,
    extra_ids: int = vocabulary_files.EXTRA_IDS,
    input_format: str = '',
  ):
    self.model_with_extra_ids = vocabulary_files.with_extra_ids(
      model, extra_ids
    )
    self._processor = sentencepiece.SentencePieceProcessor(
      model_proto=self.model_with_extra_ids
    )
    # umT5 has a start id, too, but never writes it.
    is_decoder = (
      self._processor.bos_id() == contract.BOS_ID
      and self.piece(contract.BOS_ID) == BOS_TEXT
    )
    if is_decoder:  # without extra ids
      extra_ids = 0
      self.model_with_extra_ids = model
      self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    found = (self._processor.pad_id(), self._processor.eos_id())
    if found != (contract.PAD_ID, contract.EOS_ID):
      raise contract.UserError(
        f'the SentencePiece model has pad and eos ids {found}, expected'
        f' {(contract.PAD_ID, contract.EOS_ID)}. Train it with pad_id=0,'
        ' eos_id=1, unk_id=2, bos_id=-1, as prepare --train_vocab does.'
      )
    self.model = model
    self.size = self._processor.get_piece_size()
    self.num_text_ids = self.size - extra_ids
    self.unk = self._processor.unk_id()
    parts = [b'sentencepiece', model, str(extra_ids).encode()]
    if is_decoder:
      parts += self.put_inputs_into(input_format)
    self.fingerprint = _digest(*parts)

  def encode_parts(self, texts: Sequence[str]) -> list[list[int]]:
    return self._processor.encode(list(texts), num_threads=1)

  def decode_ids(self, ids: list[int]) -> str:
    return self._processor.decode(ids)

  def token(self, piece: str) -> int | None:
    """The id of a piece, None where there is none."""
    found = self._processor.piece_to_id(piece)
    return None if found == self.unk else found

  def piece(self, token: int) -> str:
    """The piece of an id, for showing."""
    return self._processor.id_to_piece(int(token))


class JsonVocabulary(Vocabulary):
  """A tokenizer.json, read by the tokenizers library as transformers does."""

  unknown_text = vocabulary_files.UNKNOWN_NAME

  def __init__(self, content: bytes, *, input_format: str = ''):
    import tokenizers

    try:
      self._tokenizer = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # tokenizers raises nothing narrower
      raise contract.UserError(f'it is no tokenizer.json: {error}') from error
    self._tokenizer.no_padding()
    self._tokenizer.no_truncation()
    is_decoder = self._tokenizer.token_to_id(BOS_TEXT) == contract.BOS_ID
    end = '<eos>' if is_decoder else EOS_TEXT
    found = tuple(map(self._tokenizer.token_to_id, ('<pad>', end)))
    if found != (contract.PAD_ID, contract.EOS_ID):
      raise contract.UserError(
        f'<pad> and {end} have the ids {found}, expected'
        f' {(contract.PAD_ID, contract.EOS_ID)}'
      )
    self.content = content
    self.size = 1 + max(self._tokenizer.get_vocab().values())
    self.num_text_ids = self.size
    self.unk = self._tokenizer.token_to_id(self.unknown_text)
    added = self._tokenizer.get_added_tokens_decoder().items()
    self._silent = {i for i, token in added if token.special} - {self.unk}
    parts = [b'tokenizer.json', content]
    if is_decoder:
      parts += self.put_inputs_into(input_format)
    self.fingerprint = _digest(*parts)

  def encode_parts(self, texts: Sequence[str]) -> list[list[int]]:
    found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [row.ids for row in found]

  def decode_ids(self, ids: list[int]) -> str:
    kept = [token for token in ids if token not in self._silent]
    return self._tokenizer.decode(kept, skip_special_tokens=False)

  def token(self, piece: str) -> int | None:
    """The id of a piece, None where there is none."""
    return self._tokenizer.token_to_id(piece)

  def piece(self, token: int) -> str:
    """The piece of an id, for showing."""
    return self._tokenizer.id_to_token(int(token)) or f'<{token}>'


class ByteVocabulary(Vocabulary):
  """UTF-8 bytes as ids, after pad, eos and unk; extra ids at the end."""

  def __init__(self, *, extra_ids: int = vocabulary_files.EXTRA_IDS):
    self.num_text_ids = _NUM_SPECIAL_BYTES + 256
    self.size = self.num_text_ids + extra_ids
    self.unk = UNK_ID
    self.fingerprint = _digest(b'bytes', str(extra_ids).encode())

  def encode_parts(self, texts: Sequence[str]) -> list[list[int]]:
    return [
      (np.frombuffer(text.encode(), np.uint8).astype(int) + 3).tolist()
      for text in texts
    ]

  def decode_ids(self, ids: list[int]) -> str:
    values = [token - _NUM_SPECIAL_BYTES for token in ids]
    kept = bytes(value for value in values if 0 <= value < 256)
    return kept.decode('utf-8', errors='ignore')

  def piece(self, token: int) -> str:
    """The character or hexadecimal byte of an id, for showing."""
    value = int(token) - _NUM_SPECIAL_BYTES
    if 32 < value < 127:
      return chr(value)
    return f'<0x{value:02X}>' if 0 <= value < 256 else f'<{token}>'


def padded_size(vocabulary: Vocabulary) -> int:
  """Rows of a model's table: the ids, rounded up to a multiple of 128."""
  return -(-vocabulary.size // 128) * 128


def check_size(vocabulary: Vocabulary, num_rows: int) -> None:
  """UserError where a model's table has fewer rows than there are ids."""
  if vocabulary.size > num_rows:
    raise contract.UserError(
      f'the vocabulary has {vocabulary.size} ids, but the model only'
      f' {num_rows} rows (VOCAB_SIZE). Train with'
      f' --gin.VOCAB_SIZE={padded_size(vocabulary)}; a trained model needs its'
      ' own VOCABULARY.'
    )


def load(
  spec: str,
) -> SentencePieceVocabulary | JsonVocabulary | ByteVocabulary:
  """A spec's vocabulary, one object per modification; UserError without."""
  parsed = vocabulary_files.resolve(spec)
  if parsed.path == vocabulary_files.BYTES:
    vocabulary = ByteVocabulary(extra_ids=parsed.extra_ids)
  else:
    path = pathlib.Path(parsed.path)
    vocabulary = _load_file(path, parsed, path.stat().st_mtime_ns)
  if parsed.input_format and not vocabulary.input_end_text:
    raise contract.UserError(
      f'vocabulary {spec!r} puts inputs into {parsed.input_format!r}, expected'
      f' that of a decoder, whose id {contract.BOS_ID} is {BOS_TEXT} (Gemma).'
      ' Leave out what begins at the #, or --input_format.'
    )
  return vocabulary


@functools.cache
def _load_file(
  path: pathlib.Path, spec: vocabulary_files.Spec, modified: int
) -> SentencePieceVocabulary | JsonVocabulary:
  del modified  # part of the cache's key: a rewritten file is read again
  try:
    if path.suffix == '.json':
      return JsonVocabulary(path.read_bytes(), input_format=spec.input_format)
    return SentencePieceVocabulary(
      path.read_bytes(),
      extra_ids=spec.extra_ids,
      input_format=spec.input_format,
    )
  except (RuntimeError, ValueError, ModuleNotFoundError) as error:
    reason = ' '.join(str(error).split()).rstrip('.')
    raise contract.UserError(
      f'vocabulary {path} cannot be used ({reason}), expected a SentencePiece'
      " model of T5's kind. Give its .model file, 'bytes', or train one with"
      ' python -m dsbs_jax.prepare --train_vocab=4096.'
    ) from error


def _digest(*parts: bytes) -> str:
  hasher = hashlib.sha256()
  for part in parts:
    hasher.update(len(part).to_bytes(8, 'little'))
    hasher.update(part)
  return hasher.hexdigest()
