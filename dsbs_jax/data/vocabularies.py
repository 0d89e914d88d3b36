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
import itertools
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import sentencepiece

from dsbs_jax import contract
from dsbs_jax.data import sentencepiece_model, vocabulary_files

EOS_TEXT = vocabulary_files.EOS_TEXT
UNKNOWN_TEXT = ' ⁇ '  # how SentencePiece writes an unknown id

UNK_ID = 2
# Of a decoder's vocabulary, and what stands between its input and its target:
# in one sequence, the input's end id would say that the text is over.
BOS_ID = 2
BOS_TEXT = '<bos>'
INPUT_END = '\nAnswer: '
_TURN = re.compile(r'(<(?:start|end)_of_turn>)')
_UNK_NAME = vocabulary_files.UNKNOWN_NAME
_NUM_SPECIAL_BYTES = 3  # pad, eos, unk stand before the 256 bytes


class Vocabulary:
  """Ids of texts; what both kinds of vocabulary share.

  Each has `encode_parts`, from texts that hold no `</s>` to their ids without an
  end id, and `decode_ids`, from ids below `num_text_ids` to text.

  Attributes:
    size: number of ids, extra ids included; a model's table may be larger.
    num_text_ids: ids from here on are extra ids, which have no text.
    unk: the unknown id.
    fingerprint: hexadecimal digest of everything that decides the ids.
    input_start: ids before each input.
    input_end: ids behind each input, before which it is written.
    input_start_text: what stands before each input, as text.
    input_end_text: what stands behind it, '' for the end id.
  """

  input_start: tuple[int, ...] = ()
  input_end: tuple[int, ...] = (contract.EOS_ID,)
  input_start_text: str = ''
  input_end_text: str = ''
  size: int
  num_text_ids: int
  unk: int
  fingerprint: str

  def encode(self, text: str) -> list[int]:
    """Ids of one text, without an end id."""
    return self.encode_all([text])[0]

  def encode_inputs(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of many inputs, with what stands before and behind them."""
    return [
      [*self.input_start, *ids, *self.input_end]
      for ids in self.encode_all(texts)
    ]

  def put_inputs_into(self, input_format: str) -> list[bytes]:
    """Sets what stands around inputs, for a decoder's vocabulary.

    Args:
      input_format: of a spec; '' for INPUT_END behind inputs.

    Returns:
      What the fingerprint has to hold of it.
    """
    known = vocabulary_files.INPUT_FORMATS
    place = vocabulary_files.INPUT_PLACE
    template = known.get(input_format, input_format) or place + INPUT_END
    start, _, end = template.partition(place)
    self.input_start_text, self.input_end_text = start, end
    self.input_start = (BOS_ID, *self._encode_turns(start))
    self.input_end = tuple(self._encode_turns(end))
    return [end.encode(), start.encode()] if start else [end.encode()]

  def _encode_turns(self, text: str) -> list[int]:
    """Ids of a text, in which the markers of turns are single ids."""
    ids = []
    for part in filter(None, _TURN.split(text)):
      token = self.token(part) if _TURN.fullmatch(part) else None
      ids += self.encode_parts([part])[0] if token is None else [token]
    return ids

  def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of many texts, without end ids; `</s>` inside becomes EOS_ID.

    Args:
      texts: any strings.
    """
    parts = [text.split(EOS_TEXT) for text in texts]
    flat = iter(self.encode_parts([piece for text in parts for piece in text]))
    joined = []
    for text in parts:
      ids = list(next(flat))
      for _ in text[1:]:
        ids += [contract.EOS_ID, *next(flat)]
      joined.append(ids)
    return joined

  def decode(self, ids: Iterable[int]) -> str:
    """Text of ids up to the first end id, without special ones."""
    return self.decode_ids([i for i in self._until_end(ids) if i != self.unk])

  def decode_with_unknown(self, ids: Iterable[int]) -> str:
    """As `decode`, but an unknown id may read as UNKNOWN_TEXT."""
    return self.decode_ids(list(self._until_end(ids)))

  def _until_end(self, ids: Iterable[int]) -> Iterator[int]:
    before = itertools.takewhile(lambda i: i != contract.EOS_ID, map(int, ids))
    return (token for token in before if token < self.num_text_ids)

  def without_unknown(self, text: str) -> str:
    """Takes what stands for unknown ids out of a decoded text."""
    return text


class SentencePieceVocabulary(Vocabulary):
  """A SentencePiece model with extra ids at its end, numbered downwards.

  Attributes:
    model: the content of the file, without the extra ids.
    model_with_extra_ids: the same with them.
  """

  def __init__(
    self,
    model: bytes,
    *,
    extra_ids: int = vocabulary_files.EXTRA_IDS,
    input_format: str = '',
  ):
    self.model_with_extra_ids = sentencepiece_model.with_extra_ids(
      model, extra_ids
    )
    self._processor = sentencepiece.SentencePieceProcessor(
      model_proto=self.model_with_extra_ids
    )
    # umT5 has a start id, too, but never writes it.
    is_decoder = (
      self._processor.bos_id() == BOS_ID and self.piece(BOS_ID) == BOS_TEXT
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

  def without_unknown(self, text: str) -> str:
    known = text.replace(UNKNOWN_TEXT, '')
    # The blank before a word is no blank where the word is the first.
    return known.removeprefix(' ') if text.startswith(UNKNOWN_TEXT) else known

  def piece(self, token: int) -> str:
    """The piece of an id, for showing."""
    return self._processor.id_to_piece(int(token))


class JsonVocabulary(Vocabulary):
  """A tokenizer.json, read by the tokenizers library as transformers does.

  Attributes:
    content: of the file.
  """

  def __init__(self, content: bytes, *, input_format: str = ''):
    import tokenizers

    try:
      self._tokenizer = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # tokenizers raises nothing narrower
      raise contract.UserError(f'it is no tokenizer.json: {error}') from error
    self._tokenizer.no_padding()
    self._tokenizer.no_truncation()
    is_decoder = self._tokenizer.token_to_id(BOS_TEXT) == BOS_ID
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
    self.unk = self._tokenizer.token_to_id(_UNK_NAME)
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

  def without_unknown(self, text: str) -> str:
    known = text.replace(_UNK_NAME, '')
    return known.removeprefix(' ') if text.startswith(_UNK_NAME) else known

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
  """Checks that a model's table has a row for each id.

  Args:
    vocabulary: of the data.
    num_rows: of the embedding table (VOCAB_SIZE).

  Raises:
    UserError: there are fewer rows.
  """
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
  """The vocabulary of a spec; one object per spec, file and modification.

  Args:
    spec: see `vocabulary_files`.

  Raises:
    UserError: the file is absent, unreachable or no usable SentencePiece
      model.
  """
  parsed = vocabulary_files.resolve(spec)
  if parsed.path == vocabulary_files.BYTES:
    vocabulary = ByteVocabulary(extra_ids=parsed.extra_ids)
  else:
    path = pathlib.Path(parsed.path)
    vocabulary = _load_file(path, parsed, path.stat().st_mtime_ns)
  if parsed.input_format and not vocabulary.input_end_text:
    raise contract.UserError(
      f'vocabulary {spec!r} puts inputs into {parsed.input_format!r}, expected'
      f' that of a decoder, whose id {BOS_ID} is {BOS_TEXT} (Gemma). Leave out'
      ' what begins at the #, or --input_format.'
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
