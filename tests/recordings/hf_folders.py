# SPDX-License-Identifier: Apache-2.0
"""Folders as transformers writes them, made of recorded files."""

import functools
import json
import pathlib
import shutil

from safetensors import numpy as safetensors_numpy

from tests.recordings import start_weights

BUNDLED = pathlib.Path(__file__).parent
KINDS = BUNDLED / 't5_kinds'
_TABLES = ('shared', 'encoder.embed_tokens', 'decoder.embed_tokens')


def with_weights(
  folder: pathlib.Path, *, config: pathlib.Path, weights: pathlib.Path
) -> pathlib.Path:
  """A folder in which these weights are those of a model of that config."""
  shutil.copy(config, folder / 'config.json')
  (folder / 'model.safetensors').symlink_to(weights)
  return folder


def with_start_weights(
  folder: pathlib.Path, *, trained: pathlib.Path
) -> pathlib.Path:
  """A folder with the start weights of a bundled model."""
  shutil.copy(trained / 'config.json', folder)
  tensors = safetensors_numpy.load_file(trained / 'model.safetensors')
  drawn = start_weights.draw({k: v.shape for k, v in tensors.items()})
  safetensors_numpy.save_file(drawn, folder / 'model.safetensors')
  return folder


@functools.cache
def kinds(version: str) -> dict[str, dict]:
  """What transformers said of each kind of T5: see record_t5_kinds.py."""
  return json.loads((KINDS / f'{version}.json').read_text())


def of_kind(folder: pathlib.Path, version: str, kind: str) -> pathlib.Path:
  """The folder of a T5 of that kind, as that transformers saved it."""
  said = kinds(version)[kind]
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(said['config']))
  drawn = {}
  for name, shape in said['shapes'].items():
    alias = name.removesuffix('.weight') in _TABLES
    source = 'shared.weight' if alias else name
    drawn[name] = start_weights.draw({source: tuple(shape)})[source]
  safetensors_numpy.save_file(drawn, folder / 'model.safetensors')
  return folder
