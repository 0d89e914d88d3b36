# SPDX-License-Identifier: Apache-2.0
"""The layouts in which a T5's layers are stored, brought to one.

  unrolled  encoder/layers_3/attention/query/kernel [D, H*K]      examples/t5
  scalable  encoder/encoder/attention/query/kernel  [D, N, H, K]  scalable_t5
            encoder/layers_3/attention/query/kernel [D, H, K]     not scanned
  stacked   encoder/layers/attention/query/kernel   [N, D, H*K]   this project

T5X's scalable_t5 keeps a relative bias table per layer, other layouts one table
per stack, unless the network is a umT5: the way from the one to the other is
exact only while all tables are equal.
"""

import collections
import dataclasses
import re
from collections.abc import Mapping

import jax
import numpy as np

from dsbs_jax import contract
from dsbs_jax.core import network
from dsbs_jax.core.t5 import parameters
from dsbs_jax.interop import t5x_storage

_UNROLLED = re.compile(r'layers_(\d+)')
_BIAS = 'relpos_bias/rel_embedding'
Leaves = dict[str, t5x_storage.Leaf]


def unroll(
  leaves: Mapping[str, t5x_storage.Leaf],
  *,
  place: str,
  per_layer: bool | None = False,
) -> Leaves:
  """Brings any of the layouts to the unrolled one.

  Args:
    per_layer: whether layers have relative bias tables of their own (umT5);
      None: where they differ.

  Raises:
    UserError: the layers of a stack have different relative bias tables, and
      the network one.
  """
  unrolled, tables = {}, {}
  for path, leaf in leaves.items():
    for layer_path, layer_leaf in _split(path, leaf):
      stack, _, rest = layer_path.partition('/')
      if stack in parameters.STACKS and re.fullmatch(
        rf'layers_\d+/{_BIAS}', rest
      ):
        tables[layer_path] = layer_leaf
      else:
        unrolled[layer_path] = _join_heads(layer_path, layer_leaf)
  return unrolled | (tables if per_layer else _shared(tables, place, per_layer))


def restack(leaves: Mapping[str, t5x_storage.Leaf]) -> Leaves:
  """Brings the unrolled layout to the stacked one."""
  stacked, groups = {}, collections.defaultdict(dict)
  for path, leaf in leaves.items():
    stack, _, rest = path.partition('/')
    layer, _, name = rest.partition('/')
    match = _UNROLLED.fullmatch(layer)
    if match:
      groups[f'{stack}/layers/{name}'][int(match[1])] = leaf
    else:
      stacked[path] = leaf
  for path, layers in groups.items():
    stacked[path] = t5x_storage.stack([layers[i] for i in sorted(layers)])
  return stacked


def unrolled_shapes(config: network.Config) -> dict:
  """The shapes of the unrolled tree of parameters."""
  return network.param_shapes(dataclasses.replace(config, scan_layers=False))


def unrolled_params(params: Mapping, config: network.Config) -> dict:
  """Parameters in the layout of `config` as NumPy's float32, unrolled."""
  if config.scan_layers:
    params = network.unstack_layers(params, config)
  return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)


def _split(path: str, leaf: t5x_storage.Leaf):
  """Yields the layers of a scanned leaf, or the leaf as it is."""
  stack, _, rest = path.partition('/')
  if stack in parameters.STACKS and rest.startswith(f'{stack}/'):
    axis, name = 1, rest.removeprefix(f'{stack}/')
  elif stack in parameters.STACKS and rest.startswith('layers/'):
    axis, name = 0, rest.removeprefix('layers/')
  else:
    yield path, leaf
    return
  for layer in range(leaf.shape[axis]):
    yield f'{stack}/layers_{layer}/{name}', leaf.take(axis, layer)


def _join_heads(path: str, leaf: t5x_storage.Leaf) -> t5x_storage.Leaf:
  """[D, H, K] -> [D, H*K], and [H, K, D] -> [H*K, D] for `out`."""
  if not path.endswith('/kernel') or len(leaf.shape) != 3:
    return leaf
  first, middle, last = leaf.shape
  if path.endswith('/out/kernel'):
    return leaf.reshape((first * middle, last))
  return leaf.reshape((first, middle * last))


def _shared(tables: Leaves, place: str, per_layer: bool | None) -> Leaves:
  """The one table of each stack, if its layers agree."""
  read = {
    path: np.asarray(leaf.read(), np.float32) for path, leaf in tables.items()
  }
  shared = {}
  for path, table in read.items():
    stack, layer = path.split('/')[:2]
    first = read[f'{stack}/layers_0/{_BIAS}']
    if not np.array_equal(table, first):
      if per_layer is None:
        return tables
      raise contract.UserError(
        f'{place}: {stack} has a relative bias per layer and layer'
        f' {layer.removeprefix("layers_")} differs from layer 0 by'
        f' {np.max(np.abs(table - first)):.3g}, expected equal tables: this'
        ' network shares one per stack. Give'
        ' --gin.RELPOS_BIAS_PER_LAYER=True, as for umT5.'
      )
    shared[f'{stack}/{_BIAS}'] = t5x_storage.of_array(first)
  return shared
