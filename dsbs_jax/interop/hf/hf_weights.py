# SPDX-License-Identifier: Apache-2.0
"""Tensors in a Hugging Face folder: safetensors, or .bin where it is allowed.

A .bin file is a pickle, which may run anything when it is loaded; only torch's
weights-only loader ever opens one, and only where the user says so.
"""

import json
import pathlib
from collections.abc import Callable
from pickle import UnpicklingError  # the error alone: nothing is unpickled

import numpy as np
import safetensors

from dsbs_jax import contract

_FLOATS = ('F64', 'F32', 'F16', 'BF16')


def _open_safetensors(path: pathlib.Path) -> dict[str, Callable]:
  """Opens a file: name -> function that reads the tensor as float32."""
  try:
    # As JAX's arrays: NumPy's reader of this package knows no bfloat16.
    file = safetensors.safe_open(path, 'flax')
  except (safetensors.SafetensorError, OSError, ValueError) as error:
    raise contract.UserError(
      f'{path} is not a complete safetensors file'
      f' ({" ".join(str(error).split())[:200]}). Fetch it again.'
    ) from error
  for name in file.keys():
    dtype = file.get_slice(name).get_dtype()
    if dtype not in _FLOATS:
      raise contract.UserError(
        f'{path}: {name} has the dtype {dtype}, which is not supported,'
        f' expected one of {", ".join(_FLOATS)}. Take a copy of the model that'
        ' is not quantised.'
      )
  return {
    name: lambda name=name: np.asarray(file.get_tensor(name), np.float32)
    for name in file.keys()
  }


def _open_bin(path: pathlib.Path) -> dict[str, Callable]:
  try:
    import torch
  except ImportError as error:
    raise contract.UserError(
      f'{path} is a pickled file, which only torch reads, and torch is not'
      ' installed. Install it, or save the model as safetensors.'
    ) from error
  try:
    tensors = torch.load(path, map_location='cpu', weights_only=True)
    if not isinstance(tensors, dict) or not all(
      isinstance(tensor, torch.Tensor) for tensor in tensors.values()
    ):
      raise AttributeError('it is not a table of tensors')
  except (UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
    raise contract.UserError(
      f'{path} is refused by the weights-only loader'
      f' ({" ".join(str(error).split())[:200]}), expected tensors and nothing'
      ' else. Do not load it in another way; take safetensors.'
    ) from error
  return {
    name: lambda tensor=tensor: tensor.float().numpy()
    for name, tensor in tensors.items()
  }


def _shards(index: pathlib.Path) -> list[str]:
  try:
    weight_map = json.loads(index.read_text())['weight_map']
    return sorted({str(name) for name in weight_map.values()})
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise contract.UserError(
      f'{index} cannot be read ({error!r:.200}), expected a JSON object with'
      ' weight_map. Fetch the model again.'
    ) from error


def open_folder(
  folder: pathlib.Path, *, allow_pickle: bool
) -> dict[str, Callable]:
  """Opens the weights of a folder without reading them.

  Args:
    folder: with model.safetensors, or its shards and their index.
    allow_pickle: whether pickled pytorch_model.bin files are read too, by
      torch's weights-only loader.

  Returns:
    Name -> function that reads the tensor as float32.

  Raises:
    UserError: there are no weights, or not as they should be.
  """
  kinds = [('model.safetensors', _open_safetensors)]
  if allow_pickle:
    kinds.append(('pytorch_model.bin', _open_bin))
  for name, opener in kinds:
    index = folder / f'{name}.index.json'
    if (folder / name).is_file():
      return opener(folder / name)
    if index.is_file():
      tensors = {}
      for shard in _shards(index):
        own = pathlib.PurePath(shard).name == shard
        if not own or not (folder / shard).is_file():
          raise contract.UserError(
            f'{index} names the shard {shard!r}, expected a file of its own'
            ' folder. Fetch the model again.'
          )
        tensors |= opener(folder / shard)
      return tensors
  found = sorted(path.name for path in folder.glob('*') if path.is_file())
  raise contract.UserError(
    f'{folder} has no model.safetensors and no model.safetensors.index.json'
    f' (it has {found[:8]}). A pickled pytorch_model.bin is read only with'
    ' --gin.ALLOW_PICKLE=True, or export --allow_pickle, and then by the'
    ' weights-only loader.'
  )
