# SPDX-License-Identifier: Apache-2.0
"""The two ways in which T5X keeps arrays on disk, read without T5X.

Legacy (the public pretrained checkpoints): `checkpoint_<n>/checkpoint` is a
msgpack map; a leaf is an array, or the description of a zarr folder beside it.
Orbax (the default today, and this project's own runs): `checkpoint_<n>/state`
holds an index, `_METADATA`, and the arrays in one OCDBT store or in folders.

Both are read into flat dicts, path -> `Leaf`; an array is fetched when asked
for, and only the part asked for, so that a device can load its own shard.
Paths may be local or gs://.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import tensorstore
from etils import epath
from flax import serialization, traverse_util

from dsbs_jax import contract

Index = tuple[slice | int, ...]
INDEX_FILE = 'checkpoint'
STATE_FOLDER = 'state'
# Where the built-in engine, and an export, writes what a run was made of.
RUN_METADATA = ('run', 'metadata')
_ORBAX_INDEX = '_METADATA'
_ARRAY_KINDS = ('jax.Array', 'np.ndarray', 'scalar')
# The oldest layout of the legacy format; before it, names differed.
_OLDEST_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Leaf:
  """An array on disk; `fetch` gives the part of it at an index."""

  shape: tuple[int, ...]
  fetch: Callable[[Index], np.ndarray]

  def read(self, index: Index = ()) -> np.ndarray:
    """The part of the array at `index`; all of it by default."""
    return np.asarray(self.fetch(index))

  def take(self, axis: int, position: int) -> 'Leaf':
    """One position along an axis, such as one layer of a scanned stack."""
    shape = self.shape[:axis] + self.shape[axis + 1 :]

    def fetch(index: Index) -> np.ndarray:
      index = index + (slice(None),) * (len(shape) - len(index))
      return self.fetch(index[:axis] + (position,) + index[axis:])

    return Leaf(shape, fetch)

  def reshape(self, shape: tuple[int, ...]) -> 'Leaf':
    """The same values in another shape; read whole, then cut."""
    return Leaf(shape, lambda index: self.read().reshape(shape)[index])


def of_array(array: Any) -> Leaf:
  """A leaf over an array that is in memory already."""
  array = np.asarray(array)
  return Leaf(array.shape, lambda index: array[index])


def stack(leaves: Sequence[Leaf]) -> Leaf:
  """One leaf with a new leading axis over leaves of one shape."""
  shape = (len(leaves),) + leaves[0].shape
  return Leaf(
    shape, lambda index: np.stack([leaf.read() for leaf in leaves])[index]
  )


def is_legacy(folder: epath.Path) -> bool:
  """Whether a checkpoint folder is in the legacy format."""
  return (folder / INDEX_FILE).is_file()


def orbax_state(folder: epath.Path) -> epath.Path | None:
  """The folder with the arrays of an Orbax checkpoint, None if it has none."""
  for place in (folder / STATE_FOLDER, folder):
    if (place / _ORBAX_INDEX).is_file():
      return place
  return None


def read_leaves(folder: epath.Path, prefix: str) -> dict[str, Leaf]:
  """The leaves below `prefix` ('target', 'state/step'), without the prefix.

  Returns:
    Path below the prefix ('' for the leaf itself) -> leaf.
  """
  state = orbax_state(folder)
  if state is not None:
    return _read_orbax(state, prefix)
  return _read_legacy(folder, prefix)


def _below(path: str, prefix: str) -> str | None:
  if path == prefix:
    return ''
  return path[len(prefix) + 1 :] if path.startswith(f'{prefix}/') else None


def _read_legacy(folder: epath.Path, prefix: str) -> dict[str, Leaf]:
  tree = _legacy_tree(folder)
  flat = traverse_util.flatten_dict(
    tree, is_leaf=lambda _, node: _is_zarr(node), sep='/'
  )
  leaves, stored = {}, {}
  for path, node in flat.items():
    below = _below(path, prefix)
    if below is not None and _is_zarr(node):
      stored[below] = _beside(folder, node)
    elif below is not None:
      leaves[below] = of_array(node)
  return leaves | _open_all(stored, folder)


def _legacy_tree(folder: epath.Path) -> Mapping[str, Any]:
  contents = (folder / INDEX_FILE).read_bytes()
  if contents.startswith(b'model_checkpoint_path'):
    raise contract.UserError(
      f'{folder} is a TensorFlow checkpoint, expected one that T5X, Hugging'
      ' Face or this project wrote. Convert it with T5X first (its'
      ' scripts/convert_tf_checkpoint.py), or take the converted public ones.'
    )
  try:
    tree = serialization.msgpack_restore(contents)
    version, optimizer = tree.get('version', 0), tree['optimizer']
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise _unreadable(folder / INDEX_FILE, error) from error
  if version < _OLDEST_VERSION:
    raise contract.UserError(
      f'{folder / INDEX_FILE} says version {version}, expected a T5X'
      f' checkpoint of version {_OLDEST_VERSION} or newer. Load it with the'
      ' T5X that wrote it and save it again.'
    )
  return optimizer


def _is_zarr(node: Any) -> bool:
  return isinstance(node, Mapping) and {'driver', 'kvstore'} <= set(node)


def _beside(folder: epath.Path, description: Mapping[str, Any]) -> dict:
  """Where a leaf's zarr folder is: beside the index, whatever wrote it."""
  path = description['kvstore'].get('path', description.get('path', ''))
  return {'driver': 'zarr', 'kvstore': kvstore(folder / path.rstrip('/'))}


