# SPDX-License-Identifier: Apache-2.0
"""Converts a checkpoint to CTranslate2 once, and keeps the model on disk.

Models lie in a per-user folder beside the compiled programs, each under a
digest of the checkpoint's files, network and vocabulary: another checkpoint
under the same name is another model. The few used last are kept. A reader
copies a model to its memory, so that deleting one disturbs nobody.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from dsbs_jax.core.t5.config import T5Config
from dsbs_jax.inference.backends import ct2_engine
from dsbs_jax.interop import checksums, ct2_model
from dsbs_jax.runtime import compilation_cache, progress

FACTS_FILE = 'facts.json'

_KEPT = 4
_FORMAT = 2
# Items of a checkpoint of ours by which its student is known.
_ITEMS = ('state/', 'run/')
# How weights are stored -> the type that CPUs compute in.
_COMPUTE_TYPES = {'float32': 'float32', 'int8': 'int8_float32'}


def load(
  checkpoint: str | pathlib.PurePath,
  read: Callable[[], tuple[Any, dict[str, Any]]],
  config: T5Config,
  *,
  quantization: str,
  vocabulary: str,
) -> tuple[ct2_engine.Engine, dict[str, Any]]:
  """Takes the model from the cache, or converts the checkpoint.

  Args:
    read: gives its parameters and JSON values to keep with the model; not
      called where the model is there.
    vocabulary: fingerprint of the vocabulary that `read` compares with.
  """
  key = _digest(
    checkpoint,
    config=dataclasses.asdict(config),
    facts=[_FORMAT, ct2_model.version(), quantization, vocabulary],
  )
  name = f'{quantization}-{key[:32]}'
  folder = compilation_cache.user_folder() / 'ct2' / name
  if (folder / FACTS_FILE).is_file():
    with contextlib.suppress(OSError):
      os.utime(folder / FACTS_FILE)
    return _open(folder, config, quantization)
  params, facts = read()
  with _scratch_folder(folder.parent) as name:
    partial = pathlib.Path(name)
    tokens = [str(token) for token in range(config.vocab_size)]
    ct2_model.save(
      partial, params, config, tokens=tokens, quantization=quantization
    )
    (partial / FACTS_FILE).write_text(json.dumps(facts))
    if partial.parent != folder.parent:
      return _open(partial, config, quantization)
    with contextlib.suppress(OSError):  # another process was faster
      partial.rename(folder)
  _keep_newest(folder.parent)
  progress.say(f'converted once for CTranslate2, {quantization}: {folder}')
  return _open(folder, config, quantization)


def _open(
  folder: pathlib.Path, config: T5Config, quantization: str
) -> tuple[ct2_engine.Engine, dict[str, Any]]:
  facts = json.loads((folder / FACTS_FILE).read_text())
  engine = ct2_engine.Engine(
    str(folder),
    compute_type=_COMPUTE_TYPES[quantization],
    vocab_size=config.vocab_size,
  )
  return engine, facts


def _scratch_folder(parent: pathlib.Path) -> tempfile.TemporaryDirectory:
  """A folder in the cache, or anywhere where the cache is read-only."""
  options = {'prefix': '.', 'ignore_cleanup_errors': True}
  try:
    parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=parent, **options)
  except OSError:
    return tempfile.TemporaryDirectory(**options)


def _keep_newest(parent: pathlib.Path) -> None:
  """Deletes all models but those that were used last."""
  used = sorted(
    parent.glob(f'*/{FACTS_FILE}'), key=lambda file: file.stat().st_mtime_ns
  )
  for file in used[:-_KEPT]:
    shutil.rmtree(file.parent, ignore_errors=True)


def _digest(
  checkpoint: str | pathlib.PurePath, **facts: Mapping[str, Any] | list[Any]
) -> str:
  """Of the bytes of a checkpoint, and of facts."""
  hasher = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
  folder = epath.Path(checkpoint)
  digests = checksums.digests(folder)
  if digests is not None:  # scores are added later
    kept = [item for item in digests.items() if item[0].startswith(_ITEMS)]
    hasher.update(json.dumps(sorted(kept)).encode())
    return hasher.hexdigest()
  for path in _files(folder):
    hasher.update(str(path.relative_to(folder)).encode() + b'\0')
    with path.open('rb') as file:
      while block := file.read(1 << 20):
        hasher.update(block)
  return hasher.hexdigest()


def _files(folder: epath.Path) -> list[epath.Path]:
  found = []
  for path in sorted(folder.iterdir()):
    found += _files(path) if path.is_dir() else [path]
  return found
