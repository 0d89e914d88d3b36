# SPDX-License-Identifier: Apache-2.0
"""Text to ids and back, without TensorFlow.

A vocabulary is named by a *spec*, one string:

  path/to/some.model        a SentencePiece file, with 100 extra ids
  gs://bucket/some.model    the same, fetched once over https and kept
  bytes                     UTF-8 bytes, ids 3..258, with 100 extra ids
  path/to/some.model:0      ":N" at the end asks for N extra ids instead
  path/to/tokenizer.json    as transformers saves it, extra ids included
  path/to/folder            a tokenizer that transformers saved: one of these

Ids equal those of seqio's vocabularies of the same file and number of extra
ids; `</s>` inside a text is one id, as in Hugging Face's T5 tokenizer. Decoded
texts are those of its `decode(ids, skip_special_tokens=True)`: padding,
unknown and extra ids leave no trace.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import sentencepiece

from dsbs_jax import contract
from dsbs_jax.data import download

T5_PUBLIC = download.T5_VOCABULARY
BYTES = 'bytes'
EXTRA_IDS = 100
EOS_TEXT = '</s>'
UNKNOWN_TEXT = ' ⁇ '  # how SentencePiece writes an unknown id

UNK_ID = 2
_UNK_NAME = '<unk>'
_OWN_NAMES = {'<pad>', EOS_TEXT, _UNK_NAME}
_NUM_SPECIAL_BYTES = 3  # pad, eos, unk stand before the 256 bytes
# Where transformers keeps a tokenizer, the most telling first.
_FILES = (
  *('spiece.model', 'sentencepiece.model', 'tokenizer.model'),
  'tokenizer.json',
)
_SPEC = re.compile(r'(?P<path>.+?)(?::(?P<extra_ids>\d+))?')


@dataclasses.dataclass(frozen=True)
class Spec:
  """A parsed spec: `path` is a file, a folder, a gs:// name or 'bytes'."""

  path: str
  extra_ids: int | None = None


def parse_spec(spec: str) -> Spec:
  """Splits `path[:extra ids]`.

  Args:
    spec: see the module's docstring.

  Raises:
    UserError: the spec is empty.
  """
  match = _SPEC.fullmatch(spec.strip())
  if match is None:
    raise contract.UserError(
      f"vocabulary is {spec!r}, expected a SentencePiece file, 'gs://...' or"
      " 'bytes', each with ':N' for N extra ids."
    )
  extra_ids = match['extra_ids']
  return Spec(match['path'], None if extra_ids is None else int(extra_ids))


def resolve(spec: str) -> Spec:
  """The file, or 'bytes', that a spec means, and its number of extra ids.

  Raises:
    UserError: there is no such file, or it cannot be reached.
  """
  parsed = parse_spec(spec)
  path, extra_ids = parsed.path, EXTRA_IDS
  if path != BYTES:
    if pathlib.Path(path).expanduser().is_dir():
      path, extra_ids = _in_folder(pathlib.Path(path).expanduser())
  if path != BYTES:
    path = str(local_file(path))
  if parsed.extra_ids is None:
    return Spec(path, extra_ids)
  if path.endswith('.json'):
    raise contract.UserError(
      f'vocabulary {spec!r} asks for {parsed.extra_ids} extra ids, but a'
      ' tokenizer.json has its own. Leave the number out.'
    )
  return Spec(path, parsed.extra_ids)


def _in_folder(folder: pathlib.Path) -> tuple[str, int]:
  """What a folder of transformers' means, and its number of extra ids."""
  file = folder / 'tokenizer_config.json'
  try:
    config = json.loads(file.read_text('utf-8')) if file.is_file() else {}
    keys = 'additional_special_tokens', 'extra_special_tokens'
    tokens = [token for key in keys for token in config.get(key) or ()]
    named = {str(token) for token in tokens if '<extra_id_' in str(token)}
    extra_ids = int(len(named) or config.get('extra_ids', EXTRA_IDS))
    added = dict(config.get('added_tokens_decoder') or {}).values()
    names = {str(token['content']) for token in added}
  except (ValueError, TypeError, AttributeError, KeyError) as error:
    raise contract.UserError(
      f'{file} cannot be read ({error}), expected a JSON object. Save the'
      ' tokenizer again.'
    ) from error
  if config.get('tokenizer_class') == 'ByT5Tokenizer':
    return BYTES, extra_ids
  # Tokens that somebody added are in no SentencePiece file.
  more = [n for n in names - _OWN_NAMES if not n.startswith('<extra_id_')]
  files = _FILES[-1:] if more else _FILES
  for name in files:
    if (folder / name).is_file():
      return str(folder / name), extra_ids
  raise contract.UserError(
    f'vocabulary {str(folder)!r} is a folder without {" or ".join(files)}.'
    ' Give a tokenizer that transformers saved, or a SentencePiece file.'
  )


