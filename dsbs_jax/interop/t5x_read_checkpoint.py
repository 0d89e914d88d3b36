# SPDX-License-Identifier: Apache-2.0
"""T5X checkpoints -> our parameters, without T5X.

Both of T5X's formats, its scanned layers, and this project's own runs (which
keep T5X's layout). Every name and shape is compared with the network's before
an array is read.
"""

import collections
import concurrent.futures
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from dsbs_jax import contract
from dsbs_jax.core import network
from dsbs_jax.interop import t5x_layers, t5x_storage

_STEP_FOLDER = re.compile(r'checkpoint_(\d+)')
_READERS = 16


def find(path: str) -> str:
  """The checkpoint folder that a path means.

  Args:
    path: a checkpoint folder, `MODEL_DIR/checkpoint_<n>`; its index file or
      `state` folder; or a MODEL_DIR, of which the newest checkpoint is taken.

  Raises:
    UserError: there is none; the message lists what is there.
  """
  place = epath.Path(path)
  found = _locate(place)
  if found is None:
    there = 'nothing'
    if place.is_dir():
      there = ', '.join(sorted(child.name for child in place.iterdir())[:8])
    elif place.exists():
      there = 'a file'
    raise contract.UserError(
      f'no T5X checkpoint at {path!r} (there is {there or "nothing"}),'
      ' expected checkpoint_<n> with a file `checkpoint` or a folder'
      ' `state`, or a MODEL_DIR with such folders. Check the path.'
    )
  return str(found)


def _locate(place: epath.Path) -> epath.Path | None:
  if place.name == t5x_storage.INDEX_FILE and place.is_file():
    return place.parent
  if not place.is_dir():
    return None
  if t5x_storage.is_legacy(place) or t5x_storage.orbax_state(place):
    return place
  steps = {
    int(match[1]): child
    for child in place.iterdir()
    if (match := _STEP_FOLDER.fullmatch(child.name))
  }
  return _locate(steps[max(steps)]) if steps else None


def load_params(
  path: str, config: network.Config, *, shardings: Any = None
) -> dict[str, Any]:
  """Reads a network of known size; as `read_checkpoint.load_params`.

  Args:
    config: the network; its layout (`scan_layers`) is the result's.

  Raises:
    UserError: a name or a shape differs from the network's.
  """
  folder = find(path)
  leaves = t5x_storage.read_leaves(epath.Path(folder), 'target')
  if not leaves:
    raise contract.UserError(
      f'{folder!r} has no parameters (no entries below `target`), expected'
      ' a T5X checkpoint.'
    )
  per_layer = getattr(config, 'relpos_bias_per_layer', False)
  leaves = t5x_layers.unroll(leaves, place=folder, per_layer=per_layer)
  shapes = t5x_layers.unrolled_shapes(config)
  expected = traverse_util.flatten_dict(shapes, sep='/')
  _check_names(leaves, expected, folder)
  _check_shapes(leaves, expected, folder)
  leaves = {name: leaves[name] for name in expected}
  if config.scan_layers:
    leaves = t5x_layers.restack(leaves)
  return _fetch(leaves, shardings)


def infer_config(path: str) -> network.T5Config:
  """The size of the network that a checkpoint holds, by its shapes.

  Shapes do not tell activations: two first MLP kernels are taken for T5 1.1's
  gated gelu, one for T5 1.0's relu.
  """
  folder = find(path)
  leaves = t5x_storage.read_leaves(epath.Path(folder), 'target')
  leaves = t5x_layers.unroll(leaves, place=folder, per_layer=None)
  shapes = {name: leaf.shape for name, leaf in leaves.items()}
  first = 'encoder/layers_0/'
  own_table = first + 'relpos_bias/rel_embedding'
  per_layer = own_table in shapes
  needed = (
    'token_embedder/embedding',
    own_table if per_layer else 'encoder/relpos_bias/rel_embedding',
    first + 'attention/query/kernel',
    first + 'mlp/wo/kernel',
  )
  missing = [name for name in needed if name not in shapes]
  if missing:
    raise contract.UserError(
      f'{folder!r} has no parameters {missing}, expected a T5 of T5X.'
    )
  embedding, table, query, wo = (shapes[name] for name in needed)
  gated = first + 'mlp/wi_0/kernel' in shapes
  # encoder/layers_0, encoder/layers_1, ...
  folders = {
    tuple(name.split('/')[:2]) for name in shapes if '/layers_' in name
  }
  layers = collections.Counter(stack for stack, _ in folders)
  return network.T5Config(
    vocab_size=embedding[0],
    emb_dim=embedding[1],
    num_heads=table[0],
    head_dim=query[1] // table[0],
    mlp_dim=wo[0],
    **{f'num_{stack}_layers': number for stack, number in layers.items()},
    mlp_activations=('gelu', 'linear') if gated else ('relu',),
    logits_via_embedding='decoder/logits_dense/kernel' not in shapes,
    num_buckets=table[1],
    relpos_bias_per_layer=per_layer,
  )


def _fetch(leaves: t5x_layers.Leaves, shardings: Any) -> dict[str, Any]:
  flat = traverse_util.flatten_dict(shardings or {}, sep='/')

  def fetch_one(name: str) -> Any:
    leaf = leaves[name]

    def part(index: t5x_storage.Index = ()) -> np.ndarray:
      return np.asarray(leaf.read(index), np.float32)

    if shardings is None:
      return part()
    return jax.make_array_from_callback(leaf.shape, flat[name], part)

  with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
    arrays = dict(zip(leaves, pool.map(fetch_one, leaves), strict=True))
  return traverse_util.unflatten_dict(arrays, sep='/')


def _check_names(
  found: Mapping[str, Any], expected: Mapping[str, Any], folder: str
) -> None:
  missing = sorted(set(expected) - set(found))
  surplus = sorted(set(found) - set(expected))
  names = ' '.join(missing + surplus)
  remedy = 'Check the number of layers, that is, the model file.'
  if '/wi/' in names or 'logits_dense' in names:
    remedy = (
      'One is T5 1.0 and the other 1.1: check MLP_ACTIVATIONS and'
      ' LOGITS_VIA_EMBEDDING, that is, the model file.'
    )
  if names:
    raise contract.UserError(
      f'{folder!r} has other parameters than the network: it lacks'
      f' {_some(missing)} and has, unexpected, {_some(surplus)}. {remedy}'
    )


def _check_shapes(
  found: t5x_layers.Leaves, expected: Mapping[str, Any], folder: str
) -> None:
  wrong = [
    (name, expected[name].shape, found[name].shape)
    for name in sorted(expected)
    if tuple(found[name].shape) != tuple(expected[name].shape)
  ]
  if not wrong:
    return
  for name, want, have in wrong:
    if name == 'token_embedder/embedding' and want[1] == have[1]:
      raise contract.UserError(
        f'{folder!r} was trained with a vocabulary of {have[0]} rows, the'
        f' network has {want[0]} ({name}: expected {want}, found {have}).'
        ' Set VOCAB_SIZE (and VOCABULARY) to those of the checkpoint.'
      )
  name, want, have = wrong[0]
  raise contract.UserError(
    f'{folder!r} is of another size than the network: {name} is {have},'
    f' expected {want}; {len(wrong)} of {len(expected)} parameters differ.'
    ' Check the model file.'
  )


def _some(names: list[str]) -> str:
  if not names:
    return 'nothing'
  rest = f' and {len(names) - 3} more' if len(names) > 3 else ''
  return ', '.join(names[:3]) + rest
