# SPDX-License-Identifier: Apache-2.0
"""Folders as transformers writes them, made of recorded files."""

import pathlib
import shutil

from safetensors import numpy as safetensors_numpy

from tests.recordings import start_weights

BUNDLED = pathlib.Path(__file__).parent


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
