# SPDX-License-Identifier: Apache-2.0
"""How arrays are split over devices: mesh, table of path patterns, shardings.

The mesh has two axes. 'data' splits the rows of a batch, 'model' splits the
wide dimension of the weights. A table row is (pattern, PartitionSpec) over the
parameter's path, such as 'encoder/layers_0/mlp/wo/kernel', and each parameter
matches exactly one row. Stacked layers ('encoder/layers/...') use the same
rows: their leading layer axis is never split.

LoRA's pair of a kernel W [D, F] follows W's row: A [D, r] is split as W's rows
are, B [r, F] as its columns.

An axis that does not divide its dimension is dropped for that parameter, which
then is replicated over it; `dropped_axes` lists where this happened.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dsbs_jax import contract

DATA_AXIS = 'data'
MODEL_AXIS = 'model'

_LORA = re.compile(r'/lora_([ab])$')

Rules = tuple[tuple[str, PartitionSpec], ...]


def standard_rules() -> Rules:
  """Weights split over 'model' in their wide dimension, as T5X's 1-D rules.

  Replicated over 'data': for models that fit so. The relative bias is
  replicated, since its few heads seldom divide and it is tiny.
  """
  return _rules(embed_axis=None)


def fully_sharded_rules() -> Rules:
  """As `standard_rules`, and split over 'data' in the embedding dimension.

  Weights and optimizer state then take 1 / devices of their size on each
  device, and are gathered layer by layer when used. With a mesh of Nx1 this is
  fully sharded data parallelism.
  """
  return _rules(embed_axis=DATA_AXIS)


def _rules(embed_axis: str | None) -> Rules:
  wide_out = PartitionSpec(embed_axis, MODEL_AXIS)
  wide_in = PartitionSpec(MODEL_AXIS, embed_axis)
  return (
    (r'token_embedder/embedding', wide_in),
    (r'(encoder|decoder)/(.*/)?relpos_bias/rel_embedding', PartitionSpec()),
    (r'(encoder|decoder)/.*attention/(query|key|value)/kernel', wide_out),
    (r'(encoder|decoder)/.*attention/out/kernel', wide_in),
    (r'(encoder|decoder)/.*mlp/wi(_\d+)?/kernel', wide_out),
    (r'(encoder|decoder)/.*mlp/wo/kernel', wide_in),
    (r'(encoder|decoder)/.*_norm/scale', PartitionSpec()),
    (r'decoder/logits_dense/kernel', wide_out),
  )


def make_mesh(
  shape: str | Sequence[int] | None,
  *,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """A mesh with the axes 'data' and 'model'.

  On TPU pods its order follows the physical topology.

  Args:
    shape: '4x2' or (4, 2) for 4 data and 2 model shards; None for all devices
      on 'data'.
    devices: the devices to use; all of all processes by default.

  Raises:
    UserError: the shape is not two positive numbers, or their product is not
      the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = mesh_sizes(f'{len(devices)}x1' if shape is None else shape)
  if sizes[0] * sizes[1] != len(devices):
    raise contract.UserError(
      f'mesh {sizes[0]}x{sizes[1]} needs {sizes[0] * sizes[1]} devices, but'
      f' {len(devices)} are there ({devices[0].platform}). Choose two numbers'
      f' whose product is {len(devices)}, such as "{len(devices)}x1".'
    )
  return jax.make_mesh(
    sizes,
    (DATA_AXIS, MODEL_AXIS),
    axis_types=(AxisType.Auto, AxisType.Auto),
    devices=devices,
  )


def mesh_sizes(shape: str | Sequence[int]) -> tuple[int, int]:
  """Data and model shards of a mesh's shape, '4x2' or (4, 2).

  Raises:
    UserError: it is not two positive numbers.
  """
  sizes = tuple(shape) if isinstance(shape, tuple | list) else ()
  if isinstance(shape, str):
    match = re.fullmatch(r'(\d{1,6})x(\d{1,6})', shape.strip().lower())
    sizes = tuple(map(int, match.groups())) if match else ()
  whole = all(isinstance(size, int) and size >= 1 for size in sizes)
  if len(sizes) != 2 or not whole:
    raise contract.UserError(
      f'mesh is {shape!r}, expected data x model shards such as "4x2" or'
      ' (4, 2).'
    )
  return sizes


def path_name(path: Sequence[Any]) -> str:
  """A pytree path as text: 'encoder/layers_0/mlp/wo/kernel'."""
  return jax.tree_util.keystr(tuple(path), simple=True, separator='/')


def is_stacked(path: Sequence[Any]) -> bool:
  """Whether a parameter has a leading layer axis."""
  return 'layers' in path_name(path).split('/')