def _read_orbax(state: epath.Path, prefix: str) -> dict[str, Leaf]:
  file = state / _ORBAX_INDEX
  try:
    index = json.loads(file.read_text())
    entries = [
      (
        [str(key['key']) for key in entry['key_metadata']],
        entry['value_metadata']['value_type'],
      )
      for entry in index['tree_metadata'].values()
    ]
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise _unreadable(file, error) from error
  driver = 'zarr3' if index.get('use_zarr3') else 'zarr'
  specs = {}
  for keys, kind in entries:
    below = _below('/'.join(keys), prefix)
    if below is None or kind not in _ARRAY_KINDS:
      continue
    name = '.'.join(keys)
    store = kvstore(state / name)
    if index.get('use_ocdbt'):
      base = kvstore(state)
      store = {'driver': 'ocdbt', 'base': base, 'path': f'{name}/'}
    specs[below] = {'driver': driver, 'kvstore': store}
  return _open_all(specs, state)


def kvstore(folder: epath.Path) -> dict[str, str]:
  """TensorStore's description of a local or gs:// folder."""
  path = str(folder)
  if path.startswith('gs://'):
    bucket, _, rest = path.removeprefix('gs://').partition('/')
    return {'driver': 'gcs', 'bucket': bucket, 'path': f'{rest}/'}
  # TensorStore refuses '..' in a path.
  return {'driver': 'file', 'path': f'{os.path.realpath(path)}/'}


def _open_all(
  specs: Mapping[str, Mapping[str, Any]], folder: epath.Path
) -> dict[str, Leaf]:
  """Opens arrays at the same time; path below the prefix -> leaf."""
  futures = {
    below: tensorstore.open(dict(spec), open=True, read=True)
    for below, spec in specs.items()
  }
  return {
    below: _of_store(future, f'{folder}: {below}')
    for below, future in futures.items()
  }


def _of_store(future: tensorstore.Future, place: str) -> Leaf:
  def fetch(index: Index) -> np.ndarray:
    part = store[index] if index else store
    array = _result(part.read(), place)
    # Version 2 wrote bfloat16 as its bits.
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.uint16 else array

  store = _result(future, place)
  return Leaf(tuple(store.shape), fetch)


def _result(future: tensorstore.Future, place: str) -> Any:
  try:
    return future.result()
  except ValueError as error:  # an array that is missing or damaged
    raise _unreadable(place, error) from error


def _unreadable(place: Any, error: Exception) -> contract.UserError:
  reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
  return contract.UserError(
    f'{place} cannot be read ({reason}), expected an intact T5X checkpoint. Get'
    ' it again, or take another one.'
  )
