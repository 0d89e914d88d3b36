# SPDX-License-Identifier: Apache-2.0
"""What names a vocabulary, and where its file lies.

A vocabulary is named by a *spec*, one string:

  path/to/some.model        a SentencePiece file, with 100 extra ids
  gs://t5-data/some.model   the same, fetched once over https and kept
  gs://bucket/some.model    the same, or s3://, with the rights of this account
  bytes                     UTF-8 bytes, ids 3..258, with 100 extra ids
  path/to/some.model:0      ":N" at the end asks for N extra ids instead
  path/to/tokenizer.json    as transformers saves it, extra ids included
  path/to/folder            a tokenizer that transformers saved: one of these
  path/to/folder#turns      of a Gemma, with inputs in the turns of a chat
  path#Q: {input} A:        the same, with a text of one's own around inputs
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
import tempfile
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data.remote import buckets, download, object_store

T5_PUBLIC = download.T5_VOCABULARY
BYTES = 'bytes'
_PUBLIC = 'gs://t5-data/'  # read without an account
EXTRA_IDS = 100
EOS_TEXT = '</s>'
UNKNOWN_NAME = '<unk>'

_OWN_NAMES = {'<pad>', EOS_TEXT, UNKNOWN_NAME}
# Where transformers keeps a tokenizer, the most telling first.
_FILES = (
  *('spiece.model', 'sentencepiece.model', 'tokenizer.model'),
  'tokenizer.json',
)
# What an input is put into: INPUT_FORMATS or a text with its place.
INPUT_FORMATS = {
  'turns': '<start_of_turn>user\n{input}<end_of_turn>\n<start_of_turn>model\n'
}
INPUT_PLACE = '{input}'
_SPEC = re.compile(
  r'(?P<path>.+?)(?::(?P<extra_ids>\d+))?'
  rf'(?:#(?P<input_format>{"|".join(INPUT_FORMATS)}|.*\{{input\}}.*))?',
  re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class Spec:
  """A parsed spec.

  Attributes:
    path: a file, a folder, a gs:// name or 'bytes'.
    extra_ids: their number, None where the spec does not say it.
    input_format: what an input is put into, '' for the vocabulary's own way.
  """

  path: str
  extra_ids: int | None = None
  input_format: str = ''

  def text(self) -> str:
    """The spec as it is written."""
    extra_ids = '' if self.extra_ids is None else f':{self.extra_ids}'
    return f'{self.path}{extra_ids}' + (
      f'#{self.input_format}' if self.input_format else ''
    )


def parse_spec(spec: str) -> Spec:
  """A spec's parts; UserError if it is empty, or no text ends inputs."""
  match = _SPEC.fullmatch(spec.lstrip() if '#' in spec else spec.strip())
  if match is None:
    raise contract.UserError(
      f"vocabulary is {spec!r}, expected a SentencePiece file, 'gs://...' or"
      " 'bytes', each with ':N' for N extra ids."
    )
  extra_ids = match['extra_ids']
  input_format = match['input_format'] or ''
  if input_format.endswith(INPUT_PLACE):
    raise contract.UserError(
      f'vocabulary {spec!r} puts nothing behind {INPUT_PLACE}, expected some'
      ' text: in one sequence, the target follows it.'
    )
  return Spec(
    match['path'], None if extra_ids is None else int(extra_ids), input_format
  )


def with_input_format(spec: str, input_format: str) -> str:
  """The spec of the same vocabulary with another text around inputs.

  Args:
    input_format: one of INPUT_FORMATS, or a text with {input}; '' for none.

  Raises:
    UserError: it is neither.
  """
  known = sorted(INPUT_FORMATS)
  if input_format and not (
    input_format in known or INPUT_PLACE in input_format
  ):
    raise contract.UserError(
      f'--input_format is {input_format!r}, expected one of {known}, or a text'
      f' with {INPUT_PLACE} where the input goes.'
    )
  return dataclasses.replace(parse_spec(spec), input_format=input_format).text()