def specs(shapes: Any, rules: Rules) -> Any:
  """The PartitionSpec of each parameter, of full rank, as the table says.

  Args:
    shapes: parameter tree of arrays or ShapeDtypeStructs.
    rules: the table.

  Raises:
    UserError: a parameter matches no row or several, or a row's rank is
      higher than the parameter's.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: _spec(path, leaf.shape, rules), shapes
  )


def shardings(shapes: Any, mesh: Mesh, rules: Rules) -> Any:
  """The NamedSharding of each parameter; axes that do not divide are dropped.

  Args and errors: as in `specs`.
  """
  return jax.tree.map(
    lambda leaf, spec: NamedSharding(mesh, _divisible(leaf, spec, mesh)[0]),
    shapes,
    specs(shapes, rules),
  )


def state_shardings(state_shapes: Any, mesh: Mesh, rules: Rules) -> Any:
  """The NamedSharding of everything in a train state.

  Each tree inside the state that has the structure of `state.params` (the
  moments of AdamW, Adafactor's v) follows its parameters, array by array where
  the shapes are equal. All else (counters, factored moments, placeholders) is
  replicated, as in T5X. `state_shapes` are from `jax.eval_shape`.
  """
  params = state_shapes.params
  structure = jax.tree.structure(params)
  param_shardings = shardings(params, mesh, rules)
  replicated = NamedSharding(mesh, PartitionSpec())

  def follow(subtree):
    if jax.tree.structure(subtree) != structure:
      return replicated
    return jax.tree.map(
      lambda leaf, param, sharding: (
        sharding if leaf.shape == param.shape else replicated
      ),
      subtree,
      params,
      param_shardings,
    )

  followed = jax.tree.map(
    follow,
    state_shapes.replace(frozen=None),
    is_leaf=lambda tree: jax.tree.structure(tree) == structure,
  )
  return followed.replace(frozen=shardings(state_shapes.frozen, mesh, rules))


def dropped_axes(shapes: Any, mesh: Mesh, rules: Rules) -> list[str]:
  """One line of text for each mesh axis that does not divide its dimension.

  Args and errors: as in `specs`.
  """
  lines = []

  def visit(path, leaf, spec):
    for dimension, axis in _divisible(leaf, spec, mesh)[1]:
      lines.append(
        f'{path_name(path)}: dimension {dimension} of {tuple(leaf.shape)} is'
        f' not split over {axis!r} ({mesh.shape[axis]} shards)'
      )

  jax.tree_util.tree_map_with_path(visit, shapes, specs(shapes, rules))
  return lines


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over 'data', for every array of a batch."""
  return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def gradient_shards(mesh: Mesh, rules: Rules) -> int:
  """Data shards that can add up gradients of their own, summed once per step.

  Each shard then holds a gradient of the whole parameters: 1 where the rules
  split these over the data axis.
  """
  split = any(DATA_AXIS in spec for _, spec in rules)
  return 1 if split else mesh.shape[DATA_AXIS]


def _spec(path: Any, shape: Sequence[int], rules: Rules) -> PartitionSpec:
  """The one matching row's spec, padded to the parameter's rank."""
  name = path_name(path)
  part = _LORA.search(name)
  if part:
    kernel = (*path[:-1], jax.tree_util.DictKey('kernel'))
    # Of W's two dimensions, A has the first and B the second.
    rows, columns = _spec(kernel, shape, rules)[-2:]
    leading = (None,) * is_stacked(path)
    pair = {'a': (rows, None), 'b': (None, columns)}
    return PartitionSpec(*leading, *pair[part[1]])
  matches = [rule for rule in rules if re.fullmatch(rule[0], name)]
  if len(matches) != 1:
    raise contract.UserError(
      f'parameter {name} matches {len(matches)} rows of the sharding table,'
      f' expected exactly one: {[pattern for pattern, _ in matches]}. Add or'
      ' narrow a row.'
    )
  pattern, spec = matches[0]
  leading = (None,) * is_stacked(path)
  missing = len(shape) - len(leading) - len(spec)
  if missing < 0:
    raise contract.UserError(
      f'parameter {name} has shape {tuple(shape)}, but row {pattern!r} splits'
      f' {len(spec)} dimensions: {spec}. Correct the row.'
    )
  return PartitionSpec(*leading, *spec, *(None,) * missing)


def _divisible(
  leaf: Any, spec: PartitionSpec, mesh: Mesh
) -> tuple[PartitionSpec, list[tuple[int, str]]]:
  """The spec without axes that do not divide, and what was dropped."""
  kept, dropped = [], []
  for dimension, axis in enumerate(spec):
    if axis is not None and leaf.shape[dimension] % mesh.shape[axis]:
      dropped.append((dimension, axis))
      axis = None
    kept.append(axis)
  return PartitionSpec(*kept), dropped


def to_global(batch: Any, sharding: jax.sharding.Sharding) -> Any:
  """Puts this process's rows of a batch on its devices.

  From arrays [rows of this process, ...] to [rows of all processes, ...], whose
  sharding over all processes is given.
  """
  return jax.tree.map(
    lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch
  )
