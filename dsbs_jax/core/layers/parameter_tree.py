# SPDX-License-Identifier: Apache-2.0
"""Parameter trees from descriptions: shapes, axes, initial values, layouts.

A tree is nested dicts of `Spec`. The layers of a stack are equal; they are
subtrees `layers_0`, `layers_1`, ... of the stack, or with `scan_layers` one
subtree `layers` with a leading axis N.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Spec:
  """One parameter.

  Attributes:
    shape: its shape.
    axes: T5X's name of each axis.
    draw: typed key and shape -> initial values, float32.
  """

  shape: tuple[int, ...]
  axes: tuple[str, ...]
  draw: Callable[[jax.Array, tuple[int, ...]], jax.Array]


@dataclasses.dataclass(frozen=True)
class Tree:
  """The parameters of a network.

  Attributes:
    outer: specs of everything but the layers.
    layers: stack -> its number of layers, and the specs of one.
    scan_layers: whether the layers of a stack are one subtree.
  """

  outer: dict
  layers: Mapping[str, tuple[int, dict]]
  scan_layers: bool

  def shapes(self) -> dict:
    """The tree with a float32 jax.ShapeDtypeStruct at each leaf."""
    return _map(
      lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32), self._specs()
    )

  def axes(self) -> dict:
    """The tree with a tuple of axis names at each leaf."""
    return _map(lambda spec: spec.axes, self._specs())

  def init(self, key: jax.Array) -> dict:
    """Draws the parameters; both layouts, and every sharding, get the same."""
    params = _draw(key, self.outer)
    for stack, (number, specs) in self.layers.items():
      # One draw per kernel for all layers: a large T5 would otherwise ask the
      # compiler for hundreds of random number generators.
      stack_key = jax.random.fold_in(key, zlib.crc32(stack.encode()))
      drawn = _draw(stack_key, specs, (number,))
      # Without the barrier XLA would fuse the draw of all layers into the slice
      # of each: T5 base took more than two minutes to compile on a GPU, now
      # 28 s.
      params[stack]['layers'] = jax.lax.optimization_barrier(drawn)
    return params if self.scan_layers else self.unstack(params)

  def stack(self, params: dict) -> dict:
    """Turns the layout of `scan_layers=False` into that of True, losslessly."""

    def convert(number, subtree):
      layers = [subtree[f'layers_{i}'] for i in range(number)]
      return {'layers': jax.tree.map(_stack, *layers)}

    return self._map_stacks(params, convert)

  def unstack(self, params: dict) -> dict:
    """The inverse of `stack`."""

    def convert(number, subtree):
      return {
        f'layers_{i}': jax.tree.map(
          lambda leaf, i=i: leaf[i], subtree['layers']
        )
        for i in range(number)
      }

    return self._map_stacks(params, convert)

  def _specs(self) -> dict:
    tree = dict(self.outer)
    for stack, (number, layer) in self.layers.items():
      if self.scan_layers:
        layer = _map(
          lambda spec, number=number: Spec(
            (number, *spec.shape), ('layers', *spec.axes), spec.draw
          ),
          layer,
        )
      names = layer_names(number, scan_layers=self.scan_layers)
      tree[stack] = tree[stack] | dict.fromkeys(names, layer)
    return tree

  def _map_stacks(
    self, params: dict, convert: Callable[[int, dict], dict]
  ) -> dict:
    """Replaces the layer subtrees of all stacks, keeps everything else."""
    changed = dict(params)
    for stack, (number, _) in self.layers.items():
      outer = {
        name: node
        for name, node in params[stack].items()
        if not name.startswith('layers')
      }
      changed[stack] = outer | convert(number, params[stack])
    return changed


def round_large(params: dict, dtype: str) -> dict:
  """Kernels and embeddings in a dtype; norms, position tables stay float32."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: (
      leaf.astype(dtype) if path[-1].key in ('kernel', 'embedding') else leaf
    ),
    params,
  )


def uniform(limit: float) -> Callable[[jax.Array, tuple[int, ...]], jax.Array]:
  """The `draw` of a `Spec` with values in +-limit."""
  return lambda key, shape: jax.random.uniform(
    key, shape, jnp.float32, minval=-limit, maxval=limit
  )


def layer_names(number: int, *, scan_layers: bool) -> tuple[str, ...]:
  """Names of the subtrees of a stack's layers; one, `layers`, when scanned."""
  if scan_layers:
    return ('layers',)
  return tuple(f'layers_{i}' for i in range(number))


def _map(function: Callable[[Spec], Any], specs: dict) -> dict:
  return jax.tree.map(
    function, specs, is_leaf=lambda node: isinstance(node, Spec)
  )


def _draw(key: jax.Array, specs: dict, leading: tuple[int, ...] = ()) -> dict:
  """Draws a tree; each leaf's key comes from its path, not from its order."""

  def draw_leaf(path, spec):
    leaf_key = jax.random.fold_in(key, zlib.crc32(str(path).encode()))
    return spec.draw(leaf_key, leading + spec.shape)

  return jax.tree_util.tree_map_with_path(
    draw_leaf, specs, is_leaf=lambda node: isinstance(node, Spec)
  )


def _stack(*leaves):
  """Stacks on the host what is on the host."""
  on_host = all(isinstance(leaf, np.ndarray) for leaf in leaves)
  return (np if on_host else jnp).stack(leaves)
