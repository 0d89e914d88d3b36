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
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
import tempfile

from dsbs_jax import contract
from dsbs_jax.data import (
  buckets,
  download,
  object_store,
  sentencepiece_model,
)

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
    path = _from_bucket(path)
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
      check=lambda file: sentencepiece_model.with_extra_ids(
        file.read_bytes(), 0
      ),
    )
  except contract.UserError as error:
    raise contract.UserError(
      f'vocabulary {path} cannot be fetched ({error}) Give a local'
      ' SentencePiece file, or train one with prepare --train_vocab.'
    ) from error


def write_file(path: pathlib.Path, contents: bytes) -> None:
  """Writes a file whole or not at all, and creates its folder."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
    file.write(contents)
  os.chmod(file.name, 0o644)
  os.replace(file.name, path)
