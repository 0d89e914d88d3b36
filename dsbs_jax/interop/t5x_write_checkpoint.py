# SPDX-License-Identifier: Apache-2.0
"""Our parameters -> checkpoints that T5X restores, without T5X.

T5X's stock `finetune.gin` restores parameters, step and Adafactor's moments
and fails where the moments are absent, so they are written too: those of the
run if it trained with Adafactor, else zeros at step 0, a fresh optimizer. (At
step s Adafactor keeps 1 - (s + 1)^-0.8 of its moments: zeros with a late step
would stay wrong for thousands of steps.)
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from flax import serialization, traverse_util

from dsbs_jax import contract
from dsbs_jax.core import network
from dsbs_jax.interop import t5x_layers, t5x_storage

_VERSION = 3
_CHUNK_BYTES = 64 * 2**20
_MIN_DIM_TO_FACTOR = 128
_MOMENTS = ('v_row', 'v_col', 'v')
# Where our Adafactor's moments lie in the state of a chain of transformations.
_MOMENT = re.compile(
  r'(?:.*/)?(v_row|v_col|v)/((?:encoder|decoder|token_embedder)/.*)'
)

# Those of adapters are of no parameter that T5X has.
_LORA = re.compile(r'/lora_[ab]$')


def fresh_moments(params: Mapping[str, Any]) -> dict[str, Any]:
  """T5X's `param_states` of an Adafactor that has taken no step.

  Below each path of the unrolled parameters (arrays or shapes) {v_row, v_col,
  v, m}: float32 zeros, of shape (1,) where not used.
  """
  return jax.tree.map(lambda param: _zeros(param.shape), params)


def _zeros(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
  """The moments of one parameter; the shorter side is the row."""
  shapes = {'v': shape}
  if len(shape) == 2 and min(shape) >= _MIN_DIM_TO_FACTOR:
    shapes = {'v_row': (min(shape),), 'v_col': (max(shape),)}
  return {
    key: np.zeros(shapes.get(key, (1,)), np.float32) for key in (*_MOMENTS, 'm')
  }


def read_moments(
  checkpoint: str, config: network.T5Config
) -> dict[str, Any] | None:
  """T5X's `param_states` from a run of this project.

  Returns:
    As `fresh_moments`, unrolled; None if the run did not use Adafactor.
  """
  leaves = t5x_storage.read_leaves(epath.Path(checkpoint), 'state/param_states')
  found = {
    match.groups(): leaf
    for path, leaf in leaves.items()
    if (match := _MOMENT.fullmatch(path)) and not _LORA.search(path)
  }
  if not found:
    return None
  states = traverse_util.flatten_dict(
    fresh_moments(t5x_layers.unrolled_shapes(config)), sep='/'
  )
  for key in _MOMENTS:
    used = {
      name: leaf
      for (kind, name), leaf in found.items()
      if kind == key and leaf.shape != (1,)
    }
    for name, leaf in t5x_layers.unroll(used, place=checkpoint).items():
      states[f'{name}/{key}'] = leaf.read()
  return traverse_util.unflatten_dict(states, sep='/')


def save(
  model_dir: str,
  params: Mapping[str, Any],
  config: network.T5Config,
  *,
  step: int = 0,
  moments: Mapping[str, Any] | None = None,
  legacy: bool = False,
  run: Mapping[str, Any] | None = None,
) -> str:
  """Writes MODEL_DIR/checkpoint_<step>; gives its path.

  Args:
    params: parameters in the layout of `config`.
    step: the step that T5X goes on from.
    moments: Adafactor's, as `fresh_moments` or `read_moments` give; None leaves
      them out, which is enough for T5X's eval and infer.
    legacy: whether in the format of T5X's public checkpoints, not in Orbax's.
    run: what the run was made of, as our own checkpoints say; its `model` is
      always written, since shapes do not tell activations.
  """
  folder = _new_folder(model_dir, step, config, run)
  state = {'step': np.asarray(step, np.int32)}
  if moments is not None:
    state['param_states'] = dict(moments)
  tree = {'target': t5x_layers.unrolled_params(params, config), 'state': state}
  if legacy:
    _write_legacy(folder, tree)
  else:
    with ocp.PyTreeCheckpointer() as checkpointer:
      checkpointer.save(folder / t5x_storage.STATE_FOLDER, tree)
  return str(folder)


def _write_legacy(folder: epath.Path, tree: Mapping[str, Any]) -> None:
  index = {
    path: _write_zarr(folder, path, array)
    if _is_sharded(path, array)
    else array
    for path, array in traverse_util.flatten_dict(tree, sep='/').items()
  }
  contents = {
    'version': _VERSION,
    'optimizer': traverse_util.unflatten_dict(index, sep='/'),
  }
  # Last: a folder without it is no checkpoint.
  (folder / t5x_storage.INDEX_FILE).write_bytes(
    serialization.msgpack_serialize(contents)
  )


def _is_sharded(path: str, array: np.ndarray) -> bool:
  """Whether T5X cuts an array over devices; the others must be in the index."""
  return array.size > 1 and path.rpartition('/')[2] not in ('v_row', 'v_col')


def _new_folder(model_dir: str, step: int, config, run) -> epath.Path:
  """Makes a checkpoint's folder, with what its run was made of."""
  folder = epath.Path(model_dir).expanduser() / f'checkpoint_{step}'
  if not str(folder).startswith('gs://'):
    folder = folder.absolute()
  if folder.exists():
    raise contract.UserError(
      f'{str(folder)!r} exists, expected a new checkpoint folder. Choose'
      ' another folder, or remove this one.'
    )
  metadata = folder.joinpath(*t5x_storage.RUN_METADATA)
  metadata.parent.mkdir(parents=True)
  facts = {**(run or {}), 'model': dataclasses.asdict(config)}
  metadata.write_text(json.dumps(facts))
  return folder


def _write_zarr(
  folder: epath.Path, path: str, array: np.ndarray
) -> dict[str, Any]:
  """Writes an array beside the index; returns its entry in the index."""
  name = f'{path.replace("/", ".")}/'
  metadata = {
    'shape': list(array.shape),
    'chunks': _chunks(array.shape, array.itemsize),
    'compressor': {'id': 'gzip', 'level': 1},
  }
  entry = {'driver': 'zarr', 'dtype': str(array.dtype), 'metadata': metadata}
  spec = entry | {'kvstore': t5x_storage.kvstore(folder / name.rstrip('/'))}
  tensorstore.open(spec, create=True).result().write(array).result()
  return entry | {'kvstore': {'driver': 'file', 'path': name}}


def _chunks(shape: tuple[int, ...], itemsize: int) -> list[int]:
  """Halves the longest side until a chunk is small enough."""
  chunks = list(shape)
  while np.prod(chunks) * itemsize > _CHUNK_BYTES:
    longest = int(np.argmax(chunks))
    chunks[longest] = -(-chunks[longest] // 2)
  return chunks