def resolve(spec: str) -> Spec:
  """The spec of the file that a spec means; UserError if it cannot be had."""
  parsed = parse_spec(spec)
  path, extra_ids = parsed.path, EXTRA_IDS
  if path != BYTES:
    path = _from_bucket(path)
    if pathlib.Path(path).expanduser().is_dir():
      path, extra_ids = _in_folder(pathlib.Path(path).expanduser())
  if path != BYTES:
    path = str(_local_file(path))
  if parsed.extra_ids is None:
    return Spec(path, extra_ids, parsed.input_format)
  if path.endswith('.json'):
    raise contract.UserError(
      f'vocabulary {spec!r} asks for {parsed.extra_ids} extra ids, but a'
      ' tokenizer.json has its own. Leave the number out.'
    )
  return Spec(path, parsed.extra_ids, parsed.input_format)


def _from_bucket(path: str) -> str:
  """The local copy of a file or folder; of public gs:// files, the URL."""
  is_public = path.startswith('gs://') and (
    path.startswith(_PUBLIC) or not object_store.is_installed('gs')
  )
  if is_public or not object_store.is_bucket(path):
    return path
  found = buckets.fetch(path)
  if not found.exists():
    raise contract.UserError(
      f'vocabulary {path!r} is not there. Give a SentencePiece model in a'
      ' bucket, or a folder with a tokenizer.'
    )
  return str(found)


def _in_folder(folder: pathlib.Path) -> tuple[str, int]:
  """What a folder of transformers' means, and its number of extra ids."""
  config = _read_json(folder / 'tokenizer_config.json')
  try:
    keys = 'additional_special_tokens', 'extra_special_tokens'
    tokens = [token for key in keys for token in config.get(key) or ()]
    named = {str(token) for token in tokens if '<extra_id_' in str(token)}
    extra_ids = int(len(named) or config.get('extra_ids', EXTRA_IDS))
    more = _added_names(folder, config)
  except contract.UserError:
    raise
  except (ValueError, TypeError, AttributeError, KeyError) as error:
    raise contract.UserError(
      f'the tokenizer in {folder} cannot be read ({error!r:.200}), expected what'
      ' transformers writes. Save it again.'
    ) from error
  if config.get('tokenizer_class') == 'ByT5Tokenizer' and not more:
    return BYTES, extra_ids
  files = _FILES[-1:] if more else _FILES
  for name in files:
    if (folder / name).is_file():
      return str(folder / name), extra_ids
  raise contract.UserError(
    f'vocabulary {str(folder)!r} is a folder without {" or ".join(files)}.'
    ' Give a tokenizer that transformers saved, or a SentencePiece file.'
  )


def _added_names(folder: pathlib.Path, config: dict[str, Any]) -> list[str]:
  """Tokens that somebody added, which are in no SentencePiece file.

  transformers 4.34 and later name them in tokenizer_config.json, earlier ones
  in added_tokens.json, and 5 in tokenizer.json alone.
  """
  added = dict(config.get('added_tokens_decoder') or {}).values()
  if not added:
    added = _read_json(folder / _FILES[-1]).get('added_tokens') or ()
  names = {str(token['content']) for token in added}
  names.update(_read_json(folder / 'added_tokens.json'))
  own = {str(config.get(f'{name}_token')) for name in ('pad', 'eos', 'unk')}
  return [
    name
    for name in names - own - _OWN_NAMES
    if not name.removeprefix('▁').startswith('<extra_id_')
  ]


def _read_json(file: pathlib.Path) -> dict[str, Any]:
  """The JSON object in a file; {} where there is none."""
  try:
    return dict(json.loads(file.read_text('utf-8'))) if file.is_file() else {}
  except (ValueError, TypeError) as error:
    raise contract.UserError(
      f'{file} cannot be read ({error}), expected a JSON object. Save the'
      ' tokenizer again.'
    ) from error


def _local_file(path: str) -> pathlib.Path:
  """A file with the contents of `path`; gs:// is fetched once, and kept."""
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


def write_file(path: pathlib.Path, contents: bytes) -> None:
  """Writes a file whole or not at all, and creates its folder."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
    file.write(contents)
  os.chmod(file.name, 0o644)
  os.replace(file.name, path)