class Vocabulary:
  """Ids of texts; what both kinds of vocabulary share.

  Each has `encode_parts`, from texts that hold no `</s>` to their ids without an
  end id, and `decode_ids`, from ids below `num_text_ids` to text.

  Attributes:
    size: number of ids, extra ids included; a model's table may be larger.
    num_text_ids: ids from here on are extra ids, which have no text.
    unk: the unknown id.
    fingerprint: hexadecimal digest of everything that decides the ids.
  """

  size: int
  num_text_ids: int
  unk: int
  fingerprint: str

  def encode(self, text: str) -> list[int]:
    """Ids of one text, without an end id."""
    return self.encode_all([text])[0]

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

  def __init__(self, model: bytes, *, extra_ids: int = EXTRA_IDS):
    self.model_with_extra_ids = with_extra_ids(model, extra_ids)
    self._processor = sentencepiece.SentencePieceProcessor(
      model_proto=self.model_with_extra_ids
    )
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
    self.fingerprint = _digest(b'sentencepiece', model, str(extra_ids).encode())

  def encode_parts(self, texts: Sequence[str]) -> list[list[int]]:
    return self._processor.encode(list(texts), num_threads=1)

  def decode_ids(self, ids: list[int]) -> str:
    return self._processor.decode(ids)

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

  def __init__(self, content: bytes):
    import tokenizers

    try:
      self._tokenizer = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # tokenizers raises nothing narrower
      raise contract.UserError(f'it is no tokenizer.json: {error}') from error
    self._tokenizer.no_padding()
    self._tokenizer.no_truncation()
    found = tuple(map(self._tokenizer.token_to_id, ('<pad>', EOS_TEXT)))
    if found != (contract.PAD_ID, contract.EOS_ID):
      raise contract.UserError(
        f'<pad> and </s> have the ids {found}, expected'
        f' {(contract.PAD_ID, contract.EOS_ID)}'
      )
    self.content = content
    self.size = 1 + max(self._tokenizer.get_vocab().values())
    self.num_text_ids = self.size
    self.unk = self._tokenizer.token_to_id(_UNK_NAME)
    added = self._tokenizer.get_added_tokens_decoder().items()
    self._silent = {i for i, token in added if token.special} - {self.unk}
    self.fingerprint = _digest(b'tokenizer.json', content)

  def encode_parts(self, texts: Sequence[str]) -> list[list[int]]:
    found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [row.ids for row in found]

  def decode_ids(self, ids: list[int]) -> str:
    kept = [token for token in ids if token not in self._silent]
    return self._tokenizer.decode(kept, skip_special_tokens=False)

  def without_unknown(self, text: str) -> str:
    known = text.replace(_UNK_NAME, '')
    return known.removeprefix(' ') if text.startswith(_UNK_NAME) else known

  def piece(self, token: int) -> str:
    """The piece of an id, for showing."""
    return self._tokenizer.id_to_token(int(token)) or f'<{token}>'


class ByteVocabulary(Vocabulary):
  """UTF-8 bytes as ids, after pad, eos and unk; extra ids at the end."""

  def __init__(self, *, extra_ids: int = EXTRA_IDS):
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
  """Raises where a model's table has fewer rows than there are ids."""
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
    spec: see the module's docstring.

  Raises:
    UserError: the file is absent, unreachable or no usable SentencePiece
      model.
  """
  parsed = resolve(spec)
  if parsed.path == BYTES:
    return ByteVocabulary(extra_ids=parsed.extra_ids)
  path = pathlib.Path(parsed.path)
  return _load_file(path, parsed.extra_ids, path.stat().st_mtime_ns)


@functools.cache
def _load_file(
  path: pathlib.Path, extra_ids: int, modified: int
) -> SentencePieceVocabulary | JsonVocabulary:
  del modified  # part of the cache's key: a rewritten file is read again
  try:
    if path.suffix == '.json':
      return JsonVocabulary(path.read_bytes())
    return SentencePieceVocabulary(path.read_bytes(), extra_ids=extra_ids)
  except (RuntimeError, ValueError, ModuleNotFoundError) as error:
    reason = ' '.join(str(error).split()).rstrip('.')
    raise contract.UserError(
      f'vocabulary {path} cannot be used ({reason}), expected a SentencePiece'
      " model of T5's kind. Give its .model file, 'bytes', or train one with"
      ' python -m dsbs_jax.prepare --train_vocab=4096.'
    ) from error


def local_file(path: str) -> pathlib.Path:
  """A file on this machine with the contents of `path`.

  Args:
    path: a local file, or gs://bucket/name, which is fetched once into the
      user's cache folder.

  Raises:
    UserError: there is no such file, or it cannot be reached.
  """
  if not path.startswith('gs://'):
    local = pathlib.Path(path).expanduser()
    if local.is_file():
      return local
    raise contract.UserError(
      f'vocabulary {path!r} is not a file. Give a SentencePiece model, '
      "'bytes', or train one with python -m dsbs_jax.prepare"
      ' --train_vocab=4096.'
    )
  root = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return _fetch(path, pathlib.Path(root) / 'dsbs_jax' / 'vocabularies')


@functools.cache
def _fetch(path: str, folder: pathlib.Path) -> pathlib.Path:
  name = path.removeprefix('gs://').replace('/', '_')
  try:
    return download.fetch(
      path,
      folder,
      name=name,
      num_tries=1,
      check=lambda file: with_extra_ids(file.read_bytes(), 0),
    )
  except contract.UserError as error:
    raise contract.UserError(
      f'vocabulary {path} cannot be fetched ({error}) Give a local'
      ' SentencePiece file, or train one with prepare --train_vocab.'
    ) from error


def write_file(path: pathlib.Path, contents: bytes) -> None:
  """Writes a file whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
    file.write(contents)
  os.chmod(file.name, 0o644)
  os.replace(file.name, path)


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
  """A SentencePiece model with extra ids at its end, as another such model."""
  proto = parse_model(model)
  for number in reversed(range(extra_ids)):
    proto.pieces.add(
      piece=f'▁<extra_id_{number}>',
      score=0.0,
      type=proto.SentencePiece.USER_DEFINED,
    )
  return proto.SerializeToString()


def _digest(*parts: bytes) -> str:
  hasher = hashlib.sha256()
  for part in parts:
    hasher.update(len(part).to_bytes(8, 'little'))
    hasher.update(part)
  return hasher.hexdigest()
